"""A network as a program of ONNX, by the package jax2onnx.

What jax2onnx has no translation for is taken out of the function first: choices
between platforms, which lie outside of ONNX, and what only gradients need.
"""

import importlib.util
import logging
import math
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import numpy as np

from mgjax.errors import ConfigError, RunError

INSTALL = "pip install 'mgjax[onnx]' && pip install --no-deps jax2onnx"
INPUT = 'video'
OUTPUTS = ('logits', 'scores')
_PACKAGES = ('onnx', 'onnxruntime', 'jax2onnx')
# Functions within functions, which become part of those that call them.
_CALLS = (
  *('jit', 'pjit', 'closed_call', 'checkpoint', 'remat2'),
  *('custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr'),
)


def check_installed() -> None:
  """Refuses to go on without the packages.

  Raises:
    ConfigError: Names what is missing, and how to get it.
  """
  missing = [n for n in _PACKAGES if importlib.util.find_spec(n) is None]
  if missing:
    raise ConfigError(
      f'--to=onnx needs {", ".join(missing)}, which is not installed: {INSTALL}'
    )


def dump(score: Callable, video: jax.ShapeDtypeStruct) -> bytes:
  """Makes the file's content.

  Args:
    score: From uint8 [B, T, H, W, 3] to arrays by name, those of OUTPUTS.
    video: Of `stablehlo.video_spec`.
  """
  # It tells of each plug-in that lacks a package.
  logging.getLogger('jax2onnx').setLevel(logging.ERROR)
  import jax2onnx

  def outputs(video):
    found = score(video)
    return tuple(found[name] for name in OUTPUTS)

  # Traced before: jax2onnx has functions of its own in the place of NumPy's,
  # which do not take all of their arguments.
  plain = without_choices(outputs, video)
  with warnings.catch_warnings():
    # Of its own use of types that JAX does not have by default.
    warnings.simplefilter('ignore')
    model = jax2onnx.to_onnx(
      plain,
      inputs=[video],
      input_names=[INPUT],
      output_names=list(OUTPUTS),
      model_name='mgjax',
    )
  return model.SerializeToString()


def load(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """The logits of a file's program, on the CPU.

  Raises:
    RunError: onnxruntime refuses the program.
  """
  import onnxruntime

  try:
    session = onnxruntime.InferenceSession(
      path, providers=['CPUExecutionProvider']
    )
  # Its errors have no class of their own in common but this one.
  except Exception as error:
    said = ' '.join(str(error).split())
    raise RunError(
      f'jax2onnx makes a program of this network that onnxruntime refuses '
      f'({said}); use --to=stablehlo'
    ) from error
  return lambda video: session.run(OUTPUTS[:1], {INPUT: video})[0]


def without_choices(function: Callable, *specs: Any) -> Callable:
  """The same function of arrays, as operations that compute its result.

  Of `jax.lax.platform_dependent`, what CPUs do is taken: jax2onnx has no
  convolutions over three axes. Functions within the function are inlined,
  without their rules for gradients. What depends on its own numbers alone is
  computed at once, so that each has the type of its use.

  Args:
    function: Returns arrays, in a tuple.
    *specs: Of its arguments, arrays or jax.ShapeDtypeStruct.
  """
  closed = jax.make_jaxpr(function)(*specs)
  return lambda *arrays: tuple(_evaluate(closed.jaxpr, closed.consts, arrays))


def _evaluate(jaxpr: Any, consts: Sequence, arrays: Sequence) -> list:
  """Evaluates a jaxpr, as `without_choices` says."""
  values = dict(
    zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arrays), strict=True)
  )
  read = lambda v: (
    v.val if isinstance(v, jax.extend.core.Literal) else values[v]
  )
  for equation in jaxpr.eqns:
    found = _results(equation, [read(v) for v in equation.invars])
    values.update(zip(equation.outvars, found, strict=True))
  return [read(v) for v in jaxpr.outvars]


def _results(equation: Any, inputs: list) -> Sequence:
  name, params = equation.primitive.name, equation.params
  if name == 'platform_index':
    # The default, None, is the last.
    has_cpu = ['cpu' in (names or ('cpu',)) for names in params['platforms']]
    return [np.int32(has_cpu.index(True))]
  if name == 'optimization_barrier':
    return inputs
  inner = None
  if name == 'cond' and _is_known(inputs[0]):
    inner, inputs = params['branches'][int(inputs[0])], inputs[1:]
  elif name in _CALLS:
    inner = params.get('jaxpr') or params.get('call_jaxpr')
  if inner is not None:
    consts = getattr(inner, 'consts', ())
    return _evaluate(getattr(inner, 'jaxpr', inner), consts, inputs)
  params = equation.primitive.get_bind_params(params)
  bind = lambda: equation.primitive.bind(*inputs, **params)
  if inputs and all(map(_is_known, inputs)) and not _grows(equation):
    with jax.ensure_compile_time_eval():
      found = bind()
    found = jax.tree.map(np.asarray, found)
  else:
    found = bind()
  return found if equation.primitive.multiple_results else [found]


def _is_known(value: Any) -> bool:
  """Whether a value does not depend on the arrays."""
  return not isinstance(value, jax.core.Tracer)


def _grows(equation: Any) -> bool:
  """Whether results are larger than what they are made of, or not known."""
  sizes = [
    [math.prod(variable.aval.shape) for variable in variables]
    for variables in (equation.outvars, equation.invars)
  ]
  outputs, inputs = sizes
  known = all(isinstance(size, int) for size in outputs)
  return not known or sum(outputs) > sum(inputs)
