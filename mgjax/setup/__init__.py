"""From settings to what a run is made of."""
