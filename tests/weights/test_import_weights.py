"""Weights from other frameworks: strict, exact, and back again.

The golden networks' weights come from a rule (golden/rule.py), so the files
that are imported here are written by the tests themselves.
"""

import ast
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import kinetics400
from mgjax import cli, import_weights, models
from mgjax.cli import ConfigError
from mgjax.config import saved
from mgjax.exporting import framework_files
from mgjax.recipes import transformers
from mgjax.run import checkpoint
from mgjax.setup import network
from mgjax.weights import (
  checks,
  command,
  contents,
  matching,
  naming,
  tensors,
  torch_files,
)
from tests.golden import rule
from tests.weights import test_pyslowfast_cfg

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def small_config():
  """A Slow network of two small stages."""
  config = kinetics400.get_config('model=slow')
  config.model.blocks = (1, 1)
  config.model.width = 8
  config.model.num_classes = 7
  return config


@pytest.fixture
def config():
  return small_config()


def shapes_of(config):
  model = network.model(config)
  video = jax.ShapeDtypeStruct((1, 8, 32, 32, 3), np.float32)
  return jax.eval_shape(model.init, jax.random.key(0), video)


def state_of(config, form='pyslowfast'):
  """A file's tensors for a config's network: random, of realistic sizes."""
  tree = shapes_of(config)
  shapes = {p: leaf.shape for p, leaf in flatten_dict(tree).items()}
  state = {}
  for name, parts in naming.names(form, tree, config.model.name).items():
    path, shape = parts[0].path, matching.their_shape(parts, shapes)
    values = rule.unit(name, shape)
    if path[-1] == 'kernel':
      values *= np.prod(shape[1:]) ** -0.5
    else:
      values = 0.1 * values + (path[-1] in ('scale', 'var'))
    state[name] = values.astype(np.float32)
  return state


def import_state(config, state, folder, key='model_state', **options):
  """Writes and imports a file; returns the checkpoint's variables."""
  file = folder / 'x.pyth'
  torch_files.save(file, {key: state} if key else state)
  out = folder / 'out'
  options = {'inflate': 'repeat'} | options
  command.import_file(config, file, out, **options)
  return checkpoint.load_variables(
    checkpoint.find(out, 'out'), shapes_of(config)
  )


def leaf(tree, path):
  for key in path.split('/'):
    tree = tree[key]
  return np.asarray(tree)


def test_kernels_matrices_and_vectors_arrive_in_our_axis_order(
  config, tmp_path
):
  state = state_of(config)
  variables = import_state(config, state, tmp_path)
  for name, path, axes in (
    ('s1.pathway0_stem.conv.weight', 'params/stem/layer/conv/kernel', 'k'),
    (
      's3.pathway0_res0.branch2.b.weight',
      'params/res3/block0/b/conv/kernel',
      'k',
    ),
    (
      's2.pathway0_res0.branch1_bn.weight',
      'params/res2/block0/shortcut/norm/scale',
      '',
    ),
    (
      's2.pathway0_res0.branch2.c_bn.running_var',
      'batch_stats/res2/block0/c/norm/var',
      '',
    ),
    ('head.projection.weight', 'params/head/classifier/kernel', 'm'),
    ('head.projection.bias', 'params/head/classifier/bias', ''),
  ):
    want = state[name]
    if axes == 'k':
      want = np.moveaxis(want, (0, 1), (4, 3))
    elif axes == 'm':
      want = want.T
    np.testing.assert_array_equal(leaf(variables, path), want)


@pytest.mark.parametrize(
  'form,key',
  [
    ('pyslowfast', 'model_state'),
    ('pytorchvideo', 'model_state'),
    ('mmaction2', 'state_dict'),
    ('caffe2', 'blobs'),
    ('torchvision', None),
  ],
)
def test_every_format_is_recognised_by_its_names(config, tmp_path, form, key):
  state = state_of(config, form)
  variables = import_state(config, state, tmp_path, key)
  total = sum(a.size for a in jax.tree.leaves(variables))
  assert total == sum(a.size for a in state.values())
  assert (
    (tmp_path / 'out' / 'import.txt')
    .read_text()
    .splitlines()[0]
    .endswith(f': {form}')
  )


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'module.model.'])
def test_prefixes_of_wrappers_are_dropped(config, tmp_path, prefix):
  state = {prefix + name: a for name, a in state_of(config).items()}
  import_state(config, state, tmp_path)


