"""Masks after several prefixes, in one pass, against one pass for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.models import mask_chains
from tests import tiny

B, S, T, MASK = 3, 6, 24, 2
SIZES = (4, 3, 1)  # of four chains three have a second mask, one a third
KINDS = {
    'encoder_decoder': {},
    'decoder_only': {'num_encoder_layers': 0},
    'scanned': {'scan_layers': True, 'remat': 'full'},
    'bias_per_layer': {'relative_bias_per_layer': True, 'remat': 'dots'},
}


@functools.cache
def ragged():
  """A prompt of several lengths, decoder inputs, and anchors."""
  rng = np.random.default_rng(1)
  segments = (np.arange(S) < np.array([S, 3, 1])[:, None]).astype(np.int32)
  inputs = rng.integers(3, tiny.V, (B, S)).astype(np.int32) * segments
  tokens = rng.integers(3, tiny.V, (B, T)).astype(np.int32)
  tokens[:, 0] = 0
  anchors = np.array([[0, T - 1, 7, 20], [3, 2, 1, 9], [22, 0, 5, 6]], np.int32)
  return types.Prompt(inputs, segments), tokens, anchors


@jax.jit
def together(model, prompt):
  _, tokens, anchors = ragged()
  chains = mask_chains.MaskChains(jnp.asarray(anchors), SIZES)
  return model.hidden(prompt, tokens, jnp.ones_like(tokens), None, chains)


@jax.jit
def alone(model, prompt, anchors):
  """float[B, G, D]: hidden states at the anchor of each row and its masks."""
  tokens = jnp.pad(ragged()[1], ((0, 0), (0, len(SIZES))))
  hidden = tiny.hidden_at_masks(model, prompt, tokens, anchors[:, None])
  at = anchors[:, None] + jnp.arange(len(SIZES) + 1)[None]
  return jnp.take_along_axis(hidden, at[..., None], axis=1)


def check(model, prompt):
  actual = np.asarray(together(model, prompt))
  anchors = ragged()[2]
  assert actual.shape[1] == T + sum(SIZES)
  first = T
  by_depth = []
  for size in SIZES:
    by_depth.append(actual[:, first : first + size])
    first += size
  for chain in range(SIZES[0]):
    at = anchors[:, chain]
    expected = np.asarray(alone(model, prompt, at))
    text = np.take_along_axis(actual, at[:, None, None], axis=1)[:, 0]
    np.testing.assert_allclose(text, expected[:, 0], atol=1e-5)
    for depth, size in enumerate(SIZES):
      if chain < size:
        np.testing.assert_allclose(
            by_depth[depth][:, chain], expected[:, depth + 1], atol=1e-5
        )
  # The twin: what stands elsewhere is something else.
  assert np.abs(by_depth[0][:, 0] - by_depth[0][:, 1]).max() > 0.1


@pytest.mark.parametrize('kind', KINDS)
def test_masks_see_their_own_prefix_and_chain(kind):
  model = tiny.model(num_decoder_layers=2, mask_token=MASK, **KINDS[kind])
  check(model, ragged()[0])


def test_masks_of_a_draft_that_shares_its_encoder():
  model = tiny.model(mask_token=MASK)
  prompt = ragged()[0]
  check(tiny.sharing(model), prompt._replace(encoded=model.encode(prompt)))


def test_packed_texts_see_the_masks_prefix_alone():
  model = tiny.model(mask_token=MASK)
  prompt, tokens, _ = ragged()
  segments = jnp.asarray(np.repeat([[1, 2]], T // 2, axis=1).repeat(B, 0))
  anchors = jnp.full((B, 1), T - 1, jnp.int32)
  hidden = jax.jit(
      lambda tokens: model.hidden(
          prompt._replace(segments=2 * prompt.segments), tokens, segments, None,
          mask_chains.MaskChains(anchors, (1,)),
      )[:, -1]
  )  # fmt: skip
  other = np.array(tokens)
  other[:, : T // 2] = 5
  np.testing.assert_array_equal(hidden(tokens), hidden(other))
  other[:, T // 2 :] = 5
  assert np.abs(hidden(tokens) - hidden(other)).max() > 0.1


def test_a_model_without_a_mask_token_is_refused():
  with pytest.raises(
      errors.UserError, match='needs a mask token, but the model'
  ):
    together(tiny.model(), ragged()[0])
  state, _ = tiny.model().prefill(ragged()[0], 4)
  ones = jnp.ones((B, 2), jnp.int32)
  with pytest.raises(errors.UserError, match='needs a mask token'):
    tiny.model().extend(state, ones, depths=ones)
