"""PyTorch's side of step_time.py: a process that steps when it is told to.

{"load": {...}}           -> {"versions", "threads", "parameters"}
{"program": P, "steps": N} -> {"wall_s", "cpu_s", "losses", "peak_bytes"}
"""

import os
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from experiments.bench import torch_models, worker

# What is timed besides the model in the layout that torch has by itself.
PROGRAMS = ('default', 'channels_last', 'compiled')


def make_step(
  program: str, clips: dict, settings: dict
) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
  """Returns a model and step() -> loss, which trains it on the clips.

  Args:
    program: 'default', 'channels_last', or 'compiled': channels last and
      torch.compile.
    clips: 'video' float32 [B, T, H, W, 3], 'label' int64 [B], and the weights
      for `torch_models.load`.
    settings: 'model', 'num_classes', 'frames', 'device' ('cpu' or 'cuda'),
      'dtype' ('bfloat16' runs under autocast) and 'optim': lr, momentum,
      nesterov, weight_decay.
  """
  device = settings['device']
  model = torch_models.build(
    settings['model'],
    num_classes=settings['num_classes'],
    frames=settings['frames'],
    crop_px=clips['video'].shape[2],
  )
  weights = {k: v for k, v in clips.items() if k not in ('video', 'label')}
  torch_models.load(model, weights)
  # [B, 3, T, H, W], contiguous; channels last it is how the clips came.
  video = torch.from_numpy(clips['video']).to(device).movedim(-1, 1)
  label = torch.from_numpy(clips['label']).to(device)
  model = model.to(device)
  if program == 'default':
    video = video.contiguous()
  else:
    video_model = any(p.ndim == 5 for p in model.parameters())
    model = model.to(
      memory_format=torch.channels_last_3d
      if video_model
      else torch.channels_last
    )
    video = video.contiguous(memory_format=torch.channels_last_3d)
  optimizer = _make_optimizer(model, **settings['optim'])
  forward = torch.compile(model) if program == 'compiled' else model
  half = settings['dtype'] == 'bfloat16'

  def step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=half):
      loss = F.cross_entropy(forward(video).float(), label)
    loss.backward()
    optimizer.step()
    return loss.detach()

  return model.train(), step


def _make_optimizer(
  model: torch.nn.Module,
  *,
  lr: float,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
) -> torch.optim.Optimizer:
  """SGD as mgjax has it: norms do not decay."""
  norms, others = [], []
  for name, parameter in model.named_parameters():
    (norms if 'norm' in name else others).append(parameter)
  return torch.optim.SGD(
    [
      {'params': norms, 'weight_decay': 0.0},
      {'params': others, 'weight_decay': weight_decay},
    ],
    lr=lr,
    momentum=momentum,
    nesterov=nesterov,
    fused=True,  # The fastest of its implementations, on CPUs too.
  )


class Worker:
  """Answers requests: `load` once, then `run`."""

  def __init__(self):
    self.on_gpu = False
    self.programs = {}
    self.state_bytes = 0  # Of one program: parameters, momentum, gradients.

  def load(self, settings: dict) -> dict:
    """Makes the programs of `settings['programs']`, in equal states."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    self.on_gpu = settings['device'] == 'cuda'
    torch.backends.cudnn.benchmark = True  # Every shape stays the same.
    with np.load(settings['clips']) as file:
      clips = dict(file)
    for program in settings['programs']:
      model, step = make_step(program, clips, settings)
      self.programs[program] = step
    self.state_bytes = 3 * sum(p.nbytes for p in model.parameters())
    return {
      'versions': {'torch': torch.__version__, 'cuda': torch.version.cuda},
      'threads': torch.get_num_threads(),
      'parameters': sum(p.numel() for p in model.parameters()),
    }

  def run(self, program: str, steps: int) -> dict:
    """Takes a step, then `steps` that are timed together."""
    losses = [self.programs[program]()]
    if self.on_gpu:
      torch.cuda.reset_peak_memory_stats()
      torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    losses += [self.programs[program]() for _ in range(steps)]
    if self.on_gpu:
      torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak_bytes = None
    if self.on_gpu:
      # The other programs lie there too.
      others = (len(self.programs) - 1) * self.state_bytes
      peak_bytes = torch.cuda.max_memory_allocated() - others
    return {
      'wall_s': wall,
      'cpu_s': cpu,
      'losses': [loss.item() for loss in losses],
      'peak_bytes': peak_bytes,
    }

  def answer(self, request: dict) -> dict:
    if 'load' in request:
      return self.load(request['load'])
    return self.run(request['program'], request['steps'])


if __name__ == '__main__':
  worker.serve(Worker().answer)
