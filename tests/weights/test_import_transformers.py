"""Weights of video transformers, under all names that the references use.

The files are written here, of the rule that made the goldens; what comes out of
the command must give their logits. In float64 a wrong eps shows.
"""

import json
import pathlib
import pickle
import re

import jax
import numpy as np
import pytest

from mgjax import cli, import_weights, models
from mgjax.config import config_file, saved
from mgjax.errors import ConfigError
from mgjax.run import checkpoint, run_folder
from mgjax.setup import network
from mgjax.weights import (
  command,
  hugging_face,
  safetensors_files,
  torch_files,
)
from tests.golden import rule

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'transformers'
QUICKLY = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


def load(network):
  return json.loads((GOLDEN / f'{network}.json').read_text())


def run(capsys, *argv):
  code = cli.run(
    command.main,
    import_weights.define_flags,
    ['import_weights', *map(str, argv)],
    arguments='FILE',
    find_config=import_weights.find_config,
  )
  return code, capsys.readouterr()


def assert_logits(out, golden, case, dtype='float64'):
  """What an import has written gives the logits of the reference."""
  model = network.model(saved.read_saved(out))
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), models.example_video(model, case['t'])
  )
  model = model.changed(dtype=np.dtype(dtype))
  variables = checkpoint.load_variables(
    checkpoint.find(out, 'out'), {'batch_stats': {}, **shapes}
  )
  video = rule.video(case, golden['rule']['salt'])
  stored = case['outputs']['logits']
  expected = np.reshape(stored['data'], stored['shape'])
  with jax.enable_x64(dtype == 'float64'):
    apply = jax.jit(model.apply, compiler_options=QUICKLY)
    logits = apply(
      {
        'params': jax.tree.map(
          lambda a: np.asarray(a, dtype), variables['params']
        )
      },
      video.astype(dtype),
    )
  tolerance = {'float64': 1e-9, 'float32': 2e-5}[dtype]
  np.testing.assert_allclose(
    logits, expected, rtol=0, atol=tolerance * expected.std()
  )


def saved_names(golden):
  """The weights under the names that save_pretrained writes."""
  state = rule.state(golden)
  names = [n for n, _ in golden.get('saved_state', golden['state'])]
  renamed = {
    name.replace('.query.bias', '.q_bias').replace('.value.bias', '.v_bias')
    if 'saved_state' in golden
    else name: array
    for name, array in state.items()
  }
  assert sorted(renamed) == sorted(names)
  return renamed


def hf_config(golden, case, **changes):
  """The config.json of a golden's network, built for the grid of a case."""
  config = dict(golden['config'])
  count = config.pop('num_classes')
  config['id2label'] = {str(i): f'name {i}' for i in range(count)}
  sides = case['h'] if case['h'] == case['w'] else [case['h'], case['w']]
  if 'videomae' in golden['id']:
    config |= {'model_type': 'videomae', 'image_size': sides}
    config['num_frames'] = case['t']
  else:
    config |= {'model_type': 'vjepa2', 'crop_size': case['h']}
    config['frames_per_clip'] = case['t']
  return config | changes


def write_folder(folder, golden, case, state=None, **changes):
  folder.mkdir(exist_ok=True)
  safetensors_files.save(
    folder / 'model.safetensors',
    saved_names(golden) if state is None else state,
    {'format': 'pt'},
  )
  config = hf_config(golden, case, **changes)
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def flags_of(golden, case, **options):
  """Flags that give a golden's network, where no config.json does."""
  names = {
    'depth': ('num_hidden_layers', 'depth'),
    'width': ('hidden_size', 'embed_dim', 'width'),
    'heads': ('num_attention_heads', 'num_heads', 'heads'),
    'patch_px': ('patch_size', 'patch'),
    'tubelet_frames': ('tubelet_size', 'tubelet'),
    'num_classes': ('num_classes',),
  }
  found = {
    ours: golden['config'][name]
    for ours, theirs in names.items()
    for name in theirs
    if name in golden['config']
  }
  found['position_grid'] = tuple(case[k] for k in 'thw')
  values = {'name': 'vit'} | found | options
  return [
    '--config=kinetics400',
    *(
      f'--config.model.{name}={value!s}'.replace(' ', '')
      for name, value in values.items()
    ),
    f'--config.data.num_frames={case["t"]}',
    f'--config.data.crop_px={case["h"]}',
  ]


def case_of(golden, name):
  return next(c for c in golden['cases'] if c['name'] == name)