def test_counters_and_the_optimizers_state_are_left_out_with_a_reason(
  config, tmp_path
):
  state = state_of(config)
  state['s1.pathway0_stem.bn.num_batches_tracked'] = np.array(5)
  file, out = tmp_path / 'x.pyth', tmp_path / 'out'
  torch_files.save(
    file, {'epoch': 3, 'optimizer_state': {}, 'model_state': state}
  )
  command.import_file(config, file, out, inflate='repeat')
  table = (out / 'import.txt').read_text()
  assert 'num_batches_tracked' in table and 'counts batches' in table
  assert 'optimizer_state' in table and 'epoch' in table


@pytest.mark.parametrize(
  'change,words',
  [
    ('missing', '1 tensors do not fit .*s3.pathway0_res0.branch2.a.weight: .*'),
    ('extra', '1 tensors do not fit .* s9.weight: .*the model has no place'),
    ('shape', '1 tensors .*branch2.a.weight: .* its shape is not'),
  ],
)
def test_anything_left_over_ends_the_import(config, tmp_path, change, words):
  state = state_of(config)
  name = 's3.pathway0_res0.branch2.a.weight'
  if change == 'missing':
    del state[name]
  elif change == 'extra':
    state['s9.weight'] = state[name]
  else:
    state[name] = state[name][:, :-1]
  with pytest.raises(ConfigError, match=words):
    import_state(config, state, tmp_path)
  assert not (tmp_path / 'out').exists()


def test_names_of_no_format_are_refused(config, tmp_path):
  with pytest.raises(ConfigError, match='of none of the formats known'):
    import_state(config, {'encoder.0.w': np.zeros(2, np.float32)}, tmp_path)
  with pytest.raises(ConfigError, match='holds no tensors'):
    import_state(config, {}, tmp_path)


def test_another_number_of_classes_needs_a_request(config, tmp_path):
  state = state_of(config)
  config.model.num_classes = 5
  with pytest.raises(ConfigError, match='2 tensors .*--new_head'):
    import_state(config, state, tmp_path)
  variables = import_state(config, state, tmp_path, new=('head',))
  kernel = leaf(variables, 'params/head/classifier/kernel')
  assert kernel.shape == (64, 5)
  assert 0.005 < kernel.std() < 0.02  # As it is initialised.
  assert '--new_head' in (tmp_path / 'out' / 'import.txt').read_text()


@pytest.mark.parametrize('inflate', ['repeat', 'center'])
def test_an_image_network_is_inflated(config, tmp_path, inflate):
  config.model.name = 'i3d'
  state = state_of(config, 'torchvision')
  images = {name: a.sum(2) if a.ndim == 5 else a for name, a in state.items()}
  variables = import_state(config, images, tmp_path, None, inflate=inflate)
  stem = leaf(variables, 'params/stem/layer/conv/kernel')
  image = images['conv1.weight'].transpose(2, 3, 1, 0)
  assert stem.shape[0] == 5
  # A video of one image repeated gives what the image gives.
  np.testing.assert_allclose(stem.sum(0), image, atol=1e-6)
  if inflate == 'repeat':
    np.testing.assert_array_equal(stem, stem[:1].repeat(5, 0))
  else:
    np.testing.assert_array_equal(stem[2], image)


def on_segments(name, **options):
  """A network on segments, of two small stages."""
  config = kinetics400.get_config(f'model={name}')
  config.model.update(
    {'blocks': (1, 1), 'width': 8, 'num_classes': 7, **options}
  )
  return config


@pytest.mark.parametrize(
  'name,module',
  [('s3d_resnet', 'temporal'), ('tam', 'temporal'), ('i3d', 'nonlocal')],
)
def test_layers_that_images_lack_start_anew_on_request(name, module, tmp_path):
  config = on_segments(name)
  if module == 'nonlocal':
    config.model.nonlocal_blocks = ((0,), ())
  anew = lambda path: any(
    re.fullmatch(r'temporal|b_t|nonlocal0', str(key)) for key in path
  )
  tree = shapes_of(config)
  state = {}
  for file_name, (part, *_) in naming.names(
    'torchvision', tree, name, may_lack=anew
  ).items():
    path = part.path
    if not anew(path):
      kernel = tree
      for key in path:
        kernel = kernel[key]
      shape = matching.to_theirs(np.broadcast_to(0, kernel.shape)).shape
      shape = (*shape[:2], *shape[3:]) if len(shape) == 5 else shape
      state[file_name] = np.ones(shape, np.float32)
  with pytest.raises(ConfigError, match=f'start anew: --new_{module}$'):
    import_state(config, state, tmp_path, None)
  variables = import_state(config, state, tmp_path, None, new=(module,))
  paths = {
    tuple(key.key for key in keys): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables['params'])
  }
  fresh = {path for path in paths if anew(path)}
  assert fresh and len(paths) > len(fresh)
  kernels = [paths[path] for path in fresh if path[-1] == 'kernel']
  assert all(0 < kernel.std() < 1 for kernel in kernels)
  assert (
    f'left out: --new_{module}' in (tmp_path / 'out' / 'import.txt').read_text()
  )


