"""Hyena-BLT registered inside Savanna: a layer over the submodule `savanna/`, none of whose files are changed."""
