"""Pictures of runs: how they are written, and names of files in them.

A name may have any characters. Matplotlib takes what stands between two '$' for
a formula, fails at those that are none, and warns on stderr of every character
that its font lacks.
"""

import io
import warnings

import numpy as np
from etils import epath
from matplotlib import figure
from matplotlib.backends import backend_agg

from mgjax import files

# For matplotlib.rc_context around a drawing and `save`: ticks are made, and
# styled, as late as when they are drawn.
STYLE = {'font.size': 9, 'axes.titlesize': 10}
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


def save(fig: figure.Figure, path: epath.PathLike | None = None) -> np.ndarray:
  """Draws a figure, and writes it as a PNG where a path is given.

  Characters that the font lacks become boxes, without a warning.

  Returns:
    The picture, uint8 [H, W, 3].

  Raises:
    OSError: The file cannot be written; an older one of this name stays.
  """
  canvas = backend_agg.FigureCanvasAgg(fig)
  png = io.BytesIO()
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph .* missing from font')
    warnings.filterwarnings('ignore', 'Matplotlib currently does not support')
    canvas.print_png(png)
  if path is not None:
    files.write_bytes(path, png.getvalue())
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()
