"""Experiment configurations. `default.py` documents every field."""
