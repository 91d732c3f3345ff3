"""The command: prepares videos, looks at them, and writes a config file."""

import collections
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from absl import flags

from mgjax import cli, files, stop_signal
from mgjax.config import config_file, network_options, own, saved
from mgjax.data.prepare import command as prepare
from mgjax.data.prepare.annotations import split_of_word
from mgjax.data.prepare.plan import make_plan
from mgjax.data.prepare.settings import Settings
from mgjax.data.prepare.transcode import Encoding
from mgjax.errors import ConfigError
from mgjax.new import choose, grid_choice, look, program
from mgjax.run import run_folder

CONFIG = 'config.py'


def main(values: flags.FlagValues, *arguments: str) -> None:
  """Runs the command: see __main__.py for its flags."""
  if len(arguments) != 1:
    raise ConfigError(
      f'give one folder of videos, not {len(arguments)}: python -m mgjax.new '
      'VIDEOS --out=FOLDER'
    )
  folder = pathlib.Path(arguments[0])
  if not folder.is_dir():
    raise ConfigError(f'{folder}: there is no folder of videos')
  if not values.out:
    raise ConfigError('--out is missing; name the folder to write to')
  out = pathlib.Path(values.out)
  if out.resolve().is_relative_to(folder.resolve()):
    raise ConfigError(
      f'--out={out} lies in the folder of videos, {folder}, where pictures '
      'that a run writes would be taken for videos; use a folder outside of it'
    )
  _check_path(out, values.preset)
  if (out / CONFIG).exists():
    raise ConfigError(
      f'{out / CONFIG} is there already, and may have been changed; use '
      'another --out, or delete it'
    )
  weights = None
  if values.preset == 'finetune':
    weights = find_weights(values.weights)
  elif values['weights'].present:
    raise ConfigError(
      f'--weights={values.weights} does nothing with --preset=scratch; give '
      '--preset=finetune'
    )
  flip = values.flip if values.flip is not None else _ask_flip()
  videos = _prepare(values, folder, out)
  for line in videos.lines:
    print(line)
  commands = next_commands(out, has_maps=_has_maps(weights))
  write(
    videos,
    out,
    flip=flip,
    weights=weights,
    minutes=values.measure_minutes,
    commands=commands,
  )
  python = f'{cli.interpreter()} -m mgjax'
  print(
    f'Wrote {out / CONFIG}: {len((out / CONFIG).read_text().splitlines())} '
    'lines, to be read and changed.',
    'Next:',
    *(f'  {python}.{command}' for command in commands),
    sep='\n',
  )


def next_commands(out: pathlib.Path, *, has_maps: bool) -> tuple[str, str]:
  """What follows in a shell: the training, and labels of a video.

  Args:
    out: Folder of the config file.
    has_maps: Whether the network has maps of classes to draw.
  """
  heat = (f'--heatmap={out}/heat',) if has_maps else ()
  return (
    shlex.join(['train', f'--config={out / CONFIG}', f'--workdir={out}/run']),
    shlex.join(['predict', f'--workdir={out}/run', *heat, 'VIDEO']),
  )


def _check_path(out: pathlib.Path, preset: str) -> None:
  """Refuses a folder whose path cannot stand in --config."""
  bad = ':' if ':' in str(out) else ''
  # The recipe gets the path of the weights, which starts with this one.
  if preset == 'finetune' and ',' in str(out.resolve()):
    bad = ','
  if bad:
    raise ConfigError(
      f'--out={out}: its path has a {bad!r}, which ends a path in --config; '
      'use another'
    )


def find_weights(name: str) -> pathlib.Path:
  """Folder of weights.

  Args:
    name: What mgjax.weights knows, or a folder.

  Raises:
    ConfigError: They are not there.
  """
  from mgjax.run import checkpoint  # Takes seconds, which others need not.

  for folder in (pathlib.Path('weights') / name, pathlib.Path(name)):
    # An import that was stopped has settings, and no weights yet.
    if (folder / run_folder.CONFIG).exists() and checkpoint.steps(folder):
      if ',' in str(folder.resolve()):
        raise ConfigError(f'--weights={folder}: its path has a comma; move it')
      return folder
  raise ConfigError(
    f'--weights={name}: there are no weights in weights/{name}; python -m '
    f'mgjax.weights {name} says where they come from and imports them. Or give '
    'the folder of a run, or of weights that mgjax.import_weights has written'
  )


def _ask_flip() -> bool:
  """Asks on a terminal whether clips may be mirrored; else they are not."""
  if not (sys.stdin.isatty() and sys.stderr.isatty()):
    print('Clips are not mirrored; --flip would mirror half of them.')
    return False
  while True:
    print(
      'Does a mirrored video still show its class? With "turn left" it does '
      'not. [y/n] ',
      end='',
      file=sys.stderr,
      flush=True,
    )
    answer = sys.stdin.readline()
    if answer.strip().lower() in ('y', 'yes', 'n', 'no'):
      return answer.strip().lower().startswith('y')
    if not answer:
      raise ConfigError('no answer; give --flip or --noflip')


