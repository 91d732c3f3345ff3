"""Writes a config file: a program with a comment above each decision."""

import itertools
import textwrap
from collections.abc import Iterable, Sequence

from mgjax.new.choose import Setting

_WIDTH = 80

_TEMPLATE = '''\
r"""{title}

{commands}

Arguments after the colon of --config:
  grid  none, short, long or both
  seed  an integer

Written by python -m mgjax.new; it is yours to change. Every setting that there
is has a comment in {fields}.

{found}
"""

import pathlib

{imports}

HERE = pathlib.Path(__file__).resolve().parent


def get_config(arg=''):
  args = arguments.parse_args(arg, grid={grid!r}, seed=0)
{start}
  config.seed = args.seed
  config.data.name = {name!r}
  config.data.dir = str(HERE / 'data')
  config.data.decoded_cache_dir = str(HERE / 'frames')

{body}

{grid_comment}
  config.grid.mode = args.grid
  return config
'''


def text(
  settings: Iterable[Setting],
  *,
  name: str,
  commands: Sequence[str],
  found: Sequence[str],
  weights: str,
  grid: str,
  why_grid: str,
  fields: str,
) -> str:
  """The config file.

  Args:
    settings: What it sets, but the grid.
    name: Of the data set, in the folder `data` beside the file.
    commands: What follows in a shell, less `python -m mgjax.`.
    found: Lines about the videos.
    weights: Folder of the weights to start from, relative to that of the file;
      '': from scratch.
    grid: The mode.
    why_grid: Why.
    fields: File that has all settings.
  """
  imports = ['from mgjax.config import arguments, fields']
  start = ['config = fields.base()']
  if weights:
    imports = ['import mgjax', 'from mgjax.config import arguments']
    start = [
      '# The recipe of fine-tuning: network, rates and augmentation.',
      f'weights = HERE / {weights!r}',
      "config = mgjax.read_config(f'finetune:weights={weights}')",
    ]
  return _TEMPLATE.format(
    title=f'Trains on the videos of {name}.',
    commands='\n'.join(f'python -m mgjax.{command}' for command in commands),
    fields=fields,
    # In a raw text between three quotation marks.
    found='\n'.join(_wrapped(found)).replace('"""', "'''"),
    imports='\n'.join(imports),
    start=_indented(start),
    name=name,
    body=_indented(_lines(settings)),
    grid=grid,
    grid_comment=_indented(_comment(why_grid)),
  )


def _wrapped(lines: Iterable[str]) -> list[str]:
  # Names of classes as long as they are.
  wrap = lambda line: textwrap.wrap(line, _WIDTH, break_long_words=False)
  return [part for line in lines for part in wrap(line)]


def _indented(lines: Iterable[str]) -> str:
  return '\n'.join(f'  {line}' if line else '' for line in lines)


def _comment(sentences: str) -> list[str]:
  return textwrap.wrap(
    sentences,
    _WIDTH - 2,  # Less the indentation.
    initial_indent='# ',
    subsequent_indent='# ',
    break_on_hyphens=False,
  )


def _lines(settings: Iterable[Setting]) -> list[str]:
  """Assignments with their comments; an empty line between sections."""
  section = lambda setting: setting.field.partition('.')[0]
  blocks = [
    [
      line
      for setting in group
      for line in (
        *_comment(setting.why),
        f'config.{setting.field} = {setting.value!r}',
      )
    ]
    for _, group in itertools.groupby(settings, section)
  ]
  return [line for block in blocks for line in ('', *block)][1:]
