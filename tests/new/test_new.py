"""A folder of videos becomes a config file that can be trained."""

import io
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import mgjax
from mgjax import cli
from mgjax.config import saved
from mgjax.errors import ConfigError
from mgjax.new import choose, command, grid_choice, look
from mgjax.new.__main__ import define_flags
from mgjax.recipes import transformers
from mgjax.setup import data as data_setup
from mgjax.setup import grids
from tests.data import videos

# Videos of each class.
COUNTS = {'bow': 12, 'jump': 8, 'wave': 5}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """JAX need not be asked in every test: README's commands ask it."""
  monkeypatch.setattr(command, '_num_devices', lambda: 1)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  folder = tmp_path_factory.mktemp('own') / 'My clips 2'
  for label, count in COUNTS.items():
    for i in range(count):
      path = folder / label / f'{i}.mp4'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(videos.encode(seed=i, num_frames=20))
  return folder


def run(*arguments):
  return cli.run(
    command.main,
    define_flags,
    ['new', '--num_workers=1', '--short_side_px=0', *map(str, arguments)],
    arguments='VIDEOS',
    takes_config=False,
  )


@pytest.fixture(scope='module')
def made(clips, tmp_path_factory):
  """A folder with a config file, of which nothing was measured."""
  out = tmp_path_factory.mktemp('made') / 'mine'
  assert run(clips, f'--out={out}', '--measure_minutes=0') == 0
  return out


@pytest.fixture
def prepared(made, tmp_path):
  """A folder whose data set is prepared already, which saves seconds."""
  out = tmp_path / 'mine'
  shutil.copytree(made / 'data', out / 'data')
  return out


def test_the_config_file_fits_the_videos(made):
  config = cli.read_config(str(made / 'config.py'))
  # 25 videos, of which 2 + 2 + 1 are for validation.
  assert data_setup.describe(config).splits == {'train': 20, 'validation': 5}
  schedule = grids.schedule(config, 20)
  assert config.data.batch_size == 2 and schedule.total_steps >= 300
  assert (config.data.num_frames, config.data.stride_frames) == (16, 1)
  assert config.data.crop_px == 48 and config.data.target_fps == 12
  assert config.data.class_balance > 0  # 10 videos for 4.
  assert not config.data.flip  # Nobody was asked.
  assert config.data.decoded_cache_gib == 0.1
  assert config.data.decoded_cache_dir == str(made / 'frames')
  assert config.grid.mode == 'none'
  text = (made / 'config.py').read_text()
  assert 'bow: 10 + 2' in text and 'multigrid was not compared' in text
  code = text.partition('import pathlib')[2]
  assert max(map(len, code.splitlines())) <= 80


def test_the_config_file_takes_other_grids_and_seeds(made):
  config = cli.read_config(f'{made / "config.py"}:grid=both,seed=3')
  assert config.grid.mode == 'both' and config.seed == 3
  assert len(grids.schedule(config, 20).grids) > 2


def test_the_folder_can_be_moved(made, tmp_path):
  made.joinpath('config.py').rename(tmp_path / 'config.py')
  try:
    config = cli.read_config(str(tmp_path / 'config.py'))
    assert config.data.dir == str(tmp_path / 'data')
  finally:
    (tmp_path / 'config.py').rename(made / 'config.py')


def test_a_config_file_is_not_overwritten(made, clips, capsys):
  assert run(clips, f'--out={made}') == 2
  assert 'config.py is there already' in capsys.readouterr().err


def test_weights_bring_their_network_and_clips(
  clips, prepared, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  # For the command that is called there.
  monkeypatch.setenv('PYTHONPATH', str(pathlib.Path(mgjax.__file__).parents[1]))
  wanted = [clips, '--out=mine', '--preset=finetune', '--flip']
  wanted.append('--measure_minutes=0')
  folder = tmp_path / 'weights/videomae_b'
  config = cli.read_config('finetune')
  transformers.use(config, 'videomae_b')
  # Small: only its settings are read.
  config.model.update(depth=1, width=24, heads=2, num_classes=400)
  config.data.num_frames, config.data.crop_px = 8, 32
  config.model.position_grid = (8, 32, 32)
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(saved.as_json(config)))
  assert run(*wanted) == 2  # An import that was stopped has no checkpoint.
  (folder / 'checkpoints/0/state').mkdir(parents=True)
  # A folder that is elsewhere: its config file is found where it is.
  (tmp_path / 'far').mkdir()
  (tmp_path / 'mine').rename(tmp_path / 'far/away')
  (tmp_path / 'mine').symlink_to('far/away')
  capsys.readouterr()
  assert run(*wanted) == 0
  # What follows works: a transformer has no maps of classes.
  said = capsys.readouterr().out + (tmp_path / 'mine/config.py').read_text()
  assert 'mgjax.predict --workdir=mine/run VIDEO' in said
  assert 'heatmap' not in said
  monkeypatch.chdir('/')  # The weights are found from anywhere.
  config = cli.read_config(str(tmp_path / 'mine/config.py'))
  assert config.model.name == 'vit' and config.model.num_classes is None
  assert config.init_from == str(tmp_path / 'far/away/../../weights/videomae_b')
  assert config.data.num_frames == 8 and config.data.crop_px == 32
  assert config.data.flip and config.optim.name == 'adamw'
  assert config.data.batch_size == 2
  assert grids.schedule(config, 20).total_steps >= 200


