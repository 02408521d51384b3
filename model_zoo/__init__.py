"""Networks by family, published checkpoints, and teacher-student pairs with their recipes."""
