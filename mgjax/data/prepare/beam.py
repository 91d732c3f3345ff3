"""Writes all shards on the machines of an Apache Beam runner."""

import shlex
from collections.abc import Sequence

from mgjax.data.prepare.plan import Shard
from mgjax.data.prepare.settings import Settings
from mgjax.data.prepare.shards import write_shard
from mgjax.errors import ConfigError, RunError


def write(todo: Sequence[Shard], settings: Settings) -> None:
  """Writes shards on the workers of an Apache Beam runner.

  All workers must see the same files under the same paths: a shared file
  system.

  Args:
    todo: The shards that are to be written.
    settings: Have the runner and its options.

  Raises:
    ConfigError: Beam is not installed, or does not know the runner or an
      option.
    RunError: A worker has failed. Finished shards are kept.

  Differs: TFDS 4.9.10 has a builder that writes shards with Beam
    (ShardBasedBuilder). It keeps all videos of a shard in memory, runs the
    first split again with the second, and mixes up the lengths of 11 shards
    or more (sorted as text), so the same pipeline is written out here.
  """
  try:
    import apache_beam as beam  # Optional: only large clusters need it.
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise ConfigError(
      '--beam_runner: Apache Beam is not installed; pip install '
      "'apache-beam>=2.77,<3' (mgjax's extra `beam`)."
    ) from error
  try:
    words = shlex.split(settings.beam_options)
    options = pipeline_options.PipelineOptions(words)
    pipeline = beam.Pipeline(runner=settings.beam_runner, options=options)
  except Exception as error:  # Every runner has errors of its own.
    raise ConfigError(
      f'--beam_runner={settings.beam_runner}, --beam_options='
      f'{settings.beam_options!r}: {error}'
    ) from error
  _ = (
    pipeline
    | beam.Create(list(todo))
    # Without this a runner may fuse the steps, and one worker write all shards.
    | beam.Reshuffle()
    | beam.Map(write_shard)
  )
  try:
    pipeline.run().wait_until_finish()
  except Exception as error:  # A worker's, in whatever the runner makes of it.
    raise RunError(
      f'Apache Beam, {settings.beam_runner}: {error} (finished shards are kept)'
    ) from error
