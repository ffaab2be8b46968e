"""Several paths in one cache are what each of them is alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import types
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
  """A prompt, common tokens, paths int32[B, G, K], and what follows them."""
  rng = np.random.default_rng(1)
  segments = np.arange(S) < np.array([S, 3, 1, 5, 0])[:, None]
  draw = lambda *shape: rng.integers(2, V, (B, *shape)).astype(np.int32)
  inputs = draw(S) * segments
  return (
      types.Prompt(inputs, segments.astype(np.int32)),
      draw(COMMON.max()),
      draw(G, K),
      draw(AFTER),
  )


@jax.jit
def common_state(model):
  """The state after all common tokens but the last, and the last."""
  prompt, common, _, _ = batch()
  state, context = model.prefill(prompt, COMMON.max() + 1 + G * K + AFTER)
  last = jnp.take_along_axis(context.tokens, context.length[:, None] - 1, 1)
  _, state = model.extend(state, jnp.concatenate([last, common], 1))
  last = np.take_along_axis(common, COMMON[:, None] - 1, 1)
  return model.rollback(state, context.length + COMMON - 1), last


@jax.jit
def append(model, state, tokens):
  hidden, state = model.extend(state, tokens)
  return model.unembed(hidden), state


@functools.cache
def alone(name):
  """Each path in a cache of its own: logits before it and after its tokens.

  Returns:
    float32[K, B, 1 + G + AFTER, V] and the caches.
  """
  model = make(name)
  *_, paths, later = batch()
  state, last = common_state(model)
  logits, caches = [], []
  for k in range(K):
    tokens = np.concatenate([last, paths[..., k], later], axis=1)
    own_logits, own = append(model, state, tokens)
    logits.append(own_logits)
    caches.append(own.cache)
  return np.stack(logits), caches


PATH = np.array([2, 0, 1, 1, 0], np.int32)  # of each row, the one that is kept


def together(name, by_depth=False):
  """All paths in one cache, then one of them continues.

  Returns:
    Logits float32[B, 1 + G * K, V] of the block, float32[B, AFTER, V] of what
    follows, and the state before that.
  """
  model = make(name)
  *_, paths, later = batch()

  @jax.jit  # a new function, so that no program compiled before is reused
  def run(model, state, last):
    slots = path_slots.PathSlots(state.length + 1, K)
    blocks = [jnp.concatenate([last, paths.reshape(B, G * K)], axis=1)]
    if by_depth:
      blocks = [last, *np.swapaxes(paths, 0, 1)]
    logits = []
    for tokens in blocks:
      hidden, state = model.extend(state, tokens, slots)
      logits.append(model.unembed(hidden))
    kept = model.keep_path(state, slots, PATH, G)
    return jnp.concatenate(logits, 1), kept

  block, state = run(model, *common_state(model))
  return block, append(model, state, later)[0], state


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
  monkeypatch.setattr(
      path_slots.PathSlots, 'positions', lambda self, slots: slots
  )


def other_paths_are_visible(monkeypatch):
  monkeypatch.setattr(
      path_slots.PathSlots,
      'visible',
      lambda self, queries, keys: keys[:, None, :] <= queries[:, :, None],
  )


def the_first_path_is_kept(monkeypatch):
  slots = path_slots.PathSlots.slots
  monkeypatch.setattr(
      path_slots.PathSlots,
      'slots',
      lambda self, path, size: slots(self, 0 * path, size),
  )


@pytest.mark.parametrize(
    'mutate, is_in_block',
    [
        (positions_by_slot, True),
        (other_paths_are_visible, True),
        (the_first_path_is_kept, False),
    ],
)
def test_mutated_slots_give_other_logits(mutate, is_in_block, monkeypatch):
  mutate(monkeypatch)
  block, later = differences('decoder_only')
  assert (block > 0.01) == is_in_block
  assert later > 0.01


def test_one_path_takes_consecutive_slots():
  one = path_slots.PathSlots(jnp.array([3, 5]), 1)
  slots = jnp.array([[2, 3, 4], [5, 6, 7]])
  keys = jnp.arange(9)[None]
  np.testing.assert_array_equal(one.positions(slots), slots)
  np.testing.assert_array_equal(
      one.visible(slots, keys), keys[:, None] <= slots[:, :, None]
  )
  np.testing.assert_array_equal(
      one.slots(jnp.zeros(2, jnp.int32), 3), [[3, 4, 5], [5, 6, 7]]
  )