@pytest.mark.parametrize(
  'network,name,dtype',
  [
    ('videomae_hf_w64_p16', '2x4x32x48', 'float64'),
    ('videomae_hf_w48_firsttoken', '2x4x32x32', 'float64'),
    ('vjepa2_hf_w48_p8_pool3', '2x8x48x48', 'float64'),
    ('vjepa2_hf_w96_p16', '2x6x64x64', 'float32'),
  ],
)
def test_a_folder_of_transformers_needs_no_other_settings(
  network, name, dtype, tmp_path, capsys
):
  golden = load(network)
  case = case_of(golden, name)
  folder, out = tmp_path / 'model', tmp_path / 'out'
  write_folder(folder, golden, case)
  code, printed = run(capsys, folder, f'--out={out}')
  assert code == 0, printed.err
  family = network.split('_')[0]
  assert f'names of huggingface_{family}' in printed.out
  assert 'config.json beside the file' in printed.out
  licence = {'videomae': 'CC-BY-NC 4.0', 'vjepa2': 'MIT, parts Apache'}[family]
  table = (out / 'import.txt').read_text()
  for text in (printed.out, table):
    assert licence in text
  record = checkpoint.read_record(checkpoint.find(out, 'out'))
  assert licence in json.dumps(record)
  if family == 'vjepa2':
    assert "predictor of the pre-training: the classifier doesn't" in table
  assert run_folder.read_labels(out / 'labels.json')[1] == 'name 1'
  config = saved.read_saved(out)
  assert config.grid.side_multiple == config.model.patch_px
  assert_logits(out, golden, case, dtype)


def test_names_as_transformers_has_them_in_memory_are_read(tmp_path, capsys):
  golden = load('videomae_hf_w64_p16')
  case = case_of(golden, '2x4x32x48')
  file, out = tmp_path / 'x.safetensors', tmp_path / 'out'
  safetensors_files.save(file, rule.state(golden), {})
  flags = flags_of(golden, case, qkv_bias='qv', pool='mean')
  code, printed = run(
    capsys, file, f'--out={out}', *flags, '--config.data.crop_width_px=48'
  )
  assert code == 0, printed.err
  # The program of transformers has other eps than this network by default.
  assert 'model.layer_norm_eps=1e-12 (not 1e-06)' in printed.out
  assert 'model.head_norm_eps=1e-05 (not 1e-06)' in printed.out
  assert 'unverified, the file does not show them: model.heads=4' in printed.out
  assert_logits(out, golden, case)


@pytest.mark.parametrize(
  'network,name,key,prefix',
  [
    ('videomae_mcg_w48_p8', '2x4x24x40', 'module', ''),
    ('videomae_mcg_w48_p8', '2x4x24x40', 'model', 'module.'),
    ('videomae2_w48_p32_multigrid', '2x8x224x224', None, 'backbone.'),
  ],
)
def test_videomae_is_read_as_its_authors_write_it(
  network, name, key, prefix, tmp_path, capsys
):
  golden = load(network)
  case = case_of(golden, name)
  file, out = tmp_path / 'x.pth', tmp_path / 'out'
  state = {prefix + n: a for n, a in rule.state(golden).items()}
  torch_files.save(file, {key: state, 'epoch': 3} if key else state)
  flags = flags_of(golden, case)
  if 'multigrid' in network:
    flags = [f for f in flags if 'position_grid' not in f]
  else:
    flags.append(f'--config.data.crop_width_px={case["w"]}')
  code, printed = run(capsys, file, f'--out={out}', *flags)
  assert code == 0, printed.err
  assert 'names of videomae\n' in printed.out
  assert 'no commercial use' in printed.out
  assert_logits(out, golden, case)


def split_vjepa2(folder, golden):
  """The files of an encoder and of its probe, as facebookresearch has them."""
  state = rule.state(golden)
  encoder = {
    n.replace('encoder.', 'module.backbone.', 1): a
    for n, a in state.items()
    if n.startswith('encoder.')
  }
  encoder['module.backbone.pos_embed'] = np.zeros((1, 8, 64), np.float32)
  online = {n: np.zeros_like(a) for n, a in encoder.items()}
  probe = {
    n.replace('classifier.', 'module.', 1): a
    for n, a in state.items()
    if n.startswith('classifier.')
  }
  torch_files.save(
    folder / 'vitl.pt',
    {
      'encoder': online,
      'predictor': {'module.x': np.zeros(2, np.float32)},
      'target_encoder': encoder,
      'epoch': 3,
    },
  )
  content = {'classifiers': [probe], 'epoch': 3}
  (folder / 'probe.pt').write_bytes(pickle.dumps(content, 2))
  return folder / 'vitl.pt', folder / 'probe.pt'


