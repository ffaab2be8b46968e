"""Attention as one TPU kernel, forward and backward.

Left to XLA, scores and weights float[B, H, N, L] go through HBM several times,
and the backward pass keeps them. Here a block of queries meets all keys in the
chip's fast memory, and the backward pass computes the weights again:

  weights = softmax(where(visible, q k^T + bias, masked))     out = weights v
  dv = weights^T do     ds = weights (do v^T - sum(weights (do v^T)))
  dq = ds k     dk = ds^T q     dbias = ds, summed over rows if they share it

This is `layers.mix`, rounded elsewhere. Since all keys are there at once,
nothing is known of a softmax but its own row: no running maximum, as in Dao et
al. 2022, https://arxiv.org/abs/2205.14135, and no statistics kept.

Heads are not an axis: arrays are [B, N, H K], as matrix products give them, and
a step of the grid has as many heads as fill the 128 lanes of a register, two of
size 64. The products of one head go over all lanes with those of the others
zeroed, at the price of one head of size 128, which a product of depth 64 has on
the matrix unit anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib

MASKED = -1e10
MAX_KEYS = 1024  # beyond, a step's arrays would not fit
_LANES = 128
_ROWS = 128  # queries that are computed at once
_SCORES = 2**18  # (queries, keys) of a step at most

Formula = Callable[..., jax.Array]


class _Sizes(NamedTuple):
  """Of a kernel's step: its heads, and the keys that are no padding."""

  group: int
  keys: int


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    bias: jax.Array | None,
    formula: Formula,
    layout: layouts.Rules = (),
    interpret: bool = False,
) -> jax.Array:
  """The values float[B, H, N, K] that queries float[B, H, N, K] attend to.

  The kernel on a TPU, `formula` elsewhere; differentiable. On a mesh each
  device has its own rows and heads, and the gradient of the bias is summed over
  devices.

  Args:
    queries: float[B, H, N, K].
    keys: float[B, H, L, K], L at most `MAX_KEYS`.
    values: float[B, H, L, K].
    visible: bool[B, N, L].
    bias: float32[B or 1, H, N, L], or None.
    formula: the same, of the first five arguments.
    layout: rules for the logical axes, see `distributed.layouts`.
    interpret: runs the kernel, on whatever device, slowly.
  """
  local = functools.partial(_attend, formula, interpret)
  arguments = queries, keys, values, visible, bias
  sizes = mesh_lib.automatic()
  if not sizes:
    return local(*arguments)
  heads = 'batch', 'heads', 'length', 'kv'
  names = heads, heads, heads, ('batch', 'length', None), heads
  specs = tuple(
      None if array is None else layouts.spec(sizes, array.shape, axes, layout)
      for array, axes in zip(arguments, names)
  )
  # All axes, also those of size 1: the compiler splits no kernel.
  return jax.shard_map(
      local,
      in_specs=specs,
      out_specs=specs[0],
      axis_names=set(sizes),
      check_vma=False,
  )(*arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(formula, interpret, *arguments):
  kernel = functools.partial(_forward, interpret)
  if interpret:
    return kernel(*arguments)
  return jax.lax.platform_dependent(*arguments, tpu=kernel, default=formula)


def _attend_forward(formula, interpret, *arguments):
  return _attend(formula, interpret, *arguments), arguments


def _attend_backward(formula, interpret, arguments, gradient):
  # Each branch is complete, so that none keeps anything for the other.
  kernel = functools.partial(_backward, interpret)

  def plain(gradient, queries, keys, values, visible, bias):
    function = lambda q, k, v, bias: formula(q, k, v, visible, bias)
    return jax.vjp(function, queries, keys, values, bias)[1](gradient)

  if interpret:
    found = kernel(gradient, *arguments)
  else:
    found = jax.lax.platform_dependent(
        gradient, *arguments, tpu=kernel, default=plain
    )
  *of_inputs, of_bias = found
  return *of_inputs, None, of_bias


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(interpret, queries, keys, values, visible, bias):
  _, heads, _, size = queries.shape
  sizes = _Sizes(_heads_of_a_step(heads, size), keys.shape[2])
  joined = map(_join, (queries, keys, values))
  operands, specs, grid = _operands(sizes, heads, *joined, visible, bias)
  out = operands[0]
  mixed = pl.pallas_call(
      functools.partial(_forward_kernel, sizes),
      grid=grid,
      in_specs=specs,
      out_specs=specs[0],
      out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
      cost_estimate=_cost(sizes, 2, heads, operands, [out]),
      **_parameters(interpret),
  )(*operands)
  return _split(mixed, queries)


def _backward(interpret, gradient, queries, keys, values, visible, bias):
  _, heads, _, size = queries.shape
  sizes = _Sizes(_heads_of_a_step(heads, size), keys.shape[2])
  joined = map(_join, (queries, keys, values))
  operands, specs, grid = _operands(sizes, heads, *joined, visible, bias)
  q, k, *_ = operands
  gradient = _pad(_join(gradient), 1, q.shape[1]).astype(q.dtype)
  # Of keys and values: for each block of queries, added up afterwards.
  blocks, width = grid[1], specs[0].block_shape[2]
  of_keys = jax.ShapeDtypeStruct(
      (blocks, *k.shape), jnp.float32 if blocks > 1 else k.dtype
  )
  keys_spec = pl.BlockSpec(
      (None, None, k.shape[1], width), lambda h, i, b: (i, b, 0, h)
  )
  results = [jax.ShapeDtypeStruct(q.shape, q.dtype), of_keys, of_keys]
  result_specs = [specs[0], keys_spec, keys_spec]
  if bias is not None:
    results.append(jax.ShapeDtypeStruct(operands[4].shape, jnp.float32))
    result_specs.append(specs[4])
  operands = [gradient, *operands]
  is_shared = bias is not None and bias.shape[0] == 1
  dq, dk, dv, *dbias = pl.pallas_call(
      functools.partial(_backward_kernel, sizes, is_shared),
      grid=grid,
      in_specs=[specs[0], *specs],
      out_specs=result_specs,
      out_shape=results,
      cost_estimate=_cost(sizes, 5, heads, operands, results),
      **_parameters(interpret),
  )(*operands)
  dk, dv = (
      _split(jnp.sum(x, axis=0).astype(keys.dtype), keys) for x in (dk, dv)
  )
  length = queries.shape[2]
  of_bias = dbias[0][:, :, :length, : sizes.keys] if dbias else None
  if of_bias is not None:
    of_bias = of_bias.astype(bias.dtype)
  return _split(dq, queries), dk, dv, of_bias


def _parameters(interpret: bool) -> dict[str, Any]:
  if interpret:
    return {'interpret': True}
  # The batch comes last: a bias that rows share is read once and its gradient
  # added up in place.
  return {
      'compiler_params': pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary')
      )
  }


