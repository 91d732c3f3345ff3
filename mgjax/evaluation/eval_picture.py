"""Pictures of an evaluation: what is taken for what, how each class does."""

import io

import matplotlib
import matplotlib.axes
import numpy as np
from etils import epath
from matplotlib import colors, figure

from mgjax import picture_text

# More classes than that have numbers instead of names.
_MAX_NAMES = 40

_MAX_PAIRS = 25

# How names of classes are written beside an axis.
_NAMES = {'fontsize': 8, **picture_text.PLAIN}


def draw(path: epath.PathLike, result: dict, *, title: str) -> None:
  """Writes a PNG of what `results.evaluate` returned.

  Left the confusion matrix, right the most frequent confusions and the accuracy
  of every class. Where videos have several labels there is no confusion; left
  are then the best and the worst classes.

  Args:
    path: Of the picture.
    result: What `results.evaluate` returned.
    title: Above the picture.
  """
  with matplotlib.rc_context({'font.size': 9, 'axes.titlesize': 10}):
    fig = figure.Figure(figsize=(17, 10), dpi=100, layout='constrained')
    left, right = fig.subfigures(1, 2, width_ratios=[1.35, 1])
    draw_confusion(left.subplots(), result)
    if 'confusion' in result:
      pairs, classes = right.subplots(2, 1, height_ratios=[1.6, 1])
      _draw_pairs(pairs, result)
    else:
      classes = right.subplots()
    draw_classes(classes, result)
    fig.suptitle(picture_text.printable(title), **picture_text.PLAIN)
    picture = io.BytesIO()
    with picture_text.any_characters():
      fig.savefig(picture, format='png')
    epath.Path(path).write_bytes(picture.getvalue())


def draw_confusion(axis: matplotlib.axes.Axes, result: dict) -> None:
  """Draws the matrix, or the best and worst classes where there is none."""
  names = list(result['per_class'])
  if 'confusion' not in result:
    _draw_extremes(axis, result['per_class'])
    return
  confusion = np.array(result['confusion'], float)
  share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
  # The root makes a few videos of a class visible beside all of them.
  picture = axis.imshow(
    share,
    cmap='magma_r',
    norm=colors.PowerNorm(0.5, vmin=0, vmax=1),
    interpolation='nearest',
  )
  axis.figure.colorbar(picture, ax=axis, shrink=0.6, label='share of the class')
  axis.set(title='Confusion', xlabel='taken for', ylabel='true class')
  if len(names) <= _MAX_NAMES:
    ticks = range(len(names))
    shown = list(map(_short, names))
    axis.set_xticks(ticks, shown, rotation=90, **_NAMES)
    axis.set_yticks(ticks, shown, **_NAMES)


def draw_classes(axis: matplotlib.axes.Axes, result: dict) -> None:
  """Draws the accuracy (or average precision) of each class, best to worst."""
  known = _known(result['per_class'])
  names = sorted(known, key=known.get, reverse=True)
  values = [known[name] for name in names]
  axis.bar(range(len(names)), values, width=0.8 if len(names) <= 100 else 1.0)
  quantity = 'Average precision' if 'map' in result else 'Accuracy'
  axis.set(
    title=f'{quantity} by class, mean {np.mean(values):.1f} %'
    if values
    else quantity,
    ylabel='[%]',
    ylim=(0, 100),
    xlim=(-0.5, len(names) - 0.5),
  )
  if len(names) <= _MAX_NAMES:
    shown = list(map(_short, names))
    axis.set_xticks(range(len(names)), shown, rotation=90, **_NAMES)
  else:
    axis.set_xlabel('classes, best to worst')


def _draw_pairs(axis: matplotlib.axes.Axes, result: dict) -> None:
  """The pairs of classes that are confused most often."""
  names = list(result['per_class'])
  wrong = np.array(result['confusion'])
  np.fill_diagonal(wrong, 0)
  order = np.argsort(-wrong, axis=None, kind='stable')[:_MAX_PAIRS]
  pairs = [divmod(int(i), len(names)) for i in order if wrong.flat[i]]
  counts = [wrong[pair] for pair in pairs]
  axis.barh(range(len(pairs)), counts, color='tab:red')
  axis.set_yticks(
    range(len(pairs)),
    [f'{_short(names[i])} ▸ {_short(names[j])}' for i, j in pairs],
    **_NAMES,
  )
  axis.invert_yaxis()
  axis.xaxis.get_major_locator().set_params(integer=True)
  axis.set(title='Most frequent confusions: true ▸ taken for', xlabel='videos')


def _draw_extremes(axis: matplotlib.axes.Axes, per_class: dict) -> None:
  """Average precision of the best and the worst classes."""
  known = _known(per_class)
  names = sorted(known, key=known.get, reverse=True)
  half = _MAX_NAMES // 2
  if len(names) > _MAX_NAMES:
    names = [*names[:half], '…', *names[-half:]]
  axis.barh(range(len(names)), [known.get(name, 0) for name in names])
  axis.set_yticks(range(len(names)), map(_short, names), **_NAMES)
  axis.invert_yaxis()
  title = 'Best and worst classes' if '…' in names else 'Classes'
  axis.set(title=title, xlabel='average precision [%]', xlim=(0, 100))


def _known(per_class: dict) -> dict:
  return {name: v for name, v in per_class.items() if v is not None}


def _short(name: str) -> str:
  return picture_text.printable(name, 36)
