"""Runs of all families for other programs: logits, errors, what is left."""

import json
import re
import shutil
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mgjax import cli, export
from mgjax.config import network_options
from mgjax.exporting import command, framework_files
from mgjax.run import checkpoint
from mgjax.setup import network
from mgjax.step import train_step
from mgjax.weights import command as weights_command
from mgjax.weights import safetensors_files, torch_files
from tests import compiling
from tests.exporting import networks

EACH = [
  name if name in networks.QUICK else pytest.param(name, marks=pytest.mark.slow)
  for name in networks.NETWORKS
]
# What the card says, in a process with JAX and NumPy only; then two clips.
JAX_ALONE = """
import os
{usage}
assert scores.shape == (1, 5), scores.shape
with open('model.stablehlo', 'rb') as file:
  assert export.deserialize(bytearray(file.read())).platforms == (
    'cpu', 'cuda', 'tpu')
np.savez(os.environ['OUT'], **program(np.load(os.environ['CLIPS'])))
import sys
others = [n for n in sys.modules if n.split('.')[0] in ('mgjax', 'flax')]
assert not others, others
"""


def run(capsys, *argv):
  code = cli.run(
    command.main,
    export.define_flags,
    ['export', *map(str, argv)],
    find_config=export.find_config,
  )
  return code, capsys.readouterr()


def clips_of(config, batch):
  size = config.data.num_frames, config.eval.crop_px, config.eval.crop_px
  rng = np.random.default_rng(7)
  return rng.integers(0, 256, (batch, *size, 3), np.uint8)


def logits_of(config, variables, clips):
  model = network.model(config)
  pixels = jnp.asarray(clips)
  video = train_step.normalize(pixels, config.data.mean, config.data.std)
  return np.asarray(jax.jit(model.apply)(variables, video))


def usage_of(folder):
  """The program that a card shows."""
  text = (folder / 'README.md').read_text()
  return re.search(r'^```python\n(.*?)^```', text, re.M | re.S)[1]


