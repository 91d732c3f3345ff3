"""Labels for videos of your own."""