@pytest.mark.parametrize('num_frames', [3, 5, 7])
def test_rows_of_an_aggregation_have_ibms_names(num_frames):
  config = on_segments('tam', tam_frames=num_frames)
  names = naming.names('torchvision', shapes_of(config), 'tam')
  rows = {
    name: part.row
    for name, (part,) in names.items()
    if name.startswith('layer2.0.tam')
  }
  if num_frames == 3:
    want = {f'{row}_se': i for i, row in enumerate(('prev', 'curr', 'next'))}
  else:
    want = {f'blending_layers.{i}': i for i in range(num_frames)}
  assert rows == {
    f'layer2.0.tam.{row}.fc1.weight': i for row, i in want.items()
  }


def test_dense_aggregations_are_read_as_ibm_writes_them(tmp_path):
  config = on_segments('tam', tam_depthwise=False)
  state = state_of(config, 'torchvision')
  rng = np.random.default_rng(0)
  rows = {}
  for i, row in enumerate(('prev', 'curr', 'next')):
    name = f'layer2.0.tam.{row}_se.fc1.weight'
    assert state[name].shape == (32, 32)
    # [output, input, 1, 1], a convolution's kernel.
    rows[i] = rng.normal(size=(32, 32, 1, 1)).astype(np.float32)
    state[name] = rows[i]
  variables = import_state(config, state, tmp_path, None)
  kernel = variables['params']['res3']['block0']['temporal']['kernel']
  for i, row in rows.items():
    np.testing.assert_array_equal(kernel[i], row[:, :, 0, 0].T)


@pytest.mark.parametrize(
  'model,option',
  [('tam', 'tam_depthwise'), ('s3d_resnet', 'depthwise_temporal')],
)
@pytest.mark.parametrize('value', [True, False])
def test_a_dense_file_for_a_depthwise_network_is_explained(
  model, option, value, tmp_path
):
  state = state_of(on_segments(model, **{option: value}), 'torchvision')
  with pytest.raises(
    ConfigError, match=f'set --config.model.{option}={value}$'
  ):
    import_state(
      on_segments(model, **{option: not value}), state, tmp_path, None
    )


@pytest.mark.parametrize('place', ['blockres', 'block'])
def test_where_a_file_shifts_is_where_the_network_must(place, tmp_path):
  config = on_segments('tsm', shift_place=place)
  wrapped = {'blockres': 'layer1.0.conv1.net.', 'block': 'layer1.0.net.conv1.'}
  plain = state_of(config, 'torchvision')
  for number, pattern in enumerate(wrapped.values()):
    state = {
      name.replace('layer1.0.conv1.', pattern): array
      for name, array in plain.items()
    }
    folder = tmp_path / str(number)
    folder.mkdir()
    if pattern == wrapped[place]:
      import_state(config, state, folder, 'state_dict')
    else:
      with pytest.raises(ConfigError, match='do not fit'):
        import_state(config, state, folder, 'state_dict')


@pytest.mark.parametrize('model', ['tsn', 'tsm', 'tam'])
def test_pyslowfast_has_no_networks_on_segments(model):
  tree = shapes_of(on_segments(model))
  for form in ('pyslowfast', 'caffe2', 'pytorchvideo'):
    assert naming.names(form, tree, model) == {}


def test_names_of_mmaction2s_other_networks_are_explained(tmp_path):
  state = {'backbone.slow_path.conv1.conv.weight': np.zeros(2, np.float32)}
  config = kinetics400.get_config('model=slowfast')
  with pytest.raises(ConfigError, match="'slowfast' of mmaction2, .* another"):
    import_state(config, state, tmp_path)