@pytest.mark.parametrize(
  'arguments,words',
  [
    ([], 'give one folder of videos, not 0'),
    (['a', 'b'], 'give one folder of videos, not 2'),
    (['v'], '--out is missing'),
    (['v', '--out=v/mine'], '--out=v/mine lies in the folder of videos, v,'),
    (['v', '--out=o', '--short_side_px=2'], '0 or an even number from 16'),
    (['nowhere', '--out=o'], 'nowhere: there is no folder of videos'),
    (
      ['v', '--out=o', '--preset=finetune', '--weights=vjepa2_l'],
      'python -m mgjax.weights vjepa2_l says where',
    ),
    (['v', '--out=o', '--weights=x'], 'does nothing with --preset=scratch'),
    (['v', '--out=o:1'], "--out=o:1: its path has a ':'"),
    (['v', '--out=o,1', '--preset=finetune'], "its path has a ','"),
  ],
)
def test_what_cannot_be_is_one_line(
  arguments, words, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'v').mkdir()
  assert run(*arguments, '--noflip') == 2
  said = capsys.readouterr().err
  assert words in said and said.count('\n') == 1
  assert not (tmp_path / 'o/config.py').exists()


@pytest.mark.parametrize(
  'names,more,words',
  [
    (['a/0.mp4', 'a/1.mp4'], [], "there is one class, 'a'"),
    (['a/0.mp4', 'b/0.mp4'], [], 'no video for the split validation'),
    (
      ['train/a/0.mp4', 'train/b/0.mp4', 'test/a/1.mp4', 'test/b/1.mp4'],
      *([], 'call them train and validation'),
    ),
    (
      ['a/0.mp4', 'a/1.mp4', 'b/0.mp4', 'b/1.mp4'],
      ['--validation_fraction=0'],
      'no video for the split validation',
    ),
  ],
)
def test_too_few_videos_are_refused(names, more, words, tmp_path, capsys):
  for name in names:
    (tmp_path / 'v' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'v' / name).write_bytes(videos.encode(num_frames=3))
  assert run(tmp_path / 'v', f'--out={tmp_path}/o', '--noflip', *more) == 2
  assert words in capsys.readouterr().err
  # Nothing was encoded for it.
  assert not list((tmp_path / 'o').rglob('*.array_record*'))


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize('answers,flip', [('y\n', True), ('what\nNo\n', False)])
def test_a_person_is_asked_whether_to_mirror(answers, flip, monkeypatch):
  monkeypatch.setattr('sys.stdin', Terminal(answers))
  monkeypatch.setattr('sys.stderr', Terminal())
  assert command._ask_flip() == flip


def modes(steps=800, **seconds):
  programs = [{'run_is_measured': True}]
  return {
    'modes': {
      name: {'total_s': float(s), 'steps': 3000 if name == 'none' else steps}
      for name, s in seconds.items()
    },
    'programs': programs,
    'num_devices': 1,
    'device': 'cpu',
  }


@pytest.mark.parametrize(
  'found,mode,words',
  [
    (None, 'none', 'not compared'),
    (
      modes(none=100, both=190),
      'none',
      r'does not pay here\. .*none 1:40 .3,000 steps., both 3:10 .800 steps.',
    ),
    (modes(none=100, both=91), 'none', 'does not pay here'),
    (modes(none=600, short=400, both=300), 'both', 'pays here, as grid=both'),
    (modes(799, none=600, both=300), 'none', 'with fewer than 800 steps'),
  ],
)
def test_multigrid_is_chosen_where_it_is_a_tenth_faster(found, mode, words):
  chosen = grid_choice.choose_grid(found)
  assert chosen.mode == mode
  assert re.search(words, chosen.why)


