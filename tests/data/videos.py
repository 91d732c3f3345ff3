"""Makes small videos for the tests of what reads them."""

import fractions
import io

import av
import cv2
import numpy as np


def picture(number, height=48, width=64):
  """A smooth picture that differs for every number; uint8 [H, W, 3]."""
  rng = np.random.default_rng(number)
  coarse = rng.integers(40, 215, (3, 4, 3), dtype=np.uint8)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(
  *,
  format='mp4',
  codec='libx264',
  num_frames=12,
  fps=12,
  seed=0,
  times=None,
  **options,
):
  """Returns an encoded video whose frame i is picture(100 * seed + i).

  It is shown times[i] ticks of 1/fps after the start; without times, after i.
  """
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format=format) as container:
    rate = fractions.Fraction(fps).limit_denominator(1001)
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
    stream.thread_count = 1
    stream.options = {'crf': '10', **options}
    for i in range(num_frames):
      frame = av.VideoFrame.from_ndarray(picture(100 * seed + i))
      if times is not None:
        frame.pts, frame.time_base = int(times[i]), 1 / rate
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return buffer.getvalue()


def write_frames(folder, *, num_frames=8, seed=0, suffix='.jpg'):
  """Writes files 00001.jpg …, frame i of which is picture(…)."""
  folder.mkdir(parents=True)
  for i in range(num_frames):
    image = cv2.cvtColor(picture(100 * seed + i), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(folder / f'{i + 1:05d}{suffix}'), image)
