"""Difficulty schedulers; every module here is found by the registry DIFFICULTY_SCHEDULERS."""
