"""Flags of the programs here, which have no config."""

import argparse
from typing import Any, NoReturn


class ArgumentParser(argparse.ArgumentParser):
  """For commands without a config: reports an error in one line, code 2.

  Descriptions and epilogs are printed as they are; flags have no short forms.
  """

  def __init__(self, **options: Any):
    super().__init__(
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
      **options,
    )

  def error(self, message: str) -> NoReturn:
    self.exit(2, f'error: {" ".join(message.split())}\n')
