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
from mgjax.exporting import framework_files
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
  matching,
  naming,
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
  # An import that was stopped may be done again; a run that has just begun has
  # no checkpoint either, but no table.
  if checkpoint.steps(out) or (
    (out / 'checkpoints').exists() and not (out / 'import.txt').exists()
  ):
    raise ConfigError(f'--out={out} holds checkpoints already; use another')
  if new and logits:
    raise ConfigError(
      f'--logits={logits}: what starts anew (--new_{new[0]}) gives other logits'
    )
  if config.model.name == 'c2d' and 'NOPOOL' in path.name:
    raise ConfigError(
      f'{path}: PySlowFast calls so a C2D that does not pool in time, which no '
      'network here is; mgjax.weights c2d says where the other one is'
    )
  planning.check_network(config, [grids.full_grid(config)])
  file = contents.read(path, probe)
  weights_setup.check_facts(path, config, file, new)
  model = network.model(config)
  result = match(config, model, path, file, inflate, new)
  config, known = weights_setup.with_constants(path, config, file, result)
  model = network.model(config)
  variables = all_variables(config, model, result, new)
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


def match(
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


def all_variables(
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
    count, notes = framework_files.export(values.config, path, values.to, out)
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
