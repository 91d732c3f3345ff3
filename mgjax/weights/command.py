"""The command `import_weights`: a file becomes a checkpoint, and back."""

import collections
import json
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from flax import traverse_util

from mgjax import files, models
from mgjax.config import own
from mgjax.errors import ConfigError
from mgjax.hosts import parallel
from mgjax.run import checkpoint, run_folder
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.setup import grids, network, planning, run_settings
from mgjax.setup import weights as weights_setup
from mgjax.step.train_state import TrainState
from mgjax.weights import (
  checks,
  contents,
  hub,
  hugging_face,
  matching,
  naming,
  safetensors_files,
  torch_files,
)
from mgjax.weights.contents import File
from mgjax.weights.matching import Imported


def import_file(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  out: pathlib.Path,
  *,
  inflate: str,
  new: tuple[str, ...] = (),
  logits: pathlib.Path | None = None,
  probe: pathlib.Path | None = None,
  source: str = '',
) -> Imported:
  """Writes a file's weights to a folder, as a checkpoint of step 0.

  Args:
    config: Its model is the one that the weights are for.
    path: The file, or a folder as transformers writes it.
    out: The folder; it gets checkpoints/0, config.json and import.txt, the
      table of all tensors.
    inflate: See `matching.match_state`.
    new: Keys of matching.NEW: what starts anew instead.
    logits: What the weights should give; see `checks.run`.
    probe: A second file, with what comes behind the encoder.
    source: What the user calls the file; '': as it is called.

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
  planning.check_network(config, [grids.full_grid(config)])
  file = contents.read(path, probe)
  weights_setup.check_facts(path, config, file, new)
  model = network.model(config)
  result = _match(config, model, path, file, inflate, new)
  config, known = weights_setup.with_constants(path, config, file, result)
  model = network.model(config)
  variables = _variables(config, model, result, new)
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
  notes = weights_setup.notes_of(
    config, file, known, is_compared=bool(logits or file.check)
  )
  result = result._replace(
    checked=checked,
    notes=notes,
    licence=naming.FORMATS[result.format].licence,
  )
  try:
    _write(out, config, source or str(path), result, variables, file.labels)
  except OSError as error:
    raise ConfigError(f'--out={out}: {error.strerror or error}') from error
  return result


def _match(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  path: pathlib.Path,
  file: File,
  inflate: str,
  new: tuple[str, ...],
) -> Imported:
  """`matching.match_state`, with all of the file in its report.

  Raises:
    ConfigError: Something has no place; the first of it is printed.
  """
  result = matching.match_state(
    file.state,
    jax.eval_shape(_initialiser(config, model)),
    config.model.name,
    inflate=inflate,
    new=new,
    shift_place=config.model.get('shift_place', ''),
  )
  result.report[:] = [
    (name, ours, shapes, file.made.get(name, words))
    for name, ours, shapes, words in result.report
  ]
  result.report.extend(
    (name, '', '', why) for name, why in file.left_out.items()
  )
  if result.problems:
    print('\n'.join('  '.join(row) for row in result.problems[:20]))
    fitting = lambda: weights_setup.fitting_options(
      file.state, config, inflate, new
    )
    raise ConfigError(weights_setup.explain(path, config, result, fitting))
  return result


def _initialiser(
  config: ml_collections.ConfigDict, model: nn.Module
) -> Callable[[], dict]:
  """A function that makes a network's random variables."""
  video = models.example_video(model, config.data.num_frames)
  return lambda: model.init(jax.random.key(config.seed), video)


def _variables(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  result: Imported,
  new: tuple[str, ...],
) -> dict:
  """All variables in float32, those that start anew (`new`) among them."""
  arrays = {p: np.float32(a) for p, a in result.arrays.items()}
  if new:
    init = _initialiser(config, model)
    # XLA drops all else.
    flat = lambda: traverse_util.flatten_dict(init())
    start = lambda: {
      naming.Part(path): leaf
      for path, leaf in flat().items()
      if path in result.new
    }
    arrays |= jax.device_get(jax.jit(start)())
  return matching.nest(arrays)


def _write(
  out: pathlib.Path,
  config: ml_collections.ConfigDict,
  source: str,
  result: Imported,
  variables: dict,
  labels: tuple[str, ...],
) -> None:
  """Writes the folder: the table, the settings, the checkpoint."""
  table = '\n'.join('  '.join(row) for row in result.report)
  licence = f'licence: {result.licence or matching.NO_LICENCE}'
  head = [f'{source}: {result.format}', licence, result.checked, *result.notes]
  out.mkdir(parents=True, exist_ok=True)
  (out / 'import.txt').write_text('\n'.join([*head, '', table, '']), 'utf-8')
  (out / 'config.json').write_text(run_settings.as_text(config))
  if len(labels) == config.model.num_classes:
    text = json.dumps(labels, ensure_ascii=False, indent=0)
    files.write_text(out / run_folder.LABELS, text + '\n')
  checkpoints = Checkpoints(out, Keep(newest=1, best=0))
  checkpoints.save(
    TrainState(
      step=jnp.zeros((), jnp.int32),
      params=jax.tree.map(jnp.asarray, variables['params']),
      batch_stats=jax.tree.map(jnp.asarray, variables.get('batch_stats', {})),
      opt_state=(),
    ),
    0,
    {
      'times': {},
      'bad_videos': {},
      'imported_from': source.rpartition('/')[2],
      'licence': result.licence,
    },
  )
  checkpoints.close()