def test_split_statistics_become_those_of_the_whole():
  golden = json.loads((GOLDEN / 'ops' / 'subbn_numeric.json').read_text())
  tensor = lambda values: tensors.Tensor(
    (len(values),), np.dtype(np.float32), lambda: np.float32(values)
  )
  ones = [1.0] * 3
  merged, _, _ = contents.merge_split_statistics(
    {
      'a.bn.weight': tensor(ones),
      'a.bn.bn.running_mean': tensor(ones),  # Stale.
      'a.bn.bn.running_var': tensor(ones),
      'a.bn.bn.num_batches_tracked': tensor([0]),
      'a.bn.split_bn.running_mean': tensor(golden['split_running_mean']),
      'a.bn.split_bn.running_var': tensor(golden['split_running_var']),
      'b.weight': tensor(ones),
    }
  )
  assert set(merged) == {
    'a.bn.weight',
    'a.bn.running_mean',
    'a.bn.running_var',
    'b.weight',
  }
  for ours, theirs in (('mean', 'aggregated_mean'), ('var', 'aggregated_var')):
    np.testing.assert_allclose(
      merged[f'a.bn.running_{ours}'].numpy(), golden[theirs], rtol=1e-6
    )


@pytest.mark.parametrize('to', ['pyslowfast', 'pytorchvideo'])
def test_an_export_is_the_file_that_was_imported(config, tmp_path, to, capsys):
  state = state_of(config, to)
  import_state(config, state, tmp_path)
  file = tmp_path / 'back.pyth'
  argv = (tmp_path / 'out', f'--to={to}', f'--out={file}')
  code, printed = run(capsys, *argv)
  assert code == 0, printed.err
  back = torch_files.load(file)['model_state']
  counters = {n for n in back if n.endswith('.num_batches_tracked')}
  assert len(counters) == sum(n.endswith('.running_var') for n in state)
  assert set(back) - counters == set(state)
  for name, array in state.items():
    np.testing.assert_array_equal(back[name].numpy(), array)
  # It can be imported again, and says what must come out.
  again = command.import_file(
    config, file, tmp_path / 'again', inflate='repeat'
  )
  assert f'agree with those of {file} to' in again.checked
  code, printed = run(capsys, *argv)
  assert code == 2 and 'exists already' in printed.err


def test_logits_that_are_not_those_of_the_file_end_the_import(config, tmp_path):
  state = state_of(config)
  import_state(config, state, tmp_path)
  file, out = tmp_path / 'back.pyth', tmp_path / 'again'
  framework_files.export(config, tmp_path / 'out', 'pyslowfast', file)
  content = torch_files.load(file)
  check = checks.read(content[checks.KEY])
  assert check['shape'].tolist() == [1, 8, 64, 64, 3]
  name = 's3.pathway0_res0.branch2.a.weight'
  for changed, words in (
    (
      {'model_state': {**state, name: state[name][::-1].copy()}},
      'other logits',
    ),
    ({'model_state': {**state, name: state[name] * np.nan}}, 'holds NaN'),
    ({checks.KEY: check | {'logits': np.zeros((1, 9))}}, r'\(1, 9\)'),
  ):
    entries = {'model_state': state, checks.KEY: check} | changed
    entries[checks.KEY] = {
      'shape': entries[checks.KEY]['shape'],
      'logits': np.float32(entries[checks.KEY]['logits']),
    }
    torch_files.save(file, entries)
    with pytest.raises(ConfigError, match=words):
      command.import_file(config, file, out, inflate='repeat')
    assert not out.exists()
  # What starts anew gives other logits, and a clip too large is not believed.
  torch_files.save(file, entries | {checks.KEY: check})
  result = command.import_file(
    config, file, out, inflate='repeat', new=('head',)
  )
  assert 'are finite' in result.checked
  shape = np.array([1, 8, 10**6, 10**6, 3])
  torch_files.save(file, {checks.KEY: check | {'shape': shape}})
  assert checks.read(torch_files.load(file)[checks.KEY]) == {}


