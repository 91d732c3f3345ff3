"""Disks that are too small for a run, before it and while it trains."""

import os
import re
import shutil
import subprocess
import sys
import types

import jax
import pytest

from mgjax.cli import ConfigError
from mgjax.run import disk_space, run_folder

FREE = 1 << 20
STATE = {'w': jax.ShapeDtypeStruct((1000, 100), 'float32')}  # 0.4 MB.


@pytest.fixture
def disk(monkeypatch):
  """A disk with a megabyte left."""
  usage = types.SimpleNamespace(free=FREE)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)


def check(workdir):
  disk_space.check(
    workdir, STATE, num_checkpoints=2, num_lines=0, num_evaluations=0
  )


def test_what_a_run_keeps_must_fit_its_disk(disk, tmp_path):
  # Two of 0.4 MB, the newest while the other is still there, and half a MB.
  with pytest.raises(ConfigError, match='up to 2 checkpoints of 0.4 MiB.*1.0'):
    check(tmp_path / 'no' / 'run')
  assert not (tmp_path / 'no').exists()


def test_what_a_run_has_there_already_counts(disk, tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'checkpoints/1').write_bytes(bytes(FREE))
  check(tmp_path)


def test_of_an_object_store_nothing_is_asked(disk):
  check('gs://bucket/run')


@pytest.mark.skipif(os.geteuid() != 0, reason='only root mounts a disk')
def test_a_disk_that_fills_up_ends_a_run_in_one_line(data_dir, tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=700k', 'tmpfs', str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('no disk can be mounted here')
  try:
    # As if others wrote on the disk, too, after it was looked at.
    script = """if True:
      import sys
      from mgjax import cli, train
      from mgjax.run import disk_space
      disk_space.check = lambda *args, **kwargs: None
      sys.exit(cli.run('mgjax.run.launch', train.define_flags))
    """
    command = [
      *(sys.executable, '-c', script, '--config=tests/speck.py'),
      *(f'--config.data.dir={data_dir}', f'--workdir={disk}/run'),
      *('--config.model.width=16', '--config.train.checkpoint_every_steps=3'),
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    told = [line for line in re.split('[\r\n]', ended.stderr) if line]
    assert ended.returncode == 1, ended.stderr
    assert 'Traceback' not in ended.stderr, ended.stderr
    # In front of it are the progress, and others' words on a slow machine.
    assert told[-1].startswith('error: '), ended.stderr
    assert 'No space left' in told[-1] or 'RESOURCE_EXHAUSTED' in told[-1]
    checkpoints = [p for p in (disk / 'run/checkpoints').iterdir()]
    assert any(p.name.isdigit() for p in checkpoints)
    assert run_folder.read_metrics(disk / 'run')
  finally:
    subprocess.run(['umount', str(disk)], check=True)
