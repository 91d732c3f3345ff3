"""ViViT and TimeSformer of Hugging Face, and torchvision's MViTv2.

See test_import_transformers.py.
"""

import collections
import json
import re

import jax
import pytest
from flax import traverse_util

from mgjax import models
from mgjax.config import saved
from mgjax.recipes import transformers
from mgjax.run import checkpoint
from mgjax.weights import matching, naming, safetensors_files, torch_files
from tests.golden import rule
from tests.weights import test_import_transformers as importing
from tests.weights.test_import_transformers import (
  assert_logits,
  case_of,
  load,
  run,
)

# What transformers 5 changes in memory and not on disk.
ON_DISK = (
  ('vivit.layers.', 'vivit.encoder.layer.'),
  ('.attention.q_proj.', '.attention.attention.query.'),
  ('.attention.k_proj.', '.attention.attention.key.'),
  ('.attention.v_proj.', '.attention.attention.value.'),
  ('.attention.o_proj.', '.attention.output.dense.'),
  ('.mlp.fc1.', '.intermediate.dense.'),
  ('.mlp.fc2.', '.output.dense.'),
)


def saved_state(golden):
  """The weights under the names that save_pretrained writes."""
  found = {}
  for name, array in rule.state(golden).items():
    if 'saved_state' in golden:
      for memory, disk in ON_DISK:
        name = name.replace(memory, disk)
    found[name] = array
  names = golden.get('saved_state', golden['state'])
  assert sorted(found) == sorted(name for name, _ in names)
  return found


def write_folder(folder, golden, case, **changes):
  folder.mkdir()
  safetensors_files.save(folder / 'model.safetensors', saved_state(golden), {})
  config = dict(golden['config'])
  count = config.pop('num_classes')
  square = case['h'] == case['w']
  config |= {
    'model_type': golden['id'].split('_')[0],
    'num_frames': case['t'],
    'image_size': case['h'] if square else [case['h'], case['w']],
    'id2label': {str(i): f'name {i}' for i in range(count)},
  }
  (folder / 'config.json').write_text(json.dumps(config | changes))
  return folder


@pytest.mark.parametrize(
  'network',
  [
    'vivit_w48_p16',
    'vivit_w64_p8_nonsquare',
    'timesformer_w64_p8',
    'timesformer_w96_p16',
  ],
)
def test_a_folder_of_transformers_needs_no_other_settings(
  network, tmp_path, capsys
):
  golden = load(network)
  case = golden['cases'][0]
  folder, out = write_folder(tmp_path / 'x', golden, case), tmp_path / 'out'
  code, printed = run(capsys, folder, f'--out={out}')
  assert code == 0, printed.err
  family = network.split('_')[0]
  assert f'names of huggingface_{family}' in printed.out
  licence = {
    'vivit': (
      'Apache-2.0 for ViViT of google-research/scenic; of a copy, see where '
      'the file is from'
    ),
    'timesformer': (
      'CC-BY-NC 4.0 for the weights of TimeSformer: no commercial use'
    ),
  }[family]
  assert licence in printed.out
  record = checkpoint.read_record(checkpoint.find(out, 'out'))
  assert record['licence'] == licence
  config = saved.read_saved(out)
  assert config.grid.side_multiple == config.model.patch_px
  assert config.grid.frames_multiple == (2 if family == 'vivit' else 1)
  assert_logits(out, golden, case)


def flags_of(golden, case, **options):
  options = {
    'tubelet_frames': golden['config']['tubelet_size'][0],
    'patch_px': golden['config']['tubelet_size'][1],
    'mlp_width': golden['config']['intermediate_size'],
    'positions': 'learned',
    'qkv_bias': 'qkv',
    'pool': 'class',
  } | options
  return [
    *importing.flags_of(golden, case, **options),
    f'--config.data.crop_width_px={case["w"]}',
  ]


@pytest.mark.parametrize('prefix', ['vivit.', ''])
def test_names_of_vivit_in_memory_are_read(prefix, tmp_path, capsys):
  """Without a config.json, and as a model without a head has them."""
  golden = load('vivit_w64_p8_nonsquare')
  case = golden['cases'][0]
  state = {
    n.replace('vivit.', prefix, 1): a for n, a in rule.state(golden).items()
  }
  file, out = tmp_path / 'x.safetensors', tmp_path / 'out'
  safetensors_files.save(file, state, {})
  flags = flags_of(golden, case, gelu='exact')
  code, printed = run(capsys, file, f'--out={out}', *flags)
  assert code == 0, printed.err
  assert 'names of huggingface_vivit' in printed.out
  assert 'model.gelu=tanh (not exact)' in printed.out
  assert 'model.position_grid=(4, 32, 24)' in printed.out
  assert_logits(out, golden, case)


