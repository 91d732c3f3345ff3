"""Multigrid training of video models.

Commands: train, evaluate, predict, plan, replay, import_weights, data.prepare,
data.bench and data.moving_digits are modules with flags alone. They import what
does the work, and with it JAX, once the flags are right.

Rooms, from the commands down:
  setup/       settings -> what a run is made of; job.py composes all of it
  run/         loop.py: the training loop; launch.py: what is around it; the
               run's folder, checkpoints and reports
  evaluation/  accuracy of a checkpoint
  predicting/  labels for videos
  planning/    a run before its launch: steps, cost, memory
  weights/     files of other frameworks, in and out
  data/        stream.py: step -> batch; decoding, sampling, prepared data sets
  step/        train_step.py: one step; step_cache.py: programs, compiled once
  models/      the networks; norm.py: batch norm over groups of clips
  grids/       schedule.py: step -> grid and learning rate; make.py makes it
  hosts/       devices and processes
  cpu/         what CPUs need to be fast
  config/      every setting; recipes/ is what the files in configs/ share

Every command listens to signals first (stop_signal.py), and whatever goes wrong
in it ends in one line (cli.py).

Axes: B clips, T frames, H and W pixels, C channels, K classes.
"""

__version__ = '0.1.0'
