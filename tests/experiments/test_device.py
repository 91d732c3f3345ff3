"""The day that a device is there: every part runs, and goes on where it was."""

import json
import sys

import pytest

from experiments import device
from experiments.bench import device_training, gpu_decoding
from mgjax import cli
from tests.experiments.rows import rows_of


def run(capsys, *args):
  argv = ['experiments.device', *map(str, args)]
  code = cli.run(device.main, device.define_flags, argv, takes_config=False)
  return code, capsys.readouterr()


@pytest.fixture
def here(tmp_path):
  return device.Here('cpu-small', 'cpu', 1, 0.0, True, '', tmp_path)


@pytest.fixture
def fake(monkeypatch):
  """Replaces the parts by little programs; returns what they print into."""

  def install(**codes):
    parts = {
      name: device.Part(
        0.5,
        'fake',
        lambda here, name=name: [name],
        lambda here, name=name: [f'{name}.json'],
      )
      for name in codes
    }
    monkeypatch.setattr(device, 'PARTS', parts)
    original = device.subprocess.run

    def start(command, **kwargs):
      program = ['-c', codes[command[-1]]]
      return original([sys.executable, *program], **kwargs)

    monkeypatch.setattr(device.subprocess, 'run', start)

  return install


def test_a_part_with_a_record_is_not_measured_again(here, fake):
  fake(grids=f'open({str(here.records / "grids.json")!r}, "a").write("x")')
  assert device.run('grids', here, 60).startswith('measured in')
  assert device.run('grids', here, 60) == 'recorded'
  assert (here.records / 'grids.json').read_text() == 'x'


def test_a_part_that_fails_or_takes_long_is_named(here, fake):
  fake(grids='import sys; sys.exit(3)', layouts='import time; time.sleep(99)')
  assert 'exit code 3' in device.run('grids', here, 60)
  assert device.run('layouts', here, 1).startswith('ended after 1 s')


def test_what_cannot_be_measured_here_says_why(here):
  assert '--torch_python' in device.run('torch', here, 60)
  assert 'no GPU' in device.run('decoding', here, 60)


@pytest.mark.parametrize(
  'args,words',
  [
    (['--parts=grid'], 'accepted are grids, layouts,'),
    ([], 'JAX finds no accelerator here'),
  ],
)
def test_what_cannot_work_is_refused(capsys, args, words):
  code, printed = run(capsys, *args)
  assert code == 2
  assert words in printed.err


def test_every_part_has_a_benchmark_that_takes_its_arguments(here):
  for small in (True, False):
    for name, part in device.PARTS.items():
      machine = here._replace(
        small=small, platform='gpu', peak_tflops=1.0, torch_python='python'
      )
      assert part.results(machine), name
      assert all(word.startswith('--') for word in part.arguments(machine))
  assert sum(part.share for part in device.PARTS.values()) == pytest.approx(1)


@pytest.mark.slow
def test_every_part_runs_at_reduced_size_on_a_cpu(tmp_path, monkeypatch, capfd):
  # Nothing is prepared on the machine of that day.
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'data'))
  args = ['--small', f'--records={tmp_path}', '--minutes=60', '--name=x']
  code, printed = run(capfd, *args)
  assert code == 0, printed.err
  for name, part in device.PARTS.items():
    here = device.Here('x-small', 'cpu', 1, 0.0, True, '', tmp_path)
    if not part.missing(here):
      assert f'\n{name}: measured in' in f'\n{printed.out}'
      for path in part.results(here):
        assert json.loads((tmp_path / path).read_text())['commit']
  code, printed = run(capfd, *args)
  assert code == 0
  assert 'measured in' not in printed.out


def test_both_decoders_see_the_same_frames(tmp_path, monkeypatch, capsys):
  # FFmpeg's CUDA path needs a GPU: the CPU stands in for it.
  monkeypatch.setattr(gpu_decoding, 'find_hardware', lambda name, **_: None)
  args = ['x', '--videos=1', '--turns=1', '--name=x', f'--records={tmp_path}']
  main, flags = gpu_decoding.main, gpu_decoding.define_flags
  assert cli.run(main, flags, args, takes_config=False) == 0, (
    capsys.readouterr()
  )
  entry = json.loads((tmp_path / 'x.json').read_text())
  assert entry['largest_difference'] == 0
  assert entry['frames'] == 300
  ways = [row['decoder'] for row in rows_of(gpu_decoding.table(entry))]
  assert ways == ['one core', 'cuda, to the host', 'cuda, stays']
  assert cli.run(main, flags, args, takes_config=False) == 2
  assert 'there already' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['vulcan', 'qsv'])
def test_a_decoder_that_is_not_there_is_named(tmp_path, capsys, name):
  args = ['x', '--videos=1', f'--hardware={name}', f'--records={tmp_path}']
  main, flags = gpu_decoding.main, gpu_decoding.define_flags
  assert cli.run(main, flags, args, takes_config=False) == 2
  assert f'--hardware={name}' in capsys.readouterr().err


def test_trainings_are_compared_by_hand():
  ours = {'losses': [2.0, 1.1, *[1.0] * 20], 'top1': 80.0}
  cpu = {'losses': [2.0, 1.0, *[1.0] * 9, *[9.0] * 11], 'top1': 82.0}
  found = device_training.compare(ours, cpu)
  assert found == {'first_losses': pytest.approx(0.1), 'top1': -2.0}
