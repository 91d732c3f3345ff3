"""Prepares small data sets for tests, and reads what they hold."""

import json

from absl import flags

from mgjax import cli
from mgjax.config import fields
from mgjax.data.prepare import command, settings
from mgjax.data.prepare.__main__ import define_flags
from mgjax.data.prepare.plan import make_plan
from mgjax.setup import data as data_setup
from tests.data import videos


def arguments(folder, *more, workers=1):
  return [
    '--dataset=kinetics400',
    f'--videos={folder / "videos"}',
    f'--annotations={folder / "k.csv"}',
    f'--out={folder / "out"}',
    '--videos_per_shard=2',
    f'--num_workers={workers}',
    *more,
  ]


def run(argv):
  """Runs the command; returns its exit code."""
  return cli.run(
    command.main, define_flags, ['prepare', *argv], takes_config=False
  )


def plan_of(argv):
  values = flags.FlagValues()
  define_flags(values)
  values(['prepare', *argv])
  return make_plan(settings.of_flags(values))


def manifest_of(folder):
  lines = (folder / 'manifest.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def summary_of(folder):
  return json.loads((folder / 'summary.json').read_text())


def assert_same(folder, other):
  """Two data sets have the same videos, labels and order, in the same bytes."""
  names, other_names = (
    sorted(p.name for p in f.iterdir()) for f in (folder, other)
  )
  assert names == other_names
  assert manifest_of(folder) == manifest_of(other)
  for name in names:
    if 'array_record' in name:
      assert (folder / name).read_bytes() == (other / name).read_bytes()


def open_source(out, name, split):
  config = fields.base()
  config.data.dir = str(out)
  config.data.name = name
  return data_setup.source(config, split)


def examples_of(source):
  return [source[i] for i in range(len(source))]


def a_file(kinetics, name='val1'):
  return next((kinetics / 'videos').rglob(f'{name}*'))


def folder_of(tmp_path, *paths, seed=0):
  """Writes videos, and returns a command that prepares them."""
  for number, path in enumerate(paths):
    file = tmp_path / 'videos' / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(videos.encode(seed=seed + number, num_frames=3))
  return [
    '--dataset=folder',
    '--name=mine',
    f'--videos={tmp_path / "videos"}',
    f'--out={tmp_path}',
    '--num_workers=1',
    '--validation_fraction=0',
  ]
