"""Weights of other frameworks become a checkpoint, and the other way round."""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags

from mgjax import models
from mgjax.cli import ConfigError
from mgjax.grids import cycles
from mgjax.models import resnet3d
from mgjax.planning import plan
from mgjax.run import checkpoint
from mgjax.setup import network
from mgjax.step import train_step
from mgjax.weights import (
  checks,
  inference,
  naming,
  pyslowfast_cfg,
  torch_files,
)
from mgjax.weights.naming import Path
from mgjax.weights.tensors import Tensor

# Where checkpoints keep their weights; a file without any of these is itself
# the dict of tensors.
_STATE_KEYS = ('model_state', 'state_dict', 'model', 'blobs')
# Put in front of every name by wrappers of models.
_PREFIXES = ('module.', 'model.')
# The backbone inside a network of MIT or IBM, and its classifier beside it.
_RENAMED = (('(base_model|baseline_model)\\.', ''), ('new_fc\\.', 'fc.'))
# What weights do not need, and why.
_NOT_NEEDED = (
  (r'.*\.num_batches_tracked', 'counts batches; not used with a momentum'),
  (r'.*_momentum|lr|model_iter', "the optimizer's"),
)
# What can start anew on request (--new_KIND), by the names of its modules.
NEW = {
  'head': models.HEAD,
  'temporal': r'temporal|\w_t',  # Aggregations, and S3D's temporal layers.
  'nonlocal': r'nonlocal\d+',
}
# What decides whether temporal layers are dense or depthwise, by model.
_DENSE_OR_DEPTHWISE = {
  'tam': 'tam_depthwise',
  's3d_resnet': 'depthwise_temporal',
}


class File(NamedTuple):
  """What is in a file.

  Attributes:
    state: Tensors by name, without wrappers' prefixes and with one set of
      statistics per batch norm.
    left_out: What else it holds, with the reason to leave it.
    made: How tensors of `state` that the file does not hold were made.
    check: What `checks.make` made, where the file has it.
    facts: What the configuration in the file says about ours.
    notes: Lines about the file.
  """

  state: dict[str, Tensor]
  left_out: dict[str, str]
  made: dict[str, str]
  check: dict[str, np.ndarray]
  facts: list[pyslowfast_cfg.Fact] = []
  notes: tuple[str, ...] = ()


class Imported(NamedTuple):
  """What a file gave.

  Attributes:
    format: A key of naming.FORMATS.
    arrays: Arrays in our axis order, of the file's dtype, by path.
    report: (their name, our path, shapes, what was done or why not) of
      everything in the file and the network.
    problems: The part of the report that forbids to use the arrays.
    checked: What a run of the network has shown.
    notes: What else the user should know, in lines.
  """

  format: str
  arrays: dict[Path, np.ndarray]
  report: list[tuple[str, str, str, str]]
  problems: list[tuple[str, str, str, str]]
  checked: str = ''
  notes: tuple[str, ...] = ()


def to_ours(array: np.ndarray) -> np.ndarray:
  """Kernels [D, C, ...] become [..., C, D]; vectors stay."""
  n = array.ndim
  return array.transpose(*range(2, n), 1, 0) if n >= 2 else array


def to_theirs(array: np.ndarray) -> np.ndarray:
  """The inverse of `to_ours`."""
  n = array.ndim
  return array.transpose(n - 1, n - 2, *range(n - 2)) if n >= 2 else array


def read(path: pathlib.Path) -> File:
  """Reads a checkpoint, or a dict of tensors.

  Raises:
    ConfigError: It cannot be read or holds no tensors.
  """
  content = torch_files.load(path)
  left_out = {}
  check = checks.read(content.pop(checks.KEY, None))
  key = next((k for k in _STATE_KEYS if isinstance(content.get(k), dict)), None)
  if key:
    left_out = {str(k): 'not a weight' for k in content if k != key}
    cfg = content.get('cfg')
    content = content[key]
  state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
  left_out |= {str(k): 'not a tensor' for k in content if str(k) not in state}
  if not state:
    raise ConfigError(f'{path}: holds no tensors, only {list(content)[:5]}')
  for prefix in _PREFIXES:
    if all(name.startswith(prefix) for name in state):
      state = {name.removeprefix(prefix): v for name, v in state.items()}
  for pattern, word in _RENAMED:
    state = {re.sub(f'^{pattern}', word, n): v for n, v in state.items()}
  made, dropped = _split_statistics(state)
  facts, notes = [], ()
  if 'cfg' in left_out:
    try:
      cfg = pyslowfast_cfg.read(cfg)
    except ConfigError as error:
      notes = (f'{error}: it is not used',)
    else:
      left_out['cfg'] = 'read'
      try:
        facts = pyslowfast_cfg.facts(cfg)
      except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error
  return File(
    merge_split_statistics(state), left_out | dropped, made, check, facts, notes
  )


