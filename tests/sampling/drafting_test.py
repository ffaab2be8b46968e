"""Drafting: the draft's own continuation, and no step more than is needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.distributed import layouts
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import warping
from tests.sampling import pairs

B, L, V, BLOCK = pairs.B, pairs.L, pairs.V, 4


# A single block.


@functools.partial(jax.jit, static_argnums=1)
def first_block(draft, decoding, done):
  """The block that follows the context of each prompt."""
  state, context = draft.prefill(pairs.prompt(), BLOCK)
  _, block = drafting.draft_block(
      draft,
      state,
      jnp.pad(context.tokens, ((0, 0), (0, 1))),
      context.length,
      jnp.zeros(B, jnp.int32),
      done,
      pairs.keys_of(),
      decoding,
      controls_lib.NO_CONTROLS,
      V,
  )
  return block


def forced_logits(draft, tokens):
  """Teacher-forced logits float32[B, G, V] of blocks int32[B, G]."""
  segments = jnp.ones_like(tokens)
  return jax.jit(lambda model, prompt, tokens: model.logits(
      prompt, model_lib.shift_right(tokens, segments), segments
  ))(draft, pairs.prompt(), tokens)  # fmt: skip


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_greedy_block_is_the_drafts_own_continuation(kind):
  block = first_block(
      pairs.make(kind), pairs.decoding(length=BLOCK), jnp.zeros(B, bool)
  )
  free = autoregressive.generate(
      pairs.make(kind), pairs.prompt(), pairs.keys_of(),
      pairs.decoding(max_new_tokens=BLOCK, eos_ids=()),
  )  # fmt: skip
  np.testing.assert_array_equal(block.tokens, free.tokens)
  assert block.logits is None and block.lengths is None
  assert block.is_finite.all() and (block.count == BLOCK).all()


def test_a_sampled_block_comes_with_the_logits_that_it_was_drawn_from():
  decoding = pairs.decoding(temperature=0.7, top_k=9, length=BLOCK)
  draft = pairs.make('decoder_only')
  block = first_block(draft, decoding, jnp.zeros(B, bool))
  expected = warping.warp(forced_logits(draft, block.tokens), decoding.sampling)
  np.testing.assert_allclose(block.logits, expected, atol=1e-4)
  drawn = np.take_along_axis(
      np.asarray(block.logits), np.asarray(block.tokens)[..., None], axis=-1
  )
  assert np.isfinite(drawn).all()
  assert (np.isfinite(block.logits).sum(-1) == 9).all()


def test_a_block_ends_after_the_first_token_that_is_unsure():
  draft, rule = pairs.make('decoder_only'), adaptive_length.Entropy(3.25)
  decoding = pairs.decoding(length=BLOCK, adaptive=rule)
  done = jnp.arange(B) == 1
  block = first_block(draft, decoding, done)
  sure = np.asarray(rule.continues(forced_logits(draft, block.tokens)))
  before = np.cumprod(sure[:, :-1], axis=1).sum(axis=1)
  expected = np.where(done, 1, 1 + before)
  np.testing.assert_array_equal(block.lengths, expected)
  np.testing.assert_array_equal(block.count, expected)
  assert len(set(expected[~np.asarray(done)])) > 1


def test_depths_are_those_of_interleaved_paths():
  depths = drafting.depths(
      pairs.decoding(length=2, paths=3).drafting
  )  # the last emitted token, then two tokens of three paths
  np.testing.assert_array_equal(depths, [0, 1, 1, 1, 2, 2, 2])


# In the loop.


@pytest.mark.parametrize('adaptive', ['confidence(0.2)', 'entropy(3)'])
def test_greedy_tokens_are_the_targets(adaptive):
  expected = pairs.greedy_reference('encoder_decoder')
  decoding = pairs.decoding(
      length=BLOCK, adaptive=adaptive_length.parse(adaptive)
  )
  for scale in (0.0, 0.1, 0.3):
    samples = speculative.generate(
        pairs.make(), pairs.noisy(scale=scale), pairs.prompt(),
        pairs.keys_of(), decoding,
    )  # fmt: skip
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    counts = jax.tree.map(np.asarray, samples.statistics)
    pairs.check_statistics(samples, decoding)
    # Some blocks are short, and some are not.
    assert (counts.drafted > counts.blocks).any()
    assert (counts.drafted < BLOCK * counts.blocks).any()
    if not scale:  # all that is drafted is accepted
      np.testing.assert_array_equal(counts.accepted_at, counts.reached_at)


def draft_steps(threshold, monkeypatch):
  """Calls of the draft, and the statistics, of a greedy run of one row."""
  noisy = pairs.noisy(scale=0.1)
  # Told apart from the target by its layout.
  network = transformer.Transformer(noisy.config, layouts.rules('replicated'))
  draft, calls = noisy.replace(network=network), []
  extend = model_lib.Model.extend

  def counted(self, *args):
    if self.network == network:
      jax.debug.callback(lambda: calls.append(1))
    return extend(self, *args)

  monkeypatch.setattr(model_lib.Model, 'extend', counted)
  decoding = pairs.decoding(
      length=BLOCK, adaptive=adaptive_length.Confidence(threshold)
  )
  samples = pairs.fresh()(
      pairs.make(), draft, pairs.prompt(1), pairs.keys_of(1), decoding
  )
  jax.block_until_ready(samples)
  jax.effects_barrier()
  return len(calls), samples.statistics


def test_no_step_is_made_for_what_is_not_drafted(monkeypatch):
  steps, counts = draft_steps(0.2, monkeypatch)
  assert steps == int(counts.drafted[0])  # of one row
  blocks = int(counts.blocks[0])
  assert blocks < steps < BLOCK * blocks


def test_a_draft_that_is_never_sure_makes_one_step_per_block(monkeypatch):
  steps, counts = draft_steps(1.0, monkeypatch)
  assert steps == int(counts.blocks[0]) == int(counts.drafted[0])
