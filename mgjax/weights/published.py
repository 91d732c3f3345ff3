"""The command `weights`: says where weights are, checks and imports them."""

import hashlib
import pathlib
import sys

from absl import flags

from mgjax import cli, import_weights
from mgjax.config import config_file
from mgjax.errors import ConfigError
from mgjax.weights import matching
from mgjax.weights.catalogue import WEIGHTS, Published


def main(values: flags.FlagValues, *names: str) -> None:
  """Runs the command.

  Raises:
    ConfigError: There are no weights of this name, or the file is not the one
      that was published.
    SystemExit: The import has failed; with its exit code.
  """
  if not names:
    for name, published in WEIGHTS.items():
      print(f'{name:14} {published.what}')
    return
  name, *more = names
  if more:
    raise ConfigError(f'give one name, not {len(names)}: {", ".join(names)}')
  if name not in WEIGHTS:
    raise ConfigError(
      f'{name}: no published weights of this name are known.'
      f'{config_file.did_you_mean(name, WEIGHTS)} The names are '
      f'{", ".join(WEIGHTS)}; mgjax.import_weights takes other files'
    )
  folder, published = pathlib.Path(values.folder), WEIGHTS[name]
  for line in describe(name, published):
    print(line)
  from mgjax.run import checkpoint  # It takes seconds, which a list need not.

  out, path = folder / name, folder / published.local
  if checkpoint.steps(out):  # Complete: an import may have been stopped.
    print(f'imported   {out}')
    return
  if not path.exists():
    print(
      f'not here   {_how_to_get(published, path)}; then the same command '
      'imports it'
    )
    return
  for file, digest in check(published, path).items():
    print(f'here       {file}, SHA-256 {digest}', flush=True)
  command = ['import_weights', str(path), f'--out={out}', *published.flags]
  code = cli.run(
    'mgjax.weights.command',
    import_weights.define_flags,
    command,
    arguments='FILE',
    find_config=import_weights.find_config,
  )
  if code:
    sys.exit(code)


def describe(name: str, published: Published) -> list[str]:
  """What is known of weights, line by line."""
  files = published.file or 'config.json, preprocessor_config.json and '
  if not published.file:
    files += 'model.safetensors'
  sha256 = 'not known here: compare what the import computes with the address'
  if published.sha256:
    sha256 = f'{published.sha256}..., as far as the publisher gives it'
  return [
    f'{name}: {published.what}',
    f'address    {published.address}',
    f'files      {files}',
    f'size       {published.size or "not known here: see the address"}',
    f'SHA-256    {sha256}',
    f'licence    {published.licence or matching.NO_LICENCE}',
  ]


def _how_to_get(published: Published, path: pathlib.Path) -> str:
  if published.file:
    return f'get {published.file} from the address and put it at {path}'
  repository = published.address.split('/', 3)[3]
  return (
    f'get the files from the address and put them into {path}/, such as by hf '
    f'download {repository} --local-dir={path}'
  )


def check(published: Published, path: pathlib.Path) -> dict[str, str]:
  """SHA-256 of the weights that are here, by file.

  Args:
    published: What they should be.
    path: The file or folder.

  Raises:
    ConfigError: A file of weights is missing, or another than published.
  """
  files = [path]
  if path.is_dir():
    files = sorted(path.glob('*.safetensors')) or sorted(path.glob('*.bin'))
  if not files:
    raise ConfigError(f'{path} has no .safetensors, which are the weights')
  found = {}
  for file in files:
    with file.open('rb') as content:
      found[str(file)] = hashlib.file_digest(content, 'sha256').hexdigest()
    if not found[str(file)].startswith(published.sha256):
      raise ConfigError(
        f'{file} has the SHA-256 {found[str(file)]}, which must begin with '
        f'{published.sha256}: it is damaged or another file; get it again'
      )
  return found
