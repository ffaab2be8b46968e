"""A step on any mesh is the step on one device, and moves no logits."""

import functools
import re

import jax
import numpy as np
import optax
import pytest

from distillspec_jax.core import types
from distillspec_jax.distributed import layouts
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from distillspec_jax.training import parallel
from distillspec_jax.training import step as step_lib
from distillspec_jax.training import validation
from tests import meshes
from tests import tiny

V, B, S, T = 1024, 8, 6, 10
METHODS = {
    'fine-tuning': method_lib.Method(z_loss=1e-3, label_smoothing=0.1),
    'on-policy': method_lib.Method(
        divergence='jsd',
        fixed_fraction=0.0,
        parallel=parallel.Parallel(block_length=3, chains=4, keep=0.5),
    ),
}
# Updates are as large as gradients, so that they can be compared.
OPTIMIZER = optax.sgd(1.0)
DECODING = decoding_lib.Decoding(
    drafting=decoding_lib.Drafting(length=3), max_new_tokens=T
)


def config(**changes):
  return tiny.config(
      V, num_heads=8, head_dim=4, emb_dim=32, mlp_dim=64, **changes
  )


TARGET = config(num_decoder_layers=2)


def placed(config, seed, mesh, layout='sharded'):
  """A model laid out on the mesh."""
  network = transformer.Transformer(config, layouts.rules(layout))
  params = tiny.random_params(config, seed=seed)
  return model_lib.Model(
      jax.device_put(params, network.shardings(mesh)), network
  )


def batch():
  rng = np.random.default_rng(0)
  inputs = rng.integers(3, V, (B, S)).astype(np.int32)
  labels = rng.integers(3, V, (B, T)).astype(np.int32)
  segments = (np.arange(T) < rng.integers(1, T + 1, B)[:, None]).astype(
      np.int32
  )
  return types.Batch(
      inputs, np.ones_like(inputs), labels * segments, segments, segments > 0
  )


@functools.cache
def compiled(shape, method, layout='sharded', micro_batches=1):
  """The step's program and its arguments on a mesh."""
  mesh = meshes.make(shape)
  draft = placed(config(), 0, mesh, layout)
  arguments = (
      step_lib.initial_state(draft.params, OPTIMIZER, jax.random.key(4)),
      placed(TARGET, 1, mesh),
      meshes.put(mesh, batch()),
  )
  with jax.set_mesh(mesh):
    step = step_lib.make_step(method, OPTIMIZER, draft.network, micro_batches)
    return jax.jit(step).lower(*arguments).compile(), arguments


@functools.cache
def on_one_device(name):
  program, arguments = compiled((1, 1, 1), METHODS[name])
  return jax.device_get(program(*arguments))


def assert_same_step(actual, expected):
  state, metrics = jax.device_get(actual)
  expected_state, expected_metrics = expected
  for name, mean in expected_metrics.items():
    np.testing.assert_allclose(metrics[name].value(), mean.value(), rtol=1e-5)
  jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=2e-6),
      state.params,
      expected_state.params,
  )


@meshes.every
@pytest.mark.parametrize('name', METHODS)
def test_a_step_on_a_mesh_is_that_on_one_device(name, shape):
  program, arguments = compiled(shape, METHODS[name])
  assert_same_step(program(*arguments), on_one_device(name))


@pytest.mark.parametrize('layout', ['fsdp', 'replicated'])
def test_a_draft_may_be_laid_out_unlike_its_target(layout):
  program, arguments = compiled(
      (2, 2, 2), METHODS['on-policy'], layout, micro_batches=2
  )
  assert_same_step(program(*arguments), on_one_device('on-policy'))


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2)])
def test_a_validation_on_a_mesh_is_that_on_one_device(shape):
  def scores(shape):
    mesh = meshes.make(shape)
    draft, target = placed(config(), 0, mesh), placed(TARGET, 1, mesh)
    batches = [meshes.put(mesh, batch())]
    with jax.set_mesh(mesh):
      return (
          validation.loss(METHODS['on-policy'], target, draft, batches),
          validation.block_efficiency(target, draft, batches, DECODING),
      )

  (nats, blocks), (expected_nats, expected_blocks) = (
      scores(shape),
      scores((1, 1, 1)),
  )
  assert nats.value == pytest.approx(expected_nats.value, rel=1e-5)
  assert blocks == expected_blocks


def logits_that_move(program):
  """Exchanges of a chunk's logits [B, t, V]; kernels have two axes."""
  logits = re.compile(rf'\[\d+,\d+,{V}\]')
  return [
      shapes for _, shapes in meshes.exchanges(program) if logits.search(shapes)
  ]


@pytest.mark.parametrize(
    'shape, layout',
    [
        ((1, 8, 1), 'sharded'),
        ((1, 1, 8), 'sharded'),
        ((1, 1, 8), 'replicated'),
        ((2, 2, 2), 'fsdp'),
    ],
)
def test_logits_stay_where_they_are(shape, layout):
  program, _ = compiled(shape, METHODS['on-policy'], layout)
  assert not logits_that_move(program)


def test_logits_that_are_gathered_are_seen(monkeypatch):
  gathered = lambda x, *_: jax.lax.with_sharding_constraint(
      x, jax.sharding.PartitionSpec(None, None, None)
  )
  original = model_lib.Model.unembed
  monkeypatch.setattr(
      model_lib.Model,
      'unembed',
      lambda self, *args: gathered(original(self, *args)),
  )
  # `__wrapped__`: not the program that was compiled without the change.
  program, _ = compiled.__wrapped__((1, 1, 8), METHODS['fine-tuning'])
  assert logits_that_move(program)


def summed_in_full(program):
  """All-reduced gradients of the output layer and the embedding."""
  tables = re.compile(rf'f32\[({V},32|32,{V})\]')
  return [
      shapes
      for kind, shapes in meshes.exchanges(program)
      if kind == 'all-reduce' and tables.search(shapes)
  ]


def test_gradients_are_scattered_where_parameters_are_sharded():
  program, _ = compiled((1, 8, 1), METHODS['on-policy'])
  assert not summed_in_full(program)
  scattered = [
      shapes
      for kind, shapes in meshes.exchanges(program)
      if kind == 'reduce-scatter'
  ]
  # Of the output layer, and of the encoder's and the decoder's embedding.
  assert sum('f32[4,1024]' in shapes for shapes in scattered) == 1
  assert sum('f32[1024,4]' in shapes for shapes in scattered) >= 2


def test_gradients_that_are_summed_in_full_are_seen():
  program, _ = compiled((8, 1, 1), METHODS['on-policy'])
  assert summed_in_full(program)


@pytest.mark.parametrize('name', ['adafactor', 'adamw'])
def test_the_optimizer_is_sharded_like_its_parameters(name):
  mesh = meshes.make((1, 4, 2))
  network = transformer.Transformer(TARGET)
  params = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=sharding
      ),
      network.abstract(),
      network.shardings(mesh),
  )
  optimizer = optimizers.Optimizer(name=name).build(10)
  state = step_lib.abstract_state(params, optimizer, mesh)
  real = step_lib.initial_state(
      tiny.random_params(TARGET), optimizer, jax.random.key(0)
  )
  jax.tree.map(lambda a, b: a.update(shape=b.shape), state, real)
  assert jax.tree.structure(state) == jax.tree.structure(real)

  def sharded(tree):
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]

  kinds = {'adafactor': 1, 'adamw': 2}  # of arrays of a parameter's shape
  assert len(sharded(state.optimizer)) == kinds[name] * len(sharded(params))
