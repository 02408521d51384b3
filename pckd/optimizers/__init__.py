"""Optimizers; every module here is found by the registry OPTIMIZERS."""
