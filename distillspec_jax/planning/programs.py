"""The programs of a run, lowered for a slice that need not be there.

They are the very functions that `training.loop` and `sampling.generation` run,
of arrays that exist as shapes with a layout only.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from distillspec_jax.core import types
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.planning import setting as setting_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.training import step as step_lib

# Of the schedule, which does not change the program.
_STEPS = 10**6
# Two sizes of a batch that no axis of a model has.
_ROWS = (11, 22)


class Run:
  """A setting on a mesh: its models, and its arguments as shapes.

  Attributes:
    setting: it.
    mesh: over the devices.
    target: the target, or None.
    draft: the model that is trained.
    target_params: shapes with shardings, or None.
    state: `TrainState` of shapes with shardings.
    draft_params: as the samplers hold them.
  """

  def __init__(self, setting: setting_lib.Setting, mesh: jax.sharding.Mesh):
    self.setting, self.mesh = setting, mesh
    self.optimizer = setting.optimizer.build(_STEPS)
    self.draft = transformer_lib.Transformer(setting.draft, setting.layout)
    self.state = step_lib.abstract_state(
        _laid_out(self.draft, mesh), self.optimizer, mesh
    )
    self.draft_params = _laid_out(self.draft, mesh, setting.target_dtype)
    self.target, self.target_params = None, None
    if setting.target is not None:
      self.target = transformer_lib.Transformer(
          setting.target, setting.target_layout
      )
      self.target_params = _laid_out(self.target, mesh, setting.target_dtype)

  def rows(self, batch: int, *shape: int, dtype: Any = jnp.int32) -> Any:
    """An array whose first axis is the batch."""
    sharding = mesh_lib.rows(self.mesh)
    return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=sharding)

  def batch(self) -> types.Batch:
    """Of a training step."""
    setting = self.setting
    inputs = self.rows(setting.batch_size, setting.input_length)
    labels = self.rows(setting.batch_size, setting.output_length)
    mask = self.rows(setting.batch_size, setting.output_length, dtype=bool)
    return types.Batch(inputs, inputs, labels, labels, mask)

  def lower(self, name: str) -> Any:
    """The program 'step', 'speculative', 'autoregressive' or 'encoder'.

    All but the step, which trains, belong to the samplers.
    """
    traces = {
        'step': self._step,
        'speculative': self._speculative,
        'autoregressive': self._autoregressive,
        'encoder': self._encoder,
    }
    with jax.set_mesh(self.mesh):
      return traces[name]().lower()

  def _step(self) -> Any:
    step = step_lib.make_step(
        self.setting.method,
        self.optimizer,
        self.draft,
        self.target,
        self.setting.micro_batches,
    )
    stays = jax.tree.map(lambda leaf: leaf.sharding, self.state)
    step = jax.jit(step, donate_argnums=0, out_shardings=(stays, None))
    return step.trace(self.state, self.target_params, self.batch())

  def decoding(self) -> decoding_lib.Decoding:
    setting = self.setting
    return decoding_lib.Decoding(
        temperature=setting.temperature,
        block_length=setting.block_length,
        max_new_tokens=setting.output_length,
    )

  def _decoded(self) -> tuple[Any, Any, Any]:
    """Inputs, their segments, and keys, as a sampler reads them."""
    rows = self.setting.decode_batch_size
    inputs = self.rows(rows, self.setting.input_length)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return inputs, inputs, self.rows(rows, dtype=key.dtype)

  def _speculative(self) -> Any:
    return speculative.generate.trace(
        self.target, self.target_params, self.draft, self.draft_params,
        *self._decoded(), self.decoding(),
    )  # fmt: skip

  def _autoregressive(self) -> Any:
    return autoregressive.generate.trace(
        self.target, self.target_params, *self._decoded(), self.decoding()
    )

  def _encoder(self) -> Any:
    inputs, segments, _ = self._decoded()
    return jax.jit(self.target.encode).trace(
        self.target_params, inputs, segments
    )

  def replicated_bytes(self) -> int:
    """Bytes a chip of parameters that the mesh could split and does not."""
    if self.setting.fsdp * self.setting.tensor == 1:
      return 0
    held = self.target_params, self.state.params, self.state.optimizer
    return sum(
        _bytes(x)
        for x in jax.tree.leaves(held)
        if x.sharding.is_fully_replicated
    )

  def held_bytes(self) -> dict[str, int]:
    """Bytes a chip of what lasts from step to step, by what it is."""
    target = _bytes(self.target_params)
    if not self.setting.trains:
      return {'target': target, 'draft': _bytes(self.draft_params)}
    return {
        'target': target,
        'draft': _bytes(self.state.params),
        'optimizer': _bytes(self.state.optimizer),
    }

  def cache_bytes(self) -> dict[str, int]:
    """Bytes a chip of the keys and values of the samplers, and of rollouts."""
    setting = self.setting
    slack = setting.output_length + setting.block_length + 1
    made = {'sampler': 0, 'rollout': 0}
    method = setting.method
    for model, samples in (
        (self.draft, method.samples_from_draft),
        (self.target, method.samples_from_target),
    ):
      if model is None:
        continue
      made['sampler'] += self._cache(model, setting.decode_batch_size, slack)
      if samples:
        size = self._cache(model, setting.batch_size, setting.output_length)
        made['rollout'] = max(made['rollout'], size)
    return made

  def _cache(self, model: Any, batch: int, slots: int) -> int:
    config = model.config
    slots += 0 if config.is_decoder_only else self.setting.input_length
    item = jnp.dtype(config.dtype).itemsize
    of_chip = layouts.spec(
        self.mesh.shape,
        (batch, config.num_heads),
        ('batch', 'heads'),
        model.layout,
    )
    rows, heads = jax.sharding.NamedSharding(self.mesh, of_chip).shard_shape(
        (batch, config.num_heads)
    )
    layers = config.num_decoder_layers
    return 2 * layers * rows * slots * heads * config.head_dim * item

  def activation_bytes(self) -> int:
    """Bytes a chip that the forward pass keeps for the backward pass.

    Of what JAX saves for one micro-batch, before the compiler makes anything of
    it. It grows by the same number of bytes with every row, so that two sizes
    tell it apart from parameters.
    """
    rows = self.setting.batch_size // self.setting.micro_batches
    few, more = (self._saved(rows) for rows in _ROWS)
    a_row = (more - few) // (_ROWS[1] - _ROWS[0])
    return a_row * rows // self.setting.ways

  def _saved(self, rows: int) -> int:
    setting = self.setting
    loss = step_lib.make_loss(setting.method, self.draft, self.target)
    shape = lambda length, dtype=jnp.int32: jax.ShapeDtypeStruct(
        (rows, length), dtype
    )
    inputs, labels = shape(setting.input_length), shape(setting.output_length)
    mask = shape(setting.output_length, jnp.bool_)
    batch = types.Batch(inputs, inputs, labels, labels, mask)

    def backward(params, target_params, batch):
      value = lambda params: loss(params, target_params, batch, None)
      return jax.vjp(value, params, has_aux=True)[1]

    bare = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree
    )
    saved = jax.eval_shape(
        backward, bare(self.state.params), bare(self.target_params), batch
    )
    config = setting.draft
    joined = config.num_heads * config.head_dim
    split = {config.num_heads, joined, config.mlp_dim}
    return sum(
        x.size
        * x.dtype.itemsize
        // (setting.tensor if split & set(x.shape) else 1)
        for x in jax.tree.leaves(saved)
    )


def _laid_out(
    model: transformer_lib.Transformer,
    mesh: jax.sharding.Mesh,
    dtype: str | None = None,
) -> Any:
  """The model's parameters as shapes with shardings.

  Args:
    model: whose.
    mesh: where.
    dtype: what floats are held in; default: as they are made.
  """

  def leaf(x, sharding):
    held = dtype if jnp.issubdtype(x.dtype, jnp.floating) else None
    return jax.ShapeDtypeStruct(x.shape, held or x.dtype, sharding=sharding)

  return jax.tree.map(leaf, model.abstract(), model.shardings(mesh))


def _bytes(tree: Any) -> int:
  """Bytes a chip of arrays with shardings."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
      if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )
