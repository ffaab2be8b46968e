"""Several paths in one cache are what each of them is alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.models import path_slots
from tests import tiny

V, S, K, G, AFTER = tiny.V, 7, 3, 4, 3
# Tokens in common, row by row; on both sides of the largest distance, 128.
COMMON = np.array([139, 1, 60, 127, 130])
B = len(COMMON)

CONFIGS = {
    'encoder_decoder': {},
    'decoder_only': {'num_encoder_layers': 0},
    'scanned': {'scan_layers': True},
    'scanned_decoder_only': {'scan_layers': True, 'num_encoder_layers': 0},
    'bias_per_layer': {'relative_bias_per_layer': True},
    'scanned_bias_per_layer': {
        'relative_bias_per_layer': True,
        'scan_layers': True,
    },
}


def make(name):
  return tiny.model(V, **{'num_decoder_layers': 2, **CONFIGS[name]})


@functools.cache
def batch():
  """Inputs, segments, common tokens, paths int32[B, G, K], what follows."""
  rng = np.random.default_rng(1)
  segments = np.arange(S) < np.array([S, 3, 1, 5, 0])[:, None]
  draw = lambda *shape: rng.integers(2, V, (B, *shape)).astype(np.int32)
  inputs = draw(S) * segments
  return (
      inputs,
      segments.astype(np.int32),
      draw(COMMON.max()),
      draw(G, K),
      draw(AFTER),
  )


@functools.partial(jax.jit, static_argnums=0)
def common_state(model, params):
  """The state after all common tokens but the last, and the last."""
  inputs, segments, common, _, _ = batch()
  state, prefix = model.prefill(
      params, inputs, segments, COMMON.max() + 1 + G * K + AFTER
  )
  last = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)
  _, state = model.extend(params, state, jnp.concatenate([last, common], 1))
  last = np.take_along_axis(common, COMMON[:, None] - 1, 1)
  return model.rollback(state, prefix.length + COMMON - 1), last


@functools.partial(jax.jit, static_argnums=0)
def append(model, params, state, tokens):
  hidden, state = model.extend(params, state, tokens)
  return model.unembed(params, hidden), state


@functools.cache
def alone(name):
  """Each path in a cache of its own: logits before it and after its tokens.

  Returns:
    float32[K, B, 1 + G + AFTER, V] and the caches.
  """
  model, params = make(name)
  *_, paths, later = batch()
  state, last = common_state(model, params)
  logits, caches = [], []
  for k in range(K):
    tokens = np.concatenate([last, paths[..., k], later], axis=1)
    own_logits, own = append(model, params, state, tokens)
    logits.append(own_logits)
    caches.append(own.cache)
  return np.stack(logits), caches


PATH = np.array([2, 0, 1, 1, 0], np.int32)  # of each row, the one that goes on


def together(name, by_depth=False):
  """All paths in one cache, then one of them goes on.

  Returns:
    Logits float32[B, 1 + G * K, V] of the block, float32[B, AFTER, V] of what
    follows, and the state before that.
  """
  model, params = make(name)
  *_, paths, later = batch()

  @jax.jit  # afresh, so that nothing compiled before is used again
  def run(params, state, last):
    fork = path_slots.Fork(state.length + 1, K)
    blocks = [jnp.concatenate([last, paths.reshape(B, G * K)], axis=1)]
    if by_depth:
      blocks = [last, *np.swapaxes(paths, 0, 1)]
    logits = []
    for tokens in blocks:
      hidden, state = model.extend(params, state, tokens, fork)
      logits.append(model.unembed(params, hidden))
    return jnp.concatenate(logits, 1), model.keep(state, fork, PATH, G)

  block, state = run(params, *common_state(model, params))
  return block, append(model, params, state, later)[0], state


def as_in_a_block(logits):
  """The block's logits float32[B, 1 + G * K, V] of paths alone."""
  after = np.moveaxis(logits[:, :, 1 : G + 1], 0, 2)  # [B, G, K, V]
  return np.concatenate([logits[0, :, :1], after.reshape(B, G * K, V)], axis=1)


def differences(name, by_depth=False):
  """Largest differences of the block's logits, and of those that follow."""
  expected, _ = alone(name)
  block, later, _ = together(name, by_depth)
  assert expected.std() > 0.3  # the comparison compares something
  follows = expected[PATH, np.arange(B), G + 1 :]
  return (
      np.abs(block - as_in_a_block(expected)).max(),
      np.abs(later - follows).max(),
  )


@pytest.mark.parametrize('name', CONFIGS)
def test_paths_together_have_the_logits_of_each_alone(name):
  block, later = differences(name)
  assert block < 1e-5
  assert later < 1e-5


@pytest.mark.parametrize('name', ['encoder_decoder', 'scanned_decoder_only'])
def test_paths_can_grow_one_token_at_a_time(name):
  block, later = differences(name, by_depth=True)
  assert block < 1e-5
  assert later < 1e-5


@pytest.mark.parametrize('name', ['decoder_only', 'scanned'])
def test_what_is_kept_is_the_cache_of_the_path_alone(name):
  _, caches = alone(name)
  *_, state = together(name)
  for leaf, *leaves in zip(*map(jax.tree.leaves, (state.cache, *caches))):
    for row, (path, length) in enumerate(zip(PATH, state.length)):
      place = np.s_[..., row, :, :length, :]
      np.testing.assert_allclose(leaf[place], leaves[path][place], atol=1e-5)


def positions_by_slot(monkeypatch):
  monkeypatch.setattr(path_slots.Fork, 'positions', lambda fork, slots: slots)


def all_that_is_before_is_seen(monkeypatch):
  monkeypatch.setattr(
      path_slots.Fork,
      'visible',
      lambda fork, queries, keys: keys[:, None, :] <= queries[:, :, None],
  )


def the_first_path_is_kept(monkeypatch):
  slots = path_slots.Fork.slots
  monkeypatch.setattr(
      path_slots.Fork,
      'slots',
      lambda fork, path, size: slots(fork, 0 * path, size),
  )


@pytest.mark.parametrize(
    'mutate, is_in_block',
    [
        (positions_by_slot, True),
        (all_that_is_before_is_seen, True),
        (the_first_path_is_kept, False),
    ],
)
def test_a_mutated_fork_has_other_logits(mutate, is_in_block, monkeypatch):
  mutate(monkeypatch)
  block, later = differences('decoder_only')
  assert (block > 0.01) == is_in_block
  assert later > 0.01


def test_one_path_is_no_fork():
  fork = path_slots.Fork(jnp.array([3, 5]), 1)
  slots = jnp.array([[2, 3, 4], [5, 6, 7]])
  keys = jnp.arange(9)[None]
  np.testing.assert_array_equal(fork.positions(slots), slots)
  np.testing.assert_array_equal(
      fork.visible(slots, keys), keys[:, None] <= slots[:, :, None]
  )
  np.testing.assert_array_equal(
      fork.slots(jnp.zeros(2, jnp.int32), 3), [[3, 4, 5], [5, 6, 7]]
  )