def test_logits_of_the_reference_are_compared(config, tmp_path, capsys):
  file, npz = tmp_path / 'x.pyth', tmp_path / 'reference.npz'
  state = state_of(config)
  torch_files.save(file, {'model_state': state})
  variables = import_state(config, state, tmp_path)
  video = rule.unit('clip', (2, 4, 32, 40, 3)).astype(np.float32)
  logits = jax.jit(network.model(config).apply)(variables, video)

  def imported(out, **arrays):
    np.savez(npz, **arrays)
    return run(
      capsys,
      *(file, f'--out={tmp_path / out}', f'--logits={npz}', '--model=slow'),
      *('--config.model.blocks=(1,1)', '--config.model.width=8'),
      '--config.model.num_classes=7',
    )

  code, printed = imported('a', video=video, logits=logits)
  assert code == 0 and 'logits agree with those of --logits=' in printed.out
  for arrays, words in (
    ({'video': video, 'logits': logits[::-1]}, 'other logits'),
    ({'video': video}, "must be an .npz of arrays 'video'"),
    ({'video': video[0], 'logits': logits}, 'not [B, T, H, W, 3]'),
  ):
    code, printed = imported('b', **arrays)
    assert code == 2 and words in printed.err
    assert printed.err.count('\n') == 1


def run(capsys, *argv):
  code = cli.run(
    command.main,
    import_weights.define_flags,
    ['import_weights', *map(str, argv)],
    arguments='FILE',
    find_config=import_weights.find_config,
  )
  return code, capsys.readouterr()


def test_the_command_reports_and_the_config_is_kept(config, tmp_path, capsys):
  file, out = tmp_path / 'x.pyth', tmp_path / 'out'
  torch_files.save(file, {'model_state': state_of(config)})
  argv = (
    file,
    f'--out={out}',
    '--model=slow',
    '--config.model.blocks=(1,1)',
    '--config.model.width=8',
    '--config.model.num_classes=7',
  )
  code, printed = run(capsys, *argv)
  assert code == 0, printed.err
  assert 'names of pyslowfast' in printed.out and 'as it is' in printed.out
  found = saved.read_saved(out)
  assert found.model.blocks == (1, 1)
  assert found.to_dict() == config.to_dict()
  code, printed = run(capsys, *argv)
  assert code == 2
  assert 'holds checkpoints already' in printed.err
  # One that was stopped has a table, and no checkpoint.
  shutil.rmtree(out / 'checkpoints' / '0')
  code, printed = run(capsys, *argv)
  assert code == 0, printed.err
  assert checkpoint.steps(out) == [0]
  # So has a run no checkpoint that has just begun, but it is no import.
  shutil.rmtree(out / 'checkpoints' / '0')
  (out / 'import.txt').unlink()
  code, printed = run(capsys, *argv)
  assert code == 2
  assert 'holds checkpoints already' in printed.err


def test_bad_input_ends_in_one_line_and_code_2(tmp_path, capsys):
  file = tmp_path / 'x.pyth'
  file.write_bytes(b'cos\nsystem\n(U\x04trueoR.')
  out = f'--out={tmp_path / "out"}'
  # Of a transformer's class, a network that has a name.
  sized = {
    options.get('name', 'vit'): name
    for name, options in transformers.NETWORKS.items()
  }
  for argv, words in (
    ([file, out], 'the model is not said'),
    ([file, out, '--model=resnet'], "model='resnet' is unknown"),
    *(
      ([file, out, f'--model={sized.get(m, m)}'], 'names os.system')
      for m in models.MODELS
    ),
    *(([file, out, f'--model={m}'], f' {sized[m]}') for m in sized),
    ([file, out, '--model=slow', '--logits=x', '--new_head'], '--new_head'),
    ([file, '--model=slow'], '--out is missing'),
    ([out, '--model=slow'], 'give one file'),
    ([file, out, '--model=slow'], 'names os.system'),
    (
      [tmp_path / 'C2D_NOPOOL_8x8_R50.pkl', out, '--model=c2d'],
      'does not pool in time',
    ),
    ([tmp_path / 'no', out, '--model=slow'], 'No such file'),
    ([tmp_path, out, '--to=pyslowfast'], 'config.json'),
    ([file, out, '--model=slow', '--inflate=x'], 'inflate'),
  ):
    code, printed = run(capsys, *argv)
    assert code == 2, argv
    assert printed.err.startswith('error: ') and printed.err.count('\n') == 1
    assert words in printed.err


def test_wrappers_averages_and_notes_of_a_file_are_told_apart(config, tmp_path):
  state, file = state_of(config), tmp_path / 'x.pyth'
  wrapped = {f'module.model.{name}': value for name, value in state.items()}
  for content, left_out in (
    (state | {'cfg': 'no configuration'}, {'cfg': 'not a tensor'}),
    (
      wrapped | {'n_averaged': np.array(3)},
      {'n_averaged': 'of how many steps the weights are the average'},
    ),
    (
      {'model': state, 'model_ema': state},
      {'model_ema': 'an average of the weights; those of the last step are t'},
    ),
  ):
    torch_files.save(file, content)
    found = contents.read(file)
    assert found.state.keys() == state.keys()
    for name, words in left_out.items():
      assert found.left_out[name].startswith(words)


