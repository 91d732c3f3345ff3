"""What we time: training steps, grids, decoding."""
