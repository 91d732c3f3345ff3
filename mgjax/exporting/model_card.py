"""README.md of an export: what its users must know, in Hugging Face's form."""

import dataclasses
import textwrap
from typing import Any

import yaml

from mgjax.evaluation import results
from mgjax.exporting.origin import Accuracy, Source

UNKNOWN = 'not known'
_LIBRARIES = {
  'stablehlo': 'jax',
  'safetensors': 'flax',
  'huggingface': 'transformers',
}
# What a clip becomes before weights alone get it, and the axes that they take.
_LAYOUTS = {
  'safetensors': 'float32 `[batch, {t}, {h}, {w}, 3]`',
  'huggingface': 'float32 `[batch, {t}, 3, {h}, {w}]` (`pixel_values`)',
  'pyslowfast': 'float32 `[batch, 3, {t}, {h}, {w}]`, in a list of pathways',
  'pytorchvideo': 'float32 `[batch, 3, {t}, {h}, {w}]`',
}
_ACTIVATIONS = {
  'softmax': 'their softmax',
  'sigmoid': 'the sigmoid of each',
}
_OF_PROGRAMS = {
  'stablehlo': """\
    import jax
    import numpy as np
    from jax import export

    with open('model.stablehlo', 'rb') as file:
      program = jax.jit(export.deserialize(bytearray(file.read())).call)
    clip = np.zeros(({batch}, {t}, {h}, {w}, 3), np.uint8)  # Yours.
    scores = program(clip)['scores']
    """,
  'onnx': """\
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession('model.onnx')
    clip = np.zeros(({batch}, {t}, {h}, {w}, 3), np.uint8)  # Yours.
    logits, scores = session.run(['logits', 'scores'], {{'video': clip}})
    """,
}
_USAGE = _OF_PROGRAMS | {
  'safetensors': """\
    from safetensors.numpy import load_file

    weights = load_file('model.safetensors')  # By path in Flax's tree.
    """,
  'huggingface': """\
    from transformers import {model_class}

    model = {model_class}.from_pretrained('.')
    """,
  'pyslowfast': """\
    import torch

    weights = torch.load('model.pyth', weights_only=True)['model_state']
    """,
}
_USAGE['pytorchvideo'] = _USAGE['pyslowfast']


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a card says.

  Attributes:
    name: Of the model.
    to: One of exporting.FORMATS.
    network: Its name, config.model.name.
    num_parameters: Trained ones.
    data: Name of the data set.
    labels: Names of the classes; (): they are not known.
    num_classes: K.
    step: Of the checkpoint.
    accuracy: Of it.
    source: What it was made from.
    clip: Frames, height and width.
    batch: Clips that a program takes; None: any number.
    sampling: How frames are taken from a video.
    resizing: How a frame becomes height and width.
    mean: Subtracted from RGB in [0, 1].
    std: By which that is divided.
    loss: Of the training: see `eval_step.make_scorer`.
    places: Whether logits are of places, [batch, t, h, w, K].
    version: Of mgjax.
    check: What was compared after the export.
    model_class: Of transformers; '': of other formats.
  """

  name: str
  to: str
  network: str
  num_parameters: int
  data: str
  labels: tuple[str, ...]
  num_classes: int
  step: int
  accuracy: Accuracy
  source: Source
  clip: tuple[int, int, int]
  batch: int | None
  sampling: str
  resizing: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  loss: str
  places: bool
  version: str
  check: str
  model_class: str = ''


def text(facts: Facts) -> str:
  """The card: YAML between two lines of dashes, then Markdown."""
  header = yaml.safe_dump(_front_matter(facts), sort_keys=False)
  parts = [
    f'---\n{header}---\n',
    f'# {facts.name}\n',
    f'{facts.network}, {facts.num_parameters:,} parameters, {facts.num_classes}'
    f' classes ({"`labels.json`" if facts.labels else "names not known"}). '
    f'Written by mgjax {facts.version} from step {facts.step} of its run; all '
    'settings are in `mgjax_config.json`.\n',
    _table(facts),
    f'## Input and output\n\n{_contract(facts)}\n',
    f'## Use\n\n```python\n{_usage(facts)}```\n',
    f'## Check\n\n{facts.check}\n',
  ]
  return '\n'.join(parts)


def _front_matter(facts: Facts) -> dict[str, Any]:
  """What Hugging Face's Hub reads of a card.

  Source: huggingface/hub-docs, modelcard.md.
  """
  licence = facts.source.licence
  found: dict[str, Any] = {
    'pipeline_tag': 'video-classification',
    'library_name': _LIBRARIES.get(facts.to, facts.to),
    'license': 'other' if licence else 'unknown',
    **({'license_name': licence} if licence else {}),
    'tags': ['mgjax', 'video-classification', facts.network],
  }
  if facts.accuracy.metrics:
    data = {'name': facts.data, 'type': facts.data}
    metrics = [
      {'type': 'accuracy', 'name': results.METRICS[name], 'value': value}
      for name, value in facts.accuracy.metrics.items()
    ]
    task = {'type': 'video-classification'}
    result = {'task': task, 'dataset': data, 'metrics': metrics}
    found['model-index'] = [{'name': facts.name, 'results': [result]}]
  return found


def _table(facts: Facts) -> str:
  source, accuracy = facts.source, UNKNOWN
  if metrics := facts.accuracy.metrics:
    accuracy = ', '.join(
      f'{results.METRICS[name]} {value:.2f} %'
      for name, value in metrics.items()
    )
  started = 'random weights'
  if source.imported:
    started = f'`{source.imported}`'
  elif source.lost:
    started = f'`{source.lost}`, which is no longer there'
  rows = {
    'data set': f'{facts.data}; its licence: {UNKNOWN}, see where it is from',
    'started from': started,
    'licence of those weights': (
      'none: they are random'
      if started == 'random weights'
      else source.licence or UNKNOWN
    ),
    'accuracy': accuracy,
    'record': facts.accuracy.record or 'none: the run has not measured it',
  }
  lines = [f'| {name} | {value} |' for name, value in rows.items()]
  return '\n'.join(['| | |', '|---|---|', *lines, ''])


def _contract(facts: Facts) -> str:
  t, h, w = facts.clip
  sizes = {'t': t, 'h': h, 'w': w}
  by = f'`mean` {list(facts.mean)} and `std` {list(facts.std)}'
  normalised = f'x / 255 minus `mean`, divided by `std`: {by}'
  if facts.to in _OF_PROGRAMS:
    batch = facts.batch or 'batch'
    given = f'`video`: uint8 `[{batch}, {t}, {h}, {w}, 3]`, 0 to 255'
    inside = f'inside the program: {normalised}'
  else:
    given = _LAYOUTS[facts.to].format(**sizes)
    inside = f'before the network: {normalised}, of pixels x from 0 to 255'
  logits = 'batch, t, h, w' if facts.places else 'batch'
  found = [f'- Output: logits, float32 `[{logits}, {facts.num_classes}]`.']
  if facts.to in _OF_PROGRAMS:
    activation = _ACTIVATIONS[facts.loss]
    if facts.places:
      activation += ', averaged over t, h and w'
    found = [
      f'- Output: `logits`, float32 `[{logits}, {facts.num_classes}]`, and '
      f'`scores`, float32 `[batch, {facts.num_classes}]`, probabilities: '
      f'{activation}. An evaluation averages the scores of all views.'
    ]
  return '\n'.join(
    [
      f'- Input: {given}.',
      f'- Frames: {facts.sampling}.',
      f'- Size: {facts.resizing}.',
      '- Colours: red, green, blue, in this order.',
      f'- Normalisation: {inside}.',
      *found,
      '- Numbers: computed in float32.',
    ]
  )


def _usage(facts: Facts) -> str:
  t, h, w = facts.clip
  return textwrap.dedent(_USAGE[facts.to]).format(
    batch=facts.batch or 1, t=t, h=h, w=w, model_class=facts.model_class
  )