def test_the_folder_that_one_is_in_may_have_a_colon(
  clips, made, tmp_path, monkeypatch
):
  (tmp_path / 'a:b').mkdir()
  monkeypatch.chdir(tmp_path / 'a:b')
  monkeypatch.setenv('PYTHONPATH', str(pathlib.Path(__file__).parents[2]))
  shutil.copytree(made / 'data', 'mine/data')
  assert run(clips, '--out=mine', '--noflip', '--measure_minutes=0') == 0
  assert cli.read_config('mine/config.py').grid.mode == 'none'


def test_what_was_measured_decides_and_is_said(
  clips, prepared, monkeypatch, capsys
):
  def plan(arguments, timeout_s, stop):
    (output,) = (a for a in arguments if a.startswith('--output='))
    (config,) = (a for a in arguments if a.startswith('--config='))
    assert '--compile' in arguments and timeout_s == 600
    assert cli.read_config(config.partition('=')[2]).grid.mode == 'none'
    found = {'wall_time': modes(none=600, both=300)}
    with open(output.partition('=')[2], 'w') as file:
      json.dump(found, file)

  monkeypatch.setattr(grid_choice, '_run', plan)
  # These videos are small.
  out = prepared.with_name('small')
  shutil.copytree(prepared, out)
  assert run(clips, f'--out={out}', '--noflip') == 0
  assert 'coarsest clips would have 4 frames of 24 x 24 pixels' in (
    capsys.readouterr().out
  )
  assert cli.read_config(str(out / 'config.py')).grid.mode == 'none'
  monkeypatch.setattr(grid_choice, 'LEAST_SIDE_PX', 24)
  assert run(clips, f'--out={prepared}', '--noflip') == 0
  assert 'multigrid pays here' in capsys.readouterr().out
  assert cli.read_config(str(prepared / 'config.py')).grid.mode == 'both'


def test_multigrid_is_left_where_the_records_lost_by_it():
  clip = lambda frames, side: [
    choose.Setting('data.num_frames', frames),
    choose.Setting('data.crop_px', side),
  ]
  loses = grid_choice.multigrid_loses
  assert loses(clip(16, 64), finetunes=False) == ''
  assert '2 frames of 32 x 32' in loses(clip(8, 64), finetunes=False)
  assert '4 frames of 31 x 31' in loses(clip(16, 63), finetunes=False)
  why = loses(clip(16, 224), finetunes=True)
  assert 'cosine' in why
  chosen = grid_choice.choose_grid(modes(none=600, both=300), why)
  assert chosen.mode == 'none' and why in chosen.why


def test_commands_that_follow_can_be_typed():
  folder = pathlib.Path('my model')
  train, predict = command.next_commands(folder, has_maps=True)
  assert train == "train '--config=my model/config.py' '--workdir=my model/run'"
  assert "'--heatmap=my model/heat'" in predict
  assert 'heatmap' not in command.next_commands(folder, has_maps=False)[1]


@pytest.mark.parametrize(
  'error,code',
  [
    (subprocess.TimeoutExpired('plan', 1), 0),
    (subprocess.CalledProcessError(2, 'plan'), 2),
    (subprocess.CalledProcessError(-9, 'plan'), 0),
    (KeyboardInterrupt(), 130),
  ],
)
def test_measuring_may_end_early(
  error, code, clips, prepared, monkeypatch, capsys
):
  def fail(*arguments):
    raise error

  monkeypatch.setattr(grid_choice, '_run', fail)
  assert run(clips, f'--out={prepared}', '--noflip') == code
  config = prepared / 'config.py'
  assert config.exists() == (code != 130)
  assert {path.name for path in prepared.iterdir()} <= {'config.py', 'data'}
  if code == 0:
    said = ' '.join(config.read_text().replace('#', '').split())
    assert 'took longer than' in said or 'was ended by SIGKILL' in said
  elif code == 2:
    said = capsys.readouterr().err
    assert f'{config} is written, and does not work here' in said


MEASURING = """
import os, pathlib, sys
from mgjax import stop_signal
stop_signal.install()
from mgjax.new import grid_choice
code = 'import time; print(1, flush=True); time.sleep(99)'
child = [sys.executable, '-c', code]
with stop_signal.listening() as stop:
  grid_choice._run(child, None, stop)
"""


