"""Wrong inputs of every command: each ends in one line that says what is wrong.

A row is what a careless user types and the files that lie there. The command
must end with the exit code of the row and one line on stderr, which starts with
'error:' and has the row's words in it: the file, the flag or the field.
"""

import gc
import json
import os
import pathlib
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from mgjax import stop_signal
from mgjax.data import digits, moving_digits
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.setup import network, run_settings
from tests import speck

pytestmark = [
  # A command is run as the module that it is, and imported by others.
  pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning'),
  # Where a read fails, Orbax leaves coroutines behind.
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]

ROOT = pathlib.Path(__file__).parent.parent
SPECK = ROOT / 'tests/speck.py'
DEEP = 100_000 * '[' + 100_000 * ']'

# What a command line starts with, unless a row says otherwise.
BASE = {
  'train': f'--config={SPECK} --config.data.dir=DATA --workdir=run',
  'evaluate': '--workdir=run',
  'predict': '--workdir=run',
  'plan': f'--config={SPECK} --config.data.dir=DATA',
  'replay': '--bundle=run',
  'import_weights': '--out=out',
  'data.bench': f'--config={SPECK} --config.data.dir=DATA',
  'data.prepare': '--videos=videos --out=out --num_workers=1',
  'data.moving_digits': '--out=out --workers=1',
}


class Row(NamedTuple):
  """A wrong input.

  Attributes:
    name: What is wrong.
    command: Module of the command, below mgjax or experiments.
    args: Its arguments, after those of BASE.
    words: What the line on stderr must contain.
    code: The exit code.
    files: Contents of files, by name, that are written before; None: the file
      is removed; a function changes the file.
    base: Whether BASE comes first.
  """

  name: str
  command: str
  args: str
  words: tuple[str, ...]
  code: int = 2
  files: dict[str, str | bytes | None | Callable[[pathlib.Path], None]] = {}
  base: bool = True


def cut(path: pathlib.Path) -> None:
  """Leaves half of a file."""
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_folder(path: pathlib.Path) -> None:
  path.unlink(missing_ok=True)
  path.mkdir()


def change(**fields) -> Callable[[pathlib.Path], None]:
  """Changes fields of model in a config.json, without a word."""

  def apply(path: pathlib.Path) -> None:
    config = json.loads(path.read_text())
    config['model'].update(fields)
    path.write_text(json.dumps(config))

  return apply


