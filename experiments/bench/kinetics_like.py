"""Generated videos of Kinetics' form, as data sets."""

import pathlib

import av
import cv2
import numpy as np

from mgjax import cli, files
from mgjax.data.prepare import command
from mgjax.data.prepare.__main__ import define_flags

WIDTH, HEIGHT, FRAMES, FPS = 340, 256, 300, 30
NAME = 'kinetics_like'  # Of the data set; its copies are NAME/short256, ...


def write_video(path: pathlib.Path, seed: int, key_frames: int) -> None:
  """Writes a video: discs move over a panning texture, with camera noise.

  Args:
    path: File.
    seed: Of its contents.
    key_frames: Frames from one key frame to the next, at most.
  """
  rng = np.random.default_rng(seed)
  texture = np.full((2 * HEIGHT, 2 * WIDTH, 3), 128, np.float32)
  for cells in (8, 32, 128):
    coarse = rng.normal(0, 110 / cells**0.5, (cells, cells, 3))
    texture += cv2.resize(
      coarse.astype(np.float32),
      (2 * WIDTH, 2 * HEIGHT),
      interpolation=cv2.INTER_CUBIC,
    )
  discs = [
    (
      rng.integers(0, 255, 3).tolist(),
      rng.random(2),
      rng.uniform(-0.012, 0.012, 2),
      int(rng.integers(12, 40)),
    )
    for _ in range(6)
  ]
  phase = rng.uniform(0, 2 * np.pi, 2)
  with av.open(str(path), 'w', format='mp4') as container:
    # What `ffmpeg -c:v libx264 -g KEY_FRAMES` does.
    video = container.add_stream('libx264', rate=FPS)
    video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
    video.options = {'crf': '23', 'preset': 'medium', 'g': f'{key_frames}'}
    for i in range(FRAMES):
      y = int(HEIGHT * (0.5 + 0.45 * np.sin(phase[0] + i / 90)))
      x = int(WIDTH * (0.5 + 0.45 * np.sin(phase[1] + i / 70)))
      frame = texture[y : y + HEIGHT, x : x + WIDTH].copy()
      for colour, start, velocity, radius in discs:
        place = np.abs((start + velocity * i) % 2 - 1) * (WIDTH, HEIGHT)
        cv2.circle(
          frame, place.astype(int).tolist(), radius, colour, -1, cv2.LINE_AA
        )
      frame += rng.normal(0, 4, (HEIGHT, WIDTH, 1))
      pixels = frame.clip(0, 255).astype(np.uint8)
      container.mux(
        video.encode(av.VideoFrame.from_ndarray(pixels, format='rgb24'))
      )
    container.mux(video.encode(None))


def prepare_data(
  folder: pathlib.Path, num_videos: int, key_frames: int
) -> None:
  """Generates the videos and prepares them, where that is not done yet."""
  videos = folder / 'videos'
  for split in ('train', 'validation'):
    (videos / split / 'generated').mkdir(parents=True, exist_ok=True)
  for seed in range(num_videos + 1):
    # A data set has a validation split; nothing is measured on it.
    split = 'train' if seed else 'validation'
    path = videos / split / 'generated' / f'{seed:02d}.mp4'
    if not path.exists():
      with files.replacing(path) as temporary:
        write_video(temporary, seed, key_frames)
  for short_side_px in (0, 256, 192):
    suffix = f'/short{short_side_px}' if short_side_px else ''
    code = cli.run(
      command.main,
      define_flags,
      [
        'prepare',
        '--dataset=folder',
        f'--videos={videos}',
        f'--out={folder}',
        f'--name={NAME}{suffix}',
        f'--short_side_px={short_side_px}',
        '--num_workers=1',
      ],
      takes_config=False,
    )
    if code:
      raise SystemExit(code)
