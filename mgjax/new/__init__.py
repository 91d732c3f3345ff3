"""From a folder of videos to a config file; __main__.py is the command."""

# Nothing is imported here: `python -m` runs this before __main__.py, which
# listens to signals before anything that takes time is imported.
