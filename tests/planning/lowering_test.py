"""Bytes of a run, counted from shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from distillspec_jax.core import types
from distillspec_jax.models import model as model_lib
from distillspec_jax.planning import lowering
from distillspec_jax.training import settings
from tests.planning import tiny


def run(**of_training):
  return of(
      tiny.config({'decode_batch_size': 32}, batch_size=32, **of_training)
  )


def of(config):
  return lowering.Run(config, config.mesh)


def test_sharded_parameters_need_less():
  replicated, sharded = run(), run(sizes=(1, 4, 1))
  size = replicated.held_bytes()
  assert sharded.held_bytes()['target'] < size['target'] / 3
  params = jax.tree.leaves(replicated.config.draft_network.abstract())
  assert size['draft'] == sum(4 * x.size for x in params)
  assert size['target'] == size['draft'] / 2  # in bfloat16
  assert replicated.replicated_bytes() == 0  # there is nothing to shard over
  assert 0 < sharded.replicated_bytes() < sharded.held_bytes()['draft']


@pytest.mark.parametrize('paths', [1, 3])
def test_caches_are_counted_as_the_sampler_makes_them(paths):
  decoding = tiny.DECODING.replace(paths=paths)
  config = tiny.config({'decoding': decoding, 'decode_batch_size': 32})
  slots = 8 + 4 * paths + 1  # of outputs, of a block, and one more
  model = of(config).target
  inputs = jax.ShapeDtypeStruct((32, 16), jnp.int32)
  state, _ = jax.eval_shape(
      lambda model, inputs: model.prefill(types.Prompt(inputs, inputs), slots),
      model,
      inputs,
  )
  of_model = sum(
      x.size * x.dtype.itemsize
      for x in jax.tree.leaves((state.cache, state.cross))
  )
  # Target and draft are the same model; each of four chips has its rows.
  assert of(config).cache_bytes()['sampler'] == 2 * of_model // 4


def test_caches_are_laid_out_as_their_models_are():
  # Two heads are not sharded over four chips; the rows of a replicated draft
  # are.
  replicated = settings.Start(model=tiny.MODEL, layout='replicated')
  sharded = run(sizes=(1, 1, 4)).cache_bytes()['rollout']
  rows = run(sizes=(1, 1, 4), start=replicated).cache_bytes()['rollout']
  assert rows == sharded / 4
  assert run(sizes=(2, 1, 2)).cache_bytes()['rollout'] == sharded / 4


def test_recomputing_layers_keeps_less():
  kept = run().activation_bytes()
  full = settings.Start(model=tiny.MODEL, remat='full')
  assert 0 < run(start=full).activation_bytes() < kept / 2
  assert run(micro_batches=2).activation_bytes() == kept // 2


@pytest.mark.parametrize(
    'name', ['step', 'speculative', 'autoregressive', 'encoder']
)
def test_programs_are_lowered(name):
  """For the devices of this machine, which need not be TPUs."""
  config = tiny.config(sizes=(1, 1, 1))
  mesh = jax.make_mesh(
      (1, 1, 1),
      config.mesh.axis_names,
      axis_types=(jax.sharding.AxisType.Auto,) * 3,
      devices=jax.devices()[:1],
  )
  text = lowering.Run(config, mesh).lower(name).as_text(debug_info=True)
  # By these names `estimate` finds rollouts and the draft's loop.
  assert ('jit(generate)' in text) == (name != 'encoder')
  assert ('/draft_loop/while' in text) == (name == 'speculative')


def test_a_draft_may_read_the_targets_encoder_output():
  draft = dataclasses.replace(
      tiny.MODEL, num_encoder_layers=0, encoded_dim=tiny.MODEL.emb_dim
  )
  shared = of(tiny.config({'draft': draft}, batch_size=32))
  assert isinstance(shared.draft, model_lib.Model)
  assert shared.held_bytes()['draft'] < run().held_bytes()['draft']
  assert 0 < shared.activation_bytes() < run().activation_bytes()
