"""What TFDS reads of a data set besides the shards: features and description.

A data set that is prepared here opens with `tfds.builder_from_directory`, or by
its name with `tfds.data_source`.
"""

import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info as tfds_info
from tensorflow_datasets.core import naming
from tensorflow_datasets.core import splits as tfds_splits

from mgjax.data.prepare import layout
from mgjax.data.prepare.plan import Plan

# Who made the data set, in its description.
_PROGRAM = 'mgjax.data.prepare'


def make_features(
  class_names: Sequence[str], has_actions: bool
) -> tfds.features.FeaturesDict:
  """Returns the features of an example: video, id, and label or actions.

  Args:
    class_names: Names of the labels.
    has_actions: Whether a video has any number of timed labels, and not one.
  """
  label = tfds.features.ClassLabel(names=list(class_names))
  annotation = {'label': label}
  if has_actions:
    times = {'start_s': tfds.features.Scalar(np.float32)}
    times['end_s'] = tfds.features.Scalar(np.float32)
    annotation = {'actions': tfds.features.Sequence({'label': label, **times})}
  return tfds.features.FeaturesDict(
    {
      # Text holds raw bytes; features.Video would need TensorFlow.
      'video': tfds.features.Text(),
      'id': tfds.features.Text(),
      **annotation,
    }
  )


def write(
  plan: Plan,
  dataset: str,
  lengths: Mapping[str, list[int]],
  num_bytes: Mapping[str, int],
) -> None:
  """Writes the description of a data set, whose other files are written.

  Args:
    plan: The plan of the data set.
    dataset: Value of --dataset.
    lengths: Number of examples in every shard, by split.
    num_bytes: Bytes of the shards, by split.
  """
  name, _, config = plan.name.partition('/')
  annotations = plan.annotations
  info = tfds.core.DatasetInfo(
    builder=tfds_info.DatasetIdentity(
      name=name,
      version=tfds.core.Version(layout.VERSION),
      data_dir=str(plan.folder),
      module_name=_PROGRAM,
      config_name=config or None,
    ),
    description=f'Videos of {dataset}, prepared by {_PROGRAM}.',
    features=make_features(annotations.class_names, annotations.has_actions),
  )
  info.set_file_format('array_record')
  info.set_splits(
    tfds_splits.SplitDict(
      [
        tfds_splits.SplitInfo(
          name=split,
          shard_lengths=shard_lengths,
          num_bytes=num_bytes[split],
          filename_template=naming.ShardedFileTemplate(
            data_dir=plan.folder,
            dataset_name=name,
            split=split,
            filetype_suffix='array_record',
          ),
        )
        for split, shard_lengths in lengths.items()
      ]
    )
  )
  with tempfile.TemporaryDirectory(dir=plan.folder / layout.PARTS) as temporary:
    info.write_to_directory(temporary)
    names = os.listdir(temporary)
    # A folder with INFO is a complete data set, so it comes last.
    for file_name in sorted(names, key=lambda n: n == layout.INFO):
      os.replace(pathlib.Path(temporary) / file_name, plan.folder / file_name)
