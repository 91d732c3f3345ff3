"""The grid of every step: schedules and what makes them. No JAX."""