def merge_split_statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Turns sub-batch norms, as they are in memory, into plain ones.

  In PySlowFast a norm N of S splits has statistics N.split_bn (S x C, by
  split), from which it makes N.bn (C) before an evaluation. Whether it has
  done so cannot be seen in a file, so that is done here: the mean of means,
  and the mean of variances plus the variance of means.

  Raises:
    ConfigError: A variance of a split is negative: their mean may hide it.

  Source: PySlowFast 287ec00, models/batchnorm_helper.py, aggregate_stats.
  """
  norms = _split_norms(state)
  merged = {
    name: tensor
    for name, tensor in state.items()
    if _part_of_split_norm(name, norms) is None
  }
  for norm, splits in norms.items():
    mean, var = (
      state[f'{norm}.split_bn.running_{s}'].numpy().reshape(splits, -1)
      for s in ('mean', 'var')
    )
    if not (var >= 0).all():
      raise ConfigError(
        f'{norm}.split_bn.running_var holds variances that are negative or NaN'
      )
    merged[f'{norm}.running_mean'] = _in_memory(mean.mean(0))
    merged[f'{norm}.running_var'] = _in_memory(var.mean(0) + mean.var(0))
  return merged


def _split_norms(state: Mapping[str, Tensor]) -> dict[str, int]:
  """Names of sub-batch norms, with their splits."""
  found = {}
  for name, tensor in state.items():
    if name.endswith('.split_bn.running_var'):
      norm = name.removesuffix('.split_bn.running_var')
      channels = state[f'{norm}.weight'].shape[0]
      found[norm] = tensor.shape[0] // max(channels, 1)
  return found


def _part_of_split_norm(name: str, norms: Mapping[str, int]) -> str | None:
  """'split_bn' or 'bn', which hold a sub-batch norm's statistics; or None."""
  norm, _, part = name.rpartition('.')[0].rpartition('.')
  return part if norm in norms and part in ('split_bn', 'bn') else None


def _split_statistics(
  state: Mapping[str, Tensor],
) -> tuple[dict[str, str], dict[str, str]]:
  """Says what `merge_split_statistics` makes, and what becomes of the rest."""
  norms = _split_norms(state)
  made, rest = {}, {}
  for norm, splits in norms.items():
    made[f'{norm}.running_mean'] = f'recomputed: mean over {splits} splits'
    made[f'{norm}.running_var'] = (
      f'recomputed: mean of variances plus variance of means, {splits} splits'
    )
  for name in state:
    part = _part_of_split_norm(name, norms)
    if part and name.endswith('.num_batches_tracked'):
      rest[name] = 'dropped: counts batches'
    elif part == 'bn':
      rest[name] = 'dropped: made of the splits, may be older than they are'
    elif part:
      rest[name] = 'replaced by what is recomputed of all splits'
  return made, rest


def _in_memory(array: np.ndarray) -> Tensor:
  return Tensor(array.shape, array.dtype, lambda: array)