VJEPA2 = {
  'positions': 'rope',
  'qkv_bias': 'qkv',
  'pool': 'probe',
  'probe_blocks': 1,
}


def test_encoder_and_probe_of_vjepa2_are_two_files(tmp_path, capsys):
  golden = load('vjepa2_fb_w64_p8_nonsquare')
  case = case_of(golden, '2x6x40x16')
  encoder, probe = split_vjepa2(tmp_path, golden)
  out = tmp_path / 'out'
  flags = [
    *(encoder, f'--out={out}', *flags_of(golden, case, **VJEPA2)),
    '--config.data.crop_width_px=16',
  ]
  code, printed = run(capsys, *flags)
  assert code == 2 and '--new_head' in printed.err
  code, printed = run(capsys, *flags, f'--probe={probe}', '--new_head')
  assert code == 2 and printed.err.count('\n') == 1
  code, printed = run(capsys, *flags, f'--probe={probe}')
  assert code == 0, printed.err
  assert 'names of vjepa2\n' in printed.out
  table = (out / 'import.txt').read_text()
  for words in ('target_encoder, its average', 'predictor', 'V-JEPA 1'):
    assert words in table
  assert_logits(out, golden, case)


def test_one_file_may_have_encoder_and_probe(tmp_path, capsys):
  golden = load('vjepa2_fb_w64_p8_nonsquare')
  case = case_of(golden, '2x4x24x40')
  file, out = tmp_path / 'x.pth', tmp_path / 'out'
  torch_files.save(file, rule.state(golden))
  code, printed = run(
    capsys,
    *(file, f'--out={out}', *flags_of(golden, case, **VJEPA2)),
    '--config.data.crop_width_px=40',
  )
  assert code == 0, printed.err
  assert saved.read_saved(out).model.head_norm_eps == 1e-5
  assert_logits(out, golden, case)


def kernel_std(out, *path):
  shapes = checkpoint.find(out, 'out')
  model = network.model(saved.read_saved(out))
  tree = jax.eval_shape(
    model.init, jax.random.key(0), models.example_video(model, 4)
  )
  node = checkpoint.load_variables(shapes, {'batch_stats': {}, **tree})
  for key in ('params', *path):
    node = node[key]
  return float(np.std(node))


def test_an_encoder_starts_with_a_new_head_on_request(tmp_path, capsys):
  """Of the pre-training: there is a decoder, and no norm behind a mean."""
  golden = load('videomae_mcg_w48_p8')
  case = case_of(golden, '2x4x32x32')
  state = {
    f'encoder.{n}': a
    for n, a in rule.state(golden).items()
    if not n.startswith(('fc_norm', 'head'))
  }
  ones = np.ones(48, np.float32)
  state |= {
    'encoder.norm.weight': ones,
    'encoder.norm.bias': ones,
    'decoder.blocks.0.norm1.weight': ones,
    'encoder_to_decoder.weight': np.ones((24, 48), np.float32),
    'mask_token': np.ones((1, 1, 24), np.float32),
  }
  file, out = tmp_path / 'x.pth', tmp_path / 'out'
  torch_files.save(file, {'model': state})
  flags = [file, f'--out={out}', *flags_of(golden, case, num_classes=9)]
  code, printed = run(capsys, *flags)
  assert code == 2 and printed.err.count('\n') == 1
  assert 'has an encoder only' in printed.err or '--new_head' in printed.err
  code, printed = run(capsys, *flags, '--new_head')
  assert code == 0, printed.err
  table = (out / 'import.txt').read_text()
  for name, words in (
    ('decoder.blocks.0.norm1.weight', 'the decoder of the pre-training'),
    ('mask_token', 'the decoder of the pre-training'),
    ('encoder.norm.weight', 'left out: --new_head'),
    ('fc_norm.weight  params/pool_norm/scale', 'left out: --new_head'),
  ):
    assert any(
      line.startswith(name) and words in line for line in table.splitlines()
    ), name
  assert saved.read_saved(out).model.head_norm_eps == 1e-6
  assert kernel_std(out, 'head', 'classifier', 'kernel') > 0
  assert kernel_std(out, 'pool_norm', 'scale') == 0  # All are one.
  # Something that is left over is still refused.
  torch_files.save(file, {'model': state | {'encoder.x.weight': ones}})
  code, printed = run(capsys, *flags[:1], f'--out={tmp_path / "b"}', *flags[2:])
  assert code == 2


