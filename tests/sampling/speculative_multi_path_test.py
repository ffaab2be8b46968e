"""Multi-path drafts: the same tokens and distribution in fewer blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.models import path_slots
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling.verification import multi_path
from tests import tiny
from tests.sampling import enumeration
from tests.sampling import pairs

FALSE_ALARM = enumeration.FALSE_ALARM
B, L, V = pairs.B, pairs.L, pairs.V


def speculate(kind, scale, decoding, generate=speculative.generate, **settings):
  """Rows of the ragged batch, with a draft that is the target with noise."""
  return generate(
      pairs.make(kind),
      pairs.noisy(kind, scale),
      pairs.prompt(),
      pairs.keys_of(),
      decoding,
      **settings,
  )


# Greedy: the target's own tokens.


@pytest.mark.parametrize('paths, block', [(2, 1), (3, 5)])
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_tokens_are_the_targets(kind, paths, block):
  expected = pairs.greedy_reference(kind)
  multi_path = pairs.decoding(length=block, paths=paths)
  single = multi_path.replace(paths=1)
  for scale in (0.0, 0.1, 0.3, 2.0):
    samples = speculate(kind, scale, multi_path)
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    pairs.check_statistics(samples, multi_path)
    # Greedy, the first of the paths is the one of a single draft.
    blocks = samples.statistics.blocks.sum()
    blocks_of_one = speculate(kind, scale, single).statistics.blocks.sum()
    assert blocks <= blocks_of_one
    if scale in (0.1, 0.3):
      assert blocks < blocks_of_one


def keeps_the_first(monkeypatch):
  """The caches continue with another path than the one that was accepted."""
  slots = path_slots.PathSlots.slots
  monkeypatch.setattr(
      path_slots.PathSlots,
      'slots',
      lambda self, path, size: slots(self, 0 * path, size),
  )


def keeps_nothing(monkeypatch):
  """The slots stay as the paths had them."""
  monkeypatch.setattr(
      path_slots.PathSlots,
      'slots',
      lambda self, path, size: self.start[:, None] + jnp.arange(size)[None],
  )


@pytest.mark.parametrize('mutate', [keeps_the_first, keeps_nothing])
def test_caches_that_keep_another_path_are_caught(mutate, monkeypatch):
  mutate(monkeypatch)
  decoding = pairs.decoding(length=3, paths=2)
  samples = speculate('decoder_only', 0.2, decoding, pairs.fresh())
  expected = pairs.greedy_reference('decoder_only')
  assert (samples.tokens != expected.tokens).any()


# Sampled: the target's own distribution.


@pytest.mark.parametrize(
    'name, block, paths',
    [('plain', 1, 2), ('plain', 2, 3), ('top_k', 2, 2), ('top_p', 3, 2)],
)
def test_samples_have_the_targets_distribution(name, block, paths):
  decoding = pairs.small_decoding(name, length=block, paths=paths)
  samples = pairs.speculate(decoding)
  pairs.check_statistics(samples, decoding)
  distribution = pairs.exact_distribution(decoding)
  assert pairs.p_value(samples.tokens, distribution) > FALSE_ALARM
  if name == 'plain':
    single = pairs.speculate(decoding.replace(paths=1)).statistics
    # Both have a standard error of about 0.003.
    rate = samples.statistics.acceptance_rate
    assert rate > single.acceptance_rate + 0.05


def dead_paths_stay_alive(monkeypatch):
  monkeypatch.setattr(
      multi_path,
      'survivors',
      lambda alive, drafted, token, passed: alive & passed[:, None],
  )


def paths_are_one(monkeypatch):
  """All paths draw the same tokens, and so are not independent."""
  events = randomness.events
  sample_paths = drafting.sample_paths

  def same(keys, logits):
    with monkeypatch.context() as patch:
      patch.setattr(randomness, 'events', lambda keys, path: events(keys, 0))
      return sample_paths(keys, logits)

  monkeypatch.setattr(drafting, 'sample_paths', same)


@pytest.mark.parametrize('mutate', [dead_paths_stay_alive, paths_are_one])
def test_a_mutated_rule_has_another_distribution(mutate, monkeypatch):
  decoding = pairs.small_decoding(length=2, paths=3)
  distribution = pairs.exact_distribution(decoding)
  mutate(monkeypatch)
  samples = pairs.speculate(decoding, pairs.fresh())
  assert pairs.p_value(samples.tokens, distribution) < FALSE_ALARM


def test_so_have_samples_of_drafts_with_a_trimmed_vocabulary():
  _, draft = pairs.small_pair()
  decoding = pairs.small_decoding(length=2, paths=2)
  samples = pairs.speculate(
      decoding, draft=tiny.trimmed(draft, (0, 1, 3, 4, 6))
  )
  distribution = pairs.exact_distribution(decoding)
  assert pairs.p_value(samples.tokens, distribution) > FALSE_ALARM
  assert samples.statistics.acceptance_rate > 0.1


def test_so_have_samples_of_adaptive_draft_length():
  adaptive = adaptive_length.Confidence(0.4)
  decoding = pairs.small_decoding(length=3, paths=2, adaptive=adaptive)
  samples = pairs.speculate(decoding)
  distribution = pairs.exact_distribution(decoding)
  assert pairs.p_value(samples.tokens, distribution) > FALSE_ALARM
  counts = samples.statistics
  assert counts.drafted.sum() < 0.95 * 6 * counts.blocks.sum()
  greedy = pairs.decoding(length=4, paths=2, adaptive=adaptive)
  np.testing.assert_array_equal(
      speculate('decoder_only', 0.1, greedy).tokens,
      pairs.greedy_reference('decoder_only').tokens,
  )


# Rows, their settings, and what else is returned.


def test_a_row_is_the_same_in_every_batch():
  decoding = pairs.SAMPLED.replace(paths=2)

  def sample(rows):
    return speculative.generate(
        pairs.make('decoder_only'),
        pairs.noisy('decoder_only'),
        pairs.take(pairs.prompt(), rows),
        randomness.row_keys(jax.random.key(5), jnp.asarray(rows)),
        decoding,
    )

  order = np.array([3, 7, 0, 2, 6, 5, 1, 4])
  together = sample(np.arange(B))
  jax.tree.map(
      np.testing.assert_array_equal, pairs.take(together, order), sample(order)
  )
  alone = sample(np.array([4]))
  np.testing.assert_array_equal(together.tokens[4:5], alone.tokens)


def test_rows_of_temperature_0_are_greedy_beside_others():
  decoding = pairs.SAMPLED.replace(paths=3)
  temperature = jnp.where(jnp.arange(B) % 2 == 0, 0.0, 1.0)
  controls = controls_lib.Controls(temperature=temperature)
  mixed = speculate('encoder_decoder', 0.1, decoding, controls=controls)
  all_greedy = speculate(
      'encoder_decoder', 0.1, decoding.replace(temperature=0.0)
  )
  np.testing.assert_array_equal(mixed.tokens[::2], all_greedy.tokens[::2])
  # They get the draft's best tokens, as greedy rows do, and not one of them K
  # times.
  np.testing.assert_array_equal(
      mixed.statistics.blocks[::2], all_greedy.statistics.blocks[::2]
  )
  assert (mixed.tokens[1::2] != all_greedy.tokens[1::2]).any()


def test_log_probs_and_minimum_lengths_are_as_without_a_draft():
  decoding = pairs.decoding(length=3, paths=2, log_probs=True)
  controls = controls_lib.Controls(
      min_new_tokens=jnp.full(B, 5), max_new_tokens=jnp.arange(B) + 6
  )
  samples = speculate('decoder_only', 0.1, decoding, controls=controls)
  expected = autoregressive.generate(
      pairs.make('decoder_only'), pairs.prompt(), pairs.keys_of(), decoding,
      controls=controls,
  )  # fmt: skip
  np.testing.assert_array_equal(samples.tokens, expected.tokens)
  np.testing.assert_allclose(samples.log_probs, expected.log_probs, atol=1e-4)
  assert (np.asarray(samples.lengths) >= 5).all()


def test_more_paths_than_tokens_are_refused():
  with pytest.raises(errors.UserError) as error:
    pairs.speculate(pairs.small_decoding(length=2, paths=pairs.SMALL_V + 1))
  assert str(error.value) == (
      'paths is 9, but the draft chooses from 8 tokens; there are no more'
      ' paths that differ.'
  )
