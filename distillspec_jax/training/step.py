"""One training step: a pure function, the same for every method.

labels     whose tokens, see `rollouts.py`
gradient   of the summed loss, micro-batch by micro-batch
update     by the sum, divided by the number of tokens (or of sequences) of the
           whole batch unless the method says otherwise
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
from distillspec_jax.models import mask_chains
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import rollouts

Metrics = dict[str, types.Mean]


class TrainState(flax.struct.PyTreeNode):
  """All that a run needs to continue, except the data position.

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
  """The state's shapes and shardings; nothing is allocated.

  Optimizer state in the shape of a parameter is sharded as the parameter is;
  the rest, which is small, is replicated.

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
    method: method_lib.Method, network: transformer.Transformer
) -> Callable[..., tuple[jax.Array, Metrics]]:
  """(params, target, batch, prompt, dropout_key, cuts) -> (loss, metrics).

  The loss is the sum over tokens in nats, or, with the reduction
  'sequence_mean', over sequences of the mean over their tokens; its count is
  metrics['loss'].count. With `cuts`, from `Parallel.draw`, the loss of a
  parallel draft's masks is added; metrics['loss'] is without it.
  """
  row_metrics = make_row_metrics(method, network)

  def loss(*arguments):
    metrics = objective.sum_over(row_metrics(*arguments), 0)
    total = metrics['loss'].total
    if 'parallel_loss' in metrics:
      total += method.parallel.weight * metrics['parallel_loss'].total
    return total, metrics

  return loss


def make_row_metrics(
    method: method_lib.Method, network: transformer.Transformer
) -> Callable[..., Metrics]:
  """As `make_loss`, but metrics alone, and of each row: Means of float32[B]."""

  def row_metrics(params, target, batch, prompt, dropout_key, cuts=None):
    draft = model_lib.Model(params, network)
    if target is not None:
      prompt = model_lib.with_shared_encoding(prompt, target, draft)
    read = (
        prompt,
        model_lib.shift_right(batch.labels, batch.segments),
        batch.segments,
    )
    own = model_lib.own_prompt(prompt, draft)
    length, chains = batch.labels.shape[1], None
    if cuts is not None:
      chains = mask_chains.MaskChains(cuts, method.parallel.sizes(length))
    q_hidden = draft.hidden(own, *read[1:], dropout_key, chains)
    labels, mask = (
        _with_masks(array, chains) for array in (batch.labels, batch.mask)
    )
    if not method.is_distillation:
      by_position = objective.supervised(
          jax.tree_util.Partial(model_lib.Model.unembed, draft.head()),
          q_hidden,
          labels,
          mask,
          z_loss=method.z_loss,
          label_smoothing=method.label_smoothing,
          vocabulary=draft.trimmed_vocabulary(),
          axis=(),
      )
    else:
      size = model_lib.common_vocabulary(target, draft)
      vocabulary = draft.trimmed_vocabulary(size)
      by_position = objective.distillation(
          # Partials are pytrees of the heads' parameters, as shard_map needs.
          jax.tree_util.Partial(
              functools.partial(model_lib.Model.all_logits, size=size),
              target.head(),
          ),
          jax.tree_util.Partial(
              functools.partial(model_lib.Model.trimmed_logits, size=size),
              draft.head(),
          ),
          _with_masks(target.hidden(*read), chains),
          q_hidden,
          labels,
          mask,
          method.divergence_function(covered=not vocabulary.is_full),
          vocabulary=vocabulary,
          axis=(),
      )
    of_tokens, of_masks = (
        jax.tree.map(lambda x, part=part: x[:, part], by_position)
        for part in (slice(length), slice(length, None))
    )
    metrics = objective.sum_over(of_tokens, 1)
    if chains is not None:
      metrics |= method.parallel.loss(
          of_tokens, of_masks, chains, batch.segments
      )
    if method.reduction == 'sequence_mean':
      mean = metrics['loss']
      metrics['loss'] = types.Mean(mean.value(), jnp.minimum(mean.count, 1.0))
      if chains is not None:
        metrics['parallel_loss'] = jax.tree.map(
            lambda x: x / jnp.maximum(mean.count, 1.0), metrics['parallel_loss']
        )
    return metrics

  return row_metrics


def _with_masks(
    array: jax.Array, chains: mask_chains.MaskChains | None
) -> jax.Array:
  """[B, T + M, ...]: what an array [B, T, ...] holds, and that at the masks."""
  if chains is None:
    return array
  return jnp.concatenate([array, chains.at_masks(array)], axis=1)


def make_step(
    method: method_lib.Method,
    optimizer: optax.GradientTransformation,
    network: transformer.Transformer,
    micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """(state, target: Model | None, batch) -> (new state, metrics).

  Args:
    method: what is minimised, and whether a target is needed.
    optimizer: applied to the gradient of the loss, reduced as the method says.
    network: of the model that is trained.
    micro_batches: the batch is split into so many equal parts, whose gradients
      are added up before the update.

  Raises:
    UserError: the network has int8 weights.
  """
  network.config.require_float('trained')
  network = transformer.Transformer(
      method.configure(network.config), network.layout
  )
  gradient = jax.grad(make_loss(method, network), has_aux=True)

  def step(state, target, batch):
    key = jax.random.fold_in(state.key, state.step)
    draft = model_lib.Model(state.params, network)
    prompt = batch.prompt
    if method.fixed_fraction < 1.0 and target is not None:
      # Once, for the rollouts and the loss; otherwise the loss computes it, for
      # one micro-batch at a time.
      prompt = model_lib.with_shared_encoding(prompt, target, draft)
      if method.samples_from_target and method.is_distillation:
        prompt = model_lib.with_encoding(prompt, target)
    batch, source = rollouts.with_labels(
        batch, prompt, key, method, draft, target
    )
    dropout_key = randomness.stream(key, 'dropout')
    if network.config.dropout_rate == 0.0:
      dropout_key = None
    cuts = None
    if method.parallel is not None:
      cuts = method.parallel.draw(key, batch.segments)

    if micro_batches == 1:
      gradients, metrics = gradient(
          state.params, target, batch, prompt, dropout_key, cuts
      )
    else:
      gradients, metrics = _accumulate(
          gradient, state.params, target, (batch, prompt, cuts), dropout_key,
          micro_batches,
      )  # fmt: skip
    if method.reduction != 'sum':
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
    params = optax.apply_updates(state.params, updates)
    metrics['parameter_norm'] = types.Mean(
        optax.tree.norm(params), jnp.float32(1.0)
    )
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        optimizer=optimizer_state,
    )
    return new_state, metrics

  return step


def _accumulate(gradient, params, target, batched, dropout_key, micro_batches):
  """Gradients and metrics summed over the parts of the batch."""

  # Part i takes every i-th row, so that each part is spread over the mesh as
  # the batch is.
  parts = jax.tree.map(
      lambda x: jnp.swapaxes(
          x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]),
          0,
          1,
      ),
      batched,
  )

  def gradient_of(part, key):
    batch, prompt, cuts = part
    return gradient(params, target, batch, prompt, key, cuts)

  def add(sums, numbered):
    number, part = numbered
    key = dropout_key
    if key is not None:
      key = jax.random.fold_in(key, number)
    return jax.tree.map(jnp.add, sums, gradient_of(part, key)), None

  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(gradient_of, first, dropout_key)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  sums, _ = jax.lax.scan(add, zeros, (jnp.arange(micro_batches), parts))
  return sums
