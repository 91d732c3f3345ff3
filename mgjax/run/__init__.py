"""A run: the loop, its folder, checkpoints, metrics and reports."""
