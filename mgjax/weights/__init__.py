"""Weights of other frameworks: their files and names, import and export."""
