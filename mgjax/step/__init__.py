"""One training step, and its programs, each compiled once."""