def test_what_is_no_file_of_logits_is_one_line(config, tmp_path):
  file = tmp_path / 'x.pyth'
  torch_files.save(file, {'model_state': state_of(config)})
  np.save(tmp_path / 'a.npy', np.zeros(3))
  np.savez(tmp_path / 'b.npz', video=np.zeros(3), logits=np.zeros(3))
  cut = (tmp_path / 'b.npz').read_bytes()[:-40]
  (tmp_path / 'c.npz').write_bytes(cut)
  for name in ('a.npy', 'c.npz'):
    with pytest.raises(ConfigError, match='must be an .npz of arrays') as error:
      command.import_file(
        config,
        file,
        tmp_path / 'out',
        inflate='repeat',
        logits=tmp_path / name,
      )
    assert '\n' not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
  'network,model',
  [
    ('psf_slow_8x8_r50', 'slow'),
    ('psf_c2d_8x8_r50', 'c2d'),
    ('psf_i3d_8x8_r50', 'i3d'),
    ('psf_slowfast_8x8_r50', 'slowfast'),
    ('ptv_slow_r50', 'slow'),
    ('ptv_c2d_r50', 'c2d'),
    ('ptv_i3d_r50', 'i3d'),
    ('ptv_slowfast_r50', 'slowfast'),
  ],
)
def test_an_imported_network_gives_the_logits_of_its_reference(
  network, model, tmp_path
):
  path = GOLDEN / 'forward' / f'{network}.json'
  golden = json.loads(path.read_text())
  config = kinetics400.get_config(f'model={model}')
  variables = import_state(config, rule.state(golden), tmp_path)
  case = next(c for c in golden['cases'] if c['name'] == 'eval')
  stored = case['outputs'].get('logits') or case['outputs']['output']
  want = np.reshape(stored['data'], stored['shape'])
  # Most of the time goes into compiling; the program runs once.
  quickly = {'xla_backend_optimization_level': 0}
  with jax.enable_x64(True):
    network = models.build(model, num_classes=400, dropout=0.0, dtype='float64')
    video = rule.video(case, golden['rule']['salt']).astype(np.float64)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
    logits = jax.jit(network.apply, compiler_options=quickly)(wide, video)
  np.testing.assert_allclose(logits, want, rtol=0, atol=1e-5 * want.std())


# What a file says about its network.


@pytest.mark.parametrize('number', [-1e-3, np.nan, np.inf])
def test_a_variance_that_is_none_is_refused(config, tmp_path, number):
  state = state_of(config)
  name = 's2.pathway0_res0.branch2.b_bn.running_var'
  state[name][1] = number
  with pytest.raises(ConfigError, match=f'{name}: .*(negative|NaN)'):
    import_state(config, state, tmp_path)
  # Nor may the mean over splits hide it.
  norm = name.removesuffix('.running_var')
  state[name][1] = 1
  split = split_state(state, norm)
  split[f'{norm}.split_bn.running_var'][1] = number
  with pytest.raises(
    ConfigError, match=f'{norm}.split_bn.*negative or NaN|NaN'
  ):
    import_state(config, split, tmp_path)
  assert not (tmp_path / 'out').exists()


def split_state(state, norm, splits=2):
  """The state with one norm as a sub-batch norm of equal splits."""
  state = dict(state)
  for leaf in ('running_mean', 'running_var'):
    array = state.pop(f'{norm}.{leaf}')
    state[f'{norm}.split_bn.{leaf}'] = np.tile(array, splits)
    state[f'{norm}.bn.{leaf}'] = np.zeros_like(array)
  for part in ('split_bn', 'bn'):
    state[f'{norm}.{part}.num_batches_tracked'] = np.array(3)
  return state


