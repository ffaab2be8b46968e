"""Generation with several drafts: the same tokens, the same law, fewer blocks.

The pairs and the exact laws are those of `pairs`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.models import path_slots
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import multi_draft
from distillspec_jax.sampling import speculative
from tests import tiny
from tests.sampling import laws
from tests.sampling import pairs

FALSE_ALARM = laws.FALSE_ALARM
B, L, V = pairs.B, pairs.L, pairs.V


def speculate(kind, scale, decoding, controls=None, generate=None):
  """Rows of the ragged batch, with a draft that is the target with noise."""
  model, params = pairs.make(kind)
  return (generate or speculative.generate)(
      model,
      params,
      model,
      pairs.perturbed(params, scale),
      *pairs.ragged_inputs(),
      pairs.keys_of(B),
      decoding,
      controls or controls_lib.Controls(),
  )


# Greedy: the target's own tokens.


@pytest.mark.parametrize('number, block', [(2, 1), (3, 4)])
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_tokens_are_those_of_autoregressive_decoding(
    kind, number, block
):
  expected = pairs.greedy_reference(kind, B)
  several = decoding_lib.Decoding(
      block_length=block, max_new_tokens=L, num_drafts=number
  )
  one = dataclasses.replace(several, num_drafts=1)
  for scale in (0.0, 0.1, 0.3, 2.0):
    samples = speculate(kind, scale, several)
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    pairs.check_statistics(samples, several)
    single = speculate(kind, scale, one)
    # Greedy, the first of the drafts is the only one of one.
    assert samples.statistics.blocks.sum() <= single.statistics.blocks.sum()
    if scale in (0.1, 0.3):
      assert samples.statistics.blocks.sum() < single.statistics.blocks.sum()


def keeps_the_first(monkeypatch):
  """The caches go on with another path than the one that was accepted."""
  slots = path_slots.Fork.slots
  monkeypatch.setattr(
      path_slots.Fork,
      'slots',
      lambda fork, path, size: slots(fork, 0 * path, size),
  )


def keeps_nothing(monkeypatch):
  """The slots stay as the paths had them."""
  monkeypatch.setattr(
      path_slots.Fork,
      'slots',
      lambda fork, path, size: fork.start[:, None] + jnp.arange(size)[None],
  )


@pytest.mark.parametrize('mutate', [keeps_the_first, keeps_nothing])
def test_caches_that_keep_another_path_are_caught(mutate, monkeypatch):
  mutate(monkeypatch)
  decoding = decoding_lib.Decoding(
      block_length=3, max_new_tokens=L, num_drafts=2
  )
  samples = speculate('decoder_only', 0.2, decoding, generate=pairs.fresh())
  expected = pairs.greedy_reference('decoder_only', B)
  assert (samples.tokens != expected.tokens).any()


# Sampled: the target's own law.


@pytest.mark.parametrize(
    'name, block, number',
    [('plain', 1, 2), ('plain', 2, 3), ('top_k', 2, 2), ('top_p', 3, 2)],
)
def test_sampled_tokens_have_the_targets_law(name, block, number):
  decoding = dataclasses.replace(
      pairs.law_decoding(name, block), num_drafts=number
  )
  samples = pairs.speculate(decoding)
  pairs.check_statistics(samples, decoding)
  law = pairs.exact_law(pairs.law_decoding(name, 1))
  assert pairs.law_p_value(samples.tokens, law) > FALSE_ALARM
  if name == 'plain':
    single = pairs.speculate(dataclasses.replace(decoding, num_drafts=1))
    # Both have a standard error of about 0.003.
    one_rate = single.statistics.acceptance_rate
    assert samples.statistics.acceptance_rate > one_rate + 0.05


def dead_paths_live_on(monkeypatch):
  monkeypatch.setattr(
      multi_draft,
      'survivors',
      lambda alive, drafted, token, passed: alive & passed[:, None],
  )


def drafts_are_one(monkeypatch):
  """All paths draw the same tokens, and so are not independent."""
  events = randomness.events
  draw = drafting.draw

  def same(keys, logits):
    with monkeypatch.context() as patch:
      patch.setattr(randomness, 'events', lambda keys, path: events(keys, 0))
      return draw(keys, logits)

  monkeypatch.setattr(drafting, 'draw', same)


@pytest.mark.parametrize('mutate', [dead_paths_live_on, drafts_are_one])
def test_a_mutated_rule_is_caught_in_the_law(mutate, monkeypatch):
  mutate(monkeypatch)
  decoding = dataclasses.replace(pairs.law_decoding('plain', 2), num_drafts=3)
  samples = pairs.speculate(decoding, pairs.fresh())
  law = pairs.exact_law(pairs.law_decoding('plain', 1))
  assert pairs.law_p_value(samples.tokens, law) < FALSE_ALARM


def test_drafts_that_propose_from_some_tokens_have_the_targets_law():
  model, params, draft_params = pairs.law_models()
  draft = tiny.trimmed(tiny.Model(model, draft_params), (0, 1, 3, 4, 6))
  decoding = dataclasses.replace(pairs.law_decoding('plain', 2), num_drafts=2)
  samples = speculative.generate(
      model,
      params,
      *draft,
      *pairs.law_inputs(pairs.ROWS),
      pairs.keys_of(pairs.ROWS, 11),
      decoding,
  )
  law = pairs.exact_law(pairs.law_decoding('plain', 1))
  assert pairs.law_p_value(samples.tokens, law) > FALSE_ALARM
  assert samples.statistics.acceptance_rate > 0.1


def test_drafts_that_stop_by_themselves_have_the_targets_law():
  stop = ('confidence', 0.4)
  decoding = dataclasses.replace(
      pairs.law_decoding('plain', 3), num_drafts=2, draft_stop=stop
  )
  samples = pairs.speculate(decoding)
  law = pairs.exact_law(pairs.law_decoding('plain', 1))
  assert pairs.law_p_value(samples.tokens, law) > FALSE_ALARM
  counts = samples.statistics
  assert counts.drafted.sum() < 0.95 * 6 * counts.blocks.sum()
  greedy = decoding_lib.Decoding(
      block_length=4, max_new_tokens=L, num_drafts=2, draft_stop=stop
  )
  expected = pairs.greedy_reference('decoder_only', B)
  tokens = speculate('decoder_only', 0.1, greedy).tokens
  np.testing.assert_array_equal(tokens, expected.tokens)


# Rows, their settings, and what else comes out.


def test_a_row_is_the_same_in_every_batch():
  model, params = pairs.make('decoder_only')
  inputs, segments = pairs.ragged_inputs()
  decoding = dataclasses.replace(pairs.SAMPLED, num_drafts=2)

  def sample(order):
    keys = randomness.row_keys(jax.random.key(5), jnp.asarray(order))
    return speculative.generate(
        model,
        params,
        model,
        pairs.perturbed(params, 0.3),
        inputs[order],
        segments[order],
        keys,
        decoding,
    )

  order = np.array([3, 7, 0, 2, 6, 5, 1, 4])
  together, permuted = sample(np.arange(B)), sample(order)
  jax.tree.map(
      lambda one, two: np.testing.assert_array_equal(one[order], two),
      together,
      permuted,
  )
  alone = sample(np.array([4]))
  np.testing.assert_array_equal(together.tokens[4:5], alone.tokens)


def test_rows_of_temperature_0_are_greedy_beside_others():
  decoding = dataclasses.replace(pairs.SAMPLED, num_drafts=3)
  temperature = jnp.where(jnp.arange(B) % 2 == 0, 0.0, 1.0)
  controls = controls_lib.Controls(temperature=temperature)
  mixed = speculate('encoder_decoder', 0.1, decoding, controls)
  all_greedy = speculate(
      'encoder_decoder', 0.1, dataclasses.replace(decoding, temperature=0.0)
  )
  np.testing.assert_array_equal(mixed.tokens[::2], all_greedy.tokens[::2])
  # They get the draft's best tokens, as greedy rows do, and not one of them K
  # times.
  np.testing.assert_array_equal(
      mixed.statistics.blocks[::2], all_greedy.statistics.blocks[::2]
  )
  assert (mixed.tokens[1::2] != all_greedy.tokens[1::2]).any()


def test_log_probs_and_least_lengths_are_as_without_a_draft():
  model, params = pairs.make('decoder_only')
  decoding = decoding_lib.Decoding(
      block_length=3, max_new_tokens=L, num_drafts=2, log_probs=True
  )
  controls = controls_lib.Controls(
      min_new_tokens=jnp.full(B, 5), max_new_tokens=jnp.arange(B) + 6
  )
  samples = speculate('decoder_only', 0.1, decoding, controls)
  expected = autoregressive.generate(
      model,
      params,
      *pairs.ragged_inputs(),
      pairs.keys_of(B),
      decoding,
      controls=controls,
  )
  np.testing.assert_array_equal(samples.tokens, expected.tokens)
  np.testing.assert_allclose(samples.log_probs, expected.log_probs, atol=1e-4)
  assert (np.asarray(samples.lengths) >= 5).all()


# What is refused.


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'num_drafts': 0}, 'num_drafts is 0; it must be at least 1.'),
        (
            {'num_drafts': 2, 'verification': 'block'},
            "num_drafts is 2, but verification is 'block'; several drafts are"
            " verified by 'token'.",
        ),
        (
            {'num_drafts': 2, 'lenience': ('linear', 0.5)},
            "num_drafts is 2, but lenience is ['linear', 0.5, 'target'];"
            ' several drafts are verified without: set lenience to None, or'
            ' num_drafts to 1.',
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
  with pytest.raises(errors.UserError) as error:
    decoding_lib.Decoding(**settings)
  assert str(error.value) == message


def test_more_drafts_than_tokens_are_refused():
  decoding = dataclasses.replace(
      pairs.law_decoding('plain', 2), num_drafts=pairs.LAW_V + 1
  )
  with pytest.raises(errors.UserError) as error:
    pairs.speculate(decoding)
  assert str(error.value) == (
      'num_drafts is 9, but the draft proposes from 8 tokens; there are no'
      ' more drafts that differ.'
  )
