"""The samplers on any mesh say what they say on one device."""

import functools
import re

import jax
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.distributed import layouts
from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import speculative
from tests import meshes
from tests.sampling import pairs

V, B, S = 1024, 8, 6
SIZES = {'num_heads': 8, 'head_dim': 4, 'emb_dim': 32, 'mlp_dim': 64}
KEYS = 7


@functools.cache
def parameters():
  _, target = pairs.make(vocabulary=V, **SIZES)
  rng = np.random.default_rng(1)
  draft = jax.tree.map(
      lambda x: np.float32(x + 0.3 * np.std(x) * rng.standard_normal(x.shape)),
      target,
  )
  return target, draft


def inputs():
  rng = np.random.default_rng(0)
  segments = (np.arange(S) < rng.integers(1, S + 1, B)[:, None]).astype(
      np.int32
  )
  return rng.integers(3, V, (B, S)).astype(np.int32) * segments, segments


def compiled(shape, temperature, layout='split', draft_stop=None):
  """The speculative program on a mesh, and its arguments."""
  mesh = meshes.make(shape)
  target = pairs.make(vocabulary=V, **SIZES)[0]
  draft = transformer.Transformer(target.config, layouts.rules(layout))
  target_params, draft_params = parameters()
  keys = randomness.row_keys(jax.random.key(KEYS), B)
  arguments = (
      jax.device_put(target_params, target.shardings(mesh)),
      jax.device_put(draft_params, draft.shardings(mesh)),
      *meshes.put(mesh, (*inputs(), keys)),
  )
  decoding = decoding_lib.Decoding(
      temperature=temperature,
      max_new_tokens=12,
      block_length=3,
      draft_stop=draft_stop,
      eos_ids=(),
  )
  with jax.set_mesh(mesh):
    program = jax.jit(
        lambda t, d, *rows: speculative.generate(
            target, t, draft, d, *rows, decoding
        )
    )
    return program.lower(*arguments).compile(), arguments


@functools.cache
def on_one_device(temperature, draft_stop=None):
  program, arguments = compiled((1, 1, 1), temperature, draft_stop=draft_stop)
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
@pytest.mark.parametrize('draft_stop', [None, ('confidence', 0.1)])
def test_a_draft_may_be_whole_on_every_device(shape, draft_stop):
  program, arguments = compiled(shape, 1.0, 'whole', draft_stop)
  assert_same(program(*arguments), on_one_device(1.0, draft_stop))


@pytest.mark.parametrize('layout, share', [('whole', 1), ('split', B)])
def test_a_whole_draft_drafts_a_share_of_the_rows(monkeypatch, layout, share):
  original, seen = drafting._draft_block, []

  def spy(draft, decoding, vocabulary, whole, rows):
    seen.append(rows[0].shape[0])
    return original(draft, decoding, vocabulary, whole, rows)

  monkeypatch.setattr(drafting, '_draft_block', spy)
  never = ('confidence', 0.0)  # stops; told apart from what is compiled already
  program, _ = compiled((1, 1, 8), 1.0, layout, never)
  assert seen == [share]
  # What it drew from goes to the chips that have the target's columns.
  exchanges = meshes.exchanges(program)
  assert not any(f',{V}]' in made for _, made in exchanges)
  moved = [made for kind, made in exchanges if kind == 'all-to-all']
  assert any(f'1,3,1,{V // 8}]' in made for made in moved) == (share == 1)
  # The target's masks are made where its rows are.
  assert not any(re.search(r'pred\[\d+,\d+,', made) for _, made in exchanges)


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1)])
def test_devices_with_rows_of_their_own_exchange_nothing(shape):
  program, _ = compiled(shape, 1.0, 'whole', ('confidence', 0.1))
  kinds = {kind for kind, _ in meshes.exchanges(program)}
  # The target's parameters, before the loop; where nothing is split, nothing.
  assert kinds == ({'all-gather'} if shape[1] > 1 else set())


@pytest.mark.parametrize(
    'layout, exchanges', [('whole', False), ('split', True)]
)
def test_a_whole_draft_drafts_without_the_others(layout, exchanges):
  target = pairs.make(vocabulary=V, **SIZES)[0]
  draft = transformer.Transformer(target.config, layouts.rules(layout))
  mesh = meshes.make((2, 1, 4))
  params = jax.device_put(parameters()[1], draft.shardings(mesh))
  rows = meshes.put(
      mesh, (*inputs(), randomness.row_keys(jax.random.key(0), B))
  )
  decoding = decoding_lib.Decoding(temperature=1.0, max_new_tokens=8)
  with jax.set_mesh(mesh):
    program = autoregressive.generate.lower(
        draft, params, *rows, decoding
    ).compile()
  assert bool(meshes.exchanges(program)) == exchanges


def test_scanned_layers_are_not_taken_for_rows():
  mesh = meshes.make((2, 1, 4))
  sizes = {**SIZES, 'num_decoder_layers': 2, 'scan_layers': True}
  target, target_params = pairs.make(vocabulary=V, **sizes)
  _, draft_params = pairs.make(vocabulary=V, seed=1, **sizes)
  draft = transformer.Transformer(target.config, layouts.rules('whole'))
  rows = (*inputs(), randomness.row_keys(jax.random.key(KEYS), B))
  decoding = decoding_lib.Decoding(block_length=3, max_new_tokens=8)
  expected = speculative.generate(
      target, target_params, draft, draft_params, *rows, decoding
  )
  with jax.set_mesh(mesh):
    actual = speculative.generate(
        target,
        jax.device_put(target_params, target.shardings(mesh)),
        draft,
        jax.device_put(draft_params, draft.shardings(mesh)),
        *meshes.put(mesh, rows),
        decoding,
    )
  assert_same(actual, jax.device_get(expected))


def test_rows_that_the_mesh_does_not_divide():
  mesh = meshes.make((8, 1, 1))
  model, params = pairs.make(vocabulary=V, **SIZES)
  params = jax.device_put(params, model.shardings(mesh))
  decoding = decoding_lib.Decoding(max_new_tokens=5)
  rows = (*inputs(), randomness.row_keys(jax.random.key(0), B))
  some = jax.tree.map(lambda x: x[:3], rows)
  with jax.set_mesh(mesh):
    few = autoregressive.generate(model, params, *some, decoding)
    all_of_them = autoregressive.generate(model, params, *rows, decoding)
  np.testing.assert_array_equal(few.tokens, all_of_them.tokens[:3])