def test_sub_batch_norms_say_what_is_recomputed_and_dropped(
  config, tmp_path, capsys
):
  state = state_of(config)
  norm = 's2.pathway0_res0.branch2.b_bn'
  file, out = tmp_path / 'x.pyth', tmp_path / 'out'
  torch_files.save(file, {'model_state': split_state(state, norm)})
  code, printed = run(capsys, file, f'--out={out}', *SMALL_FLAGS)
  assert code == 0, printed.err
  variables = checkpoint.load_variables(
    checkpoint.find(out, 'out'), shapes_of(config)
  )
  np.testing.assert_array_equal(
    leaf(variables, 'batch_stats/res2/block0/b/norm/var'),
    state[f'{norm}.running_var'],
  )
  table = (out / 'import.txt').read_text()
  for name, words in (
    ('running_mean', 'recomputed: mean over 2 splits'),
    ('running_var', 'recomputed: mean of variances plus'),
    ('bn.running_var', 'dropped: made of the splits'),
    ('split_bn.running_var', 'replaced by what is recomputed'),
    ('split_bn.num_batches_tracked', 'dropped: counts batches'),
  ):
    assert re.search(f'{norm}.{name} .*{words}', table)
    assert words in printed.out


SMALL_FLAGS = (
  '--model=slow',
  '--config.model.blocks=(1,1)',
  '--config.model.width=8',
  '--config.model.num_classes=7',
)


def narrow(argument):
  """A published network of few channels."""
  config = kinetics400.get_config(f'model={argument}')
  config.model.width, config.model.num_classes = 8, 7
  return config


