"""The mesh of ranks, and what a layer needs from its neighbours on it."""
