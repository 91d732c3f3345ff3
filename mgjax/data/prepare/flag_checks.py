"""What commands that prepare videos ask of their flags; quick to import."""

from absl import flags


def check_short_side(values: flags.FlagValues) -> None:
  """Has --short_side_px refused where videos cannot be encoded that small."""
  flags.register_validator(
    'short_side_px',
    lambda side: side == 0 or (side >= 16 and side % 2 == 0),
    'it must be 0 or an even number from 16',
    flag_values=values,
  )
