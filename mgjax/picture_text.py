"""Names of files and classes in pictures, shown as they are.

A name may have any characters. Matplotlib takes what stands between two '$' for
a formula, fails at those that are none, and warns on stderr of every character
that its font lacks.
"""

import contextlib
import warnings
from collections.abc import Iterator

# For every Text with a name in it.
PLAIN = {'parse_math': False}


def printable(name: str, max_length: int = 0) -> str:
  """A name in one line, without characters that no file or terminal takes.

  Args:
    name: Control characters, and bytes that were no UTF-8, are written as
      \\n, \\x...
    max_length: Characters to return at most; a longer name loses its middle.
      0: no limit.
  """
  text = ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in name
  )
  if max_length and len(text) > max_length:
    half = (max_length - 1) // 2
    text = f'{text[:half]}…{text[-half:]}'
  return text


@contextlib.contextmanager
def any_characters() -> Iterator[None]:
  """Draws a box for what the font lacks, without a warning."""
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph .* missing from font')
    warnings.filterwarnings('ignore', 'Matplotlib currently does not support')
    yield
