"""Distillation losses, a file for each method; every module here is found by the registry LOSSES."""
