"""Parallel drafts: what they propose, and that nothing else changes by them.

A draft that proposes a whole block from masks is compared, block by block, with
its own teacher-forced logits of the text so far followed by masks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from tests import tiny
from tests.sampling import enumeration
from tests.sampling import pairs

B, L, V, G, MASK = pairs.B, pairs.L, pairs.V, 3, 2
FALSE_ALARM = enumeration.FALSE_ALARM


def masked(model, token=MASK):
  """The model with a mask token; nothing has trained it for that."""
  return tiny.changed(model, model.params, mask_token=token)


# Single blocks.


@functools.partial(jax.jit, static_argnums=6)
def draft_block(
    draft, state, tokens, total, position, done, decoding, controls
):
  return drafting.draft_block(
      draft, state, tokens, total, position, done, pairs.keys_of(), decoding,
      controls, V,
  )  # fmt: skip


@jax.jit
def forced_logits(draft, prompt, tokens, total):
  """float32[B, G, V] after the text so far and 0, 1, .. G - 1 masks."""
  if draft.config.is_decoder_only:  # the context holds the prompt
    empty = jnp.zeros((B, 0), jnp.int32)
    prompt = types.Prompt(empty, empty)
  hidden = tiny.hidden_at_masks(draft, prompt, tokens, total[:, None] - 1)
  rows = jnp.arange(B)[:, None]
  at = total[:, None] - 1 + jnp.arange(G)[None]
  return draft.all_logits(hidden[rows, at])


DRAFTS = {
    'encoder-decoder': lambda: pairs.make(),
    'decoder-only': lambda: pairs.make('decoder_only'),
    'scanned layers': lambda: pairs.make(
        num_decoder_layers=2, scan_layers=True, relative_bias_per_layer=True
    ),
    'shared encoder': lambda: tiny.sharing(pairs.make()),
    'trimmed vocabulary': lambda: tiny.trimmed(
        pairs.make(), (0, 1, *range(3, V, 2))
    ),
}


@pytest.mark.parametrize('kind', DRAFTS)
def test_each_block_is_predicted_from_the_text_and_masks(kind):
  draft = masked(DRAFTS[kind]())
  prompt = model_lib.with_shared_encoding(pairs.prompt(), pairs.make(), draft)
  decoding = pairs.decoding(temperature=1.0, length=G, parallel=True)
  rng = np.random.default_rng(0)
  state, context = jax.jit(model_lib.Model.prefill, static_argnums=2)(
      draft, prompt, L + G + 1
  )
  # Any text will do: what the draft should have read is what is there.
  tokens = rng.integers(2, V, (B, context.tokens.shape[1] + L + G + 1))
  tokens[:, : context.tokens.shape[1]] = context.tokens
  tokens, total = jnp.asarray(tokens, jnp.int32), np.asarray(context.length)
  added = [rng.permutation(np.arange(B) % (G + 1)) + 1 for _ in range(4)]
  # Full acceptance and none take turns, as do their opposites.
  for i, count in enumerate([*added, np.full(B, G + 1), np.full(B, 1)]):
    text = np.where(np.arange(tokens.shape[1]) < total[:, None], tokens, 0)
    state, block = draft_block(
        draft, state, jnp.asarray(text), jnp.asarray(total),
        jnp.asarray(total - np.asarray(context.length)), jnp.zeros(B, bool),
        decoding, controls_lib.NO_CONTROLS,
    )  # fmt: skip
    expected = forced_logits(draft, prompt, tokens, jnp.asarray(total))
    np.testing.assert_allclose(block.logits, expected, atol=1e-4, err_msg=i)
    np.testing.assert_array_equal(state.length, total)
    drawn = np.take_along_axis(
        np.asarray(block.logits), np.asarray(block.tokens)[..., None], axis=-1
    )
    assert np.isfinite(drawn).all() and block.is_finite.all()
    total = total + count
  assert len(set(np.asarray(block.tokens).ravel())) > 5


def first_block(decoding, done=False, **controls):
  """The block after each prompt, and the logits that it should come from."""
  draft, prompt = masked(pairs.make('decoder_only')), pairs.prompt()
  state, context = draft.prefill(prompt, G + 1)
  tokens = jnp.pad(context.tokens, ((0, 0), (0, G + 1)))
  _, block = draft_block(
      draft, state, tokens, context.length, jnp.zeros(B, jnp.int32),
      jnp.zeros(B, bool) | done, decoding, controls_lib.Controls(**controls),
  )  # fmt: skip
  return block, forced_logits(draft, prompt, tokens, context.length)


def test_a_greedy_block_is_of_the_most_likely_tokens():
  block, logits = first_block(pairs.decoding(length=G, parallel=True))
  np.testing.assert_array_equal(block.tokens, np.argmax(logits, axis=-1))
  assert block.logits is None and block.lengths is None
  assert (block.count == G).all()


def test_no_position_proposes_an_early_end():
  eos = 7
  least = jnp.arange(B, dtype=jnp.int32) % (G + 2)
  block, logits = first_block(
      pairs.decoding(temperature=1.0, length=G, eos_ids=(eos,), parallel=True),
      min_new_tokens=least,
  )
  is_early = np.arange(G)[None] < np.asarray(least)[:, None]
  assert is_early.any() and not is_early.all()
  of_eos = np.asarray(block.logits)[..., eos]
  np.testing.assert_array_equal(of_eos == -np.inf, is_early)
  np.testing.assert_allclose(
      of_eos[~is_early], logits[..., eos][~is_early], atol=1e-4
  )


def test_an_adaptive_block_ends_after_the_first_token_that_is_unsure():
  rule = adaptive_length.Entropy(3.25)
  done = jnp.arange(B) == 1
  block, logits = first_block(
      pairs.decoding(length=G, adaptive=rule, parallel=True), done
  )
  sure = np.asarray(rule.continues(logits))
  before = np.cumprod(sure[:, :-1], axis=1).sum(axis=1)
  expected = np.where(done, 1, 1 + before)
  np.testing.assert_array_equal(block.lengths, expected)
  np.testing.assert_array_equal(block.count, expected)
  assert len(set(expected[~np.asarray(done)])) > 1


# In the loop: greedy, the target's tokens.


def generate(kind, draft, decoding, **settings):
  return speculative.generate(
      pairs.make(kind), draft, pairs.prompt(), pairs.keys_of(), decoding,
      **settings,
  )  # fmt: skip


@pytest.mark.parametrize('block', [1, 5, L])
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_tokens_are_the_targets(kind, block):
  decoding = pairs.decoding(length=block, parallel=True)
  samples = generate(kind, masked(pairs.make(kind)), decoding)
  expected = pairs.greedy_reference(kind)
  np.testing.assert_array_equal(samples.tokens, expected.tokens)
  np.testing.assert_array_equal(samples.lengths, expected.lengths)
  pairs.check_statistics(samples, decoding)
  # The first of a block is an ordinary prediction of the target itself.
  counts = samples.statistics
  np.testing.assert_array_equal(
      counts.accepted_at[:, 0], counts.reached_at[:, 0]
  )


def test_blocks_of_one_are_those_of_any_draft():
  draft = masked(pairs.noisy())
  decoding = pairs.decoding(temperature=1.0, length=1)
  samples, expected = (
      generate('encoder_decoder', draft, decoding.replace(parallel=x))
      for x in (True, False)
  )
  np.testing.assert_array_equal(samples.tokens, expected.tokens)
  np.testing.assert_array_equal(samples.origins, expected.origins)


def test_with_limits_stops_and_log_probabilities_tokens_are_the_targets():
  draft = masked(tiny.trimmed(pairs.noisy(), (0, 1, 5, *range(6, V, 2))))
  decoding = pairs.decoding(
      length=4, parallel=True, eos_ids=(1, 5), log_probs=True,
      adaptive=adaptive_length.Entropy(2.0),
  )  # fmt: skip
  settings = {
      'controls': controls_lib.Controls(
          min_new_tokens=jnp.arange(B, dtype=jnp.int32),
          max_new_tokens=L - jnp.arange(B, dtype=jnp.int32),
      ),
  }
  samples = generate('encoder_decoder', draft, decoding, **settings)
  expected = autoregressive.generate(
      pairs.make(), pairs.prompt(), pairs.keys_of(), decoding, **settings
  )
  np.testing.assert_array_equal(samples.tokens, expected.tokens)
  np.testing.assert_allclose(samples.log_probs, expected.log_probs, atol=1e-5)
  assert (np.asarray(samples.nonfinite_at) == -1).all()


# Sampled: the target's distribution.


@functools.cache
def small_draft(token=MASK):
  return masked(pairs.small_pair()[1], token)


@pytest.mark.parametrize(
    'name, block, verifier, adaptive, mask',
    [
        ('plain', 2, 'token', None, MASK),
        ('plain', 3, 'block', None, MASK),
        ('top_p', 3, 'block', 'confidence(0.3)', 3),
        ('top_k', 2, 'token', 'entropy(1.8)', MASK),
    ],
)
def test_samples_have_the_targets_distribution(
    name, block, verifier, adaptive, mask
):
  decoding = pairs.small_decoding(
      name, length=block, verifier=verification.parse(verifier), parallel=True,
      adaptive=adaptive and adaptive_length.parse(adaptive),
  )  # fmt: skip
  samples = pairs.speculate(decoding, draft=small_draft(mask))
  pairs.check_statistics(samples, decoding)
  histogram = pairs.accepted_histogram(samples.statistics)
  assert (histogram > pairs.ROWS / 100).all()
  if adaptive:
    counts = samples.statistics
    share = counts.drafted.sum() / counts.blocks.sum() / block
    assert 0.5 < share < 0.95  # some blocks are short, and some are not
  distribution = pairs.exact_distribution(decoding)
  assert pairs.p_value(samples.tokens, distribution) > FALSE_ALARM


def test_so_have_samples_of_an_int8_draft():
  pytest.importorskip(
      'qwix', reason="needs qwix: pip install 'distillspec_jax[int8]'"
  )
  decoding = pairs.small_decoding(length=2, parallel=True)
  draft = tiny.quantized(small_draft())
  samples = pairs.speculate(decoding, draft=draft)
  pairs.check_statistics(samples, decoding)
  distribution = pairs.exact_distribution(decoding)
  assert pairs.p_value(samples.tokens, distribution) > FALSE_ALARM


class LogitsOfAnotherPosition(verification.Token):
  """Judges each token by the distribution of the one before it."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    q_logits = jnp.roll(q_logits, 1, axis=1)
    return super().sampled(keys, drafted, q_logits, p_logits, lengths)


