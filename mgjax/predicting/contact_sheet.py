"""Pictures of predictions: the frames that a network saw, and its answer."""

import pathlib
from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import figure

from mgjax import pictures

# So many frames of a clip are drawn at most, and so wide.
_MAX_COLUMNS = 8
_FRAME_PX = 128
_CHARACTER_PX = 8  # Of a title, on average.
_DPI = 100
_SIDE_PX = 340  # Room for the predictions,
_TOP_PX = 40  # and for the title.


def overlay(
  clip: UInt8[np.ndarray, 'T H W 3'], heat: Float[np.ndarray, 't h w']
) -> UInt8[np.ndarray, 'T H W 3']:
  """Blends a clip with its heat, from blue (nothing) to red (the most).

  Args:
    clip: RGB.
    heat: What positions add to a logit; negative shares are not shown, as in
      Grad-CAM. The colours are relative to the clip's largest.
  """
  num_frames, height, width, _ = clip.shape
  heat = np.maximum(heat, 0) / max(float(heat.max()), 1e-12)
  blended = []
  for i, frame in enumerate(clip):
    plane = heat[i * len(heat) // num_frames].astype(np.float32)
    plane = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
    colours = matplotlib.colormaps['jet'](plane)[..., :3] * 255
    blended.append((0.55 * frame + 0.45 * colours).astype(np.uint8))
  return np.stack(blended)


def draw(
  path: pathlib.Path,
  clips: Sequence[UInt8[np.ndarray, 'T H W 3']],
  title: str,
  predictions: Sequence[tuple[str, float]],
) -> None:
  """Draws a row of frames for each clip, and the predictions beside them.

  Args:
    path: PNG file to write.
    clips: RGB; of long ones evenly spread frames are shown.
    title: Of the picture.
    predictions: Label and probability, the most likely first.

  Raises:
    OSError: The file cannot be written.
  """
  mosaic = _mosaic(clips)
  bars_px = 30 * len(predictions)
  height_px = max(len(mosaic), bars_px + 10) + _TOP_PX
  width_px = mosaic.shape[1] + _SIDE_PX
  fig = figure.Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI)

  def axes_below_title(left: int, width: int, height: int):
    """Returns axes of a place and a size in pixels."""
    bottom = height_px - _TOP_PX - height
    return fig.add_axes(
      (
        left / width_px,
        bottom / height_px,
        width / width_px,
        height / height_px,
      )
    )

  fig.text(
    0.5,
    1 - _TOP_PX / 2 / height_px,
    pictures.printable(title, width_px // _CHARACTER_PX),
    ha='center',
    va='center',
    **pictures.PLAIN,
  )
  frames = axes_below_title(0, mosaic.shape[1], len(mosaic))
  frames.imshow(mosaic, interpolation='nearest', aspect='auto')
  frames.set_axis_off()
  bars = axes_below_title(mosaic.shape[1] + 15, _SIDE_PX - 30, bars_px)
  places = range(len(predictions))
  bars.barh(places, [p for _, p in predictions], color='tab:blue', alpha=0.35)
  for i, (label, probability) in enumerate(predictions):
    text = f'{100 * probability:.1f} %  {pictures.printable(label)}'
    bars.text(0.01, i, text, va='center', fontsize=9, **pictures.PLAIN)
  bars.set(xlim=(0, 1), ylim=(len(predictions) - 0.5, -0.5))
  bars.set_axis_off()
  pictures.save(fig, path)


def _mosaic(
  clips: Sequence[UInt8[np.ndarray, 'T H W 3']],
) -> UInt8[np.ndarray, 'height width 3']:
  """A row of frames for each clip; of long ones evenly spread frames."""
  rows = []
  for clip in clips:
    count = min(len(clip), _MAX_COLUMNS)
    height = round(_FRAME_PX * clip.shape[1] / clip.shape[2])
    shown = [
      cv2.resize(frame, (_FRAME_PX, height), interpolation=cv2.INTER_AREA)
      for frame in clip[
        np.linspace(0, len(clip) - 1, count).round().astype(int)
      ]
    ]
    # A white line between frames and between clips.
    lines = ((0, 0), (1, 1), (1, 1), (0, 0))
    shown = np.pad(shown, lines, constant_values=255)
    rows.append(np.concatenate(list(shown), axis=1))
  return np.concatenate(rows)
