"""The samplers emit on any mesh what they emit on one device."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.distributed import layouts
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import speculative
from tests import meshes
from tests import tiny
from tests.sampling import pairs

V, B, S = 1024, 8, 6
SIZES = {'num_heads': 8, 'head_dim': 4, 'emb_dim': 32, 'mlp_dim': 64}
SOMETIMES = adaptive_length.Confidence(0.1)


@functools.cache
def target(**changes):
  return pairs.make(vocabulary=V, **SIZES, **changes)


@functools.cache
def draft(layout='sharded', **changes):
  """The target with noise, in a layout of its own."""
  config = dataclasses.replace(target(**changes).config, mask_token=2)
  network = transformer.Transformer(config, layouts.rules(layout))
  noisy = tiny.noisy(target(**changes), 0.3, seed=1)
  return model_lib.Model(noisy.params, network)


@functools.cache
def rows():
  """Prompts and keys."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, S + 1, B)[:, None]
  segments = (np.arange(S) < lengths).astype(np.int32)
  tokens = rng.integers(3, V, (B, S)).astype(np.int32) * segments
  keys = randomness.row_keys(jax.random.key(7), B)
  return types.Prompt(tokens, segments), keys


def place(mesh, model):
  shardings = model.network.shardings(mesh)
  return model.replace(params=jax.device_put(model.params, shardings))


def compiled(
    shape, temperature, layout='sharded', adaptive=None, parallel=False
):
  """The speculative program on a mesh, and its arguments."""
  mesh = meshes.make(shape)
  arguments = (
      place(mesh, target()),
      place(mesh, draft(layout)),
      *meshes.put(mesh, rows()),
  )
  decoding = pairs.decoding(
      temperature=temperature,
      max_new_tokens=12,
      length=3,
      adaptive=adaptive,
      parallel=parallel,
      eos_ids=(),
  )
  with jax.set_mesh(mesh):
    program = speculative.generate.lower(*arguments, decoding).compile()
  return program, arguments


@functools.cache
def on_one_device(temperature, adaptive=None, parallel=False):
  program, arguments = compiled(
      (1, 1, 1), temperature, adaptive=adaptive, parallel=parallel
  )
  return jax.device_get(program(*arguments))


def assert_same(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(actual), expected)


@meshes.every
@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_speculative_tokens_are_those_of_one_device(shape, temperature):
  program, arguments = compiled(shape, temperature)
  expected = on_one_device(temperature)
  assert len(set(expected.statistics.blocks.tolist())) > 1
  assert_same(program(*arguments), expected)


@pytest.mark.parametrize('shape', [(1, 1, 8), (2, 2, 2)])
@pytest.mark.parametrize('adaptive', [None, SOMETIMES])
def test_a_draft_may_be_replicated_on_every_device(shape, adaptive):
  program, arguments = compiled(shape, 1.0, 'replicated', adaptive)
  assert_same(program(*arguments), on_one_device(1.0, adaptive))


@pytest.mark.parametrize('layout', ['sharded', 'replicated'])
def test_a_parallel_draft_may_be_on_several_devices(layout):
  way = {'adaptive': SOMETIMES, 'parallel': True}
  program, arguments = compiled((2, 2, 2), 1.0, layout, **way)
  assert_same(program(*arguments), on_one_device(1.0, **way))


@pytest.mark.parametrize('layout, share', [('replicated', 1), ('sharded', B)])
def test_a_replicated_draft_drafts_a_share_of_the_rows(
    monkeypatch, layout, share
):
  original, seen = drafting._draft_block, []

  def spy(draft, tokens, *args):
    seen.append(tokens.shape[0])
    return original(draft, tokens, *args)

  monkeypatch.setattr(drafting, '_draft_block', spy)
  # Never stops; told apart from what is compiled already.
  never = adaptive_length.Confidence(0.0)
  program, _ = compiled((1, 1, 8), 1.0, layout, never)
  assert seen == [share]
  # What it drew from goes to the chips that have the target's logits.
  exchanges = meshes.exchanges(program)
  assert not any(f',{V}]' in shapes for _, shapes in exchanges)
  moved = [shapes for kind, shapes in exchanges if kind == 'all-to-all']
  assert any(f'1,3,1,{V // 8}]' in shapes for shapes in moved) == (share == 1)
  # The target's masks are computed where its rows are.
  assert not any(
      re.search(r'pred\[\d+,\d+,', shapes) for _, shapes in exchanges
  )


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1)])
def test_devices_with_rows_of_their_own_exchange_nothing(shape):
  program, _ = compiled(shape, 1.0, 'replicated', SOMETIMES)
  kinds = {kind for kind, _ in meshes.exchanges(program)}
  # The target's parameters, before the loop; where nothing is sharded, nothing.
  assert kinds == ({'all-gather'} if shape[1] > 1 else set())


@pytest.mark.parametrize(
    'layout, exchanges', [('replicated', False), ('sharded', True)]
)
def test_a_replicated_model_decodes_without_the_other_devices(
    layout, exchanges
):
  mesh = meshes.make((2, 1, 4))
  decoding = pairs.decoding(temperature=1.0, max_new_tokens=8)
  with jax.set_mesh(mesh):
    program = autoregressive.generate.lower(
        place(mesh, draft(layout)), *meshes.put(mesh, rows()), decoding
    ).compile()
  assert bool(meshes.exchanges(program)) == exchanges


def test_scanned_layers_are_not_taken_for_rows():
  mesh = meshes.make((2, 1, 4))
  changes = {'num_decoder_layers': 2, 'scan_layers': True}
  models = target(**changes), draft('replicated', **changes)
  decoding = pairs.decoding(length=3, max_new_tokens=8)
  expected = speculative.generate(*models, *rows(), decoding)
  with jax.set_mesh(mesh):
    actual = speculative.generate(
        *(place(mesh, model) for model in models),
        *meshes.put(mesh, rows()),
        decoding,
    )
  assert_same(actual, jax.device_get(expected))


def test_rows_that_the_mesh_does_not_divide():
  mesh = meshes.make((8, 1, 1))
  model = place(mesh, target())
  decoding = pairs.decoding(max_new_tokens=5)
  with jax.set_mesh(mesh):
    few = autoregressive.generate(
        model, *pairs.take(rows(), np.s_[:3]), decoding
    )
    all_of_them = autoregressive.generate(model, *rows(), decoding)
  np.testing.assert_array_equal(few.tokens, all_of_them.tokens[:3])
