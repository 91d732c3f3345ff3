"""Where published weights are, and what becomes of a file that is there."""

import hashlib
import re
import shutil

from mgjax import cli
from mgjax.config import network_options
from mgjax.recipes import transformers
from mgjax.weights import catalogue, published, torch_files
from mgjax.weights.__main__ import define_flags
from mgjax.weights.catalogue import WEIGHTS, Published
from tests.weights.test_import_weights import small_config, state_of


def run(*arguments):
  return cli.run(
    published.main,
    define_flags,
    ['weights', *map(str, arguments)],
    arguments='NAME',
    takes_config=False,
  )


def test_every_network_of_the_recipes_has_weights():
  networks = set(transformers.NETWORKS) | {'slowfast', 'slow', 'i3d', 'c2d'}
  assert networks <= {*WEIGHTS, 'vjepa2_b'}  # There are none of this one.
  for found in WEIGHTS.values():
    assert re.fullmatch(r'https://[\w./-]+', found.address)
    assert '' == found.sha256 or found.sha256 in found.file
  assert network_options.networks_with('dropout')


def test_the_address_and_the_licence_are_printed(capsys, tmp_path):
  assert run('mvitv2_s', f'--folder={tmp_path}') == 0
  said = capsys.readouterr().out
  for words in (
    'https://download.pytorch.org/models/mvit_v2_s-ae3be167.pth',
    '131.884 MB',
    'SHA-256    ae3be167...',
    'BSD-3-Clause',
    f'put it at {tmp_path}/mvit_v2_s-ae3be167.pth',
  ):
    assert words in said
  # What was not read of the publisher is not made up.
  assert run('videomae_b', f'--folder={tmp_path}') == 0
  said = capsys.readouterr().out
  assert said.count('not known here') == 2 and 'no commercial use' in said


def test_names_are_listed_and_a_wrong_one_is_refused(capsys):
  assert run() == 0
  assert len(capsys.readouterr().out.splitlines()) == len(WEIGHTS)
  assert run('videomae') == 2
  assert "Did you mean 'videomae_" in capsys.readouterr().err
  assert run('slow', 'i3d') == 2


CONFIG = """
from tests.weights.test_import_weights import small_config
def get_config():
  return small_config()
"""


def test_a_file_that_is_there_is_checked_and_imported(
  tmp_path, monkeypatch, capsys
):
  config = tmp_path / 'small.py'
  config.write_text(CONFIG)
  file = tmp_path / 'small.pyth'
  torch_files.save(file, {'model_state': state_of(small_config())})
  digest = hashlib.sha256(file.read_bytes()).hexdigest()
  entry = Published(
    'a small network',
    'https://example.com/small.pyth',
    'pyslowfast',
    file='small.pyth',
    sha256=digest[:8],
    flags=(f'--config={config}',),
  )
  monkeypatch.setitem(catalogue.WEIGHTS, 'small', entry)
  assert run('small', f'--folder={tmp_path}') == 0
  said = capsys.readouterr().out
  assert f'SHA-256 {digest}' in said and 'not known; see where' in said
  assert (tmp_path / 'small/checkpoints/0').exists()
  assert run('small', f'--folder={tmp_path}') == 0
  assert f'imported   {tmp_path}/small' in capsys.readouterr().out
  # Unless the import was stopped: then it is done again.
  shutil.rmtree(tmp_path / 'small/checkpoints/0')
  assert run('small', f'--folder={tmp_path}') == 0
  assert (tmp_path / 'small/checkpoints/0').exists()
  assert 'imported   ' not in capsys.readouterr().out
  # Another file is not taken for it.
  monkeypatch.setitem(
    catalogue.WEIGHTS, 'other', entry._replace(sha256='00000000')
  )
  assert run('other', f'--folder={tmp_path}') == 2
  said = capsys.readouterr().err
  assert 'must begin with 00000000' in said
  assert not (tmp_path / 'other').exists()


def test_a_folder_without_weights_is_refused(tmp_path, capsys):
  (tmp_path / 'videomae-base-finetuned-kinetics').mkdir()
  assert run('videomae_b', f'--folder={tmp_path}') == 2
  assert 'has no .safetensors' in capsys.readouterr().err
