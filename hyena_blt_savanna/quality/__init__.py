"""Quality at equal compute: contenders trained on the same data with the same budget, and what came of it."""
