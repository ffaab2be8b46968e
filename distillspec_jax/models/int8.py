"""Weights stored as int8 with a float32 scale per channel: a quarter the bytes.

A kernel float[..., in, out] becomes `kernel` int8 of that shape and
`kernel_scale` float32[..., 1, out]; an embedding float[V, D] becomes
`embedding` int8[V, D] and `embedding_scale` float32[V, 1]. Symmetric: the
largest magnitude of a channel becomes 127 or -128. Other parameters stay as
they are. Rounding and integer products are qwix's,
https://github.com/google/qwix.

With 'int8' activations are quantised, too, by the largest magnitude of each
token, and products are summed in int32. With 'int8_weight_only' the weight is
converted to float where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import math
from types import ModuleType

import jax
import jax.numpy as jnp

from distillspec_jax.core import errors

KINDS = ('float', 'int8', 'int8_weight_only')
SCALE = '_scale'  # after the name of what it belongs to
# The axis that is summed over in products, along which a scale is shared.
_SUMMED = {'kernel': -2, 'embedding': -1}
# With fewer rows XLA's product on CPU is a scalar loop, ten times slower.
_ROWS = 4


def library() -> ModuleType:
  """qwix, imported when it is needed.

  Raises:
    UserError: it is not installed.
  """
  try:
    import qwix
  except ImportError as error:
    raise errors.UserError(
        'int8 weights need qwix, which is not installed. Run, in a'
        " checkout: pip install -e '.[int8]'."
    ) from error
  return qwix


def check(weights: str) -> None:
  """Raises UserError for an unknown kind, or where qwix is not installed."""
  if weights not in KINDS:
    raise errors.UserError(
        f'weights is {weights!r}; it must be one of {KINDS}, or left out.'
    )
  if weights != 'float':
    library()


def named(name: str, weights: str) -> str:
  """The name of a model with such weights in results: 'NAME (int8)'."""
  return name if weights == 'float' else f'{name} ({weights})'


def quantize(
    path: str,
    array: jax.Array,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> dict[str, jax.Array]:
  """The quantised form of a float parameter: path -> array.

  Args:
    path: its names, joined by '/'.
    array: its values.
    shardings: path -> sharding of the result; None: as the parameter.
  """
  axis = _SUMMED.get(path.rpartition('/')[2])
  if axis is None:
    return {path: array}
  paths = path, path + SCALE
  layout = shardings and tuple(shardings[name] for name in paths)
  return dict(zip(paths, _quantizer(axis, layout)(array)))


@functools.lru_cache(64)  # each new function would compile anew
def _quantizer(axis: int, layout: tuple[jax.sharding.Sharding, ...] | None):
  qwix = library()

  def values_and_scale(array):
    channels = sorted(set(range(array.ndim)) - {axis % array.ndim})
    quantized = qwix.quantize(
        array.astype(jnp.float32), jnp.int8, channelwise_axes=channels
    )
    return quantized.qvalue, quantized.scale

  return jax.jit(values_and_scale, out_shardings=layout)


def dot(
    x: jax.Array,
    values: jax.Array,
    scale: jax.Array,
    axis: int,
    weights: str,
) -> jax.Array:
  """float32[B, N, F]: the product of x with a weight.

  Args:
    x: float[B, N, D].
    values: int8, [D, F] if `axis` is 0, or [F, D] if it is 1.
    scale: float32 of the same axes, with 1 instead of D.
    axis: the axis of the weight that is summed over.
    weights: 'int8' or 'int8_weight_only'.
  """
  summed = (((x.ndim - 1,), (axis,)), ((), ()))
  if weights == 'int8_weight_only':
    product = jax.lax.dot_general(
        x,
        values.astype(x.dtype),  # exact: bfloat16 has all integers up to 256
        summed,
        preferred_element_type=jnp.float32,
    )
    return product * scale.reshape((1,) * (x.ndim - 1) + (-1,))
  rows = math.prod(x.shape[:-1])
  if rows < _ROWS:
    padded = jnp.pad(
        x.reshape(1, rows, -1), ((0, 0), (0, _ROWS - rows), (0, 0))
    )
    product = dot(padded, values, scale, axis, weights)[:, :rows]
    return product.reshape(*x.shape[:-1], -1)
  qwix = library()
  tokens = qwix.quantize(
      x.astype(jnp.float32),
      jnp.int8,
      channelwise_axes=tuple(range(x.ndim - 1)),
  )
  return qwix.dot_general(tokens, qwix.QArray(values, scale), summed)