@pytest.mark.parametrize(
  'form,given,changes,hint',
  [
    ('pyslowfast', 'slowfast', {'depth': 101}, 'depth 101 .not 50.'),
    pytest.param(
      'caffe2',
      'slowfast',
      {'fusion_kernel': 5},
      'fusion_kernel 5 .not 7.',
      marks=pytest.mark.slow,
    ),
    pytest.param(
      'pytorchvideo',
      'slowfast',
      {'beta_inv': 4},
      'beta_inv 4 .not 8.',
      marks=pytest.mark.slow,
    ),
    (
      'pyslowfast',
      'slow',
      {'depth': 101, 'num_temporal': (3, 4, 6, 3), 'num_classes': 5},
      r'depth 101 .*num_temporal \(3, 4, 6, 3\) .*'
      r'--config.model.num_temporal=\(3,4,6,3\)',
    ),
    ('pyslowfast', 'i3d', {'blocks': (1, 2)}, r'blocks \(1, 2\)'),
    pytest.param(
      'pyslowfast',
      'slow',
      {'name': 'i3d'},
      'name i3d .not slow.',
      marks=pytest.mark.slow,
    ),
    (
      'pyslowfast',
      'c2d',
      {'nonlocal_blocks': ((), (1,), (), ())},
      r'--config.model.nonlocal_blocks=\(\(\),\(1,\),\(\),\(\)\)',
    ),
    ('torchvision', 'tam_r50', {'tam_frames': 5}, 'tam_frames 5 .not 3.'),
    pytest.param(
      'torchvision',
      'tsn_r50',
      {'depth': 18},
      'depth 18 .not 50.',
      marks=pytest.mark.slow,
    ),
    pytest.param(
      'torchvision',
      'tsn_r50',
      {'name': 's3d_resnet'},
      'name s3d_resnet',
      marks=pytest.mark.slow,
    ),
    pytest.param(
      'biglittle',
      'blvnet_tam_50',
      {'depth': 101},
      'depth 101 .not 50.',
      marks=pytest.mark.slow,
    ),
    pytest.param(
      'mmaction2',
      'slow',
      {'depth': 101},
      'depth 101 .not 50.',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_file_of_another_network_names_the_options_that_fit(
  form, given, changes, hint, tmp_path
):
  config, other = narrow(given), narrow(given)
  other.model.update(changes)
  state = state_of(other, form)
  with pytest.raises(
    ConfigError, match=f'do not fit .*is of .*{hint}'
  ) as error:
    import_state(config, state, tmp_path)
  assert '\n' not in str(error.value)
  # What it says to give makes the file's network of the one that was given.
  for name, value in re.findall(
    r'--config.model.(\w+)=(\S+)', str(error.value)
  ):
    config.model[name] = value if name == 'name' else ast.literal_eval(value)
  assert config.model.to_dict() == other.model.to_dict()


def test_where_a_file_shifts_is_told(tmp_path):
  config = on_segments('tsm')
  plain = state_of(config, 'torchvision')
  state = {
    re.sub(r'(layer\d\.\d)\.(conv\d)', r'\1.net.\2', name): array
    for name, array in plain.items()
  }
  with pytest.raises(ConfigError, match='--config.model.shift_place=block$'):
    import_state(config, state, tmp_path)


def test_the_configuration_in_a_file_names_the_network(tmp_path, capsys):
  """Nothing else needs to be given."""
  changes = {
    'RESNET_WIDTH_PER_GROUP': 8,
    'SLOWFAST_ALPHA': 8,
    'SLOWFAST_FUSION_KERNEL_SZ': 5,
    'MODEL_NUM_CLASSES': 7,
  }
  config = narrow('slowfast_4x16')
  file, out = tmp_path / 'x.pyth', tmp_path / 'out'
  content = {
    'model_state': state_of(config),
    'cfg': test_pyslowfast_cfg.dump(**changes),
  }
  torch_files.save(file, content)
  code, printed = run(capsys, file, f'--out={out}')
  assert code == 0, printed.err
  found = saved.read_saved(out)
  assert (found.model.alpha, found.model.fusion_kernel) == (8, 5)
  assert 'the network is that of the cfg' in printed.out
  assert 'unverified, the file does not show them: norm.eps=' in printed.out
  assert 'model.alpha' not in printed.out
  assert 'unverified' in (out / 'import.txt').read_text()


@pytest.mark.parametrize(
  'flag,words',
  [
    ('--config.model.alpha=4', 'SLOWFAST.ALPHA=8, but model.alpha is 4; give'),
    ('--config.model.depth=101', 'RESNET.DEPTH=50, but model.depth is 101'),
    (
      '--config.data.mean=(0.4,0.4,0.4)',
      r'DATA.MEAN=\(0.45, 0.45, 0.45\), but',
    ),
    ('--model=slow', 'MODEL.ARCH=slowfast, but model.name is slow'),
    pytest.param(
      '--config.model.num_classes=9',
      'MODEL.NUM_CLASSES=7, but',
      marks=pytest.mark.slow,
    ),
    ('--config.data.stride_frames=4', None),
    pytest.param(
      '--config.model.num_temporal=(3,4,6,3)', None, marks=pytest.mark.slow
    ),
  ],
)
def test_options_that_contradict_the_configuration_in_a_file_are_refused(
  flag, words, tmp_path, capsys
):
  cfg = test_pyslowfast_cfg.dump(
    RESNET_WIDTH_PER_GROUP=8,
    SLOWFAST_ALPHA=8,
    SLOWFAST_FUSION_KERNEL_SZ=5,
    MODEL_NUM_CLASSES=7,
  )
  file, out = tmp_path / 'x.pyth', tmp_path / 'out'
  state = state_of(narrow('slowfast_4x16'))
  torch_files.save(file, {'model_state': state, 'cfg': cfg})
  argv = (
    file,
    f'--out={out}',
    '--model=slowfast_4x16',
    '--config.model.width=8',
    *([] if 'classes' in flag else ['--config.model.num_classes=7']),
    flag,
  )
  code, printed = run(capsys, *argv)
  if words is None:
    assert code == 0, printed.err
    assert ('SAMPLING_RATE=2' in printed.out) == ('stride' in flag)
    return
  assert code == 2
  assert printed.err.count('\n') == 1 and re.search(words, printed.err)
  if 'classes' in flag:
    code, printed = run(capsys, *argv, '--new_head')
    assert code == 0, printed.err


def test_a_configuration_of_something_else_is_told_and_not_used(
  config, tmp_path, capsys
):
  file, out = tmp_path / 'x.pyth', tmp_path / 'out'
  torch_files.save(file, {'model_state': state_of(config), 'cfg': 'lr: [0.1'})
  code, printed = run(capsys, file, f'--out={out}', *SMALL_FLAGS)
  assert code == 0, printed.err
  assert 'its cfg is not readable YAML' in printed.out
  assert 'it is not used' in (out / 'import.txt').read_text()
  code, printed = run(capsys, file, f'--out={tmp_path / "other"}')
  assert code == 2 and 'the model is not said' in printed.err


def test_options_that_a_file_does_not_show_are_listed(tmp_path, capsys):
  config = on_segments('tsm')
  file, out = tmp_path / 'x.pyth', tmp_path / 'out'
  torch_files.save(file, state_of(config, 'torchvision'))
  flags = ('--model=tsm', *SMALL_FLAGS[1:])
  code, printed = run(capsys, file, f'--out={out}', *flags)
  assert code == 0, printed.err
  for text in (printed.out, (out / 'import.txt').read_text()):
    assert re.search('unverified.*model.shift_div=8, .*norm.eps=1e-05', text)
