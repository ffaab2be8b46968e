"""One training step: a pure function, the same for every method.

labels     whose tokens, see `rollouts.py`
gradient   of the summed loss, micro-batch by micro-batch
update     of the sum, divided by the number of tokens of the whole batch
           unless the method says otherwise
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.losses import objective
from distillspec_jax.models import transformer
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import rollouts

Metrics = dict[str, types.Mean]


@flax.struct.dataclass
class TrainState:
  """All that a run needs to go on, but for the data position.

  Attributes:
    step: int32[] updates done.
    params: float32 parameters.
    optimizer: its state.
    key: the run's key; a step derives its own from it and never changes it.
  """

  step: jax.Array
  params: Any
  optimizer: Any
  key: jax.Array


def initial_state(
    params: Any, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
  return TrainState(jnp.int32(0), params, optimizer.init(params), key)


def abstract_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> TrainState:
  """The state as shapes that say where everything lies; nothing is made.

  What the optimizer keeps of a parameter in its own shape lies where that does;
  the rest, which is small, lies on every device.

  Args:
    params: arrays or `ShapeDtypeStruct` with shardings.
    optimizer: whose state it is.
    mesh: of the shardings.
  """
  replicated = mesh_lib.replicated(mesh)

  def put(leaf, sharding=replicated):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  def like(leaf, param):
    is_same = leaf.shape == param.shape
    return put(leaf, param.sharding if is_same else replicated)

  state = jax.eval_shape(
      lambda params: initial_state(params, optimizer, jax.random.key(0)), params
  )
  return TrainState(
      step=put(state.step),
      params=jax.tree.map(like, state.params, params),
      optimizer=optax.tree.map_params(
          optimizer, like, state.optimizer, params, transform_non_params=put
      ),
      key=put(state.key),
  )


def make_loss(
    method: method_lib.Method,
    draft: transformer.Transformer,
    target: transformer.Transformer | None,
) -> Callable[..., tuple[jax.Array, Metrics]]:
  """(params, target_params, batch, dropout_key) -> (summed loss, metrics).

  The loss is the sum over tokens in nats; its count is metrics['loss'].count.
  A fifth argument is the target's encoder output float[B, S, E] for a draft
  that shares it; default: it is made here.
  """

  def hidden(model, params, batch, encoded, dropout_key=None):
    return model.hidden(
        params,
        batch.inputs,
        batch.input_segments,
        transformer.shift_right(batch.labels, batch.segments),
        batch.segments,
        dropout_key,
        encoded,
    )

  def loss(params, target_params, batch, dropout_key, encoded=None):
    if encoded is None and target is not None:
      encoded = transformer.shared_encoding(
          draft, target, target_params, batch.inputs, batch.input_segments
      )
    q_hidden = hidden(draft, params, batch, encoded, dropout_key)
    if not method.is_distillation:
      metrics = objective.supervised(
          jax.tree_util.Partial(draft.unembed, draft.head(params)),
          q_hidden,
          batch.labels,
          batch.mask,
          z_loss=method.z_loss,
          label_smoothing=method.label_smoothing,
          columns=draft.columns(),
      )
    else:
      size = transformer.shared_vocabulary(target, draft)
      columns = draft.columns(size)
      metrics = objective.distillation(
          jax.tree_util.Partial(
              functools.partial(target.all_logits, vocabulary=size),
              target.head(target_params),
          ),
          jax.tree_util.Partial(
              lambda head, x: columns.cut(draft.unembed(head, x)),
              draft.head(params),
          ),
          hidden(target, target_params, batch, encoded),
          q_hidden,
          batch.labels,
          batch.mask,
          method.divergence_function(covered=not columns.are_all),
          columns=columns,
      )
    return metrics['loss'].total, metrics

  return loss


def make_step(
    method: method_lib.Method,
    optimizer: optax.GradientTransformation,
    draft: transformer.Transformer,
    target: transformer.Transformer | None = None,
    micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """(state, target_params, batch) -> (new state, metrics).

  Args:
    method: what is minimised.
    optimizer: applied to the gradient of the loss, reduced as the method says.
    draft: the model that is trained.
    target: needed where the method says so.
    micro_batches: the batch is split into so many equal parts, whose
      gradients are added up before the update.

  Raises:
    UserError: the draft has int8 weights.
  """
  draft.config.require_float('trained')
  gradient = jax.grad(make_loss(method, draft, target), has_aux=True)

  def step(state, target_params, batch):
    key = jax.random.fold_in(state.key, state.step)
    encoded = None
    if method.fixed_fraction < 1.0 and target is not None:
      # Once, for the rollouts and the loss; else the loss makes it, of one
      # micro-batch at a time.
      encoded = transformer.shared_encoding(
          draft, target, target_params, batch.inputs, batch.input_segments
      )
    batch, source = rollouts.with_labels(
        batch, key, method, draft, state.params, target, target_params, encoded
    )
    dropout_key = randomness.stream(key, 'dropout')
    if draft.config.dropout_rate == 0.0:
      dropout_key = None

    if micro_batches == 1:
      gradients, metrics = gradient(
          state.params, target_params, batch, dropout_key, encoded
      )
    else:
      gradients, metrics = _accumulate(
          gradient, state.params, target_params, batch, dropout_key, encoded,
          micro_batches,
      )  # fmt: skip
    if method.reduction == 'mean':
      count = jnp.maximum(metrics['loss'].count, 1.0)
      gradients = jax.tree.map(lambda g: g / count, gradients)
    updates, optimizer_state = optimizer.update(
        gradients, state.optimizer, state.params
    )
    metrics['gradient_norm'] = types.Mean(
        optax.tree.norm(gradients), jnp.float32(1.0)
    )
    metrics['draft_tokens'] = types.Mean(
        (source == rollouts.DRAFT).astype(jnp.float32), jnp.float32(1.0)
    )
    new_state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        optimizer=optimizer_state,
    )
    return new_state, metrics

  return step


def _accumulate(
    gradient, params, target_params, batch, dropout_key, encoded, micro_batches
):
  """Gradients and metrics summed over the parts of the batch."""

  # Part i takes every i-th row, so that each part is spread over the mesh as
  # the batch is.
  parts = jax.tree.map(
      lambda x: jnp.swapaxes(
          x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]),
          0,
          1,
      ),
      (batch, encoded),
  )

  def add(sums, numbered):
    number, (part, encoded) = numbered
    key = dropout_key
    if key is not None:
      key = jax.random.fold_in(key, number)
    new = gradient(params, target_params, part, key, encoded)
    return jax.tree.map(jnp.add, sums, new), None

  part, encoded = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(
      gradient, params, target_params, part, dropout_key, encoded
  )
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  sums, _ = jax.lax.scan(add, zeros, (jnp.arange(micro_batches), parts))
  return sums
