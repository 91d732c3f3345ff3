"""Writes the tables of all pages: see readmes.py."""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import sys

from experiments.tables import readmes
from mgjax import cli

if __name__ == '__main__':
  sys.exit(cli.run(readmes.main, readmes.define_flags, takes_config=False))