def flip_all(folder: pathlib.Path) -> None:
  """Damages every large file of a checkpoint."""
  for path in folder.rglob('*'):
    if path.is_file() and path.stat().st_size > 200 and 'state' in path.parts:
      data = bytearray(path.read_bytes())
      data[len(data) // 2] ^= 255
      path.write_bytes(data)


def set_value(key: str, value: object) -> Callable[[pathlib.Path], None]:
  """Sets an entry of a JSON object."""

  def apply(path: pathlib.Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

  return apply


LINE = '{"step": 1, "T": 2, "H": 32, "W": 32, "batch": 8, "step_s": 0.1}\n'
KINETICS = 'label,youtube_id,time_start,time_end,split\n'
CHARADES = 'id,actions,length\n'
INFO = 'data/moving_digits/motion_tiny/2.0.0/dataset_info.json'
FEATURES = 'data/moving_digits/motion_tiny/2.0.0/features.json'
OWN_DATA = '--config.data.dir=data'


def kinetics(name: str, rows: str, words: tuple[str, ...], **options) -> Row:
  """A wrong Kinetics annotation; `rows` is the file's content or rows."""
  content = options.pop('content', KINETICS + rows)
  file = options.pop('file', 'k.csv')
  return Row(
    name,
    'data.prepare',
    f'--dataset=kinetics400 --annotations={file}',
    words,
    files={file: content, 'videos/v_000001_000011.mp4': b'x'},
    **options,
  )


def annotated(
  name: str, dataset: str, files: dict, words: tuple[str, ...]
) -> Row:
  """A wrong annotation of another public data set."""
  return Row(
    name,
    'data.prepare',
    f'--dataset={dataset} --annotations=notes',
    words,
    files={f'notes/{k}': v for k, v in files.items()} | {'videos/v.mp4': b'x'},
  )


SS2 = {'train.json': '[{"id": "1", "template": "a"}]'}

ROWS = [
  # ---- Folders of runs: train, when it goes on.
  Row('no workdir', 'train', f'--config={SPECK}', ('--workdir',), base=False),
  Row(
    'the workdir is a file',
    'train',
    '--workdir=a/run',
    ('--workdir=a/run',),
    files={'a': 'x'},
  ),
  Row(
    'half a config.json',
    'train',
    '',
    ('run/config.json',),
    files={'run/config.json': cut},
  ),
  Row(
    'config.json of a list',
    'train',
    '',
    ('run/config.json', 'object'),
    files={'run/config.json': '[1]'},
  ),
  Row(
    'config.json of others',
    'train',
    '',
    ('run/config.json', "'model'"),
    files={'run/config.json': '{"name": "app"}'},
  ),
  Row(
    'config.json with text for a section',
    'train',
    '',
    ('run/config.json', "'data'"),
    files={'run/config.json': set_value('data', 'x')},
  ),
  Row(
    'deep config.json',
    'train',
    '',
    ('run/config.json', 'brackets'),
    files={'run/config.json': DEEP},
  ),
  Row(
    'config.json is no text',
    'train',
    '',
    ('run/config.json', 'UTF-8'),
    files={'run/config.json': b'\xff\xfe{\0}\0'},
  ),
  Row(
    'config.json with a number of 5000 digits',
    'train',
    '',
    ('run/config.json',),
    files={'run/config.json': '{"seed": ' + 5000 * '9' + '}'},
  ),
  Row(
    'config.json is a folder',
    'train',
    '',
    ('run/config.json',),
    files={'run/config.json': make_folder},
  ),
  Row(
    'half a labels.json',
    'train',
    '',
    ('run/labels.json',),
    files={'run/labels.json': cut},
  ),
  Row(
    'labels.json of an object',
    'train',
    '',
    ('run/labels.json', 'list'),
    files={'run/labels.json': '{"a": 1}'},
  ),
  Row(
    'labels.json with other names',
    'train',
    '',
    ('names of the classes', "'a'"),
    files={'run/labels.json': '["a", "b"]'},
  ),
  Row(
    'metrics.jsonl of text',
    'train',
    '',
    ('run/metrics.jsonl, line 1',),
    files={'run/metrics.jsonl': 'step,loss\n1,2\n'},
  ),
  Row(
    'metrics.jsonl of others',
    'train',
    '',
    ('run/metrics.jsonl, line 1', "'step'"),
    files={'run/metrics.jsonl': '{"epoch": 1}\n'},
  ),
  Row(
    'metrics.jsonl without a grid',
    'train',
    '',
    ('run/metrics.jsonl, line 1', "'train_s'"),
    files={'run/metrics.jsonl': '{"step": 1, "loss": 1.0}\n'},
  ),
  Row(
    'metrics.jsonl damaged in the middle',
    'train',
    '',
    ('run/metrics.jsonl, line 2',),
    files={'run/metrics.jsonl': LINE + '{"st\n' + LINE},
  ),
  Row(
    'metrics.jsonl is binary',
    'train',
    '',
    ('run/metrics.jsonl, line 1',),
    files={'run/metrics.jsonl': b'\x00\x01\n'},
  ),
  Row(
    'half a summary.json',
    'train',
    '',
    ('run/summary.json',),
    files={
      'run/checkpoints/4': lambda p: p.rename(p.with_name('36')),
      'run/summary.json': '{"mode": ',
    },
  ),
  Row(
    'all checkpoints are damaged',
    'train',
    '',
    ('run/checkpoints',),
    1,
    files={'run/checkpoints/4': flip_all, 'run/checkpoints/2': flip_all},
  ),
  Row(
    'imported weights',
    'train',
    '',
    ('--workdir=run', 'init_from'),
    files={'run/import.txt': 'x'},
  ),
  Row(
    'changed settings',
    'train',
    '--config.optim.base_lr=0.5',
    ('optim.base_lr', '--allow_config_change'),
  ),
  Row(
    'init_from of nothing',
    'train',
    '--workdir=new --config.init_from=no',
    ('init_from=no',),
  ),
  Row(
    'init_from of another network',
    'train',
    '--workdir=new --config.init_from=run --config.model.width=8',
    ('init_from', 'such as'),
  ),
  # ---- What settings need of each other: train and plan alike.
  *(
    Row(f'{name}, {command}', command, args, words, base=True)
    for command in ('train', 'plan')
    for name, args, words in (
      (
        'an option that the network lacks',
        '--config.model.alpha=8',
        ('model.alpha', "'slow' has no such option; that is one of 'slowfast'"),
      ),
      (
        'another one',
        '--config.model.tam_frames=5',
        ('model.tam_frames', 'no such option'),
      ),
      (
        'a depth that blocks replace',
        '--config.model.depth=42',
        ('model.depth is 42', '50 or 101'),
      ),
      (
        'no such network',
        '--config.model.name=slowfats',
        ('model.name', 'slowfast'),
      ),
      (
        'other classes',
        '--config.model.num_classes=17',
        ('model.num_classes=17', '16'),
      ),
      (
        'no such split',
        '--config.eval.split=other',
        ('eval.split=other', 'train (240), validation (64), test (64)'),
      ),
      (
        'other videos',
        '--config.data.num_train=7',
        ('data.num_train=7', '240'),
      ),
      (
        'smoothed labels of their own',
        '--config.optim.loss=sigmoid --config.optim.label_smoothing=0.1',
        ('optim.label_smoothing',),
      ),
      (
        'a head larger than its clip',
        '--config.eval.head=fully_conv --config.data.crop_px=64 '
        '--config.data.jitter_px=64,80',
        ('eval.head', 'eval.crop_px'),
      ),
      ('mirrored crops', '--config.eval.num_crops=10', ('eval.num_crops=10',)),
      ('no data set', '--config.data.name=nowhere', ("data.name='nowhere'",)),
    )
  ),
  Row(
    'batches for two devices',
    'train',
    '--config.eval.batch_size=7',
    ('eval.batch_size=7', '2 devices'),
  ),
  Row(
    'batches for three devices',
    'plan',
    '--num_devices=3 --config.data.batch_size=24 --config.norm.group_clips=0',
    ('eval.batch_size=64', '3 devices'),
  ),
  Row(
    'a split without videos',
    'train',
    f'{OWN_DATA} --workdir=new',
    ('eval.split=validation',),
    files={
      INFO: lambda p: p.write_text(
        p.read_text().replace('"validation"', '"other"')
      )
    },
  ),
  *(
    Row(
      f'{name}, {command}',
      command,
      f'{OWN_DATA} {more}',
      (file.split('/')[-1],),
      files={file: content},
    )
    for command, more in (('train', '--workdir=new'), ('plan', ''))
    for name, file, content in (
      ('half a dataset_info.json', INFO, cut),
      ('dataset_info.json of others', INFO, '{"splits": 1}'),
      ('half a features.json', FEATURES, cut),
    )
  ),
  # ---- evaluate.
  Row('no workdir', 'evaluate', '', ('--workdir',), base=False),
  Row('no such folder', 'evaluate', '--workdir=no', ('no/config.json',)),
  Row(
    'no checkpoints',
    'evaluate',
    '',
    ('checkpoint',),
    files={'run/checkpoints': shutil.rmtree},
  ),
  Row('no such step', 'evaluate', '--step=3', ('--step=3', '[2, 4]')),
  Row(
    'half a config.json',
    'evaluate',
    '',
    ('run/config.json',),
    files={'run/config.json': cut},
  ),
  Row(
    'no config.json',
    'evaluate',
    '',
    ('run/config.json',),
    files={'run/config.json': None},
  ),
  Row(
    'deep config.json',
    'evaluate',
    '',
    ('run/config.json',),
    files={'run/config.json': '{"model": ' + DEEP + '}'},
  ),
  Row(
    'half a labels.json',
    'evaluate',
    '',
    ('run/labels.json',),
    files={'run/labels.json': cut},
  ),
  Row(
    'other classes than the data set',
    'evaluate',
    '',
    ('names of the classes',),
    files={'run/labels.json': '["a", "b"]'},
  ),
  Row(
    'other frames than the run',
    'evaluate',
    '--config.data.num_frames=4',
    ('data.num_frames: 2 -> 4', '--allow_config_change'),
  ),
  Row(
    'another config than the run',
    'evaluate',
    f'--config={ROOT}/configs/moving_digits.py:size=tiny '
    '--config.data.dir=DATA',
    ('model.name', '--allow_config_change'),
  ),
  Row(
    'an option that the network lacks',
    'evaluate',
    '--config.model.alpha=8',
    ('model.alpha', "'slow' has no such option"),
  ),
  Row(
    'a config that nothing vouches for',
    'evaluate',
    f'--config={SPECK} --config.data.dir=DATA',
    ('config.json',),
    files={'run/config.json': None},
  ),
  Row(
    'a split that is not there',
    'evaluate',
    '--config.eval.split=other',
    ('eval.split=other', 'validation (64), test (64)'),
  ),
  Row(
    'a damaged newest checkpoint',
    'evaluate',
    '',
    ('run/checkpoints/4',),
    1,
    files={'run/checkpoints/4': flip_all},
  ),
  Row(
    'eval.json is a folder',
    'evaluate',
    '',
    ('eval.json',),
    files={'run/eval.json': make_folder},
  ),
  # ---- predict.
  Row('no video', 'predict', '', ('video',)),
  Row('no such video', 'predict', 'no.mp4', ('no.mp4',)),
  Row(
    'a folder', 'predict', 'videos', ('videos',), files={'videos/a.mp4': b'x'}
  ),
  Row(
    'text for a video', 'predict', 'a.mp4', ('a.mp4',), files={'a.mp4': 'text'}
  ),
  Row('both folders', 'predict', '--checkpoint=run v.mp4', ('--checkpoint',)),
  Row(
    'a folder of nothing',
    'predict',
    '--workdir=videos v.mp4',
    ('videos/config.json',),
    files={'videos/a.mp4': b'x'},
  ),
  Row(
    'half a config.json',
    'predict',
    'v.mp4',
    ('run/config.json',),
    files={'run/config.json': cut},
  ),
  Row(
    'config.json of others',
    'predict',
    'v.mp4',
    ('run/config.json',),
    files={'run/config.json': '{}'},
  ),
  Row(
    'half a labels.json',
    'predict',
    'v.mp4',
    ('run/labels.json',),
    files={'run/labels.json': cut},
  ),
  Row(
    'a label twice',
    'predict',
    '--labels=l.txt v.mp4',
    ('l.txt', "'a'"),
    files={'l.txt': 'a\n' * 16},
  ),
  Row(
    'deep labels',
    'predict',
    '--labels=l.json v.mp4',
    ('l.json',),
    files={'l.json': DEEP},
  ),
  Row(
    'labels that are no text',
    'predict',
    '--labels=l.txt v.mp4',
    ('l.txt, line 1', 'UTF-8'),
    files={'l.txt': b'caf\xe9\n'},
  ),
  Row('labels that are a folder', 'predict', '--labels=run v.mp4', ('run',)),
  Row(
    'too few labels',
    'predict',
    '--labels=l.txt v.mp4',
    ('l.txt', '16'),
    files={'l.txt': 'a\nb\n'},
  ),
  Row(
    'another network',
    'predict',
    '--config.model.width=8 v.mp4',
    ('model.width: 4 -> 8', '--allow_config_change'),
  ),
  Row(
    'other frames',
    'predict',
    '--config.data.num_frames=4 v.mp4',
    ('data.num_frames',),
  ),
  Row(
    'a damaged newest checkpoint',
    'predict',
    'v.mp4',
    ('run/checkpoints/4',),
    1,
    files={'run/checkpoints/4': flip_all},
  ),
  Row('no folder for sheets', 'predict', '--sheet=v.mp4 v.mp4', ('--sheet',)),
  Row(
    'features of another kind',
    'predict',
    '--features=f.csv v.mp4',
    ('--features=f.csv', '.npz'),
  ),
  Row(
    'a picture that cannot be written',
    'predict',
    '--sheet=sheets v.mp4',
    ('sheets/v.png',),
    1,
    files={'sheets/v.png/x': 'x'},
  ),
  Row(
    'features that cannot be written',
    'predict',
    '--features=f.npz v.mp4',
    ('f.npz',),
    files={'f.npz/x': 'x'},
  ),
  # ---- plan, bench: step times.
  *(
    Row(f'{name}, {command}', command, '--workdir=run', words, files=files)
    for command in ('plan', 'data.bench')
    for name, words, files in (
      (
        'metrics.jsonl of text',
        ('run/metrics.jsonl, line 1',),
        {'run/metrics.jsonl': 'a\n'},
      ),
      ('half a config.json', ('run/config.json',), {'run/config.json': cut}),
      (
        'metrics.jsonl with a negative time',
        ('step_s', '-1'),
        {'run/metrics.jsonl': LINE.replace('0.1', '-1')},
      ),
      (
        'metrics.jsonl with text for frames',
        ('grid',),
        {'run/metrics.jsonl': LINE.replace('"T": 2', '"T": "2"')},
      ),
      (
        'no metrics.jsonl',
        ('--workdir=run', 'metrics.jsonl'),
        {'run/metrics.jsonl': None},
      ),
      (
        'the times of another network',
        ('tsn',),
        {'run/config.json': change(name='tsn')},
      ),
    )
  ),
  Row(
    'a file of no times',
    'plan',
    '--workdir=t.json',
    ('t.json',),
    files={'t.json': '{"grids": [{"T": 1}]}'},
  ),
  Row(
    'a deep file of times',
    'plan',
    '--workdir=t.json',
    ('t.json',),
    files={'t.json': DEEP},
  ),
  Row('the output is a folder', 'plan', '--output=run', ('--output=run',)),
  Row('no folder for the output', 'plan', '--output=no/plan.png', ('no',)),
  Row('no hours', 'plan', '--budget_hours=0', ('budget_hours',)),
  Row(
    'one config for a difference',
    'plan',
    f'--diff {SPECK}',
    ('--diff',),
    base=False,
  ),
  # ---- replay.
  Row('no bundle', 'replay', '', ('--bundle',), base=False),
  Row('no failure', 'replay', '', ('failure.json',)),
  Row(
    'half a failure.json',
    'replay',
    '',
    ('run/failure.json',),
    files={'run/failure.json': '{"step": 1'},
  ),
  Row(
    'failure.json of others',
    'replay',
    '',
    ('run/failure.json',),
    files={'run/failure.json': '{"step": "1"}'},
  ),
  Row(
    'half a config.json',
    'replay',
    '',
    ('run/config.json',),
    files={
      'run/failure.json': '{"step": 1, "ids": []}',
      'run/config.json': cut,
    },
  ),
  # ---- import_weights.
  Row('no network', 'import_weights', 'w.pyth', ('--model',)),
  Row('no file', 'import_weights', '--model=slow w.pyth', ('w.pyth',)),
  Row(
    'an option that the network lacks',
    'import_weights',
    '--model=slow --config.model.alpha=8 w.pyth',
    ('model.alpha', "'slow' has no such option"),
  ),
  Row(
    'text for weights',
    'import_weights',
    '--model=slow w.pyth',
    ('w.pyth',),
    files={'w.pyth': 'weights'},
  ),
  Row(
    'an export of nothing',
    'import_weights',
    '--to=pyslowfast no',
    ('no/config.json',),
  ),
  Row(
    'an export with half a config.json',
    'import_weights',
    '--to=pyslowfast run',
    ('run/config.json',),
    files={'run/config.json': cut},
  ),
  Row(
    'an export of a damaged checkpoint',
    'import_weights',
    '--to=pyslowfast run',
    ('run/checkpoints/4',),
    1,
    files={'run/checkpoints/4': flip_all},
  ),
  # ---- prepare: annotations.
  kinetics(
    'no times',
    '',
    ('k.csv, line 2', 'time_start'),
    content='label,youtube_id\na,v\n',
  ),
  kinetics('a time that is none', 'a,v,nan,11,train\n', ('line 2', 'nan')),
  kinetics('an end before its start', 'a,v,5,2,train\n', ('line 2', '5 to 2')),
  kinetics('an endless clip', 'a,v,1,inf,train\n', ('line 2', 'inf')),
  kinetics('a start before the video', 'a,v,-3,7,train\n', ('line 2', '-3')),
  kinetics('no such split', 'a,v,1,11,tran\n', ('line 2', "'tran'")),
  kinetics('half a JSON', '', ('k.json',), file='k.json', content='{"v": {'),
  kinetics(
    'deep JSON', '', ('k.json', 'brackets'), file='k.json', content=DEEP
  ),
  kinetics(
    'JSON of another form',
    '',
    ("k.json, entry 'v'", '"segment"'),
    file='k.json',
    content='{"v": {"annotations": {"label": "a"}}}',
  ),
  kinetics(
    'JSON of a list', '', ('k.json', 'object'), file='k.json', content='[]'
  ),
  kinetics(
    'JSON with a video twice',
    '',
    ('k.json', "'v'"),
    file='k.json',
    content='{"v": {}, "v": {}}',
  ),
  kinetics(
    'JSON with lists for objects',
    '',
    ("k.json, entry 'v'",),
    file='k.json',
    content='{"v": {"annotations": ["a"]}}',
  ),
  kinetics(
    'an annotation in UTF-16',
    '',
    ('k.csv, line 1', 'UTF-8'),
    content=KINETICS.encode('utf-16'),
  ),
  annotated(
    'a class number twice',
    'ssv2',
    {**SS2, 'labels.json': '{"a": "0", "b": "0"}'},
    ("labels.json, entry 'b'", "'a'"),
  ),
  annotated(
    'a class twice',
    'ssv2',
    {**SS2, 'labels.json': '{"a": "0", "a": "1"}'},
    ('labels.json', "'a'"),
  ),
  annotated(
    'a class number that is none',
    'ssv2',
    {**SS2, 'labels.json': '{"a": "first"}'},
    ('labels.json', 'first'),
  ),
  annotated(
    'labels of a list',
    'ssv2',
    {**SS2, 'labels.json': '["a"]'},
    ('labels.json', 'object'),
  ),
  annotated(
    'deep labels',
    'ssv2',
    {**SS2, 'labels.json': DEEP},
    ('labels.json', 'brackets'),
  ),
  annotated(
    'an entry that is a text',
    'ssv2',
    {'train.json': '["x"]', 'labels.json': '{"a": 0}'},
    ('train.json, entry 1',),
  ),
  annotated(
    'a class twice',
    'ssv1',
    {'labels.csv': 'a\na\n', 'train.csv': '1;a\n'},
    ('labels.csv, line 2', "'a'"),
  ),
  annotated(
    'a class number twice',
    'mit',
    {
      'moments_categories.txt': 'a,0\nb,0\n',
      'trainingSet.csv': 'a/v.mp4,a,1,1\n',
    },
    ('moments_categories.txt, line 2', "'b'"),
  ),
  annotated(
    'a class number twice',
    'ucf101',
    {'classInd.txt': '1 A\n1 B\n', 'trainlist01.txt': 'A/x.avi 1\n'},
    ('classInd.txt, line 2', "'B'"),
  ),
  annotated(
    'a code twice',
    'charades',
    {
      'Charades_v1_classes.txt': 'c000 a\nc000 b\n',
      'Charades_v1_train.csv': CHARADES + 'v,c000 1 2,5\n',
    },
    ('Charades_v1_classes.txt, line 2', "'c000'"),
  ),
  *(
    annotated(
      f'times {times}',
      'charades',
      {
        'Charades_v1_classes.txt': 'c000 a\n',
        'Charades_v1_train.csv': CHARADES + f'v,c000 {times},5\n',
      },
      ('Charades_v1_train.csv, line 2',),
    )
    for times in ('nan 2', '5 2', '1 inf', '-1 2', '1', '1 2 3')
  ),
  annotated(
    'no such code',
    'charades',
    {
      'Charades_v1_classes.txt': 'c000 a\n',
      'Charades_v1_train.csv': CHARADES + 'v,c009 1 2,5\n',
    },
    ('Charades_v1_train.csv, line 2', "'c009'"),
  ),
  Row(
    'half of the videos have no file',
    'data.prepare',
    '--dataset=folder --name=x --annotations=a.csv',
    ('3 of the 6 videos of the train split', '--max_missing_fraction=0.5'),
    files={
      'a.csv': ''.join(
        f'{n}.mp4,{"ab"[n % 2]},{"train" if n else "val"}\n' for n in range(7)
      ),
      **{f'videos/{n}.mp4': b'x' for n in (0, 1, 2, 3)},
    },
  ),
  Row(
    'no file of a split',
    'data.prepare',
    '--dataset=folder --name=x --annotations=a.csv',
    ('validation split',),
    files={'a.csv': '1.mp4,a,train\n2.mp4,a,val\n', 'videos/1.mp4': b'x'},
  ),
  Row(
    'a row without a label',
    'data.prepare',
    '--dataset=folder --name=x --annotations=a.csv',
    ('a.csv, line 2',),
    files={'a.csv': '1.mp4,a,train\n2.mp4\n', 'videos/1.mp4': b'x'},
  ),
  Row(
    'a class that is chosen twice',
    'data.prepare',
    '--dataset=folder --name=x --annotations=a.csv --classes=c.txt',
    ('--classes', 'twice'),
    files={'a.csv': '1.mp4,a,train\n', 'c.txt': 'a\na\n', 'videos/1.mp4': b'x'},
  ),
  Row(
    'classes that are no text',
    'data.prepare',
    '--dataset=folder --name=x --annotations=a.csv --classes=c.txt',
    ('c.txt, line 1',),
    files={'a.csv': '1.mp4,a,train\n', 'c.txt': b'\xff', 'videos/1.mp4': b'x'},
  ),
  Row(
    'an output that is a file',
    'data.prepare',
    '--dataset=folder --name=x --annotations=a.csv --out=a.csv',
    ('--out',),
    files={'a.csv': '1.mp4,a,train\n', 'videos/1.mp4': b'x'},
  ),
  Row(
    'no such folder', 'data.prepare', '--dataset=folder --name=x', ('--videos',)
  ),
  Row(
    'no file of annotations',
    'data.prepare',
    '--dataset=kinetics400 --annotations=no.csv',
    ('no.csv',),
    files={'videos/1.mp4': b'x'},
  ),
  Row(
    'more missing than all',
    'data.prepare',
    '--dataset=folder --name=x --max_missing_fraction=2',
    ('--max_missing_fraction',),
  ),
  # ---- moving_digits.
  Row('no such data', 'data.moving_digits', '--config=no', ('--config',)),
  Row(
    'an output that is a file',
    'data.moving_digits',
    '--config=motion_tiny --out=a',
    ('a',),
    files={'a': 'x'},
  ),
  *(
    Row(
      f'{flag}', 'data.moving_digits', f'--config=motion_tiny {flag}', (words,)
    )
    for flag, words in (
      ('--num_train=-1', 'num_train'),
      ('--num_train=0', 'num_train'),
      ('--num_test=-1', 'num_test'),
      ('--size_px=0', 'size_px'),
      ('--num_frames=0', 'num_frames'),
      ('--labels=no', 'labels'),
      ('--workers=-1', 'workers'),
    )
  ),
  # ---- experiments.
  *(
    Row(
      f'{name}, {script}',
      f'experiments.tables.{script}',
      args,
      ('--out',),
      files={'a': 'x'},
    )
    for script in ('multigrid_io', 'multigrid_schedules', 'epoch_factors')
    for name, args in (
      ('the output is a file', '--out=a'),
      ('the output is below a file', '--out=a/b'),
    )
  ),
  Row('no such table', 'experiments.runs.launch', '--table=no', ('--table',)),
  Row(
    'no such record',
    'experiments.runs.launch',
    '--table=moving_digits --record=no',
    ('--record',),
  ),
  Row(
    'no such run',
    'experiments.runs.launch',
    '--table=moving_digits --only=no',
    ('--only',),
  ),
  Row(
    'no seeds',
    'experiments.runs.launch',
    '--table=moving_digits --seeds=0',
    ('--seeds',),
  ),
  Row(
    'an endless rate',
    'experiments.runs.launch',
    '--table=moving_digits --gmacs_per_s=nan',
    ('--gmacs_per_s',),
  ),
]

# What flags and config files say.
FLAGS = [
  *(
    Row(f'{name}, {command}', command, args, words)
    for command in ('train', 'plan', 'data.bench')
    for name, args, words in (
      ('a misspelt flag', '--wrkdir=run', ('wrkdir', 'workdir')),
      (
        'a field that is not there',
        '--config.optim.base_lrr=1',
        ('--config.optim.base_lrr', 'base_lr'),
      ),
      (
        'text for a number',
        '--config.data.batch_size=many',
        ('data.batch_size',),
      ),
      (
        'a fraction for a count',
        '--config.data.crop_px=1.5',
        ('data.crop_px',),
      ),
      ('a value out of range', '--config.model.dropout=2', ('model.dropout',)),
      ('no such mode', '--config.grid.mode=all', ('grid.mode',)),
      ('a word too many', 'json', ("'json'",)),
    )
  ),
  *(
    Row('no config', command, '--workdir=run', ('--config',), base=False)
    for command in ('train', 'plan')
  ),
  *(
    Row(
      'no such config',
      command,
      '--config=no.py --workdir=run',
      ('--config=no.py',),
      base=False,
    )
    for command in ('train', 'evaluate', 'predict', 'plan', 'data.bench')
  ),
  Row('a negative step', 'train', '--profile=-1', ('--profile',)),
  Row('text for a step', 'evaluate', '--step=last', ('--step', 'last')),
  Row('no labels at all', 'predict', '--top=0 v.mp4', ('--top',)),
  Row('no such format', 'predict', '--format=xml v.mp4', ('--format', 'xml')),
  Row('no such speed', 'plan', '--device=abacus', ('device',)),
  Row('two speeds', 'plan', '--step_ms=1 --gmacs_per_s=1', ('--step_ms',)),
  Row('steps of no number', 'plan', '--step_ms=nan', ('--step_ms',)),
  Row('steps in no time', 'plan', '--step_ms=0', ('--step_ms',)),
  Row('hours that are none', 'plan', '--budget_hours=nan', ('--budget_hours',)),
  Row('no clips', 'data.bench', '--num_clips=0', ('--num_clips',)),
  Row('no such data set', 'data.prepare', '--dataset=no', ('--dataset',)),
  Row('no such fold', 'data.prepare', '--dataset=ucf101 --fold=4', ('--fold',)),
]
HEAD = 'from mgjax.config import fields\n\ndef get_config():\n'
OWN = HEAD + '  c = fields.base()\n'


def own(name: str, content: str, *words: str) -> Row:
  """A wrong config file of the user's."""
  command = '--config=c.py --workdir=new'
  return Row(name, 'train', command, words, files={'c.py': content}, base=False)


CONFIG_FILES = [
  own('a syntax error', 'def get_config(:\n', 'c.py', 'c.py:1'),
  own('an indentation error', HEAD + '  a = 1\n    b = 2\n', 'c.py', 'c.py:5'),
  own('a byte that is no text', 'x = 1\0\n', 'c.py'),
  own('no get_config', 'x = 1\n', 'c.py', 'get_config'),
  own('nothing returned', OWN, 'c.py', 'return'),
  own('a number returned', HEAD + '  return 3\n', 'c.py'),
  own(
    'a misspelt field',
    OWN + '  c.optim.base_lrr = 1\n  return c\n',
    'c.py',
    'c.py:5',
    'base_lrr',
    'base_lr',
  ),
  own(
    'a fraction for a count',
    OWN + '  c.data.batch_size = 8.0\n  return c\n',
    'c.py',
    'batch_size',
  ),
  own('an error of its own', OWN + '  1 / 0\n', 'c.py', 'c.py:5'),
  own('an import of nothing', 'import nothing_at_all\n', 'c.py', 'c.py:1'),
  own(
    'a config that is not from base()',
    'import ml_collections\n'
    'def get_config():\n  return ml_collections.ConfigDict({"seed": 1})\n',
    'c.py',
    'base()',
  ),
  own('a config without end', HEAD + '  return get_config()\n', 'c.py'),
  Row(
    'a page for a config',
    'plan',
    f'--config={ROOT}/README.md',
    ('README.md',),
    base=False,
  ),
  Row(
    'a folder for a config',
    'plan',
    f'--config={ROOT}',
    ('--config',),
    base=False,
  ),
  Row(
    'no such argument',
    'plan',
    f'--config={ROOT}/configs/moving_digits.py:colour=red',
    ("'colour=red'",),
    base=False,
  ),
  *(
    Row(f'{name}, {command}', command, args, words)
    for command in ('train', 'plan')
    for name, args, words in (
      (
        'a depth that no network has',
        '--config.model.depth=200',
        ('model.depth', '200'),
      ),
      (
        'a schedule of minus signs',
        f'--config.optim.schedule={100_000 * "-"}1',
        ('optim.schedule',),
      ),
      (
        'a schedule below zero',
        "'--config.optim.schedule=optax.linear_schedule(0.1,-0.1,3)'",
        ('optim.schedule',),
      ),
      (
        'a schedule that is a program',
        '"--config.optim.schedule=__import__(\'os\').getcwd()"',
        ('optim.schedule',),
      ),
    )
  ),
]


def table(name: str, content: object, *words: str, args: str = '') -> Row:
  """A wrong table of a schedule, as text or as the rows of t.json."""
  text = content if isinstance(content, str) else json.dumps(content)
  command = f'--config.grid.mode=table --config.grid.table=t.json {args}'
  return Row(f'table: {name}', 'plan', command, words, files={'t.json': text})


def row(name: str, *words: str, **fields) -> Row:
  """A wrong second row of a table, which has 16 clips of 2 x 32²."""
  rows = [{'epochs': 1}, {'epochs': 1, **fields}]
  return table(name, rows, 'grid.table row 2', *words)


def draw(name: str, *words: str, **fields) -> Row:
  """A wrong second grid of a table's random ones."""
  return row(name, 'random 2', *words, random=[{}, fields])


TABLES = [
  row('an unknown field', "'epoch'", 'lr_scale', epoch=3),
  row('two lengths', 'epochs and steps', steps=3),
  table('no length', [{'T': 2}], 'grid.table row 1', 'no length', 'end_epoch'),
  table(
    'shares that do not sum to 1', [{'share': 0.3}] * 3, 'grid.table', '0.9'
  ),
  table(
    'a share among epochs',
    [{'share': 1}, {'epochs': 1}],
    'grid.table row 2',
    'share is missing',
  ),
  table(
    'a row that ends before the one before',
    [{'end_epoch': 3}, {'end_epoch': 2}],
    'grid.table row 2',
    'end_epoch is 2',
  ),
  table('epochs that are none', [{'epochs': 0}], 'row 1', 'epochs is 0'),
  table('no epoch at all', [{'end_epoch': 0}], 'no epoch'),
  table('NaN', '[{"epochs": NaN}]', 'row 1', 'epochs is nan'),
  table('an endless row', '[{"epochs": Infinity}]', 'row 1', 'epochs is inf'),
  table('epochs beyond counting', [{'epochs': 1e300}], 'epochs is 1e+300'),
  table('steps beyond counting', [{'steps': 10**12}], 'row 1', 'steps is'),
  table('half a step', [{'steps': 1.5}], 'row 1', 'steps is 1.5'),
  row('text for frames', "T is 'x'", T='x'),
  row('truth for frames', 'T is True', T=True),
  row('more frames than there are', 'T is 99', 'at most 2', T=99),
  row('a larger side than the full one', 'H is 64', 'at most 32', H=64),
  row('a size twice', 'T and frames_factor', T=1, frames_factor=0.5),
  row('a factor above 1', 'side_factor is 2', side_factor=2),
  row('a factor that leaves nothing', 'side_factor=0.001', side_factor=0.001),
  row('a crop that is too small', 'crop of 8x8', side_factor=0.25),
  row('no clips', 'batch is 0', batch=0),
  row('text for clips', "batch is 'most'", 'equal_voxels', batch='most'),
  row('a list for clips', 'batch is [8]', batch=[8]),
  row('clips that do not divide', 'batch of 6', batch=6, group_clips=4),
  row('groups that are none', 'group_clips is -1', group_clips=-1),
  row('no grids', 'random is []', random=[]),
  row('a number for grids', 'cycle is 3', cycle=3),
  row('a number for a grid', 'cycle 1', 'it is 3', cycle=[3]),
  row('a cycle in a cycle', 'cycle 1', "'cycle'", cycle=[{'cycle': [{}]}]),
  row('turns and draws', 'cycle and random', cycle=[{}], random=[{}]),
  draw('a weight of zero', 'weight is 0', weight=0),
  draw('a weight below zero', 'weight is -1', weight=-1),
  draw('a weight beyond summing', 'weight is 1e+308', weight=1e308),
  draw('a batch that is none', 'batch is -8', batch=-8),
  draw('a length of a grid', "'epochs'", epochs=1),
  row('a weight of a turn', 'cycle 1', "'weight'", cycle=[{'weight': 1}]),
  row('text for a rate', "lr is 'x'", lr='x'),
  row('a rate below zero', 'lr is -1', lr=-1),
  row('a line that stops', 'lr is [[0, 1], [0.5, 1]]', lr=[[0, 1], [0.5, 1]]),
  row('too few rates', 'lr_steps', lr={'rates': [1], 'lr_steps': [1]}),
  row('no such schedule', "lr: schedule is 'wave'", lr={'schedule': 'wave'}),
  row(
    'decays that are none',
    "lr: lr_steps is 'abc'",
    lr={'schedule': 'steps', 'lr_steps': 'abc'},
  ),
  row('a fall by text', "gamma is 'x'", lr={'schedule': 'steps', 'gamma': 'x'}),
  row('an unknown part of a rate', "'peak'", lr={'rates': [1], 'peak': 1}),
  row('no such scale', "lr_scale is 'cube'", 'sqrt', lr_scale='cube'),
  row('no stride', 'stride_frames is 0', 'same_span', stride_frames=0),
  row('a stride that shrinks', 'stride_frames is [3, 1]', stride_frames=[3, 1]),
  row('a resized side below the crop', 'jitter_px', '32', jitter_px=[8, 40]),
  row('an unknown strength', 'augment', "'mixup'", augment={'mixup': 1}),
  row('too strong', 'augment', 'hue is 2', augment={'hue': 2}),
  table('a row that is a number', [3], 'grid.table row 1', 'it is 3'),
  table('a row that is rows', [[{'epochs': 1}]], 'grid.table row 1', 'dict'),
  table('no rows', [], 'table'),
  table('an object without rows', {'mode': 'both'}, 't.json', "'table'"),
  table('rows that are none', {'table': 3}, 't.json', "'table'"),
  table('text', '"vjepa2"', 't.json', 'object', 'list'),
  table('half a JSON', '[{"epochs": ', 't.json', 'JSON'),
  table('a field twice', '[{"epochs": 1, "epochs": 2}]', "'epochs'", 'twice'),
  table('deep JSON', DEEP, 't.json', 'brackets'),
  table(
    'a multiple that a row is not of',
    [{'epochs': 1, 'H': 30, 'W': 32}],
    'H is 30',
    'multiple of 16',
    args='--config.grid.side_multiple=16',
  ),
  table(
    'clips that devices do not divide',
    [{'epochs': 1, 'batch': 9}],
    'grid.table row 1',
    'batch of 9',
    '2 devices',
    args='--num_devices=2 --config.norm.group_clips=0',
  ),
  *(
    Row(
      f'table: {name}',
      'plan',
      f'--config.grid.mode=table {args}',
      words,
      files=files,
    )
    for name, args, words, files in (
      ('none', '', ('grid.table is empty', 'vjepa2'), {}),
      (
        'no such file',
        '--config.grid.table=no.json',
        ('grid.table=no.json', 'neither'),
        {},
      ),
      (
        'no such name',
        '--config.grid.table=vjepa3',
        ('grid.table=vjepa3', "'vjepa2'"),
        {},
      ),
      (
        'a name without end',
        f'--config.grid.table={300 * "a"}.json',
        ('neither',),
        {},
      ),
      (
        'a folder',
        '--config.grid.table=t.json',
        ('grid.table=t.json',),
        {'t.json/x': 'x'},
      ),
      (
        'no such argument',
        '--config.grid.table=vjepa2:colour=red',
        ("'colour=red'",),
        {},
      ),
      (
        'a program without a table',
        '--config.grid.table=t.py',
        ('t.py', 'get_table'),
        {'t.py': 'x = 1\n'},
      ),
      (
        'a program that fails',
        '--config.grid.table=t.py',
        ('t.py:2', 'ZeroDivisionError'),
        {'t.py': 'def get_table(full, epochs):\n  return [1 / 0]\n'},
      ),
      (
        'a program of no rows',
        '--config.grid.table=t.py',
        ('t.py', 'rows'),
        {'t.py': 'def get_table(full, epochs):\n  return 3\n'},
      ),
    )
  ),
]
ROWS += FLAGS + CONFIG_FILES + TABLES


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """Folder of a run that was stopped after a few steps."""
  folder = epath.Path(tmp_path_factory.mktemp('runs') / 'run')
  config = speck.get_config()
  config.data.dir = str(data_dir)
  names = moving_digits.class_names('motion')
  run_settings.prepare(config, folder, names)
  make_state = network.state_maker(
    config,
    network.model(config),
    network.optimizer(config),
  )
  state = jax.jit(make_state)()
  with Checkpoints(folder, Keep(newest=3, best=1)) as checkpoints:
    for step in (2, 4):
      progress = {'times': {}, 'bad_videos': {}, 'statistics_due': False}
      checkpoints.save(state.replace(step=jnp.int32(step)), step, progress)
  (folder / 'metrics.jsonl').write_text(LINE)
  return pathlib.Path(folder)


@pytest.fixture
def place(run, data_dir, tmp_path, monkeypatch):
  """A working directory with a run, its data set and a video."""
  shutil.copytree(run, tmp_path / 'run')
  shutil.copytree(data_dir, tmp_path / 'data')
  video = digits.encode(jnp.zeros((8, 40, 40, 3), jnp.uint8).__array__())
  (tmp_path / 'v.mp4').write_bytes(video)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def put(folder: pathlib.Path, files: dict) -> None:
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
      path.unlink()
    elif callable(content):
      content(path)
    elif isinstance(content, bytes):
      path.write_bytes(content)
    else:
      path.write_text(content)


def arguments(row: Row, data_dir: pathlib.Path) -> tuple[str, list[str]]:
  """Module and arguments of a row."""
  module = row.command
  if not module.startswith('experiments.'):
    module = f'mgjax.{module}'
  base = BASE.get(row.command, '') if row.base else ''
  text = f'{base} {row.args}'.replace('DATA', str(data_dir))
  return module, shlex.split(text)


def call(module: str, argv: list[str], monkeypatch) -> int:
  """Runs a command in this process, as `python -m` does; returns its code."""
  monkeypatch.setattr(sys, 'argv', [module, *argv])
  # That is for the rest of a process.
  monkeypatch.setattr(stop_signal, 'install', lambda: None)
  environment = dict(os.environ)
  try:
    runpy.run_module(module, run_name='__main__', alter_sys=True)
  except SystemExit as ended:
    return ended.code or 0
  except Exception:
    traceback.print_exc()
    return -1
  finally:
    gc.enable()
    os.environ.clear()
    os.environ.update(environment)
  return 0


def assert_one_line(row: Row, code: int, err: str) -> None:
  assert 'Traceback' not in err, err
  assert err.startswith('error: ') and err.count('\n') == 1, err
  for word in row.words:
    assert word in err
  assert code == row.code


IDS = [f'{row.command}: {row.name}' for row in ROWS]


@pytest.mark.parametrize('row', ROWS, ids=IDS)
def test_a_wrong_input_ends_in_one_line(
  row, place, data_dir, monkeypatch, capfd
):
  put(place, row.files)
  module, argv = arguments(row, data_dir)
  capfd.readouterr()
  code = call(module, argv, monkeypatch)
  assert_one_line(row, code, capfd.readouterr().err)


# One of each kind, as a user has it.
AS_PROCESSES = (
  'train: half a config.json',
  'evaluate: a damaged newest checkpoint',
  'predict: deep labels',
  'plan: no data set, plan',
  'data.prepare: times 5 2',
)


@pytest.mark.parametrize('name', AS_PROCESSES)
def test_a_wrong_input_ends_the_process_in_one_line(name, place, data_dir):
  row = ROWS[IDS.index(name)]
  put(place, row.files)
  module, argv = arguments(row, data_dir)
  ended = subprocess.run(
    [sys.executable, '-m', module, *argv],
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert_one_line(row, ended.returncode, ended.stderr)
