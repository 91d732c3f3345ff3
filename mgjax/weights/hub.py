"""Weights on the Hugging Face Hub, by huggingface_hub where it is installed."""

import pathlib
import re

from mgjax.errors import ConfigError, RunError

PREFIX = 'hf://'
_SETTINGS = ('*.json',)
# Asked for in this order: few repositories have safetensors and not all of it.
_WEIGHTS = (
  ('*.safetensors',),
  ('*.bin', '*.pth', '*.pt', '*.pyth', '*.npz'),
)
# What the Hub says where a name is wrong, and nothing else is.
_NOT_THERE = (
  'HFValidationError',
  'RepositoryNotFoundError',
  'RevisionNotFoundError',
  'GatedRepoError',
)


def local(text: str) -> pathlib.Path:
  """A path on this machine: of a repository of the Hub, its files' folder.

  Args:
    text: 'hf://ORGANISATION/NAME' or 'hf://ORGANISATION/NAME@REVISION'; or a
      path, which is returned.

  Raises:
    ConfigError: huggingface_hub is not installed; or there is no such
      repository, or no weights in it.
    RunError: The Hub is not reachable.
  """
  if not text.startswith(PREFIX):
    return pathlib.Path(text)
  match = re.fullmatch(
    r'([\w.-]+/[\w.-]+)(?:@([^\s@]+))?', text.removeprefix(PREFIX)
  )
  if not match:
    raise ConfigError(
      f'{text}: weights on the Hub are called hf://ORGANISATION/NAME, or '
      'hf://ORGANISATION/NAME@REVISION'
    )
  try:
    import huggingface_hub
  except ImportError as error:
    raise ConfigError(
      f"{text}: needs huggingface_hub; pip install 'mgjax[hub]'. Or give the "
      'path of a folder that was downloaded'
    ) from error
  repository, revision = match.groups()
  try:
    for patterns in _WEIGHTS:
      folder = pathlib.Path(
        huggingface_hub.snapshot_download(
          repository,
          revision=revision,
          allow_patterns=[*_SETTINGS, *patterns],
        )
      )
      if any(any(folder.glob(pattern)) for pattern in patterns):
        return folder
  except Exception as error:  # Of the Hub, of HTTP, of sockets, of the disk.
    reason = ' '.join(str(error).split()) or type(error).__name__
    if type(error).__name__ in _NOT_THERE:
      raise ConfigError(f'{text}: {reason}') from error
    raise RunError(f'{text}: cannot be downloaded ({reason})') from error
  endings = ' '.join(pattern for group in _WEIGHTS for pattern in group)
  raise ConfigError(f'{text}: has no weights, which are one of {endings}')
