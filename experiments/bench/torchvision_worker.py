"""PySlowFast's default way from a file to a clip, for decode_speed.py.

  {"load": {"mean", "std"}} -> {"versions", "threads"}
  {"clip": {...}}           -> {"cpu_s", "wall_s"}; the pixels go into a file

It needs the video reader that torchvision had up to 0.23, in C++, and that no
wheel of PyPI has; Debian's python3-torchvision has it. It needs neither JAX nor
mgjax.

Source: PySlowFast 287ec00, slowfast/config/defaults.py,
  DATA.DECODING_BACKEND; datasets/decoder.py, torchvision_decode and decode;
  datasets/kinetics.py, __getitem__; datasets/transform.py.
Differs: It draws frames, size and crop, which a request says here. It takes
  frames at equal distances from the first to the last of the span, here their
  numbers are given. It mirrors clips, which mgjax leaves to the device.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torchvision import io

from experiments.bench import worker

_SEEK_MARGIN_S = 1.0


class Worker:
  """Answers requests: `load` once, then `clip`."""

  def __init__(self):
    self.mean = self.std = torch.zeros(3)
    self.probed = {}  # PySlowFast keeps it, too, for each video.

  def load(self, settings: dict) -> dict:
    """Takes mean and standard deviation of the pixels, of each channel."""
    self.mean = torch.tensor(settings['mean'])
    self.std = torch.tensor(settings['std'])
    torch.set_num_threads(1)  # As in the workers of PyTorch's DataLoader.
    return {
      'versions': {
        'torch': torch.__version__,
        'torchvision': torchvision.__version__,
      },
      'threads': torch.get_num_threads(),
    }

  def clip(
    self,
    path: str,
    first: int,
    span: int,
    offsets: list[int],
    min_px: int,
    resized: list[int],
    crop: list[int],
  ) -> torch.Tensor:
    """A clip as PySlowFast makes it.

    Args:
      path: Video file.
      first: Frame with which the clip begins.
      span: Source frames that it covers.
      offsets: Of the T chosen frames, counted from the first.
      min_px: Least short side that the grid draws; the reader resizes to it.
      resized: Height and width to which frames are resized then.
      crop: First row and column, height and width of the crop.

    Returns:
      float32 [3, T, H, W], normalised.
    """
    video = torch.from_numpy(np.fromfile(path, np.uint8))
    if path not in self.probed:
      self.probed[path] = io._probe_video_from_memory(video)
    meta = self.probed[path]
    ticks = meta.video_timebase.denominator / meta.video_fps
    frames, _ = io._read_video_from_memory(
      video,
      seek_frame_margin=_SEEK_MARGIN_S,
      read_video_stream=True,
      video_width=0,
      video_height=0,
      video_min_dimension=min_px,
      video_pts_range=(int(first * ticks), int((first + span - 1) * ticks)),
      video_timebase_numerator=meta.video_timebase.numerator,
      video_timebase_denominator=meta.video_timebase.denominator,
      read_audio_stream=0,
    )
    index = torch.tensor(offsets).clamp(0, len(frames) - 1)
    clip = torch.index_select(frames, 0, index).clone().float() / 255.0
    clip = (clip - self.mean) / self.std
    clip = clip.permute(3, 0, 1, 2)
    if clip.shape[2:] != tuple(resized):
      clip = F.interpolate(
        clip, size=tuple(resized), mode='bilinear', align_corners=False
      )
    y, x, height, width = crop
    return clip[:, :, y : y + height, x : x + width]

  def answer(self, request: dict) -> dict:
    if 'load' in request:
      return self.load(request['load'])
    chosen = request['clip']
    pixels_path = chosen.pop('pixels')
    cpu, wall = time.process_time(), time.perf_counter()
    pixels = self.clip(**chosen)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    np.save(pixels_path, pixels.permute(1, 2, 3, 0).numpy())
    return {'cpu_s': cpu, 'wall_s': wall}


if __name__ == '__main__':
  worker.serve(Worker().answer)
