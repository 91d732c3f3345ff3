"""Pictures of an evaluation: what is taken for what, how each class does."""

import matplotlib
import matplotlib.axes
import numpy as np
from etils import epath
from matplotlib import colors, figure

from mgjax import pictures

# More classes than that have numbers instead of names.
_MAX_NAMES = 40

_MAX_PAIRS = 25

# More classes than that leave no room for a number in a cell.
_MAX_CELLS = 20

# How names of classes are written beside an axis.
_NAMES = {'fontsize': 8, **pictures.PLAIN}


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
  with matplotlib.rc_context(pictures.STYLE):
    fig = figure.Figure(figsize=(17, 10), dpi=100, layout='constrained')
    left, right = fig.subfigures(1, 2, width_ratios=[1.35, 1])
    draw_confusion(left.subplots(), result)
    if 'confusion' in result:
      pairs, classes = right.subplots(2, 1, height_ratios=[1.6, 1])
      _draw_pairs(pairs, result)
    else:
      classes = right.subplots()
    draw_classes(classes, result)
    fig.suptitle(pictures.printable(title), **pictures.PLAIN)
    pictures.save(fig, path)


def confusion(result: dict) -> np.ndarray:
  """Draws what `draw_confusion` draws by itself, for TensorBoard.

  Args:
    result: What `results.evaluate` returned.

  Returns:
    The picture, uint8 [H, W, 3].
  """
  with matplotlib.rc_context(pictures.STYLE):
    fig = figure.Figure(figsize=(6, 6), dpi=100, layout='constrained')
    draw_confusion(fig.subplots(), result)
    return pictures.save(fig)


def draw_confusion(axis: matplotlib.axes.Axes, result: dict) -> None:
  """Draws the matrix, or the best and worst classes where there is none."""
  names = list(result['per_class'])
  if 'confusion' not in result:
    _draw_extremes(axis, result['per_class'])
    return
  confusion = np.array(result['confusion'], float)
  share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
  # The root makes a few videos of a class visible beside all of them.
  image = axis.imshow(
    share,
    cmap='magma_r',
    norm=colors.PowerNorm(0.5, vmin=0, vmax=1),
    interpolation='nearest',
  )
  axis.figure.colorbar(image, ax=axis, shrink=0.6, label='share of the class')
  axis.set(title='Confusion', xlabel='taken for', ylabel='true class')
  if len(names) <= _MAX_CELLS:
    _draw_counts(axis, confusion, share)
  if len(names) <= _MAX_NAMES:
    shown = list(map(_short, names))
    axis.set_xticks(range(len(names)), shown, rotation=90, **_NAMES)
    axis.set_yticks(range(len(names)), shown, **_NAMES)


def _draw_counts(
  axis: matplotlib.axes.Axes, confusion: np.ndarray, share: np.ndarray
) -> None:
  """Writes the videos into the cells, and draws what is between these."""
  size = min(9.0, 130 / len(confusion))
  for row, column in np.argwhere(confusion):
    axis.text(
      column,
      row,
      f'{confusion[row, column]:.0f}',
      ha='center',
      va='center',
      fontsize=size,
      color='white' if share[row, column] > 0.25 else 'black',
    )
  between = np.arange(len(confusion) + 1) - 0.5
  axis.set_xticks(between, minor=True)
  axis.set_yticks(between, minor=True)
  axis.grid(which='minor', color='0.8', lw=0.5)
  axis.tick_params(which='minor', length=0)


def draw_classes(axis: matplotlib.axes.Axes, result: dict) -> None:
  """Draws the accuracy (or average precision) of each class, best to worst."""
  known = _best_first(result['per_class'])
  names, values = list(known), list(known.values())
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
    number = _num_videos(result)
    shown = [
      _short(name) + (f' ({number[name]})' if number else '') for name in names
    ]
    axis.set_xticks(range(len(names)), shown, rotation=90, **_NAMES)
    if number:
      axis.set_xlabel('in brackets: videos')
  else:
    axis.set_xlabel('classes, best to worst')


def _num_videos(result: dict) -> dict[str, int]:
  """Videos by class; {} where videos have several labels."""
  if 'confusion' not in result:
    return {}
  rows = np.array(result['confusion']).sum(1)
  return dict(zip(result['per_class'], rows.tolist(), strict=True))


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
  known = _best_first(per_class)
  names = list(known)
  half = _MAX_NAMES // 2
  if len(names) > _MAX_NAMES:
    names = [*names[:half], '…', *names[-half:]]
  axis.barh(range(len(names)), [known.get(name, 0) for name in names])
  axis.set_yticks(range(len(names)), map(_short, names), **_NAMES)
  axis.invert_yaxis()
  title = 'Best and worst classes' if '…' in names else 'Classes'
  axis.set(title=title, xlabel='average precision [%]', xlim=(0, 100))


def _best_first(per_class: dict) -> dict[str, float]:
  """The classes with videos and their values, the greatest first."""
  known = {name: v for name, v in per_class.items() if v is not None}
  return dict(sorted(known.items(), key=lambda item: -item[1]))


def _short(name: str) -> str:
  return pictures.printable(name, 36)
