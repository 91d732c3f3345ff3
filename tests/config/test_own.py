"""What a config can set of the user's own classes and functions."""

import sys

import pytest

from mgjax import cli
from mgjax.config import fields, network_options, own, rules
from mgjax.errors import ConfigError, FieldError

MODULE = """
from __future__ import annotations
import flax.linen as nn
import jax.numpy as jnp
from typing import TYPE_CHECKING
if TYPE_CHECKING:
  from nowhere import Kind


class Net(nn.Module):
  num_classes: int
  width: int
  kind: Kind = None
  groups: int | None = None
  rate: float = 1
  sizes: list[list[int]] = ((1,), (2,))
  dropout: float = 0.1
  dtype: str = 'bfloat16'


class OfTypes(nn.Module):
  num_classes: int = 7
  dropout: float = 0
  dtype: object = jnp.bfloat16


def lists(part, sizes=[[1], [2]], n: int = 3, both: int | float = 1):
  return part


def other(split, m=1):
  return split


def fails(x):
  return int(x)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
  for name, text in (
    ('owned.py', MODULE),
    ('lacking.py', 'from owned import nope'),
    ('unread.py', 'import owned\n\nx = = 3'),
  ):
    (tmp_path / name).write_text(text)
  monkeypatch.syspath_prepend(str(tmp_path))
  yield
  for name in ('owned', 'lacking', 'unread'):
    sys.modules.pop(name, None)


def config_of(**names):
  config = fields.base()
  for section, name in names.items():
    config[section].name = f'owned:{name}'
  return config


def test_annotations_that_are_texts_say_the_type():
  model = config_of(model='Net').model
  assert model.options.get_type('width') is int and model.options.width is None
  assert model.options.get_type('groups') is int
  assert 'kind' not in model.options
  assert model.options.rate == 1.0 and type(model.options.rate) is float


def test_defaults_of_a_class_stay_and_are_checked_like_all_networks():
  config = config_of(model='Net')
  assert (config.model.dropout, config.model.dtype) == (0.1, 'bfloat16')
  assert config_of(model='OfTypes').model.to_dict() == {
    'name': 'owned:OfTypes',
    'num_classes': None,
    'dropout': 0.0,
    'dtype': 'bfloat16',
    'options': {},
  }
  config.model.options.width = 3
  config.model.dropout = 1.5
  with pytest.raises(ConfigError, match='model.dropout is 1.5; it must be in'):
    rules.validate(config)


def test_options_of_a_source_are_all_but_its_first_argument():
  options = config_of(data='lists').data.options
  assert options.to_dict() == {'sizes': ((1,), (2,)), 'n': 3, 'both': 1}
  assert type(options.both) is int


def test_an_option_that_is_not_there_is_told_with_those_that_are():
  options = config_of(data='lists').data.options
  assert not hasattr(options, 'size') and options.get('size') is None
  with pytest.raises(FieldError, match="'size'. Did you mean 'sizes'.*both, n"):
    options.size = 3


def test_options_that_are_set_are_not_dropped_by_another_name():
  config = config_of(data='lists')
  config.data.options.n = 5
  config.data.crop_px = 32
  with pytest.raises(FieldError, match='data.options.n is 5.*no such option'):
    config.data.name = 'owned:other'
  with pytest.raises(FieldError, match='no class or function .nope'):
    config.data.name = 'owned:nope'
  assert config.data.options.n == 5 and config.data.name == 'owned:lists'
  copy = config.copy_and_resolve_references()
  assert copy.to_dict() == config.to_dict() and copy.data.is_locked
  assert copy.data.choose('owned:other') == {'options.n': 5}
  assert copy.data.options.to_dict() == {'m': 1}
  copy.data.name = 'kinetics400'
  assert 'options' not in copy.data and copy.data.crop_px == 32


def test_options_that_the_command_line_drops_are_told(tmp_path, capsys):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from mgjax.config import fields\n'
    'def get_config():\n'
    '  config = fields.base()\n'
    "  config.data.name = 'owned:lists'\n"
    '  config.data.options.n = 5\n'
    '  return config\n'
  )
  flags = '--config.data.name owned:other --config.data.options.m=2'.split()
  config = cli.read_config(str(path), flags)
  assert config.data.options.m == 2
  assert 'left out: options.n=5' in capsys.readouterr().err


def test_an_import_that_fails_tells_its_cause():
  for name, words in (
    ('lacking:x', "fails: ImportError at .*lacking.py:1: .*name 'nope'"),
    ('unread:x', 'fails: SyntaxError at .*unread.py:3: invalid syntax'),
  ):
    with pytest.raises(FieldError, match=words):
      own.load('model.name', name)


def test_an_error_is_described_by_the_users_line():
  fails = own.load('model.name', 'owned:fails')
  with pytest.raises(ValueError) as caught:
    fails('a')
  line = MODULE.splitlines().index('  return int(x)') + 1
  assert own.describe(caught.value) == (
    f'ValueError at {fails.__code__.co_filename}:{line}: invalid literal for '
    "int() with base 10: 'a'"
  )


def test_what_the_trainer_gives_is_no_option():
  assert not {*network_options.GIVEN} & {
    name
    for network in network_options.NETWORKS
    for name in network_options.fields(network).section
  }
