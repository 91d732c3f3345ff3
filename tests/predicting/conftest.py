"""A tiny network and videos for it."""

import pytest

from tests.predicting import tiny
from tests.weights import test_import_weights as weights


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  """Imported weights of a tiny network, and videos beside them."""
  folder = tmp_path_factory.mktemp('predict')
  config = weights.small_config()
  config.data.num_frames = 4
  config.eval.num_views = 2
  config.eval.num_crops = 1
  config.eval.crop_px = config.eval.short_side_px = 32
  weights.import_state(config, weights.state_of(config), folder)
  for name in 'ab':
    (folder / f'{name}.mp4').write_bytes(tiny.encode(ord(name)))
  (folder / 'text.mp4').write_text('not a video')
  # Whole packets, wrong content: only decoding finds out.
  data = bytearray(tiny.encode(0))
  start = data.index(b'mdat') + 4
  data[start + 40 : start + 2000] = bytes(1960)
  (folder / 'damaged.mp4').write_bytes(data)
  return folder