def test_what_measures_does_not_outlive_the_command():
  with subprocess.Popen(
    [sys.executable, '-c', MEASURING],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  ) as process:
    assert process.stdout.readline() == b'1\n'
    process.send_signal(signal.SIGTERM)
    # Its end is that of all who write to this pipe.
    assert process.stdout.read() == b''
    assert process.wait(60) == 75
    assert process.stderr.read() == b'stopped by SIGTERM\n'


@pytest.mark.parametrize('num_devices', [1, 2, 3, 5, 6, 7, 8])
def test_batch_norm_has_groups_of_every_batch(num_devices):
  for num_train in (8, 40, 100, 1000):
    batch = choose.batch_size(num_train, 16, num_devices)
    group = choose._batch_norm(batch)[0].value
    assert batch % group == 0 and group <= 8
    assert group == min(8, batch) or num_devices in (3, 5, 6, 7)


@pytest.mark.parametrize(
  'num_train,batch', [(1, 1), (15, 1), (16, 2), (72, 8), (1000, 16)]
)
def test_a_batch_is_at_most_an_eighth_of_an_epoch(num_train, batch):
  assert choose.batch_size(num_train, 16) == batch


def test_devices_share_a_batch_equally():
  assert choose.batch_size(90, 16, num_devices=3) == 9
  assert choose.batch_size(10, 16, num_devices=8) == 8


def test_long_videos_have_clips_of_two_seconds_and_short_ones_of_their_own():
  def stride(num_frames, fps):
    found = look.Videos(
      'v',
      {
        'a': {'train': 50, 'validation': 9},
        'b': {'train': 50, 'validation': 9},
      },
      np.array([num_frames] * 118),
      np.array([fps] * 118, float),
      np.array([240] * 118),
      decoded_gib=1.0,
    )
    settings = choose.settings(found, flip=False, weights=None)
    values = {s.field: s.value for s in settings}
    assert values['data.class_balance'] == 0
    return values['data.num_frames'], values['data.stride_frames']

  assert stride(900, 30) == (16, 4)
  assert stride(900, 60) == (16, 8)
  assert stride(40, 30) == (16, 2)
  for rate in (30, 30000 / 1001, 60000 / 1001):
    assert [stride(n, rate)[1] for n in (32, 47, 48)] == [2, 2, 3]
  assert stride(12, 30) == (8, 1)


@pytest.mark.parametrize(
  'decoded_gib,room', [(0.001, 0.1), (0.3, 0.4), (1.66, 2.0), (1.67, 0.0)]
)
def test_decoded_frames_are_kept_where_all_fit(decoded_gib, room):
  found = look.Videos(
    *('v', {'a': {'train': 50, 'validation': 9}}),
    *(np.array([90]), np.array([30.0]), np.array([240])),
    decoded_gib,
  )
  (setting,) = (
    s
    for s in choose.settings(found, flip=False, weights=None)
    if s.field == 'data.decoded_cache_gib'
  )
  assert setting.value == room
  assert ('would take 2.1 GiB of the disk, with a margin' in setting.why) == (
    room == 0
  )


def test_the_room_for_decoded_frames_is_that_of_the_cache(made):
  config = cli.read_config(str(made / 'config.py'))
  folder = data_setup.builder_dir(config)
  found = look.look(pathlib.Path(folder), config.data.name)
  # 25 videos of 20 frames of 48 x 64 pixels of a byte and a half.
  assert found.decoded_gib * 2**30 == 25 * 20 * 48 * 64 * 1.5
  for split in ('train', 'validation'):
    source = data_setup.source(config, split)
    assert data_setup.decoded_cache(config, source).is_whole


def test_no_device_is_one_line(monkeypatch):
  monkeypatch.undo()  # The devices are asked for.
  monkeypatch.setenv('JAX_PLATFORMS', 'nonsense')
  with pytest.raises(ConfigError, match='^JAX finds no device for JAX_PLAT'):
    command._num_devices()


def test_frames_of_segments_have_no_stride():
  found = look.Videos(
    *('v', {'a': {'train': 50, 'validation': 9}}),
    *(np.array([90]), np.array([30.0]), np.array([240])),
    1.0,
  )
  of = lambda **fields: {
    s.field: s
    for s in choose.settings(
      found, flip=False, weights=choose.Clip(8, 64, True, **fields)
    )
  }
  dense, segments = of(), of(in_segments=True)
  assert set(dense) - set(segments) == {'data.stride_frames', 'data.target_fps'}
  assert '8 equal parts' in segments['data.num_frames'].why
  assert 'of each part' in segments['eval.num_views'].why
