"""Accuracy of a checkpoint, and its pictures."""
