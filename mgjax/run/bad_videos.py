"""Training videos that had to be replaced: counted, named, too many refused."""

import sys
from collections.abc import Iterable, Sequence

from mgjax.errors import RunError


def note(
  known: dict[str, str],
  skipped: Iterable[Sequence[str]],
  *,
  num_train: int,
  max_fraction: float,
) -> None:
  """Adds replaced videos to the known ones; names each once on stderr.

  Args:
    known: Reason by name; gets more.
    skipped: (name, reason) of each video that was replaced in a step.
    num_train: Videos of the training set.
    max_fraction: Share of them that may be replaced, 0 to 1.

  Raises:
    RunError: More are.
  """
  for name, reason in skipped:
    if name not in known:
      known[name] = reason
      print(f'\ncannot decode {name}: {reason}; replaced', file=sys.stderr)
  if len(known) > max_fraction * num_train:
    name, reason = list(known.items())[-1]
    raise RunError(
      f'{len(known)} of {num_train} training videos cannot be decoded, more '
      f'than data.max_bad_fraction={max_fraction} allows; the last is {name}: '
      f'{reason}'
    )
