"""Distillation losses, one file each; a file here is found by the registry LOSSES."""