def test_a_probe_starts_anew_where_a_file_has_none(tmp_path, capsys):
  golden = load('vjepa2_hf_w48_p8_pool3')
  case = case_of(golden, '2x4x32x32')
  state = {
    n.removeprefix('vjepa2.'): a
    for n, a in rule.state(golden).items()
    if n.startswith('vjepa2.')
  }
  folder = write_folder(tmp_path / 'model', golden, case, state)
  out = tmp_path / 'out'
  flags = [folder, '--new_head', '--config.model.num_classes=9']
  code, printed = run(
    capsys, *flags, f'--out={out}', '--config.model.probe_blocks=1'
  )
  assert code == 0, printed.err
  assert saved.read_saved(out).model.probe_blocks == 1
  assert 0.01 < kernel_std(out, 'probe', 'kv', 'kernel') < 0.03
  query = state['encoder.layer.1.attention.query.weight'].T
  tree = kernel_std(out, 'block1', 'attention', 'qkv', 'kernel')
  assert abs(tree / query.std() - 1) < 0.2
  # Options of the encoder must be those of the file all the same.
  code, printed = run(
    capsys, *flags, f'--out={tmp_path / "b"}', '--config.model.heads=3'
  )
  assert code == 2
  assert 'config.json has num_attention_heads=2, but model.heads is 3' in (
    printed.err
  )


@pytest.mark.parametrize(
  'changes,flags,words',
  [
    ({'layer_norm_eps': 1e-6}, ['--config.model.layer_norm_eps=1e-12'], 'eps'),
    ({}, ['--config.model.positions=rope'], 'positions is rope'),
    ({'hidden_act': 'relu'}, [], "hidden_act='relu'"),
    ({'model_type': 'llama'}, [], "model_type='llama'; of the networks"),
    ({'num_hidden_layers': 'x'}, [], "num_hidden_layers='x', which is of no"),
    ({'intermediate_size': 128}, [], 'mlp_width 96 .not 128.'),
  ],
)
def test_a_config_json_that_cannot_be_is_refused(
  changes, flags, words, tmp_path, capsys
):
  golden = load('videomae_hf_w48_firsttoken')
  case = golden['cases'][0]
  folder = write_folder(tmp_path / 'model', golden, case, **changes)
  code, printed = run(capsys, folder, f'--out={tmp_path / "out"}', *flags)
  assert code == 2 and printed.err.count('\n') == 1
  assert re.search(words, printed.err)


@pytest.mark.parametrize(
  ('kind', 'classes', 'sampling', 'stride'),
  [
    ('videomae', 400, 'dense', 4),
    ('timesformer', 400, 'dense', 32),
    ('vivit', 400, 'dense', 2),
    ('videomae', 174, None, 4),
  ],
)
def test_the_clips_of_a_folder_are_those_of_its_family(
  kind, classes, sampling, stride
):
  known = hugging_face._facts({'model_type': kind, 'num_labels': classes})
  config = import_weights._config_of(known)
  wanted = config_file.load(
    f'{"ssv2" if classes == 174 else "kinetics400"}:model={kind}_b'
  )
  assert (
    config.data.sampling
    == wanted.data.sampling
    == (sampling or wanted.data.sampling)
  )
  for name in ('num_frames', 'stride_frames', 'crop_px', 'jitter_px'):
    assert config.data[name] == wanted.data[name]
  assert config.data.stride_frames == wanted.data.stride_frames
  assert sampling is None or config.data.stride_frames == stride
  assert config.model.num_classes == classes


def pixels(**entries):
  mean_and_std = {'image_mean': [0.5, 0.4, 0.3], 'image_std': [0.5, 0.5, 0.25]}
  found = hugging_face._pixels(mean_and_std | entries, 'x.json')
  assert all(fact.origin == 'x.json' for fact in found)
  return {fact.field: fact.value for fact in found}


def test_pixels_are_rescaled_as_the_preprocessor_does():
  x = np.arange(256.0)[:, None]  # Every value of a byte.

  def check(theirs, **entries):
    found = pixels(**entries)
    ours = (x / 255 - found['data.mean']) / np.array(found['data.std'])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)

  mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.5, 0.5, 0.25])
  check((x / 255 - mean) / std)
  check((x / 255 - mean) / std, rescale_factor=0.00392156862745098)
  check((x / 127.5 - mean) / std, rescale_factor=1 / 127.5)
  check((x - mean) / std, do_rescale=False)
  check(np.repeat(x / 255, 3, 1), do_normalize=False)
  vivit = {'image_processor_type': 'VivitImageProcessor'}
  check(np.repeat(x / 127.5 - 1, 3, 1), do_normalize=False, **vivit)
  check((x / 255 - mean) / std, offset=False, rescale_factor=1 / 255, **vivit)
  # Centred twice: what the weights are for is not known.
  assert pixels(**vivit) == pixels(offset=True) == {}
  with pytest.raises(ConfigError, match='x.json beside it has a do_normalize'):
    pixels(do_rescale='yes')