def export(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  to: str,
  out: pathlib.Path,
) -> tuple[int, tuple[str, ...]]:
  """Writes a checkpoint as a file, or a folder, that another framework loads.

  Args:
    config: The run's configuration.
    folder: Folder of the run, or of one of its checkpoints.
    to: 'pyslowfast' or 'pytorchvideo': `out` is a file, {'model_state': {name:
      tensor}}. 'huggingface': `out` is a folder of config.json and
      model.safetensors. Either has the logits of a clip, by which an import
      checks itself.
    out: What is written.

  Returns:
    The number of tensors, and what the user should know, in lines.

  Raises:
    ConfigError: The format has no such network, nothing is in the folder, or
      the file exists.
  """
  if out.exists():
    raise ConfigError(f'--out={out} exists already; use another')
  planning.check_network(config, [grids.full_grid(config)])
  theirs = weights_setup.for_transformers(config, folder, to)
  model = network.model(config)
  shapes = jax.eval_shape(_initialiser(config, model))
  form = f'{to}_{theirs["model_type"]}' if theirs else to
  table = naming.names(form, shapes, config.model.name)
  if not table:
    raise ConfigError(f'--to={to} has no network like {config.model.name!r}')
  variables = checkpoint.load_variables(
    checkpoint.find(folder, 'argument'), {'batch_stats': {}, **shapes}
  )
  flat = {
    path: np.asarray(array, np.float32)
    for path, array in traverse_util.flatten_dict(variables).items()
  }
  leading = naming.FORMATS[form].leading
  state = {
    name: matching.joined(parts, flat, leading.get(name))
    for name, parts in table.items()
  }
  check = checks.make(model, variables, config.data.num_frames)
  notes = ()
  if theirs:
    notes = _eps_notes(config, variables, theirs, check)
  try:
    if theirs:
      _write_folder(out, theirs, state, check)
    else:
      for name in [n for n in state if n.endswith('.running_var')]:
        counter = name.removesuffix('running_var') + 'num_batches_tracked'
        state[counter] = np.zeros((), np.int64)
      out.parent.mkdir(parents=True, exist_ok=True)
      torch_files.save(out, {'model_state': state, checks.KEY: check})
  except OSError as error:
    raise ConfigError(f'--out={out}: {error.strerror}') from error
  return len(state), notes


def _write_folder(
  out: pathlib.Path, theirs: dict, state: dict, check: dict
) -> None:
  """Writes a folder as transformers' save_pretrained does."""
  out.mkdir(parents=True)
  safetensors_files.save(
    out / 'model.safetensors',
    state,
    {'format': 'pt', checks.KEY: checks.as_text(check)},
  )
  text = json.dumps(theirs, indent=2) + '\n'
  files.write_text(out / hugging_face.CONFIG, text)


def _eps_notes(
  config: ml_collections.ConfigDict, variables: dict, theirs: dict, check: dict
) -> tuple[str, ...]:
  """Says how logits differ where transformers has no option for an eps."""
  constants = hugging_face.constants(
    theirs['model_type'], config.model.layer_norm_eps
  )
  changed = {
    option: value
    for option, value in constants.items()
    if config.model[option] != value
  }
  if not changed or config.model.pool == 'first':
    return ()
  other = network.model(config).changed(**changed)
  logits = checks.make(other, variables, config.data.num_frames)['logits']
  difference = np.abs(logits - check['logits']).max() / max(
    np.abs(check['logits']).max(), 1e-30
  )
  return tuple(
    f'transformers has model.{option}={value}, the run '
    f'{config.model[option]}: logits differ by {difference:.1e} of the largest'
    for option, value in changed.items()
  )


def main(values: flags.FlagValues, *arguments: str) -> None:
  if len(arguments) != 1:
    raise ConfigError(f'give one file to read, not {len(arguments)}.')
  if not values.out:
    raise ConfigError('--out is missing; say where to write.')
  out = pathlib.Path(values.out)
  if values.probe and values.new_head:
    raise ConfigError(f'--probe={values.probe} has a head; --new_head has none')
  if own.is_own(values.config.model.name):
    raise ConfigError(
      f'model.name={values.config.model.name!r}: the names of weights of other '
      "frameworks are known for mgjax's networks only."
    )
  path = hub.local(arguments[0])
  probe = hub.local(values.probe) if values.probe else None
  parallel.find_devices()
  if values.to:
    count, notes = export(values.config, path, values.to, out)
    print(f'{out}: {count} tensors for {values.to}')
    for note in notes:
      print(note)
    return
  result = import_file(
    values.config,
    path,
    out,
    inflate=values.inflate,
    new=tuple(name for name in matching.NEW if values[f'new_{name}'].value),
    logits=pathlib.Path(values.logits) if values.logits else None,
    probe=probe,
    source=arguments[0],
  )
  kinds = collections.Counter(words for *_, words in result.report)
  print(f'{arguments[0]}: names of {result.format}')
  for words, count in kinds.most_common():
    print(f'{count:6d}  {words}')
  print(f'licence               {result.licence or matching.NO_LICENCE}')
  print(f'self-check            {result.checked}')
  for note in result.notes:
    print(f'options               {note}')
  print(f'table of all of them  {out}/import.txt')
  print(f'weights               {out}')
