"""Difficulty schedulers, one file each; a file here is found by the registry DIFFICULTY_SCHEDULERS."""
