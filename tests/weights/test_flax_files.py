"""VideoPrism's .npz files: Flax's names, axes of heads, stacked layers."""

import zipfile

import ml_dtypes
import numpy as np
import pytest

from mgjax.config import saved
from mgjax.errors import ConfigError
from mgjax.run import checkpoint
from mgjax.weights import flax_files, torch_files
from tests.golden import rule
from tests.weights.test_import_transformers import (
  assert_logits,
  case_of,
  kernel_std,
  load,
  run,
)


def state_of(golden):
  """Arrays by the names of a released file."""
  return {n.replace('.', '/'): a for n, a in rule.state(golden).items()}


def write(file, state):
  np.savez(file, **state)
  return file


def flags_of(golden, case, **options):
  """Flags that give a golden's network."""
  config = golden['config']
  frames, rows, columns = config['pos_emb_shape']
  patch = config['patch_size']
  values = {
    'name': 'videoprism',
    'patch_px': patch,
    'width': config['model_dim'],
    'heads': config['num_heads'],
    'mlp_width': config['mlp_dim'],
    'spatial_depth': config['num_spatial_layers'],
    'temporal_depth': config['num_temporal_layers'],
    'position_grid': (frames, rows * patch, columns * patch),
    'num_classes': config['num_classes'],
  } | options
  return [
    '--config=kinetics400',
    *(
      f'--config.model.{name}={value!s}'.replace(' ', '')
      for name, value in values.items()
    ),
    f'--config.data.num_frames={case["t"]}',
    f'--config.data.crop_px={case["h"]}',
  ]


@pytest.mark.parametrize(
  'network,name',
  [
    ('videoprism_w64_p8', '2x6x48x48'),
    ('videoprism_w48_p12_scan', '2x3x24x24'),
  ],
)
def test_a_file_of_videoprism_gives_the_logits_of_its_reference(
  network, name, tmp_path, capsys
):
  golden = load(network)
  case = case_of(golden, name)
  file, out = write(tmp_path / 'x.npz', state_of(golden)), tmp_path / 'out'
  flags = flags_of(golden, case, layer_norm_eps=1e-5, logit_cap=10.0)
  code, printed = run(capsys, file, f'--out={out}', *flags)
  assert code == 0, printed.err
  assert 'names of videoprism\n' in printed.out
  assert 'model.layer_norm_eps=1e-06 (not 1e-05)' in printed.out
  assert 'model.logit_cap=50.0 (not 10.0)' in printed.out
  assert 'model.heads' not in printed.out  # Arrays have an axis of them.
  licence = 'CC-BY 4.0 for the weights of VideoPrism (its software: Apache-2.0)'
  table = (out / 'import.txt').read_text()
  assert licence in printed.out and licence in table
  record = checkpoint.read_record(checkpoint.find(out, 'out'))
  assert record['licence'] == licence
  place = 'params/encoder/spatial_encoder/transformers_stack'
  stacked = f'layer 1 of {place}/x_layers/layer_norm/scale' in table
  assert stacked == ('scan' in network)
  assert_logits(out, golden, case)


def test_an_encoder_starts_with_a_new_pooler_and_head(tmp_path, capsys):
  """So are released files; those of videos and texts have more."""
  golden = load('videoprism_w48_p12_scan')
  case = golden['cases'][0]
  state = {
    n.replace('params/encoder/', 'params/', 1): a
    for n, a in state_of(golden).items()
    if n.startswith('params/encoder/')
  }
  file = write(tmp_path / 'x.npz', state)
  flags = flags_of(golden, case, num_classes=9)
  out = tmp_path / 'out'
  code, printed = run(capsys, file, f'--out={out}', *flags)
  assert code == 2 and printed.err.count('\n') == 1
  assert 'has an encoder only: start with a new head' in printed.err
  code, printed = run(capsys, file, f'--out={out}', *flags, '--new_head')
  assert code == 0, printed.err
  assert saved.read_saved(out).model.logit_cap == 50
  table = (out / 'import.txt').read_text()
  for name in ('atten_pooler/pooling_attention_query', 'projection/linear'):
    assert any(
      line.startswith(name) and 'left out: --new_head' in line
      for line in table.splitlines()
    ), name
  assert kernel_std(out, 'probe', 'q', 'kernel') > 0
  texts = {
    n.replace('params/', 'params/vision_encoder/'): a for n, a in state.items()
  }
  texts['params/text_encoder/token_emb/emb_var'] = np.ones((7, 48), np.float32)
  write(file, texts)
  code, printed = run(
    capsys, file, f'--out={tmp_path / "b"}', *flags, '--new_head'
  )
  assert code == 0, printed.err
  assert 'videos and texts' in (tmp_path / 'b' / 'import.txt').read_text()
  write(file, state | {'params/another/kernel': np.ones(3, np.float32)})
  code, printed = run(
    capsys, file, f'--out={tmp_path / "c"}', *flags, '--new_head'
  )
  assert code == 2 and 'params/another/kernel' in printed.err