def test_an_older_name_of_the_biases_is_read():
  for entries, value in (
    ({}, 'qv'),
    ({'qv_bias': False}, ''),
    ({'qkv_bias': False}, ''),
    ({'qkv_bias': True}, 'qv'),
  ):
    facts = hugging_face._facts({'model_type': 'videomae', **entries})
    (found,) = (f.value for f in facts if f.field == 'model.qkv_bias')
    assert found == value


def test_pixels_and_parts_are_what_a_folder_says(tmp_path, capsys):
  """A large model is cut into several files; a preprocessor has the mean."""
  golden = load('videomae_hf_w48_firsttoken')
  case = golden['cases'][0]
  folder, out = tmp_path / 'model', tmp_path / 'out'
  write_folder(folder, golden, case)
  (folder / 'model.safetensors').unlink()
  code, printed = run(capsys, folder, f'--out={out}')
  assert code == 2 and 'model.safetensors' in printed.err
  state = saved_names(golden)
  names = {name: f'model-{len(name) % 2}.safetensors' for name in state}
  for part in set(names.values()):
    arrays = {n: a for n, a in state.items() if names[n] == part}
    safetensors_files.save(folder / part, arrays, {})
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': names}))
  (folder / 'preprocessor_config.json').write_text(
    json.dumps({'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.4, 0.5, 0.6]})
  )
  code, printed = run(capsys, folder, f'--out={out}')
  assert code == 0, printed.err
  config = saved.read_saved(out)
  assert config.data.mean == (0.1, 0.2, 0.3)
  # The clips are those of the family's recipe, at the sizes of the file.
  side = config.data.crop_px
  assert (config.data.num_frames, side) == (case['t'], case['h'])
  assert config.data.stride_frames == 4
  assert config.data.jitter_px == (side * 8 // 7, side * 10 // 7)
  assert config.eval.short_side_px == config.eval.crop_px == side
  assert 'data.mean' not in printed.out
  index.write_text(json.dumps({'weight_map': {'x': '../x.safetensors'}}))
  code, printed = run(capsys, folder, f'--out={tmp_path / "b"}')
  assert code == 2 and 'weight_map' in printed.err


@pytest.mark.parametrize(
  'network,changes,hint',
  [
    (
      'videomae_mcg_w48_p8',
      {'depth': 3, 'width': 64, 'heads': 2, 'patch_px': 16},
      r'depth 2 .*width 48 .*patch_px 8 ',
    ),
    ('videomae_mcg_w48_p8', {'mlp_width': 24}, 'mlp_width 0 .not 24.'),
    ('videomae_mcg_w48_p8', {'num_classes': 4}, 'num_classes to the file'),
    (
      'vjepa2_fb_w64_p8_nonsquare',
      {'depth': 1},
      r'depth 2 .*positions rope.*qkv_bias qkv.*pool probe.*probe_blocks 1',
    ),
    (
      'vjepa2_fb_w64_p8_nonsquare',
      VJEPA2 | {'probe_blocks': 0, 'tubelet_frames': 4},
      r'tubelet_frames 2 .*probe_blocks 1 ',
    ),
  ],
)
def test_a_file_says_which_transformer_it_is_of(
  network, changes, hint, tmp_path, capsys
):
  golden = load(network)
  case = golden['cases'][0]
  file = tmp_path / 'x.pth'
  torch_files.save(file, rule.state(golden))
  flags = flags_of(golden, case, **changes)
  code, printed = run(capsys, file, f'--out={tmp_path / "out"}', *flags)
  assert code == 2 and printed.err.count('\n') == 1
  assert 'do not fit' in printed.err
  for words in hint.split('.*'):
    assert re.search(words, printed.err), printed.err


def test_an_encoder_of_other_positions_is_refused(tmp_path, capsys):
  """All shapes fit: only the names tell."""
  golden = load('vjepa2_fb_w64_p8_nonsquare')
  case = golden['cases'][0]
  file = tmp_path / 'x.pth'
  torch_files.save(file, rule.state(golden))
  flags = flags_of(golden, case, **VJEPA2 | {'positions': 'sincos'})
  code, printed = run(capsys, file, f'--out={tmp_path / "out"}', *flags)
  assert code == 2 and '--config.model.positions=rope' in printed.err
