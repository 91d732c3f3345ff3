r"""Prepares a data set of videos: one TFDS folder of encoded videos.

python -m mgjax.data.prepare --dataset=kinetics400 --videos=DIR \
  --annotations=FILE[,FILE...] --out=data

Every video file is decoded from its first to its last frame, so that no damage
waits for training, and once more as training will. A damaged file is not
stored; the manifest says what is wrong with it. All cores work. A run that was
killed continues when the same command is started again. The folder then also
holds

  manifest.jsonl  a line per annotated video: id, split, labels, file, frames,
                  rate, size, duration, SHA-256 of the file, MD5 of what its
                  frames show; or why it is not there
  summary.json    counts, coverage per class, damaged files, files that are
                  not used, settings, and the manifest's own SHA-256, which
                  evaluation records quote

With --dataset=folder, the classes are folders ([train|validation|test/]CLASS/
VIDEO), or --annotations names a CSV file with path,label[,split].
"""

# Nothing is imported here: `python -m` runs this before __main__.py, which
# listens to signals before anything that takes time is imported.