def test_logits_of_another_position_are_caught():
  decoding = pairs.small_decoding(
      length=2, parallel=True, verifier=LogitsOfAnotherPosition()
  )
  samples = pairs.speculate(decoding, draft=small_draft())
  distribution = pairs.exact_distribution(decoding)
  assert pairs.p_value(samples.tokens, distribution) < FALSE_ALARM


def test_tokens_of_a_block_are_independent_given_the_text():
  """The second token's distribution does not depend on the first one."""
  draft, keys = small_draft(), pairs.keys_of(pairs.ROWS)
  prompt, rows = pairs.small_prompt(), pairs.ROWS
  decoding = pairs.small_decoding(length=2, parallel=True)

  @jax.jit
  def block(draft):
    state, context = draft.prefill(prompt, 4)
    tokens = jnp.pad(context.tokens, ((0, 0), (0, 4)))
    return drafting.draft_block(
        draft, state, tokens, context.length, jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows, bool), keys, decoding, controls_lib.NO_CONTROLS,
        pairs.SMALL_V,
    )[1]  # fmt: skip

  drafted = block(draft)
  q = np.asarray(jax.nn.softmax(drafted.logits[0]), np.float64)
  joint = {
      (a, b): q[0, a] * q[1, b]
      for a in range(pairs.SMALL_V)
      for b in range(pairs.SMALL_V)
  }
  assert pairs.p_value(drafted.tokens, joint) > FALSE_ALARM