def _prepare(
  values: flags.FlagValues, folder: pathlib.Path, out: pathlib.Path
) -> look.Videos:
  """Prepares the videos of a folder, and looks at what there is.

  Raises:
    ConfigError: There are no such videos, or too few for a training.
  """
  name = re.sub('[^a-z0-9]+', '_', folder.resolve().name.lower()).strip('_')
  if not name[:1].isalpha():
    name = f'videos_{name}'.rstrip('_')
  settings = Settings(
    dataset='folder',
    videos=folder,
    annotations=(),
    out=out / 'data',
    name=name,
    classes=None,
    num_classes=None,
    fold=1,
    validation_fraction=values.validation_fraction,
    encoding=Encoding(values.short_side_px, 12, 20, 30.0),
    # Each is encoded by one process: few, so that few videos fill all cores.
    videos_per_shard=32,
    max_bad_fraction=values.max_bad_fraction,
    max_missing_fraction=0.3,
    num_workers=values.num_workers,
    beam_runner='',
    beam_options='',
  )
  plan = make_plan(settings)  # Encoding may take hours.
  counts = collections.Counter()
  for shard in plan.shards:
    counts[shard.split] += len(shard.items)
  _check_counts(folder, counts, plan.annotations.class_names)
  videos = look.look(prepare.prepare(settings), name)
  # Damaged videos are not among these.
  counts = {split: videos.total(split) for split in ('train', 'validation')}
  _check_counts(folder, counts, list(videos.counts))
  return videos


def _check_counts(
  folder: pathlib.Path, counts: Mapping[str, int], classes: Sequence[str]
) -> None:
  """Refuses videos that no training can be made of.

  Args:
    folder: What was given.
    counts: Videos by split.
    classes: Their names.

  Raises:
    ConfigError: There is one class, or none for validation.
  """
  if len(classes) < 2:
    raise ConfigError(
      f'{folder}: there is one class, {classes[0]!r}; a network learns to tell '
      'two or more apart, each in a folder of its own'
    )
  for split in ('train', 'validation'):
    if counts.get(split):
      continue
    advice = (
      'give each class two videos or more, and --validation_fraction more '
      'than 0'
    )
    if any(split_of_word(path.name) for path in folder.iterdir()):
      advice = (
        'the videos are in folders of splits: call them train and validation '
        '(a folder test is for `mgjax.evaluate` alone)'
      )
    raise ConfigError(
      f'{folder}: there is no video for the split {split}; {advice}'
    )


def write(
  videos: look.Videos,
  out: pathlib.Path,
  *,
  flip: bool,
  weights: pathlib.Path | None,
  minutes: float,
  commands: Sequence[str],
) -> None:
  """Writes the config file, once its grid is chosen.

  Args:
    videos: What it is for.
    out: Its folder.
    flip: Whether half of the clips are mirrored.
    weights: Folder of the weights to start from.
    minutes: See `grid_choice.compare`.
    commands: What follows, of `next_commands`.

  Raises:
    ConfigError: The file is written, and does not work here.
  """
  start = _clip_of(weights) if weights else None
  num_devices = _num_devices()
  chosen = choose.settings(
    videos, flip=flip, weights=start, num_devices=num_devices
  )

  def content(grid: grid_choice.Chosen) -> str:
    return program.text(
      chosen,
      name=videos.name,
      commands=commands,
      found=videos.lines,
      # The file resolves its own path, too.
      weights=os.path.relpath(weights.resolve(), out.resolve())
      if weights
      else '',
      grid=grid.mode,
      why_grid=grid.why,
      fields=config_file.fields_path(),
    )

  # Only a file that is complete has the name: what is measured for it may be
  # interrupted.
  with (
    stop_signal.listening() as stop,
    tempfile.NamedTemporaryFile(
      'w', dir=out, prefix='.', suffix='.py', encoding='utf-8'
    ) as file,
    stop.at_end(lambda _: os.unlink(file.name)),
  ):
    file.write(content(grid_choice.Chosen()))
    file.flush()
    loses = grid_choice.multigrid_loses(chosen, finetunes=weights is not None)
    # Its folder may have a colon, which ends a path in --config.
    path = os.path.relpath(file.name)
    try:
      grid = grid_choice.compare(path, minutes, num_devices, loses)
    except grid_choice.PlanError as error:
      # The videos may have taken hours, and a setting may mend it.
      files.write_text(out / CONFIG, content(grid_choice.Chosen()))
      raise ConfigError(
        f'{out / CONFIG} is written, and does not work here, {error}; change it'
      ) from error
  print(grid.why)
  files.write_text(out / CONFIG, content(grid))


def _has_maps(weights: pathlib.Path | None) -> bool:
  """Whether the network to train has maps of classes; that of scratch has."""
  if weights is None:
    return True
  name = saved.read_saved(weights).model.name
  return (
    not own.is_own(name) and network_options.options_of(name).has_class_maps
  )


def _clip_of(weights: pathlib.Path) -> choose.Clip:
  """What weights were trained on."""
  config = saved.read_saved(weights)
  return choose.Clip(
    config.data.num_frames,
    config.data.crop_px,
    network_options.options_of(config.model.name).has_batch_norm,
    in_segments=config.data.sampling == 'segments',
  )


def _num_devices() -> int:
  """Devices that JAX finds, asked for in a process of its own.

  This one must not hold them while another measures.
  """
  code = 'from mgjax.hosts import parallel; print(len(parallel.find_devices()))'
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  if found.returncode:
    said = found.stderr.strip().splitlines() or ['JAX finds no device']
    raise ConfigError(said[-1].partition('ConfigError: ')[2] or said[-1])
  return int(found.stdout)