MVIT = {
  'name': 'mvit',
  'blocks': (1, 2, 1),
  'width': 24,
  'heads': 1,
  'kv_stride': 4,
  'num_classes': 5,
}


def mvit_flags(case, **options):
  grid = (case['t'], case['h'], case['w'])
  values = MVIT | {'position_grid': grid} | options
  return [
    '--config=kinetics400',
    *(
      f'--config.model.{name}={value!s}'.replace(' ', '')
      for name, value in values.items()
    ),
    f'--config.data.num_frames={case["t"]}',
    f'--config.data.crop_px={case["h"]}',
    f'--config.data.crop_width_px={case["w"]}',
  ]


@pytest.mark.parametrize('name', ['2x4x64x64', '2x4x64x32'])
def test_mvit_of_torchvision_is_read(name, tmp_path, capsys):
  golden = load('mvitv2_tiny')
  case = case_of(golden, name)
  file, out = tmp_path / 'x.pth', tmp_path / 'out'
  torch_files.save(file, rule.state(golden))
  code, printed = run(capsys, file, f'--out={out}', *mvit_flags(case))
  assert code == 0, printed.err
  assert 'names of torchvision_mvit' in printed.out
  assert 'BSD-3-Clause' in printed.out
  assert 'unverified' in printed.out and 'model.kv_stride=4' in printed.out
  assert_logits(out, golden, case)


def test_a_file_says_which_network_it_is_of(tmp_path, capsys):
  out = f'--out={tmp_path / "out"}'
  golden = load('mvitv2_tiny')
  case = golden['cases'][0]
  file = tmp_path / 'x.pth'
  torch_files.save(file, rule.state(golden))
  flags = mvit_flags(case, blocks=(1, 1), heads=2, pool_kernel=(1, 3, 3))
  code, printed = run(capsys, file, out, *flags)
  assert code == 2 and printed.err.count('\n') == 1
  assert '--config.model.blocks=(1,2,1) --config.model.heads=1' in printed.err
  assert '--config.model.pool_kernel=(3,3,3)' in printed.err

  golden = load('timesformer_w64_p8')
  case = golden['cases'][0]
  torch_files.save(file, rule.state(golden))
  flags = importing.flags_of(
    golden, case, name='timesformer', depth=3, mlp_width=32
  )
  flags = [f.replace('(4,32,32)', '(2,64,64)') for f in flags]
  code, printed = run(capsys, file, out, *flags)
  assert code == 2 and printed.err.count('\n') == 1
  for words in ('depth=2', 'mlp_width=0', 'position_grid=(4,32,32)'):
    assert f'--config.model.{words}' in printed.err, printed.err


@pytest.mark.parametrize(
  'network,changes,words',
  [
    ('vivit_w48_p16', {'hidden_act': 'relu'}, "hidden_act='relu', which is of"),
    ('vivit_w48_p16', {'tubelet_size': 2}, 'tubelet_size=2, which is of no'),
    (
      'timesformer_w64_p8',
      {'attention_type': 'space_only'},
      "attention_type='space_only'; the networks here have",
    ),
  ],
)
def test_a_config_json_that_cannot_be_is_refused(
  network, changes, words, tmp_path, capsys
):
  golden = load(network)
  case = golden['cases'][0]
  folder = write_folder(tmp_path / 'x', golden, case, **changes)
  code, printed = run(capsys, folder, f'--out={tmp_path / "out"}')
  assert code == 2 and printed.err.count('\n') == 1
  assert words in printed.err


@pytest.mark.parametrize(
  'network,form',
  [
    ('vivit_b', 'huggingface_vivit'),
    ('timesformer_b', 'huggingface_timesformer'),
    ('mvitv2_s', 'torchvision_mvit'),
  ],
)
def test_names_and_shapes_of_a_published_network_are_the_references(
  network, form
):
  """Blocks are counted by their shapes."""
  options = {'name': 'vit'} | transformers.NETWORKS[network]
  name = options.pop('name')
  model = models.build(name, num_classes=400, **options)
  tree = jax.eval_shape(
    model.init, jax.random.key(0), models.example_video(model, 16)
  )
  shapes = {
    path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()
  }
  rules = naming.FORMATS[form]
  found = collections.Counter(
    (
      re.sub(r'\.\d+\.', '.*.', theirs, count=1),
      matching.their_shape(parts, shapes, rules.leading.get(theirs)),
    )
    for theirs, parts in naming.names(form, tree, name).items()
  )
  if name == 'timesformer':  # Its kernel of a frame is of an image there.
    kernel = 'timesformer.embeddings.patch_embeddings.projection.weight'
    del found[kernel, (768, 3, 1, 16, 16)]
    found[kernel, (768, 3, 16, 16)] = 1
  assert found == {
    (rules.canonical(theirs), tuple(shape)): count
    for theirs, shape, count in load('names')[network]
  }
