"""What a command ends with that a person can act on."""


class ConfigError(ValueError):
  """A setting that cannot work; its message says which, why and what would."""


class RunError(Exception):
  """Something outside the program that ends a run that was well set up."""


class FieldError(ConfigError):
  """A field cannot have a value; who reads the config says where it is set."""
