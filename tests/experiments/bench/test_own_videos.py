"""From a folder of videos to a model in use, with the clock running."""

import av
import pytest

from experiments.bench import own_videos
from tests.experiments.rows import rows_of

TRAINING = {
  **{'mode': 'none', 'steps': 1200, 'clips': 9, 'top1': 94.4},
  **{'num_videos': 18, 'train_s': 1.0, 'step_s': 1.0, 'data_s': 1.0},
  **{'compile_s': 1.0, 'compile_wait_s': 1.0, 'eval_s': 1.0},
  'num_from_disk': 1,
}


def test_the_table_adds_the_seconds_of_the_commands():
  result = {
    'num_videos_made': 90,
    'seconds': {'new': 60.0, 'train': 200.0, 'predict': 10.0},
    'training': TRAINING,
  }
  ((row,),) = (rows_of(table) for table in own_videos.tables(result))
  assert list(row.values()) == [
    *('90', '60', '200', '10', '4.5', 'none', '1,200', '94.4 of 18 videos')
  ]


def test_the_videos_are_those_of_a_camera_not_of_the_generator(tmp_path):
  paths = own_videos.make_videos(tmp_path, 2)
  assert sorted(str(path.relative_to(tmp_path)) for path in paths) == [
    f'{name}/{i}.mp4' for name in ('clockwise', 'grow', 'right') for i in (0, 1)
  ]
  assert len({path.read_bytes() for path in paths}) == 6
  with av.open(str(paths[0])) as file:
    stream = file.streams.video[0]
    assert (stream.width, stream.height, stream.frames) == (320, 240, 60)


@pytest.mark.slow
def test_the_commands_are_timed(tmp_path):
  overrides = [
    *('--config.optim.total_epochs=2', '--config.optim.warmup_epochs=0.5'),
    *('--config.optim.lr_steps=(1,)', '--config.norm.precise_batches=1'),
  ]
  found = own_videos.measure(tmp_path, 4, overrides)
  assert list(found['seconds']) == ['new', 'train', 'predict']
  assert found['num_videos_made'] == 12
  assert found['training']['num_videos'] == 3
  (table,) = own_videos.tables(found)
  assert len(table.rows) == 1
  assert len(list((tmp_path / 'mine/heat').glob('*'))) >= 3