def match_state(
  state: Mapping[str, Tensor],
  variables: dict,
  model: str,
  *,
  inflate: str,
  new: tuple[str, ...],
  shift_place: str = 'blockres',
) -> Imported:
  """Finds a place for every tensor, and a tensor for every place.

  Args:
    state: Tensors by name.
    variables: 'params' and 'batch_stats' of the network, or their shapes.
    model: config.model.name.
    inflate: How a 2-D kernel becomes a 3-D one of kt frames: 'repeat' (each
      frame has 1 / kt of it) or 'center' (the middle frame has all).
    new: Keys of NEW: what is left out, on both sides.
    shift_place: config.model.shift_place, of TSM.

  Raises:
    ConfigError: The names are those of no known format.

  Source: Carreira and Zisserman 2017 (arXiv:1705.07750), section 2.4.1
    (inflation by repetition).
  """
  if model == 'tsm':
    shifted = inference.SHIFTED[shift_place]
    state = {re.sub(shifted, r'\1.', name): v for name, v in state.items()}
  tables = {
    form: naming.names(
      form, variables, model, may_lack=lambda path: _kind_of(path) is not None
    )
    for form in naming.FORMATS
  }
  form = max(tables, key=lambda f: len(tables[f].keys() & state.keys()))
  if not tables[form].keys() & state.keys():
    known = [f for f, table in tables.items() if table]
    text = (
      f'names like {list(state)[:3]} are of none of the formats known for '
      f'model {model!r}: {", ".join(known)}'
    )
    if any(name.startswith('backbone.') for name in state):
      text += (
        f'. The {model!r} of mmaction2, whose names these may be, is another '
        'network than this one'
      )
    raise ConfigError(text)
  shapes = {
    tuple(key.key for key in path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }
  result = Imported(form, {}, [], [])

  def note(name, path, theirs, ours, words, *, problem=False):
    row = (
      name,
      '/'.join(map(str, path)),
      f'{theirs or "-"} -> {ours or "-"}',
      words,
    )
    result.report.append(row)
    if problem:
      result.problems.append(row)

  for name, path in tables[form].items():
    # A row of a kernel is a tensor of its own.
    ours = shapes[path] if path in shapes else shapes[path[:-1]][1:]
    theirs = state[name].shape if name in state else None
    if (kind := _kind_of(path)) in new:
      note(name, path, theirs, ours, f'left out: --new_{kind}')
    elif theirs is None:
      note(name, path, theirs, ours, 'missing in the file', problem=True)
    else:
      wanted = to_theirs(np.broadcast_to(0, ours)).shape
      array, words = _fit(state[name], wanted, inflate)
      # XLA's ReLU may hide a NaN, so that logits would not show it.
      if array is not None and not np.isfinite(array.astype(np.float32)).all():
        array, words = None, 'it holds NaN or infinite numbers'
      if array is not None and path[-1] == 'var' and (array < 0).any():
        array, words = None, 'it holds variances, and some are negative'
      if array is not None:
        result.arrays[path] = to_ours(array)
      note(name, path, theirs, ours, words, problem=array is None)
  named = {
    p[:-1] if isinstance(p[-1], int) else p for p in tables[form].values()
  }
  for path in shapes.keys() - named:
    kind = _kind_of(path)
    words = f'left out: --new_{kind}'
    if kind not in new:
      words = f'{form} has no name for it'
    note('-', path, None, shapes[path], words, problem=kind not in new)
  for name in sorted(state.keys() - tables[form].keys()):
    reasons = [
      why for pattern, why in _NOT_NEEDED if re.fullmatch(pattern, name)
    ]
    words = f'left out: {reasons[0]}' if reasons else 'the model has no place'
    note(name, (), state[name].shape, None, words, problem=not reasons)
  return result


def _kind_of(path: Path) -> str | None:
  """The key of NEW that a variable belongs to, or None."""
  return next(
    (
      kind
      for kind, modules in NEW.items()
      if any(re.fullmatch(modules, str(key)) for key in path)
    ),
    None,
  )


def _fit(
  tensor: Tensor, shape: tuple[int, ...], inflate: str
) -> tuple[np.ndarray | None, str]:
  """A tensor in a wanted shape (None: it cannot be), and what was done."""
  if tensor.shape == shape:
    return tensor.numpy(), 'as it is'
  n = len(tensor.shape)
  if tensor.shape[: len(shape)] == shape and set(
    tensor.shape[len(shape) :]
  ) == {1}:
    return tensor.numpy().reshape(shape), 'axes of 1 dropped'
  if tensor.shape == shape[:n] and set(shape[n:]) == {1}:
    return tensor.numpy().reshape(shape), 'axes of 1 added'
  if len(shape) == 5 and tensor.shape == (*shape[:2], *shape[3:]):
    kernel, frames = tensor.numpy()[:, :, None], shape[2]
    if frames == 1:
      return kernel, 'as it is, for one frame'
    if inflate == 'repeat':
      return np.repeat(kernel / frames, frames, 2), f'repeated / {frames}'
    inflated = np.zeros(shape, kernel.dtype)
    inflated[:, :, [frames // 2]] = kernel
    return inflated, f'in the middle of {frames}'
  return None, f'its shape is not {shape}'


def nest(arrays: Mapping[Path, np.ndarray]) -> dict:
  """Nested dicts from paths; rows of a kernel are put together."""
  tree: dict = {}
  rows: dict[Path, list] = {}
  for path in sorted(p for p in arrays if isinstance(p[-1], int)):
    rows.setdefault(path[:-1], []).append(arrays[path])
  whole = {p: a for p, a in arrays.items() if not isinstance(p[-1], int)}
  whole |= {path: np.stack(values) for path, values in rows.items()}
  for path, array in whole.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = array
  return tree


def import_file(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  out: pathlib.Path,
  *,
  inflate: str,
  new: tuple[str, ...] = (),
  logits: pathlib.Path | None = None,
) -> Imported:
  """Writes a file's weights to a folder, as a checkpoint of step 0.

  Args:
    config: Its model is the one that the weights are for.
    path: The file.
    out: The folder; it gets checkpoints/0, config.json and import.txt, the
      table of all tensors.
    inflate: See `match_state`.
    new: Keys of NEW: what starts anew instead.
    logits: What the weights should give; see `checks.run`.

  Raises:
    ConfigError: The file cannot be read, something in it has no place, the
      model needs something else or gives other logits; or the folder is in
      use.
  """
  if (out / 'checkpoints').exists():
    raise ConfigError(f'--out={out} holds checkpoints already; use another')
  if new and logits:
    raise ConfigError(
      f'--logits={logits}: what starts anew (--new_{new[0]}) gives other logits'
    )
  plan.check_network(config, [cycles.full_grid(config)])
  file = read(path)
  _check_facts(path, config, file.facts, new)
  model = network.model(config)
  video = models.example_video(config.data.num_frames)
  init = lambda: model.init(jax.random.key(config.seed), video)
  shapes = jax.eval_shape(init)
  result = match_state(
    file.state,
    shapes,
    config.model.name,
    inflate=inflate,
    new=new,
    shift_place=config.model.shift_place,
  )
  result.report[:] = [
    (name, ours, shapes, file.made.get(name, words))
    for name, ours, shapes, words in result.report
  ]
  result.report.extend(
    (name, '', '', why) for name, why in file.left_out.items()
  )
  table = '\n'.join('  '.join(row) for row in result.report)
  if result.problems:
    print('\n'.join('  '.join(row) for row in result.problems[:20]))
    fitting = lambda: _fitting(file.state, config, inflate, new)
    raise ConfigError(_explain(path, config, result, fitting))
  arrays = {p: np.float32(a) for p, a in result.arrays.items()}
  if new:
    # XLA drops all else.
    fresh = jax.jit(lambda: _leaves(init(), lambda p: _kind_of(p) in new))()
    arrays |= jax.device_get(fresh)
  variables = nest(arrays)
  if new:
    file = file._replace(check={})
  checked = checks.run(
    model,
    variables,
    config.data.num_frames,
    stored=file.check,
    path=path,
    reference=logits,
  )
  notes = _notes(config, file, is_compared=bool(logits or file.check))
  result = result._replace(checked=checked, notes=notes)
  try:
    out.mkdir(parents=True, exist_ok=True)
    (out / 'import.txt').write_text(
      '\n'.join([f'{path}: {result.format}', checked, *notes, '', table, '']),
      'utf-8',
    )
    (out / 'config.json').write_text(
      json.dumps(json.loads(config.to_json_best_effort()), indent=1) + '\n'
    )
    checkpoints = checkpoint.Checkpoints(out, config.train)
    checkpoints.save(
      train_step.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(jnp.asarray, variables['params']),
        batch_stats=jax.tree.map(jnp.asarray, variables['batch_stats']),
        opt_state=(),
      ),
      0,
      {'times': {}, 'bad_videos': {}, 'imported_from': path.name},
    )
    checkpoints.close()
  except OSError as error:
    raise ConfigError(f'--out={out}: {error.strerror or error}') from error
  return result


def _leaves(tree: dict, chosen: Callable[[Path], bool]) -> dict[Path, Any]:
  """The chosen leaves of a tree, by path."""
  paths = {
    tuple(key.key for key in keys): leaf
    for keys, leaf in jax.tree.leaves_with_path(tree)
  }
  return {path: leaf for path, leaf in paths.items() if chosen(path)}


def _check_facts(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  facts: list[pyslowfast_cfg.Fact],
  new: tuple[str, ...],
) -> None:
  """Refuses a config that contradicts what a file says about its network."""
  wanted = ml_collections.ConfigDict(config.to_dict())
  pyslowfast_cfg.apply(wanted, facts)
  for field, value, source in facts:
    skipped = (field == 'model.num_classes' and 'head' in new) or (
      field.startswith('model.nonlocal') and 'nonlocal' in new
    )
    if skipped or not _must_agree(field):
      continue
    if _effect(config, field) != _effect(wanted, field):
      given = _field(config, field)
      if field == 'model.depth' and config.model.blocks:
        given = f'{given} with model.blocks={tuple(config.model.blocks)}'
      raise ConfigError(
        f'{path}: its cfg has {source}={value}, but {field} is {given}; give '
        f'--config.{field}={str(value).replace(" ", "")}, or neither --config '
        'nor --model: then all is taken from the file'
      )


def _must_agree(field: str) -> bool:
  """Whether weights give other scores where a field differs."""
  return field.startswith('model.') or field in ('data.mean', 'data.std')


def _field(config: ml_collections.ConfigDict, field: str) -> Any:
  section, _, name = field.rpartition('.')
  return config[section][name]


def _effect(config: ml_collections.ConfigDict, field: str) -> Any:
  """A field's value, the same for all spellings of one network."""
  value, model = _field(config, field), config.model
  if field in ('data.mean', 'data.std'):
    return tuple(round(float(number), 6) for number in value)
  if field == 'model.depth' or field == 'model.num_temporal':
    known = resnet3d.BLOCKS.get(model.depth, ())
    blocks = tuple(model.blocks or known)
    if field == 'model.depth':
      return blocks or model.depth
    counts = value or blocks
    return tuple(map(min, zip(counts, blocks, strict=False)))
  if not field.startswith('model.nonlocal'):
    return value
  suffix = '_fast' if field.endswith('_fast') else ''
  places = model[f'nonlocal_blocks{suffix}']
  if not any(places):
    return ()
  if 'blocks' in field:
    return tuple(map(tuple, places))
  if 'mode' in field:
    return value
  if 'groups' in field:
    value = value or (1,) * len(places)
  else:
    value = value or model.nonlocal_pool
    value = value if isinstance(value[0], tuple) else (value,) * len(places)
  # Of stages that have such blocks.
  return tuple(v for v, blocks in zip(value, places, strict=False) if blocks)


def _notes(
  config: ml_collections.ConfigDict, file: File, *, is_compared: bool
) -> tuple[str, ...]:
  """What the user should know of options."""
  notes = list(file.notes)
  differing = [
    f'{field}={_field(config, field)} (its cfg: {source}={value})'
    for field, value, source in file.facts
    if not _must_agree(field) and _field(config, field) != value
  ]
  if file.facts:
    notes.append(
      'the network is that of the cfg in the file'
      + ''.join(f'; but {text}' for text in differing)
    )
  known = {fact.field for fact in file.facts}
  hidden = inference.unverified(config, known)
  if is_compared:  # Logits show the network's, but of normalised pixels.
    hidden = {f: v for f, v in hidden.items() if f.startswith('data.')}
  if hidden:
    listed = ', '.join(f'{field}={value}' for field, value in hidden.items())
    notes.append(f'unverified, the file does not show them: {listed}')
  return tuple(notes)


def _fitting(
  state: Mapping[str, Tensor],
  config: ml_collections.ConfigDict,
  inflate: str,
  new: tuple[str, ...],
) -> str:
  """What to give so that a file's tensors fit; '' where nothing is known."""
  # Ones, of the same shapes: the numbers do not matter, and take time to read.
  blank = {
    name: Tensor(t.shape, t.dtype, lambda s=t.shape: np.ones(s, np.float32))
    for name, t in state.items()
  }
  others = [name for name in models.MODELS if name != config.model.name]
  for name in (config.model.name, *others):
    options = inference.infer(state, name)
    if options is None:
      continue
    wanted = ml_collections.ConfigDict(config.to_dict())
    wanted.model.update(options)
    if 'head' in new:
      wanted.model.num_classes = config.model.num_classes
    try:
      model = network.model(wanted)
      video = models.example_video(wanted.data.num_frames)
      shapes = jax.eval_shape(model.init, jax.random.key(0), video)
      result = match_state(
        blank,
        shapes,
        name,
        inflate=inflate,
        new=new,
        shift_place=wanted.model.shift_place,
      )
    except ValueError:  # No such network, or names of no format.
      continue
    inflated = any(
      'repeated' in r[3] or 'in the mid' in r[3] for r in result.report
    )
    if result.problems or (inflated and name != config.model.name):
      continue
    return _overrides(config, wanted)
  return ''


def _overrides(config, wanted) -> str:
  """How one config's model becomes another's, in words and flags."""
  changed = {
    name: wanted.model[name]
    for name in wanted.model
    if _as_tuples(wanted.model[name]) != _as_tuples(config.model[name])
  }
  words = ', '.join(
    f'{name} {value} (not {config.model[name]})'
    for name, value in changed.items()
  )
  flags_text = ' '.join(
    f'--config.model.{name}={_as_tuples(value)!s}'.replace(' ', '')
    for name, value in changed.items()
  )
  return f'{words}: give {flags_text}' if changed else ''


def _as_tuples(value: Any) -> Any:
  if isinstance(value, (list, tuple)):
    return tuple(map(_as_tuples, value))
  return value


def _explain(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  result: Imported,
  fitting: Callable[[], str],
) -> str:
  """One line about what does not fit, and what may help."""
  kinds = {_kind_of(tuple(row[1].split('/'))) for row in result.problems}
  name, path_in_model, shapes, words = result.problems[0]
  option = _DENSE_OR_DEPTHWISE.get(config.model.name)
  text = (
    f'{path}: {len(result.problems)} tensors do not fit model '
    f'{config.model.name!r} by names of {result.format}, such as '
    f'{path_in_model if name == "-" else name}: {shapes}, {words}'
  )
  if words.startswith('it holds'):  # Numbers that no network has.
    return text
  if None in kinds and (hint := fitting()):
    return f'{text}. The file is of {hint}'
  if kinds == {'head'}:
    text += (
      f'. The model has {config.model.num_classes} classes; set '
      "--config.model.num_classes to the file's, or start with a new "
      'classifier: --new_head'
    )
  elif kinds == {'temporal'} and option and words != 'missing in the file':
    text += (
      '. They may be dense where those of the model are depthwise, or the '
      f'other way: set --config.model.{option}={not config.model[option]}'
    )
  elif None not in kinds:
    flags_text = ' '.join(f'--new_{kind}' for kind in sorted(kinds))
    text += f'. Such layers can start anew: {flags_text}'
  return text


def export(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  to: str,
  out: pathlib.Path,
) -> int:
  """Writes a checkpoint as a file that PySlowFast or pytorchvideo load.

  Args:
    config: The run's configuration.
    folder: Folder of the run, or of one of its checkpoints.
    to: 'pyslowfast' or 'pytorchvideo'.
    out: The file: {'model_state': {name: tensor}}, as those of the peers, and
      the logits of a clip, by which an import checks itself.

  Returns:
    The number of tensors.

  Raises:
    ConfigError: The format has no such network, nothing is in the folder, or
      the file exists.
  """
  if out.exists():
    raise ConfigError(f'--out={out} exists already; use another')
  plan.check_network(config, [cycles.full_grid(config)])
  model = network.model(config)
  video = models.example_video(config.data.num_frames)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), video))
  table = naming.names(to, shapes, config.model.name)
  if not table:
    raise ConfigError(f'--to={to} has no network like {config.model.name!r}')
  variables = checkpoint.load_variables(
    checkpoint.find(folder, 'argument'), shapes
  )
  state = {}
  for name, path in table.items():
    node = variables
    for key in path:
      node = node[key]
    state[name] = to_theirs(np.asarray(node, np.float32))
    if name.endswith('.running_var'):
      counter = name.removesuffix('running_var') + 'num_batches_tracked'
      state[counter] = np.zeros((), np.int64)
  check = checks.make(model, variables, config.data.num_frames)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    torch_files.save(out, {'model_state': state, checks.KEY: check})
  except OSError as error:
    raise ConfigError(f'--out={out}: {error.strerror}') from error
  return len(state)


def main(values: flags.FlagValues, *arguments: str) -> None:
  if len(arguments) != 1:
    raise ConfigError(f'give one file to read, not {len(arguments)}.')
  if not values.out:
    raise ConfigError('--out is missing; say where to write.')
  path, out = pathlib.Path(arguments[0]), pathlib.Path(values.out)
  if values.to:
    count = export(values.config, path, values.to, out)
    print(f'{out}: {count} tensors for {values.to}')
    return
  result = import_file(
    values.config,
    path,
    out,
    inflate=values.inflate,
    new=tuple(name for name in NEW if values[f'new_{name}'].value),
    logits=pathlib.Path(values.logits) if values.logits else None,
  )
  kinds: dict[str, int] = {}
  for _, _, _, words in result.report:
    kinds[words] = kinds.get(words, 0) + 1
  print(f'{path}: names of {result.format}')
  for words, count in sorted(kinds.items(), key=lambda item: -item[1]):
    print(f'{count:6d}  {words}')
  print(f'self-check            {result.checked}')
  for note in result.notes:
    print(f'options               {note}')
  print(f'table of all of them  {out}/import.txt')
  print(f'weights               {out}')
