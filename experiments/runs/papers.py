"""The runs behind the papers' tables, of real data sets."""

import pathlib

from experiments.runs.run import Run
from mgjax.recipes import segments

_WORDS = {'none': 'baseline', 'both': 'multigrid'}
# Families of networks on segments, as tables write them before the depth.
_FAMILIES = {
  'tsn': 'TSN-R',
  'tsm': 'TSM-R',
  'tam': 'TAM-R',
  'blvnet_tam': 'bLVNet-TAM-',
  'i3d_resnet': 'I3D-R',
  's3d_resnet': 'S3D-R',
}
# Data sets in the tables' words, by config file or list of classes.
_DATA_SETS = {
  'ssv1': 'SSv1',
  'ssv2': 'SSv2',
  'kinetics400': 'Kinetics-400',
  'mit': 'Moments in Time',
  'mini_ssv2': 'mini-SSv2',
  'mini_kinetics': 'mini-Kinetics',
}


def _both_modes(file: str, model: str, network: str) -> list[Run]:
  """The baseline and multigrid with one network; `network` is in words."""
  return [
    Run(
      f'{file}_accuracy/{model}-{mode}',
      f'{network}, {words}',
      file,
      mode,
      model,
    )
    for mode, words in _WORDS.items()
  ]


def _on_segments(
  table: str, file: str, networks: list[tuple[str, int]]
) -> list[Run]:
  """Runs of networks on segments: name of `segments.MODELS`, and frames."""
  runs = []
  for model, frames in networks:
    family, depth, usual_frames = segments.MODELS[model]
    is_in_pairs = family == 'blvnet_tam'
    label = f'{_FAMILIES[family]}{depth} '
    label += f'{frames // 2}x2' if is_in_pairs else f'{frames}'
    overrides = []
    if frames != usual_frames:
      overrides.append(f'--config.data.num_frames={frames}')
      if is_in_pairs:
        lr = 0.005 if file == 'kinetics400' else 0.01
        rungs = segments.ladder(frames // 2, lr)
        overrides.append(f'--config.grid.ladder={rungs}')
    runs.append(
      Run(
        f'{table}/{file}-{label.replace(" ", "-").lower()}',
        f'{label}, {_DATA_SETS[file]}',
        file,
        'ladder' if is_in_pairs else 'none',
        model,
        frames,
        overrides=tuple(overrides),
      )
    )
  return runs


# The classes of IBM's small sets: `mgjax.data.prepare --classes=FILE`.
CLASSES = pathlib.Path(__file__).parent / 'classes'


def _mini(table: str, file: str, whole: str, epochs: int) -> list[Run]:
  """Runs of IBM's benchmark: its networks of ResNet-50 on 8 frames.

  Args:
    table: Their name; CLASSES has a list of classes of that name.
    file: Of the config.
    whole: Name of the data set with all classes.
    epochs: Of a training.

  Source: IBM/action-recognition-pytorch 67cc96f, benchmark_mini.md (the names
    of its models: cosine decay, 72 clips a step, epochs) and opts.py (learning
    rate and weight decay).
  Differs: 60 clips a step for S3D on mini-Kinetics there.
  """
  num_classes = len((CLASSES / f'{table}.txt').read_text().splitlines())
  overrides = (
    f'--config.data.name={whole}_{table}',
    f'--config.model.num_classes={num_classes}',
    '--config.data.batch_size=72',
    '--config.optim.base_lr=0.01',
    '--config.optim.weight_decay=5e-4',
    '--config.optim.schedule=cosine',
    f'--config.optim.total_epochs={epochs}',
  )
  runs = []
  for model in ('tsn_r50', 's3d_resnet_r50', 'i3d_resnet_r50', 'tam_r50'):
    family, depth, frames = segments.MODELS[model]
    label = f'{_FAMILIES[family]}{depth} {frames}'
    runs.append(
      Run(
        f'{table}/{label.replace(" ", "-").lower()}',
        f'{label}, {_DATA_SETS[table]}',
        file,
        'none',
        model,
        frames,
        overrides=overrides,
      )
    )
  return runs


_BLVNET_50 = [('blvnet_tam_50', frames) for frames in (16, 32, 48)]
_SOMETHING_SOMETHING = [
  *(('tsn_r50', 8), ('tsn_r50', 16)),
  *(('tsm_r50', 8), ('tsm_r50', 16), ('tsm_r101', 8), ('tam_r50', 8)),
  *_BLVNET_50[:2],
  *(('blvnet_tam_101', frames) for frames in (16, 32, 48, 64)),
]

RUNS = {
  'kinetics400_accuracy': [
    *_both_modes('kinetics400', 'slowfast', 'SlowFast-R50 8x8'),
    *_both_modes('kinetics400', 'slowfast_r101_8x8', 'SlowFast-R101 8x8'),
    *_both_modes('kinetics400', 'i3d', 'I3D-R50 8x8'),
    *_both_modes('kinetics400', 'i3d_nln', 'I3D-R50-NL 8x8'),
  ],
  'ssv2_accuracy': _both_modes('ssv2', 'slowfast', 'SlowFast-R50 16x8'),
  'charades_accuracy': _both_modes('charades', 'slowfast', 'SlowFast-R50 16x8'),
  'something_something_blvnet': [
    run
    for file in ('ssv1', 'ssv2')
    for run in _on_segments(
      'something_something_blvnet', file, _SOMETHING_SOMETHING
    )
  ],
  'kinetics_moments_blvnet': [
    *_on_segments(
      'kinetics_moments_blvnet',
      'kinetics400',
      [
        *(('tsn_r50', 8), ('tsm_r50', 8), ('tsm_r50', 16), ('tam_r50', 8)),
        *_BLVNET_50,
      ],
    ),
    *_on_segments('kinetics_moments_blvnet', 'mit', _BLVNET_50),
  ],
  'mini_ssv2': _mini('mini_ssv2', 'ssv2', 'something_something_v2', 75),
  'mini_kinetics': _mini('mini_kinetics', 'kinetics400', 'kinetics400', 100),
}
