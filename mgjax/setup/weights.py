"""What settings and a file of weights say of each other, and what would fit."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from mgjax import models
from mgjax.config import fields, network_options, rules
from mgjax.errors import ConfigError
from mgjax.setup import network
from mgjax.weights import (
  facts,
  hugging_face,
  inference,
  matching,
  naming,
  transformer_inference,
)
from mgjax.weights.contents import File
from mgjax.weights.matching import Imported
from mgjax.weights.tensors import Tensor

# What decides whether temporal layers are dense or depthwise, by model.
_DENSE_OR_DEPTHWISE = {
  'tam': 'tam_depthwise',
  's3d_resnet': 'depthwise_temporal',
}
# Options of `config` that neither names nor shapes show, by model.
_HIDDEN = {
  'vit': (
    'model.heads',
    'model.position_grid',
    'model.layer_norm_eps',
    'model.head_norm_eps',
    'model.probe_heads',
  ),
  'videoprism': (
    'model.position_grid',
    'model.layer_norm_eps',
    'model.logit_cap',
  ),
  'mvit': (
    'model.position_grid',
    'model.tubelet_frames',
    'model.patch_px',
    'model.kv_stride',
  ),
  'timesformer': (
    'model.heads',
    'model.position_grid',
    'model.layer_norm_eps',
  ),
  'slowfast': ('model.alpha',),
  'tsn': ('model.temporal_strides',),
  'tsm': ('model.shift_div', 'model.temporal_strides'),
  'tam': ('model.tam_blend', 'model.temporal_strides'),
  'i3d_resnet': ('model.temporal_strides',),
  's3d_resnet': ('model.temporal_strides',),
}
_HIDDEN_NONLOCAL = (
  'model.nonlocal_mode',
  'model.nonlocal_pool',
  'model.nonlocal_groups',
)
_HIDDEN_ALWAYS = ('norm.eps', 'data.mean', 'data.std')
# Fields of transformers that mean something by (field, values) of another one.
_ONLY_WITH = {
  'model.head_norm_eps': ('pool', ('mean', 'probe')),
  'model.probe_blocks': ('pool', ('probe',)),
  'model.probe_heads': ('pool', ('probe',)),
}
# Fields about what comes behind the encoder.
_BEHIND = (
  'model.pool',
  'model.head_norm_eps',
  'model.probe_blocks',
  'model.probe_heads',
)


def check_facts(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  file: File,
  new: tuple[str, ...],
) -> None:
  """Refuses a config that contradicts what a file says about its network.

  Args:
    path: The file.
    config: Its model is the one that the weights are for.
    file: Its facts are what must agree.
    new: Keys of `matching.NEW`: what the file need not agree about.

  Raises:
    ConfigError: Names the field, what it is and what the file says.
  """
  wanted = config.copy_and_resolve_references()
  facts.apply(wanted, file.facts)
  lacks_head = (
    'head' in new
    and config.model.name in transformer_inference.MODELS
    and not _shows(file, config.model.name, 'pool', config.model.get('pool'))
  )
  for field, value, source, origin in file.facts:
    skipped = (
      (field == 'model.num_classes' and 'head' in new)
      or (field.startswith('model.nonlocal') and 'nonlocal' in new)
      or (field in _BEHIND and lacks_head)
    )
    if skipped or not _must_agree(field):
      continue
    if _effect(config, field) != _effect(wanted, field):
      given = _field(config, field)
      if field == 'model.depth' and config.model.get('blocks'):
        given = f'{given} with model.blocks={tuple(config.model.blocks)}'
      raise ConfigError(
        f'{path}: its {origin} has {source}={value}, but {field} is {given}; '
        f'give --config.{field}={str(value).replace(" ", "")}, or neither '
        '--config nor --model: then all is taken from the file'
      )


def _shows(file: File, model: str, option: str, value: Any) -> bool:
  """Whether the names of a file show that an option has a value."""
  found = inference.infer(file.state, model) or {}
  return found.get(option) == value


def with_constants(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  file: File,
  result: Imported,
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """Takes what a framework's program has as constants, which no file shows.

  Args:
    path: The file.
    config: What the weights were matched with.
    file: What its configuration says comes before the constants.
    result: Of `matching.match_state`.

  Returns:
    The config of the framework's network, and the fields that were taken with
    their values before.

  Raises:
    ConfigError: The network has options that no network of the framework has.
  """
  form = naming.FORMATS[result.format]
  for option, value in form.only.items():
    if config.model[option] != value:
      raise ConfigError(
        f'{path}: has names of {result.format}, whose networks have '
        f'{option} {value!r}, but model.{option} is '
        f'{config.model[option]!r}; give --config.model.{option}={value}'
      )
  shapes = {form.canonical(n): t.shape for n, t in file.state.items()}
  for option, value in form.shown(shapes).items():
    if config.model[option] != value:
      raise ConfigError(
        f'{path}: shows {option} {value!r}, but model.{option} is '
        f'{config.model[option]!r}; give --config.model.{option}={value}'
      )
  if any(fact.origin == hugging_face.CONFIG for fact in file.facts):
    return config, {}
  started = {path[1] for path in result.new}
  taken = config.copy_and_resolve_references()
  before = {}
  for option, value in form.constants.items():
    field = f'model.{option}'
    if not _means_something(config, field) or (
      field in _BEHIND and started & {'pool_norm', 'probe'}
    ):
      continue
    before[field] = config.model[option]
    taken.model[option] = value
  return taken, before


def _means_something(config: ml_collections.ConfigDict, field: str) -> bool:
  """Whether a field decides anything, as others are."""
  if field == 'model.position_grid':  # All but those that turn have a table.
    return config.model.get('positions') != 'rope'
  option, values = _ONLY_WITH.get(field, ('name', (config.model.name,)))
  return config.model.get(option) in values


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
  if model.name in transformer_inference.MODELS:
    if not _means_something(config, field):
      return None
    if field == 'model.mlp_width':
      return value or 4 * model.width
    return value or model.heads if field == 'model.probe_heads' else value
  if field == 'model.depth' or field == 'model.num_temporal':
    known = network_options.PATHWAY_BLOCKS.get(model.depth, ())
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
  if field.endswith('_mode'):
    return value
  if 'groups' in field:
    value = value or (1,) * len(places)
  else:
    value = value or model.nonlocal_pool
    value = value if isinstance(value[0], tuple) else (value,) * len(places)
  # Of stages that have such blocks.
  return tuple(v for v, blocks in zip(value, places, strict=False) if blocks)


def notes_of(
  config: ml_collections.ConfigDict,
  file: File,
  taken: Mapping[str, Any],
  *,
  is_compared: bool,
) -> tuple[str, ...]:
  """What the user should know of options, in lines.

  Args:
    config: Its model is the one that the weights are for.
    file: The file.
    taken: Of `with_constants`: fields, with their values before.
    is_compared: Whether logits of the file, or given ones, were compared: they
      show what the network is.
  """
  notes = list(file.notes)
  differing = [
    f'{field}={_field(config, field)} (its {origin}: {source}={value})'
    for field, value, source, origin in file.facts
    if not _must_agree(field) and _field(config, field) != value
  ]
  if file.facts:
    origin = file.facts[0].origin
    where = 'in' if origin == 'cfg' else 'beside'
    notes.append(
      f'the network is that of the {origin} {where} the file'
      + ''.join(f'; but {text}' for text in differing)
    )
  changed = {f: v for f, v in taken.items() if v != _field(config, f)}
  if changed:
    listed = ', '.join(
      f'{field}={_field(config, field)} (not {value})'
      for field, value in changed.items()
    )
    notes.append(f"taken, the framework's program has them: {listed}")
  known = {fact.field for fact in file.facts} | taken.keys()
  hidden = unverified(config, known)
  if is_compared:  # Logits show the network's, but of normalised pixels.
    hidden = {f: v for f, v in hidden.items() if f.startswith('data.')}
  if hidden:
    listed = ', '.join(f'{field}={value}' for field, value in hidden.items())
    notes.append(f'unverified, the file does not show them: {listed}')
  return tuple(notes)


def unverified(
  config: ml_collections.ConfigDict, known: set[str]
) -> dict[str, Any]:
  """Options that names and shapes do not show, with the values they have.

  Args:
    config: What weights were imported for.
    known: Fields that the file says by other means.
  """
  model = config.model
  fields = list(_HIDDEN.get(model.name, ()))
  if any(model.get('nonlocal_blocks', ())):
    fields += _HIDDEN_NONLOCAL
  if any(model.get('nonlocal_blocks_fast', ())):
    fields += ['model.nonlocal_pool_fast', 'model.nonlocal_groups_fast']
  fields += _HIDDEN_ALWAYS
  if not network_options.options_of(model.name).has_batch_norm:
    fields.remove('norm.eps')
  values = {}
  for field in fields:
    if field not in known and _means_something(config, field):
      section, _, name = field.rpartition('.')
      values[field] = config[section][name]
  return values


def fitting_options(
  state: Mapping[str, Tensor],
  config: ml_collections.ConfigDict,
  inflate: str,
  new: tuple[str, ...],
) -> str:
  """What to give so that a file's tensors fit; '' where nothing is known.

  Args:
    state: Tensors by name.
    config: Its model is the one that they do not fit.
    inflate: See `matching.match_state`.
    new: Keys of `matching.NEW`: what starts anew.
  """
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
    wanted = config.copy_and_resolve_references()
    if name != config.model.name:
      wanted.model = _network(name)
    wanted.model.update(options)
    if 'head' in new or wanted.model.num_classes is None:
      wanted.model.num_classes = config.model.num_classes
    # No tensor shows the heads: those that were given, where they can be.
    is_hidden = 'model.heads' in _HIDDEN.get(name, ())
    if is_hidden and (heads := config.model.get('heads')):
      if wanted.model.width % heads == 0:
        wanted.model.heads = heads
    try:
      model = network.model(wanted)
      video = models.example_video(model, wanted.data.num_frames)
      shapes = jax.eval_shape(model.init, jax.random.key(0), video)
      result = matching.match_state(
        blank,
        shapes,
        name,
        inflate=inflate,
        new=new,
        shift_place=wanted.model.get('shift_place', ''),
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
  # What the other network alone has is named where it is not the default.
  given = {**_network(wanted.model.name), **config.model}
  changed = {
    name: value
    for name, value in wanted.model.items()
    if rules.as_tuples(value) != rules.as_tuples(given[name])
  }
  words = ', '.join(
    f'{name} {value}'
    + (f' (not {given[name]})' if name in config.model else '')
    for name, value in changed.items()
  )
  flags_text = ' '.join(
    f'--config.model.{name}={rules.as_tuples(value)!s}'.replace(' ', '')
    for name, value in changed.items()
  )
  return f'{words}: give {flags_text}' if changed else ''


def _network(name: str) -> ml_collections.ConfigDict:
  """The section `model` of a network, at its defaults."""
  model = fields.base().model
  model.name = name
  return model


def explain(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  result: Imported,
  fitting: Callable[[], str],
) -> str:
  """One line about what does not fit, and what may help.

  Args:
    path: The file.
    config: Its model is the one that the weights do not fit.
    result: Of `matching.match_state`, with problems.
    fitting: `fitting_options` of them; called where it may help.
  """
  kinds = set(result.kinds)
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
  if kinds == {'head'} and all(
    re.search('missing|no name|no place', words)
    for *_, words in result.problems
  ):
    text += '. The file has an encoder only: start with a new head, --new_head'
  elif kinds == {'head'}:
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
