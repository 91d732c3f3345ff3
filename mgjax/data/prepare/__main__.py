"""The command `python -m mgjax.data.prepare`; see the package for its text."""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import sys

from mgjax.data.prepare import command

if __name__ == '__main__':
  sys.exit(command.main())
