"""A training run and its checkpoints."""