def in_another_process(folder, program, clips, python=sys.executable):
  """Runs a program in a folder; what it has written to $OUT."""
  np.save(folder.parent / 'clips.npy', clips)
  out = folder.parent / 'out.npz'
  result = subprocess.run(
    [python, '-c', program],
    cwd=folder,
    env={
      'PATH': '/usr/bin:/bin',
      'JAX_PLATFORMS': 'cpu',
      # As here: another level of the compiler's rounds otherwise.
      'XLA_FLAGS': compiling.QUICK,
      'CLIPS': str(folder.parent / 'clips.npy'),
      'OUT': str(out),
    },
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  with np.load(out) as arrays:
    return dict(arrays)


def assert_close(found, wanted, tolerance):
  assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_all_networks_are_here():
  names = {name for name, _ in networks.NETWORKS.values()}
  assert names == network_options.NETWORKS.keys()


# Of every network that a framework has.
FRAMEWORKS = [
  ('huggingface', 'videomae'),
  ('huggingface', 'vjepa2'),
  ('huggingface', 'vivit'),
  ('huggingface', 'timesformer'),
  ('pyslowfast', 'slowfast'),
  ('pyslowfast', 'slow'),
  ('pyslowfast', 'c2d'),
  ('pyslowfast', 'i3d'),
  ('pytorchvideo', 'slowfast'),
  ('pytorchvideo', 'slow'),
  ('pytorchvideo', 'c2d'),
  ('pytorchvideo', 'i3d'),
]
# pytorchvideo's have none.
NO_NONLOCAL = {'nonlocal_blocks': ((), ())}


@pytest.mark.parametrize(
  'to,name',
  [
    pytest.param(
      *case,
      marks=[] if case in (FRAMEWORKS[0], FRAMEWORKS[4]) else pytest.mark.slow,
    )
    for case in FRAMEWORKS
  ],
)
def test_a_frameworks_files_are_read_again_and_give_the_logits(
  to, name, tmp_path, capsys
):
  takes_none = to == 'pytorchvideo' and name in ('slowfast', 'slow')
  config = networks.config_of(name, **(NO_NONLOCAL if takes_none else {}))
  variables = networks.write_run(tmp_path / 'run', config)
  folder = tmp_path / 'made'
  code, printed = run(
    capsys, f'--workdir={tmp_path / "run"}', f'--to={to}', f'--out={folder}'
  )
  assert code == 0, printed.err
  about = {'mgjax_config.json', 'labels.json', 'README.md'}
  files = {path.name for path in folder.iterdir()} - about
  if to == 'huggingface':
    (preprocessor,) = files - {'config.json', 'model.safetensors'}
    stored = json.loads((folder / preprocessor).read_text())
    assert stored['image_mean'] == list(config.data.mean)
    assert stored['size'] == {'shortest_edge': 40}
    assert stored['crop_size'] == {'height': 32, 'width': 32}
    theirs = json.loads((folder / 'config.json').read_text())
    assert [*theirs['id2label'].values()] == networks.LABELS
    file = folder
  else:
    assert files == {'model.pyth'}
    file = folder / 'model.pyth'
  # By the way that users' files come in.
  back = tmp_path / 'back'
  imported = weights_command.import_file(config, file, back, inflate='repeat')
  assert 'agree with those of' in imported.checked
  found = checkpoint.load_variables(
    checkpoint.find(back, 'back'),
    {'batch_stats': {}, **framework_files.shapes(config)},
  )
  clips = clips_of(config, 2)
  wanted = logits_of(config, variables, clips)
  assert_close(logits_of(config, found, clips), wanted, 1e-5)


@pytest.mark.parametrize('name', EACH)
def test_a_program_needs_jax_alone_and_gives_the_logits(name, tmp_path, capsys):
  config = networks.config_of(name)
  variables = networks.write_run(tmp_path / 'run', config)
  folder = tmp_path / 'made'
  code, printed = run(
    *(capsys, f'--workdir={tmp_path / "run"}', '--to=stablehlo'),
    f'--out={folder}',
  )
  assert code == 0, printed.err
  clips = clips_of(config, 3)
  program = JAX_ALONE.format(usage=usage_of(folder))
  found = in_another_process(folder, program, clips)
  wanted = logits_of(config, variables, clips)
  assert_close(found['logits'], wanted, 1e-6)
  np.testing.assert_allclose(
    found['scores'], jax.nn.softmax(wanted), rtol=0, atol=1e-6
  )
  assert {path.name for path in folder.iterdir()} == {
    *('model.stablehlo', 'mgjax_config.json', 'labels.json', 'README.md')
  }
  assert json.loads((folder / 'labels.json').read_text()) == networks.LABELS


def test_a_network_of_ones_own_is_a_program_for_the_clips_it_takes(
  tmp_path, capsys
):
  for name, batch, words in (
    ('Own', (), None),
    ('Counting', (), 'for any number of clips ('),
    ('Counting', ('--batch=2',), None),
  ):
    config = networks.config_of(f'tests.exporting.networks:{name}')
    run_, folder = tmp_path / f'run{name}{batch}', tmp_path / f'{name}{batch}'
    variables = networks.write_run(run_, config)
    code, printed = run(
      *(capsys, f'--workdir={run_}', '--to=stablehlo', f'--out={folder}'),
      *batch,
    )
    assert code == (2 if words else 0), printed.err
    if words:
      assert words in printed.err and '; --batch=1 may\n' in printed.err
      assert not folder.exists()
      continue
    content = (folder / 'model.stablehlo').read_bytes()
    clips = clips_of(config, 2)
    found = jax.export.deserialize(bytearray(content)).call(clips)
    assert_close(found['logits'], logits_of(config, variables, clips), 1e-6)
  code, printed = run(
    *(capsys, f'--workdir={run_}', '--to=huggingface', '--out=out')
  )
  assert code == 2 and 'are stablehlo, onnx, safetensors\n' in printed.err


@pytest.mark.parametrize(
  'name',
  [
    name if name == 'tam' else pytest.param(name, marks=pytest.mark.slow)
    for name in networks.NETWORKS
  ],
)
def test_plain_weights_have_the_paths_of_the_tree(name, tmp_path, capsys):
  config = networks.config_of(name)
  variables = networks.write_run(tmp_path / 'run', config)
  code, printed = run(
    *(capsys, f'--checkpoint={tmp_path / "run/checkpoints/3"}'),
    *('--to=safetensors', f'--out={tmp_path / "made"}'),
  )
  assert code == 0, printed.err
  found = torch_files.load(tmp_path / 'made' / 'model.safetensors')
  assert found.pop(safetensors_files.METADATA) == {'format': 'flax'}
  flat = traverse_util.flatten_dict(variables, sep='/')
  assert found.keys() == flat.keys()
  for path, array in flat.items():
    np.testing.assert_array_equal(found[path].numpy(), array)


def test_a_checkpoint_may_be_a_link(tmp_path, capsys, monkeypatch):
  networks.write_run(tmp_path / 'run', networks.config_of('tam'))
  (tmp_path / 'run/checkpoints/best').symlink_to('3')
  arguments = ['--to=safetensors', f'--out={tmp_path / "made"}']
  code, printed = run(
    capsys, f'--checkpoint={tmp_path / "run/checkpoints/best"}', *arguments
  )
  assert code == 0, printed.err
  assert 'safetensors of step 3' in printed.out


def test_what_gives_other_logits_is_an_error_and_nothing_is_left(
  tmp_path, capsys, monkeypatch
):
  config = networks.config_of('tam')
  networks.write_run(tmp_path / 'run', config)
  save = safetensors_files.save

  def damage(path, tensors, metadata):
    name = 'params/head/classifier/bias'
    save(path, {**tensors, name: tensors[name] + 0.001}, metadata)

  monkeypatch.setattr(safetensors_files, 'save', damage)
  code, printed = run(
    *(capsys, f'--workdir={tmp_path / "run"}', '--to=safetensors'),
    f'--out={tmp_path / "made"}',
  )
  assert code == 2 and printed.err.count('\n') == 1
  assert 'gives other logits than the network' in printed.err
  assert 'accepted: 1e-05' in printed.err
  assert [path.name for path in tmp_path.iterdir()] == ['run']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  networks.write_run(folder / 'tam', networks.config_of('tam'))
  networks.write_run(
    folder / 'vit', networks.config_of('videomae', head_norm_eps=1e-3)
  )
  shutil.copytree(folder / 'tam/checkpoints/3', folder / 'tam/checkpoints/best')
  (folder / 'full').mkdir()
  (folder / 'full' / 'file').touch()
  (folder / 'empty' / 'checkpoints').mkdir(parents=True)
  text = (folder / 'tam' / 'config.json').read_text()
  (folder / 'empty' / 'config.json').write_text(text)
  return folder


@pytest.mark.parametrize(
  'argv,words',
  [
    ('--to=stablehlo --out=out', 'give --workdir'),
    ('--workdir=tam --out=out', '--to is missing; it is stablehlo, onnx, '),
    ('--workdir=tam --to=tflite --out=out', 'tflite'),
    ('--workdir=tam --to=stablehlo', '--out is missing'),
    ('--workdir=tam --to=stablehlo --out=full', 'is not an empty folder'),
    ('--workdir=tam --to=stablehlo --out=tam/config.json/x', '--out=tam/con'),
    ('--workdir=tam --to=stablehlo --out=gs://a', 'a folder on a disk'),
    ('--workdir=empty --to=stablehlo --out=out', 'holds no checkpoint'),
    ('--workdir=no --to=stablehlo --out=out', 'no is not a folder'),
    (
      '--checkpoint=tam/checkpoints/best --to=safetensors --out=out',
      'is called by its step',
    ),
    ('--workdir=tam --to=safetensors --batch=2 --out=out', '--batch=2: weig'),
    ('--workdir=tam --to=stablehlo --batch=0 --out=out', 'batch'),
    (
      '--workdir=tam --to=pyslowfast --out=out',
      "--to=pyslowfast has no network like 'tam'; formats for 'tam' are "
      'stablehlo, onnx, safetensors\n',
    ),
    ('--workdir=vit --to=pyslowfast --out=out', 'safetensors, huggingface\n'),
    (
      '--workdir=vit --to=huggingface --out=out --config.eval.crop_px=40',
      'takes clips of model.position_grid=(4, 32, 32) only',
    ),
    (
      '--workdir=tam --to=safetensors --out=out --config.model.width=4',
      'model.width: 8 -> 4',
    ),
    # transformers has 1e-5.
    ('--workdir=vit --to=huggingface --out=out', 'head_norm_eps=1e-05, the ru'),
  ],
)
def test_bad_input_ends_in_one_line_and_code_2(
  argv, words, runs, capsys, monkeypatch
):
  monkeypatch.chdir(runs)
  before = {path.name for path in runs.iterdir()}
  code, printed = run(capsys, *argv.split())
  assert code == 2, printed
  assert printed.err.startswith('error: ') and printed.err.count('\n') == 1
  assert words in printed.err
  assert {path.name for path in runs.iterdir()} == before
