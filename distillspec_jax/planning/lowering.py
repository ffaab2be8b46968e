"""The programs of a run, lowered for a slice that need not be there.

They are the very functions that `training.loop` and the samplers run, on models
and batches whose arrays are shapes with shardings only.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from distillspec_jax.core import types
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from distillspec_jax.planning import config as config_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import speculative
from distillspec_jax.training import step as step_lib

# Two sizes of a batch that no axis of a model has.
_ROWS = (11, 22)


class Run:
  """A configuration on a mesh: its models, and its arguments as shapes.

  Attributes:
    config: of the plan.
    mesh: over the devices.
    target: the target, or None.
    draft: the draft as the samplers hold it, in the target's dtype, or None.
    state: `TrainState` of the draft that is trained.
  """

  def __init__(self, config: config_lib.PlanConfig, mesh: Any):
    """Takes a mesh of the slice's devices, or an abstract one for bytes."""
    self.config, self.mesh = config, mesh
    steps = config.training.steps
    self.optimizer = config.training.optimizer.build(steps.num_steps)
    draft, target = config.draft_network, config.target_network
    self.state = step_lib.abstract_state(
        _params(draft, mesh), self.optimizer, mesh
    )
    self.target = self.draft = None
    if target is not None:
      dtype = target.config.dtype
      self.target = model_lib.Model(_params(target, mesh, dtype), target)
      self.draft = model_lib.Model(_params(draft, mesh, dtype), draft)

  def lower(self, name: str) -> Any:
    """The program 'step', 'speculative', 'autoregressive' or 'encoder'.

    All but the step, which trains, belong to the samplers.
    """
    decoding = self.config.decoding
    with jax.set_mesh(self.mesh):
      match name:
        case 'step':
          traced = self._step()
        case 'speculative':
          traced = speculative.generate.trace(
              self.target, self.draft, *self._prompt(), decoding
          )
        case 'autoregressive':
          traced = autoregressive.generate.trace(
              self.target, *self._prompt(), decoding.without_draft()
          )
        case 'encoder':
          encode = jax.jit(model_lib.Model.encode)
          traced = encode.trace(self.target, self._prompt()[0])
      return traced.lower()

  def _step(self) -> Any:
    training = self.config.training
    step = step_lib.make_step(
        training.method,
        self.optimizer,
        self.config.draft_network,
        training.steps.micro_batches,
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
    step = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, mesh_lib.replicated(self.mesh)),
    )
    rows = mesh_lib.rows(self.mesh)
    return step.trace(
        self.state, self.target, self._batch(self.config.batch_size, rows)
    )

  def _batch(self, rows: int, sharding: Any = None) -> types.Batch:
    """What a training step learns from."""
    array = lambda length, dtype=jnp.int32: jax.ShapeDtypeStruct(
        (rows, length), dtype, sharding=sharding
    )
    inputs = array(self.config.input_length)
    labels = array(self.config.output_length)
    mask = array(self.config.output_length, jnp.bool_)
    return types.Batch(inputs, inputs, labels, labels, mask)

  def _prompt(self) -> tuple[types.Prompt, jax.ShapeDtypeStruct]:
    """What a sampler reads, and its keys."""
    size, rows = self.config.decode_batch_size, mesh_lib.rows(self.mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys = jax.ShapeDtypeStruct((size,), key.dtype, sharding=rows)
    return self._batch(size, rows).prompt, keys

  def held_bytes(self) -> dict[str, int]:
    """Bytes per chip of what lasts from step to step, by what it is."""
    target = _bytes(self.target)
    if not self.config.train:
      return {'target': target, 'draft': _bytes(self.draft)}
    return {
        'target': target,
        'draft': _bytes(self.state.params),
        'optimizer': _bytes(self.state.optimizer),
    }

  def replicated_bytes(self) -> int:
    """Bytes per chip of parameters that the mesh could shard and does not."""
    sizes = self.config.training.mesh
    if sizes.fsdp * sizes.tensor == 1:
      return 0
    held = self.target, self.state.params, self.state.optimizer
    return _bytes(
        [x for x in jax.tree.leaves(held) if x.sharding.is_fully_replicated]
    )

  def read_bytes(self) -> dict[str, int]:
    """Bytes per chip that a token of a model has to read, by whose it is.

    The decoder's parameters as loops over tokens hold them, and all caches of
    the sampler, each once.
    """
    size, slots = {}, self._block_slots()
    for name, model in (('token', self.target), ('draft_step', self.draft)):
      if model is None:
        continue
      network = model.network
      places = layouts.shardings(
          self.mesh,
          model.params,
          network.logical_axes(),
          layouts.gathered(network.rules(self.mesh)),
      )
      held = jax.tree.map(
          lambda x, place: jax.ShapeDtypeStruct(
              x.shape, x.dtype, sharding=place
          ),
          model.params,
          places,
      )
      parts = [held['decoder']]
      if network.config.logits_via_embedding:
        parts.append(held['token_embedder'])
      cache = self._cache(network, self.config.decode_batch_size, slots)
      size[name] = _bytes(parts) + cache
    return size

  def _block_slots(self) -> int:
    """Slots of a row in the samplers' caches."""
    decoding = self.config.decoding
    drafting = decoding.drafting
    # As in `speculative.generate`: a block of all paths is written in full.
    return decoding.output_length + drafting.length * drafting.paths + 1

  def cache_bytes(self) -> dict[str, int]:
    """Bytes per chip of keys and values, of the samplers and of rollouts."""
    config, method = self.config, self.config.training.method
    slots = self._block_slots()
    size = {'sampler': 0, 'rollout': 0}
    for network, samples in (
        (config.draft_network, method.samples_from_draft),
        (config.target_network, method.samples_from_target),
    ):
      if network is None:
        continue
      size['sampler'] += self._cache(network, config.decode_batch_size, slots)
      if samples:
        rollout = self._cache(network, config.batch_size, config.output_length)
        size['rollout'] = max(size['rollout'], rollout)
    return size

  def _cache(
      self, network: transformer.Transformer, batch: int, slots: int
  ) -> int:
    """Bytes per chip of self-attention and cross-attention, all layers."""
    config = network.config
    spec = layouts.spec(
        self.mesh.shape,
        (batch, config.num_heads),
        ('batch', 'heads'),
        network.rules(self.mesh),
    )
    rows, heads = jax.sharding.NamedSharding(self.mesh, spec).shard_shape(
        (batch, config.num_heads)
    )
    slots += self.config.input_length
    numbers = 2 * config.num_decoder_layers * rows * slots * heads
    itemsize = jnp.dtype(network.compute_dtype()).itemsize
    return numbers * config.head_dim * itemsize

  def activation_bytes(self) -> int:
    """Bytes per chip that the forward pass keeps for the backward pass.

    What JAX saves for one micro-batch, before the compiler optimises. It grows
    by the same number of bytes with every row, so that two sizes tell it apart
    from parameters.
    """
    few, more = map(self._saved_bytes, _ROWS)
    return (more - few) // (_ROWS[1] - _ROWS[0]) * self.config.rows

  def _saved_bytes(self, rows: int) -> int:
    config, network = self.config, self.config.draft_network
    loss = step_lib.make_loss(config.training.method, network)
    parallel = config.training.method.parallel

    def backward(params, target, batch):
      cuts = None
      if parallel:
        cuts = parallel.draw(jax.random.key(0), batch.segments)
      value = lambda params: loss(
          params, target, batch, batch.prompt, None, cuts
      )
      return jax.vjp(value, params, has_aux=True)[1]

    without_shardings = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree
    )
    saved = jax.eval_shape(
        backward,
        without_shardings(self.state.params),
        without_shardings(self.target),
        self._batch(rows),
    )
    sizes, tensor = network.config, config.training.mesh.tensor
    heads, joined = sizes.num_heads, sizes.num_heads * sizes.head_dim
    sharded = {heads, joined, sizes.mlp_dim}
    return sum(
        x.size * x.dtype.itemsize // (tensor if sharded & set(x.shape) else 1)
        for x in jax.tree.leaves(saved)
    )


def _params(
    network: transformer.Transformer,
    mesh: Any,
    dtype: str | None = None,
) -> types.Params:
  """The network's parameters as shapes with shardings.

  Args:
    network: whose.
    mesh: where.
    dtype: what floats are held in; default: as they are created.
  """

  def leaf(x, sharding):
    held = dtype if jnp.issubdtype(x.dtype, jnp.floating) else None
    return jax.ShapeDtypeStruct(x.shape, held or x.dtype, sharding=sharding)

  return jax.tree.map(leaf, network.abstract(), network.shardings(mesh))


def _bytes(tree: Any) -> int:
  """Bytes per chip of arrays with shardings."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
      if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )
