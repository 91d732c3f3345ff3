"""The command `import_weights`: a file becomes a checkpoint, and back."""

import collections
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from flax import traverse_util

from mgjax import models
from mgjax.config import own
from mgjax.errors import ConfigError
from mgjax.hosts import parallel
from mgjax.run import checkpoint
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.setup import grids, network, planning, run_settings
from mgjax.setup import weights as weights_setup
from mgjax.step.train_state import TrainState
from mgjax.weights import checks, contents, matching, naming, torch_files
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
) -> Imported:
  """Writes a file's weights to a folder, as a checkpoint of step 0.

  Args:
    config: Its model is the one that the weights are for.
    path: The file.
    out: The folder; it gets checkpoints/0, config.json and import.txt, the
      table of all tensors.
    inflate: See `matching.match_state`.
    new: Keys of matching.NEW: what starts anew instead.
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
  planning.check_network(config, [grids.full_grid(config)])
  file = contents.read(path)
  weights_setup.check_facts(path, config, file.facts, new)
  model = network.model(config)
  result = _match(config, model, path, file, inflate, new)
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
    config, file, is_compared=bool(logits or file.check)
  )
  result = result._replace(checked=checked, notes=notes)
  try:
    _write(out, config, path, result, variables)
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
      p: leaf for p, leaf in flat().items() if matching.kind_of(p) in new
    }
    arrays |= jax.device_get(jax.jit(start)())
  return matching.nest(arrays)


def _write(
  out: pathlib.Path,
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  result: Imported,
  variables: dict,
) -> None:
  """Writes the folder: the table, the settings, the checkpoint."""
  table = '\n'.join('  '.join(row) for row in result.report)
  head = [f'{path}: {result.format}', result.checked, *result.notes]
  out.mkdir(parents=True, exist_ok=True)
  (out / 'import.txt').write_text('\n'.join([*head, '', table, '']), 'utf-8')
  (out / 'config.json').write_text(run_settings.as_text(config))
  checkpoints = Checkpoints(out, Keep(newest=1, best=0))
  checkpoints.save(
    TrainState(
      step=jnp.zeros((), jnp.int32),
      params=jax.tree.map(jnp.asarray, variables['params']),
      batch_stats=jax.tree.map(jnp.asarray, variables['batch_stats']),
      opt_state=(),
    ),
    0,
    {'times': {}, 'bad_videos': {}, 'imported_from': path.name},
  )
  checkpoints.close()


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
  planning.check_network(config, [grids.full_grid(config)])
  model = network.model(config)
  shapes = jax.eval_shape(_initialiser(config, model))
  table = naming.names(to, shapes, config.model.name)
  if not table:
    raise ConfigError(f'--to={to} has no network like {config.model.name!r}')
  variables = checkpoint.load_variables(
    checkpoint.find(folder, 'argument'), shapes
  )
  flat = traverse_util.flatten_dict(variables)
  state = {}
  for name, path in table.items():
    # A row of a kernel is a tensor of its own.
    array = flat[path] if path in flat else flat[path[:-1]][path[-1]]
    state[name] = matching.to_theirs(np.asarray(array, np.float32))
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
  if own.is_own(values.config.model.name):
    raise ConfigError(
      f'model.name={values.config.model.name!r}: the names of weights of other '
      "frameworks are known for mgjax's networks only."
    )
  parallel.find_devices()
  if values.to:
    count = export(values.config, path, values.to, out)
    print(f'{out}: {count} tensors for {values.to}')
    return
  result = import_file(
    values.config,
    path,
    out,
    inflate=values.inflate,
    new=tuple(name for name in matching.NEW if values[f'new_{name}'].value),
    logits=pathlib.Path(values.logits) if values.logits else None,
  )
  kinds = collections.Counter(words for *_, words in result.report)
  print(f'{path}: names of {result.format}')
  for words, count in kinds.most_common():
    print(f'{count:6d}  {words}')
  print(f'self-check            {result.checked}')
  for note in result.notes:
    print(f'options               {note}')
  print(f'table of all of them  {out}/import.txt')
  print(f'weights               {out}')
