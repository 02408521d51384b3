"""Difficulty metrics; every module here is found by the registry DIFFICULTY_METRICS."""
