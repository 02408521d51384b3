"""Training, evaluation, checkpoints: the loop that a batch walks through."""
