"""The loss that training minimises, in chunks that fit in memory.

A divergence needs several float32 arrays of [B, T, V]; for a vocabulary of
32,128 each of them is larger than the draft. So the hidden states of the last
layer come here together with the function that turns them into logits, and
both are taken `chunk` positions of T at a time, in a scan whose body is
computed again on the way back: only [B, chunk, V] is ever held. T is cut and B
is not, so that rows split over devices stay where they are. Each chunk adds up
the gradient of the whole output layer once more; so, unless told otherwise, it
is as long as memory allows (`chunk_length`).

The logits of a draft with a trimmed vocabulary are never expanded to V: the
target's logits are gathered at the kept tokens, and the rest of p becomes one
more entry, in which q is 0. Divergences on that are the same.

Means leave as (total, count); a caller divides once, after adding up micro-
batches and hosts.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from distillspec_jax.core import errors
from distillspec_jax.core import shapes
from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.core import types
from distillspec_jax.distributed import mesh
from distillspec_jax.losses import divergences
from distillspec_jax.models import model as model_lib

# Of a chunk on a device; 32 MiB in float32. A divergence holds several such.
_MAX_LOGITS = 2**23
_MIN_CHUNK = 8
LogitsFn = Callable[[jax.Array], jax.Array]
Axes = int | tuple[int, ...]


def masked_sum(
    values: jax.Array, mask: jax.Array, axis: Axes = (0, 1)
) -> types.Mean:
  """Sums values float32[B, T] where mask bool[B, T] is true.

  Args:
    values: float32[B, T].
    mask: bool[B, T].
    axis: that is summed over; (): none, one mean for each position.
  """
  shapes.bind_shapes(values=(values, 'B T'), mask=(mask, 'B T'))
  # `where`, not a product: 0 * inf is nan. The gradient still sees inf, so
  # the functions below set masked logits to 0 before the divergence.
  total = jnp.sum(values, axis, where=mask, dtype=jnp.float32)
  return types.Mean(total, count=jnp.sum(mask, axis, dtype=jnp.float32))


_positions = functools.partial(masked_sum, axis=())


def chunk_length(
    length: int,
    rows: int,
    vocab_size: int,
    ways: int = 1,
    platform: str = 'tpu',
) -> int:
  """Positions whose logits are held at once: equal parts of T, of 8 or more.

  Args:
    length: T.
    rows: of a device.
    vocab_size: logits of a position.
    ways: devices that the vocabulary is sharded over.
    platform: of the device; the caches of a 'cpu' hold little more.
  """
  held = _MIN_CHUNK
  if platform != 'cpu':
    held = max(held, _MAX_LOGITS * ways // (rows * vocab_size))
  return math.ceil(length / math.ceil(length / held))


def distillation(
    p_logits_fn: LogitsFn,
    q_logits_fn: LogitsFn,
    p_hidden: jax.Array,
    q_hidden: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    divergence: divergences.Divergence,
    chunk: int | None = None,
    vocabulary: trimmed_vocabulary.TrimmedVocabulary | None = None,
    axis: Axes = (0, 1),
) -> dict[str, types.Mean]:
  """The divergence of the draft from the target over the tokens under the mask.

  Differentiable in `q_hidden` and in whatever `q_logits_fn` closes over; the
  target gets no gradient, and only 'loss' carries one. Where logits are at
  hand, they are their own hidden states:

    identity = lambda logits: logits
    distillation(identity, identity, p_logits, q_logits, labels, mask, jsd)

  Args:
    p_logits_fn: float[B, t, Dp] -> float[B, t, V], the target's last layer.
    q_logits_fn: float[B, t, Dq] -> float[B, t, V'], the draft's. Cast its
      parameters inside it: gradients add up over chunks in their dtype outside.
      Where rows are spread over devices, both are `jax.tree_util.Partial` whose
      arguments are all that they know of arrays.
    p_hidden: float[B, T, Dp] the target's hidden states.
    q_hidden: float[B, T, Dq] the draft's.
    labels: int32[B, T] the tokens that both were conditioned on, not shifted.
    mask: bool[B, T] positions that count; the others may hold anything.
    divergence: from `divergences`, of (p_logits, q_logits).
    chunk: positions of T at a time; default: see `chunk_length`.
    vocabulary: of `q_logits_fn`, where it is trimmed; the divergence must be
      finite for q = 0, as `divergences.covered_forward_kl` is.
    axis: of [B, T] that is summed over: 1 gives one mean for each row, whose
      total and count are float32[B]; () one for each position.

  Returns:
    Means over tokens: 'loss' (the divergence), 'expected_acceptance' (chance
    that the draft's own token would be accepted), 'cross_entropy' and
    'target_cross_entropy' (nats, on `labels`), 'agreement' (share of positions
    where both have the same most likely token). With a trimmed vocabulary also
    'uncovered', the share of labels that the draft cannot emit, which its
    'cross_entropy' leaves out.
  """
  shapes.bind_shapes(
      p_hidden=(p_hidden, 'B T Dp'),
      q_hidden=(q_hidden, 'B T Dq'),
      labels=(labels, 'B T'),
      mask=(mask, 'B T'),
  )

  def measure(functions, mask, p_hidden, q_hidden, labels):
    p_logits_fn, q_logits_fn = functions
    p_logits = jax.lax.stop_gradient(_logits(p_logits_fn, p_hidden, mask))
    q_logits = _logits(q_logits_fn, q_hidden, mask)
    p_best, q_best = jnp.argmax(p_logits, -1), jnp.argmax(q_logits, -1)
    p, q = p_logits, q_logits
    if vocabulary is not None and not vocabulary.is_full:
      q_best = vocabulary.to_tokens(q_best)
      p, q = vocabulary.gather_with_rest(p), _with_rest(q)
    shapes.bind_shapes(p_logits=(p, 'B T V'), q_logits=(q, 'B T V'))
    loss = divergence(p, q)
    q, q_logits = jax.lax.stop_gradient((q, q_logits))
    known_labels, known, shares = _known(vocabulary, labels, mask)
    cross_entropy = divergences.cross_entropy(q_logits, known_labels)
    return {
        'loss': _positions(loss, mask),
        'expected_acceptance': _positions(divergences.acceptance(p, q), mask),
        'cross_entropy': _positions(cross_entropy, known),
        'target_cross_entropy': _positions(
            divergences.cross_entropy(p_logits, labels), mask
        ),
        'agreement': _positions(p_best == q_best, mask),
        **shares,
    }

  p_hidden = jax.lax.stop_gradient(p_hidden)
  functions = _tree(p_logits_fn), _tree(q_logits_fn)
  means = _by_chunks(
      measure, functions, chunk, mask, p_hidden, q_hidden, labels
  )
  return sum_over(means, axis)


def supervised(
    q_logits_fn: LogitsFn,
    q_hidden: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    vocabulary: trimmed_vocabulary.TrimmedVocabulary | None = None,
    axis: Axes = (0, 1),
) -> dict[str, types.Mean]:
  """The cross-entropy on given labels over the tokens under the mask.

  Args:
    q_logits_fn: float[B, t, D] -> float[B, t, V'], see `distillation`.
    q_hidden: float[B, T, D] hidden states.
    labels: int32[B, T] what should be emitted, not shifted.
    mask: bool[B, T] positions that count; the others may hold anything.
    z_loss: see `divergences.cross_entropy`.
    label_smoothing: see `divergences.cross_entropy`.
    chunk: positions of T at a time; default: see `chunk_length`.
    vocabulary: of `q_logits_fn`, where it is trimmed.
    axis: see `distillation`.

  Returns:
    Means over tokens: 'loss' (with the options), 'cross_entropy' (without),
    'accuracy' (share of positions whose most likely token is the label). Only
    'loss' carries a gradient. Labels that a trimmed vocabulary lacks, whose
    loss would be infinite, count in 'accuracy' (as wrong) and in 'uncovered'
    (their share), and in nothing else.
  """
  shapes.bind_shapes(
      q_hidden=(q_hidden, 'B T D'), labels=(labels, 'B T'), mask=(mask, 'B T')
  )

  def measure(functions, mask, q_hidden, labels):
    logits = _logits(*functions, q_hidden, mask)
    labels, known, shares = _known(vocabulary, labels, mask)
    loss = divergences.cross_entropy(logits, labels, z_loss, label_smoothing)
    logits = jax.lax.stop_gradient(logits)
    cross_entropy = divergences.cross_entropy(logits, labels)
    right = (jnp.argmax(logits, -1) == labels) & known
    return {
        'loss': _positions(loss, known),
        'cross_entropy': _positions(cross_entropy, known),
        'accuracy': _positions(right, mask),
        **shares,
    }

  functions = (_tree(q_logits_fn),)
  means = _by_chunks(measure, functions, chunk, mask, q_hidden, labels)
  return sum_over(means, axis)


def sum_over(means: dict[str, types.Mean], axis: Axes) -> dict[str, types.Mean]:
  """The means with their totals and counts summed over an axis, or several."""
  return jax.tree.map(lambda x: jnp.sum(x, axis), means)


def _tree(function: LogitsFn) -> jax.tree_util.Partial:
  """The function as a tree of the parameters that it holds."""
  if isinstance(function, jax.tree_util.Partial):
    return function
  return jax.tree_util.Partial(function)


def _known(vocabulary, labels, mask):
  """The labels as indices into the logits, and which of them there are.

  Args:
    vocabulary: of the logits, or None.
    labels: int32[B, t].
    mask: bool[B, t].

  Returns:
    int32[B, t] indices, bool[B, t] which under the mask exist, and, where the
    vocabulary is trimmed, {'uncovered': the share that does not}.
  """
  if vocabulary is None or vocabulary.is_full:
    return labels, mask, {}
  index, is_kept = vocabulary.to_indices(labels)
  return index, mask & is_kept, {'uncovered': _positions(~is_kept, mask)}


def _with_rest(q_logits):
  """Logits float[B, t, V' + 1]; that of all other tokens is -inf."""
  return jnp.pad(q_logits, ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf)


def _logits(logits_fn, hidden, mask):
  """Logits float[B, t, V] that are 0, with gradient 0, outside the mask."""
  # Hidden states first: a nan there would reach the gradient of the head, which
  # multiplies it with 0. Then logits, in case the head itself makes a nan.
  zeroed = jnp.where(mask[..., None], hidden, 0)
  return jnp.where(mask[..., None], logits_fn(zeroed), 0)


def _by_chunks(
    measure: Callable[..., dict[str, types.Mean]],
    functions: tuple[LogitsFn, ...],
    chunk: int | None,
    mask: jax.Array,
    *arrays: Any,
) -> dict[str, types.Mean]:
  """measure(functions, mask, *arrays), computed chunk by chunk of axis 1.

  Args:
    measure: of the functions and [B, chunk, ...] of each array: means by
      position, float32[B, chunk].
    functions: that make logits.
    chunk: size of a chunk; None: see `chunk_length`.
    mask: bool[B, T].
    *arrays: [B, T, ...], hidden states first, one for each of the functions.
  """
  if chunk is not None and chunk < 1:
    raise errors.UserError(
        f'The loss chunk is {chunk} positions; use at least 1.'
    )
  length = mask.shape[1]
  arrays = (mask, *arrays)

  # Slices are cut inside the body. Handing the scan [chunks, B, t, D] would
  # copy every array once more, and with logits for hidden states that is all
  # the memory there was to save.
  def over_chunks(functions, arrays):
    size = _default_chunk(functions, *arrays)
    if chunk is not None:
      size = min(chunk, length)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(_, first):
      # The last chunk starts early rather than run over the end; what the chunk
      # before it has computed is left out below. T = 5, chunk = 2: 01 23 (3)4.
      start = jnp.minimum(first, length - size)
      parts = (
          jax.lax.dynamic_slice_in_dim(array, start, size, axis=1)
          for array in arrays
      )
      return None, measure(functions, *parts)

    starts = jnp.arange(0, length, size)
    _, chunks = jax.lax.scan(body, None, starts)
    last = length - (len(starts) - 1) * size

    def join(parts):  # [chunks, B, size] -> [B, T]
      return jnp.concatenate([*parts[:-1], parts[-1][:, size - last :]], 1)

    return jax.tree.map(join, chunks)

  # The gradient of what the functions hold is added up over devices here, once,
  # and not chunk by chunk.
  is_model = lambda node: isinstance(node, model_lib.Model)
  layout = jax.tree.map(
      lambda node: node.over_rows() if is_model(node) else PartitionSpec(),
      functions,
      is_leaf=is_model,
  )
  return mesh.shard_over_batch(over_chunks, functions, arrays, layout=layout)


def _default_chunk(functions, mask, *arrays) -> int:
  """The chunk for the rows and the vocabulary of one device."""
  wide = (
      jax.eval_shape(function, hidden[:, :1]).shape[-1]
      for function, hidden in zip(functions, arrays)
  )
  vocab_size = max(wide)
  # Logits are sharded over it, whatever a model's layout, if it divides them.
  ways = mesh.automatic().get('tensor', 1)
  ways = 1 if vocab_size % ways else ways
  rows, length = mask.shape
  return chunk_length(length, rows, vocab_size, ways, mesh.platform())
