"""Tables as made, and records of made-up runs."""

import json

import pytest

from experiments import costs
from experiments.runs import record, settings
from experiments.tables import readmes
from mgjax import cli


@pytest.fixture(scope='session')
def made():
  """All tables of the scripts, by name; nothing changes them."""
  found = [
    table for script in readmes.SCRIPTS for table in readmes.made(script)
  ]
  return {table.name: table for table in found}


@pytest.fixture
def no_counting(monkeypatch):
  """What the READMEs need is in costs.csv."""

  def refuse(key):
    raise AssertionError(f'{key} is not in costs.csv; run make tables')

  monkeypatch.setattr(costs, 'count', refuse)


@pytest.fixture
def records(monkeypatch, tmp_path):
  """Writes records of made-up runs into a folder of their own."""
  monkeypatch.setattr(record, 'RECORDS', tmp_path)

  def write(name, config, *, train_s=100.0, top1=50.0, change=None):
    stored = settings.kept(cli.read_config(config))
    folder = tmp_path / name
    folder.mkdir(parents=True)
    entry = {
      'config': config,
      'overrides': [],
      'data': {
        'name': stored['data']['name'],
        'fingerprint': '6b9c452f9bf079ae',
      },
      'summary': {
        'top1': top1,
        'top5': 90.0,
        'steps': 1000,
        'clips': 8000,
        'train_s': train_s,
        'compile_s': 5.0,
        'eval_s': 1.0,
        'environment': {
          'device': 'cpu',
          'num_devices': 1,
          'machine': 'x86_64',
          'num_cpus': 2,
        },
      },
    }
    entry['config_hash'] = settings.config_hash(stored)
    if change:
      change(entry, stored)
    (folder / 'config.json').write_text(json.dumps(stored))
    baseline = {'grid': {'T': 32}, 'gmacs': 400.0, 'clips': 8}
    (folder / 'plan.json').write_text(
      json.dumps({'total_gmacs': 400.0, 'baseline': baseline})
    )
    (folder / 'record.json').write_text(json.dumps(entry))
    evaluation = {f: entry['summary'][n] for f, n in _EVALUATED}
    (folder / 'eval.json').write_text(json.dumps(evaluation))

  return write


# What an evaluation and a summary have both, by their names of it.
_EVALUATED = (('step', 'steps'), ('top1', 'top1'))


@pytest.fixture
def add(tmp_path, monkeypatch):
  """Returns a function that writes what the tables read of a record."""
  monkeypatch.setattr(record, 'RECORDS', tmp_path)

  def write(
    name,
    seed,
    validation,
    test=None,
    train_s=100.0,
    cpu='a',
    resumed=False,
    **fields,
  ):
    folder = tmp_path / f'{name}-seed{seed}'
    folder.mkdir(parents=True)
    entry = {
      'commit': 'abcdef0',
      'package_tree': 'tree',
      'resumed': resumed,
      'cpu_seconds': 2 * train_s,
      'cache': {'state': 'warm'},
      **fields,
      'summary': {
        'top1': validation,
        'train_s': train_s - 1,
        'compile_wait_s': 1.0,
        'environment': {'device': 'cpu', 'cpu': cpu, 'num_cpus': 1},
      },
    }
    (folder / 'record.json').write_text(json.dumps(entry))
    (folder / 'plan.json').write_text(json.dumps({'total_gmacs': train_s}))
    if test is not None:
      (folder / 'test.json').write_text(json.dumps({'top1': test}))

  return write
