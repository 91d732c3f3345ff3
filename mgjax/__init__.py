"""Multigrid training of video models.

Where things are:
  schedule.py    step -> grid, clips, learning rate; cycles.py makes it
  training.py    the training loop; train_step.py one step
  programs.py    the programs that a run needs; step_cache.py compiles each once
  data/          stream.py: step -> batch; decode, sampling, sources
  models/        the networks; norm.py: batch norm over groups of clips
  evaluation.py  accuracy of a checkpoint; plan.py: a run before its launch
  memory.py      bytes of a device that a step takes

The commands train, evaluate, predict, replay, import_weights and data/bench are
files with flags alone: they import what does the work (training, evaluation,
predicting, replaying, weight_transfer, data/decode_rates), and with it JAX,
once the flags are right. Each listens to signals first (stop_signal.py), and
whatever goes wrong in it ends in one line (cli.py).

Axes: B clips, T frames, H and W pixels, C channels, K classes.
"""