# Mask tokens.


def test_a_mask_token_beyond_the_targets_vocabulary_is_read_but_not_proposed():
  draft = masked(pairs.make('decoder_only', V + 2, seed=3), V + 1)
  kernel = draft.params['decoder']['logits_dense']['kernel']
  loud = jnp.concatenate([kernel[:, :V], 50.0 * kernel[:, V:]], axis=1)
  decoder = {**draft.params['decoder'], 'logits_dense': {'kernel': loud}}
  draft = draft.replace(params={**draft.params, 'decoder': decoder})
  decoding = pairs.decoding(temperature=1.0, length=G, parallel=True)
  samples = generate('decoder_only', draft, decoding)
  pairs.check_statistics(samples, decoding)
  assert np.asarray(samples.tokens).max() < V


def test_the_mask_tokens_embedding_matters():
  decoding = pairs.small_decoding(length=3, parallel=True)
  one, two = (
      pairs.speculate(decoding, draft=small_draft(token)).statistics
      for token in (2, 5)
  )
  assert (one.accepted_at != two.accepted_at).any()


def test_a_draft_without_a_mask_token_is_refused():
  decoding = pairs.decoding(parallel=True)
  with pytest.raises(
      errors.UserError,
      match='needs a mask token, but the draft has none .*: it has not been'
      ' trained to draft a block in one call. Train it',
  ):
    generate('decoder_only', pairs.make('decoder_only'), decoding)