def test_a_pooler_without_a_classifier_is_taken(tmp_path, capsys):
  golden = load('videoprism_w48_p12_scan')
  state = state_of(golden)
  kept = {n: a for n, a in state.items() if '/projection/' not in n}
  file, out = write(tmp_path / 'x.npz', kept), tmp_path / 'out'
  flags = flags_of(golden, golden['cases'][0], num_classes=9)
  code, printed = run(capsys, file, f'--out={out}', *flags, '--new_head')
  assert code == 0, printed.err
  query = state['params/atten_pooler/pooling_attention/query/w']
  np.testing.assert_allclose(
    kernel_std(out, 'probe', 'q', 'kernel'), query.std(), rtol=1e-6
  )


def test_a_file_says_which_videoprism_it_is_of(tmp_path, capsys):
  golden = load('videoprism_w64_p8')
  case = golden['cases'][0]
  file, out = write(tmp_path / 'x.npz', state_of(golden)), tmp_path / 'out'
  for changes, words in (
    ({'heads': 8}, '--config.model.heads=4'),
    ({'spatial_depth': 3}, '--config.model.spatial_depth=2'),
    ({'width': 32, 'mlp_width': 0}, '--config.model.width=64'),
    (
      {'position_grid': (16, 64, 64), 'patch_px': 16},
      '--config.model.patch_px=8 --config.model.position_grid=(4,32,32)',
    ),
  ):
    flags = flags_of(golden, case, **changes)
    code, printed = run(capsys, file, f'--out={out}', *flags)
    assert code == 2 and printed.err.count('\n') == 1, changes
    assert words in printed.err, printed.err


def test_heads_of_an_encoder_are_those_of_its_arrays(tmp_path, capsys):
  """The size of no variable tells them."""
  golden = load('videoprism_w48_p12_scan')
  state = {n: a for n, a in state_of(golden).items() if '/encoder/' in n}
  file, out = write(tmp_path / 'x.npz', state), tmp_path / 'out'
  flags = flags_of(golden, golden['cases'][0], heads=3)
  code, printed = run(capsys, file, f'--out={out}', *flags, '--new_head')
  assert code == 2
  assert 'shows heads 2, but model.heads is 3' in printed.err


def test_arrays_are_read_as_they_were_written(tmp_path):
  arrays = {
    'a/x': np.arange(6, dtype=np.float64).reshape(2, 3).T,
    'b': np.float16([1, 2]),
    'c': np.asarray([1.5, -2], ml_dtypes.bfloat16),
    'd': np.zeros((), np.int64),
  }
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / 'x.npz', **arrays)
    found = torch_files.load(tmp_path / 'x.npz')
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
      assert found[name].shape == array.shape
      assert found[name].dtype == array.dtype
      np.testing.assert_array_equal(found[name].numpy(), array)


@pytest.mark.parametrize(
  'array,words',
  [
    (np.asarray([{}], object), "holds Python's objects"),
    (np.asarray(['x']), 'not numbers'),
    (np.zeros(2, [('x', 'f4')]), 'not numbers'),
  ],
)
def test_what_is_not_numbers_is_refused(array, words, tmp_path):
  np.savez(tmp_path / 'x.npz', x=array)
  with pytest.raises(ConfigError, match=words):
    torch_files.load(tmp_path / 'x.npz')


def test_a_header_of_more_than_there_is_is_refused(tmp_path):
  np.save(tmp_path / 'x.npy', np.zeros((4, 4), np.float32))
  data = (tmp_path / 'x.npy').read_bytes()
  large = data.replace(b'(4, 4)', b'(4,90)')
  for content in (large, data[:-4], b'x'):
    with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
      archive.writestr('x.npy', content)
    with pytest.raises(ConfigError, match='not a readable weights file'):
      torch_files.load(tmp_path / 'x.npz')


def test_a_layer_that_is_there_twice_is_refused(tmp_path):
  arrays = {'x_layers/b': np.zeros((2, 3)), 'x_layers_1/b': np.zeros(3)}
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(ConfigError, match='x_layers/b and x_layers_1/b are both'):
    flax_files.unstack(torch_files.load(tmp_path / 'x.npz'))