def _join(x: jax.Array) -> jax.Array:
  x = jnp.swapaxes(x, 1, 2)  # [B, H, N, K] -> [B, N, H, K]
  return x.reshape(*x.shape[:2], -1)


def _split(x: jax.Array, like: jax.Array) -> jax.Array:
  """Undoes `_join` and the padding: float[B, H, N, K] of float[B, N', H K]."""
  _, heads, length, size = like.shape
  x = x[:, :length].reshape(x.shape[0], length, heads, size)
  return jnp.swapaxes(x, 1, 2)


def _pad(x: jax.Array, axis: int, size: int) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, widths)


def _operands(sizes, heads, queries, keys, values, visible, bias):
  """The kernel's operands in full blocks, their specs, and the grid.

  The grid is (heads, queries, batch) in blocks.
  """
  rows, length, joined = queries.shape
  padded_keys = pl.cdiv(sizes.keys, _LANES) * _LANES
  block = min(
      pl.cdiv(length, _ROWS) * _ROWS, _SCORES // padded_keys // _ROWS * _ROWS
  )
  padded = pl.cdiv(length, block) * block
  width = joined // heads * sizes.group

  def tokens(size, index):
    return pl.BlockSpec((None, size, width), index)

  of_queries = tokens(block, lambda h, i, b: (b, i, h))
  of_keys = tokens(padded_keys, lambda h, i, b: (b, 0, h))
  visible = visible.astype(jnp.int8)
  square = lambda x: _pad(_pad(x, -2, padded), -1, padded_keys)
  operands = [
      _pad(queries, 1, padded),
      _pad(keys, 1, padded_keys),
      _pad(values, 1, padded_keys),
      square(visible),
  ]
  specs = [
      of_queries,
      of_keys,
      of_keys,
      pl.BlockSpec((None, block, padded_keys), lambda h, i, b: (b, i, 0)),
  ]
  if bias is not None:
    is_shared = bias.shape[0] == 1
    operands.append(square(bias.astype(jnp.float32)))
    specs.append(
        pl.BlockSpec(
            (None, sizes.group, block, padded_keys),
            lambda h, i, b: (0 if is_shared else b, h, i, 0),
        )
    )
  return operands, specs, (heads // sizes.group, padded // block, rows)


def _heads_of_a_step(heads: int, size: int) -> int:
  """As many as fill the lanes; all, where they do not fill them evenly."""
  if size % _LANES == 0:
    return 1
  group = _LANES // size
  return heads if _LANES % size or heads % group else group


def _cost(sizes, products, heads, operands, results) -> pl.CostEstimate:
  """What a kernel with so many products does, those with zeros included."""
  rows, length, joined = operands[0].shape
  scores = rows * length * operands[-1].shape[-1]
  return pl.CostEstimate(
      flops=2 * products * scores * joined * sizes.group,
      transcendentals=scores * heads,
      bytes_accessed=sum(
          math.prod(x.shape) * x.dtype.itemsize for x in (*operands, *results)
      ),
  )


def _weights(sizes, query, keys, visible, bias):
  """Weights float32[n, L] before they are divided by their sums, and these."""
  scores = _product(query, keys, 1, 1)
  if bias is not None:
    scores = scores + bias
  scores = jnp.where(visible, scores, MASKED)
  if sizes.keys < scores.shape[1]:
    key = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    scores = jnp.where(key < sizes.keys, scores, -jnp.inf)
  weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
  return weights, jnp.sum(weights, axis=1, keepdims=True)


def _product(a, b, axis_a, axis_b):
  """Sums over an axis of each."""
  return jax.lax.dot_general(
      a,
      b,
      (((axis_a,), (axis_b,)), ((), ())),
      preferred_element_type=jnp.float32,
  )


def _slices(length: int) -> Iterator[Any]:
  for start in range(0, length, _ROWS):
    yield pl.ds(start, _ROWS)


def _lanes(heads: int, width: int) -> list[jax.Array]:
  """bool[1, width], for each head of a step: which lanes are its own."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
  size = width // heads
  first = range(0, width, size)
  return [(lane >= start) & (lane < start + size) for start in first]


def _only(x: jax.Array, own: jax.Array) -> jax.Array:
  """x with the lanes of other heads zeroed."""
  # Registers hold float32.
  return jnp.where(own, x.astype(jnp.float32), 0.0).astype(x.dtype)


def _forward_kernel(sizes, q_ref, k_ref, v_ref, visible_ref, *refs):
  *bias_ref, out_ref = refs
  k, v = k_ref[...], v_ref[...]
  for rows in _slices(q_ref.shape[0]):
    q = q_ref[rows]
    visible = visible_ref[rows].astype(jnp.int32) != 0
    out = jnp.zeros(q.shape, jnp.float32)
    for number, own in enumerate(_lanes(sizes.group, q.shape[1])):
      bias = bias_ref[0][number, rows] if bias_ref else None
      weights, total = _weights(sizes, _only(q, own), k, visible, bias)
      mixed = _product(weights.astype(v.dtype), v, 1, 0) / total
      out = jnp.where(own, mixed, out)
    out_ref[rows] = out.astype(out_ref.dtype)


def _backward_kernel(
    sizes, is_shared, do_ref, q_ref, k_ref, v_ref, visible_ref, *refs
):
  *bias_ref, dq_ref, dk_ref, dv_ref = refs if len(refs) == 3 else refs[:-1]
  dbias_ref = refs[-1] if bias_ref else None
  if is_shared:

    @pl.when(pl.program_id(2) == 0)
    def _():
      dbias_ref[...] = jnp.zeros_like(dbias_ref)

  k, v = k_ref[...], v_ref[...]
  dk = dv = jnp.zeros(k.shape, jnp.float32)
  for rows in _slices(q_ref.shape[0]):
    q, do = q_ref[rows], do_ref[rows]
    visible = visible_ref[rows].astype(jnp.int32) != 0
    dq = jnp.zeros(q.shape, jnp.float32)
    for number, own in enumerate(_lanes(sizes.group, q.shape[1])):
      bias = bias_ref[0][number, rows] if bias_ref else None
      own_q, own_do = _only(q, own), _only(do, own)
      weights, total = _weights(sizes, own_q, k, visible, bias)
      weights = weights / total
      # The other lanes of these are zero, so that heads add up.
      dv += _product(weights.astype(do.dtype), own_do, 0, 0)
      slope = weights * _product(own_do, v, 1, 1)
      slope -= weights * jnp.sum(slope, axis=1, keepdims=True)
      # Of rows that see nothing, whose weights are constant.
      slope = jnp.where(visible, slope, 0.0)
      if is_shared:
        dbias_ref[number, rows] += slope
      elif bias_ref:
        dbias_ref[number, rows] = slope
      slope = slope.astype(k.dtype)
      dq = jnp.where(own, _product(slope, k, 1, 0), dq)
      dk += _product(slope, own_q, 0, 0)
    dq_ref[rows] = dq.astype(dq_ref.dtype)
  dk_ref[...] = dk.astype(dk_ref.dtype)
  dv_ref[...] = dv.astype(dv_ref.dtype)
