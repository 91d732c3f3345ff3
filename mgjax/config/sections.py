"""Sections of a config whose `name` decides which other fields they have."""

import dataclasses
from collections.abc import Iterable
from typing import Any, get_args

import ml_collections
from ml_collections import config_dict

from mgjax.config import network_options, own
from mgjax.config.config_file import did_you_mean, fields_path
from mgjax.config.network_options import Fields
from mgjax.errors import FieldError


def fill(
  section: ml_collections.ConfigDict, fields: Iterable[dataclasses.Field]
) -> None:
  """Adds fields with their defaults."""
  for field in fields:
    default = field.default
    if default is None:  # Of a field 'int | None': it keeps the type.
      default = config_dict.placeholder(get_args(field.type)[0])
    section[field.name] = default


class Options(ml_collections.ConfigDict):
  """What a config can set of an object of the user's own."""

  def __setitem__(self, key: str, value: Any) -> None:
    """Sets an option; ml_collections comes here for attributes, too.

    Raises:
      FieldError: There is no such option.
    """
    if self.is_locked and key not in self:
      raise FieldError(
        f'there is no option {key!r}.{did_you_mean(key, self)} The options are '
        f'{", ".join(self) or "none"}.'
      )
    super().__setitem__(key, value)


class NamedSection(ml_collections.ConfigDict):
  """A section whose `name` decides which other fields it has.

  Attributes:
    path: Its name in the config.
  """

  path: str

  @staticmethod
  def fields_of(name: Any) -> Fields:
    """The fields that a name brings.

    Raises:
      FieldError: The name cannot be.
    """
    raise NotImplementedError

  def hint(self, field: str) -> str:
    """A hint at what a field that is not here may be meant for, or ''."""
    if field in self.get('options', ()):
      return f' It is {self.path}.options.{field}.'
    return did_you_mean(field, self)

  def __setitem__(self, key: str, value: Any) -> None:
    """Sets a field; ml_collections comes here for attributes, too.

    A new name brings its fields with their defaults. What has been set before
    stays, and must be a field that the new name has, too.

    Raises:
      FieldError: There is no such field or name, or what the name means lacks
        a field that is set.
    """
    if key != 'name' or value == self.get('name'):
      if self.is_locked and key not in self:
        raise FieldError(
          f'there is no field {self.path}.{key}.{self.hint(key)} '
          f'{fields_path(f"{self.path}.")} lists them all.'
        )
      super().__setitem__(key, value)
      return
    for name, old in self._lost(self.fields_of(value)).items():
      having = self._having(name)
      raise FieldError(
        f'{self.path}.{name} is {old!r}, but {self.path}.name={value!r} has no '
        'such option; leave it out, or choose '
        + (f'one that has it: {", ".join(having)}.' if having else 'another.')
      )
    self.choose(value)

  def choose(self, name: str) -> dict[str, Any]:
    """Sets the name, without the fields that it does not bring.

    Args:
      name: As the field `name`.

    Returns:
      What is lost of what had been set.

    Raises:
      FieldError: There is no such name; nothing has changed.
    """
    fields = self.fields_of(name)
    changed, lost = self._changed(), self._lost(fields)
    with self.unlocked():
      for field in list(self):
        del self[field]
      super().__setitem__('name', name)
      fill(self, fields.section.values())
      if own.is_own(name):
        super().__setitem__('options', Options())
        fill(self.options, fields.options.values())
      for field, value in changed.items():
        if field not in lost:
          self[field] = value
    return lost

  def _having(self, option: str) -> list[str]:
    """Other names that bring an option."""
    return []

  def _lost(self, fields: Fields) -> dict[str, Any]:
    """What has been set and is none of these fields of another name."""
    changed = self._changed()
    return {k: v for k, v in changed.items() if k not in fields.section}

  def _changed(self) -> dict[str, Any]:
    """What differs from the defaults of the name, but the name itself."""
    if 'name' not in self:
      return {}
    defaults = self.fields_of(self.name)
    sections = (
      ('', self, defaults.section),
      ('options.', self.get('options', {}), defaults.options),
    )
    return {
      f'{prefix}{name}': value
      for prefix, section, declared in sections
      for name, value in section.items()
      if (prefix or name not in ('name', 'options'))
      and (name not in declared or value != declared[name].default)
    }


class Model(NamedSection):
  """The section `model`."""

  path = 'model'

  @staticmethod
  def fields_of(name: Any) -> Fields:
    return network_options.fields(name)

  def hint(self, field: str) -> str:
    having = self._having(field)
    if field in self.get('options', ()) or not having:
      return super().hint(field)
    others = ', '.join(map(repr, having[:3])) + ', ...' * (len(having) > 3)
    return (
      f' model.name={self.name!r} has no such option; that is one of {others}.'
    )

  def _having(self, option: str) -> list[str]:
    return network_options.networks_with(option)
