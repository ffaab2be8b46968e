"""Speculative generation against autoregressive generation.

Greedy the tokens are equal, sampled the laws are. A draft that is the target
with noise added makes rejections at every place of a block, so that a cache
that is wrong after any of them shows as a wrong token.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from distillspec_jax.sampling import warping
from tests.sampling import laws
from tests.sampling import pairs

FALSE_ALARM = laws.FALSE_ALARM
B, L, V = pairs.B, pairs.L, pairs.V
ROWS = pairs.ROWS


# Greedy: the target's own tokens.


@pytest.mark.parametrize(
    'block, rows', [(1, 8), (3, 8), (5, 8), (3, 1), (5, 3)]
)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_tokens_are_the_targets_whatever_the_draft(kind, block, rows):
  model, params = pairs.make(kind)
  expected = pairs.greedy_reference(kind, rows)
  decoding = decoding_lib.Decoding(block_length=block, max_new_tokens=L)
  histogram = np.zeros(block + 1, int)
  for scale in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 2.0):
    samples = speculative.generate(
        model,
        params,
        model,
        pairs.perturbed(params, scale),
        *pairs.ragged_inputs(rows),
        pairs.keys_of(rows),
        decoding,
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    pairs.check_statistics(samples, decoding)
    histogram += pairs.accepted_histogram(samples.statistics)
  if rows == B:
    # Rejection at every place, and full acceptance, have occurred.
    assert (histogram > 0).all(), histogram


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_draft_of_another_shape_changes_no_greedy_token(kind):
  model, params = pairs.make(kind)
  shape = {'num_decoder_layers': 2, 'emb_dim': 8, 'scan_layers': True}
  draft, draft_params = pairs.make(kind, seed=5, **shape)
  decoding = decoding_lib.Decoding(block_length=4, max_new_tokens=L)
  samples = speculative.generate(
      model,
      params,
      draft,
      draft_params,
      *pairs.ragged_inputs(),
      pairs.keys_of(B),
      decoding,
  )
  np.testing.assert_array_equal(
      samples.tokens, pairs.greedy_reference(kind, B).tokens
  )
  pairs.check_statistics(samples, decoding)


@pytest.mark.parametrize('length, block', [(1, 1), (4, 4), (7, 3)])
def test_a_full_row_is_cut_where_it_is_full(length, block):
  model, params = pairs.make('decoder_only')
  decoding = decoding_lib.Decoding(block_length=block, max_new_tokens=length)
  expected = pairs.greedy_reference('decoder_only', B).tokens[:, :length]
  for scale in (0.0, 0.2):
    samples = speculative.generate(
        model,
        params,
        model,
        pairs.perturbed(params, scale),
        *pairs.ragged_inputs(),
        pairs.keys_of(B),
        decoding,
    )
    np.testing.assert_array_equal(samples.tokens, expected)
    pairs.check_statistics(samples, decoding)


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_rows_end_at_eos_wherever_it_stands_in_a_block(kind):
  model, params = pairs.make(kind)
  free = np.asarray(pairs.greedy_reference(kind, B).tokens)
  # The EOS is a token that most rows say, each at a place of its own.
  said = [len(np.unique(np.argmax(free == v, 1))) for v in range(V)]
  eos_id = int(np.argmax(said[2:])) + 2
  block = 3
  decoding = decoding_lib.Decoding(
      block_length=block, max_new_tokens=L, eos_ids=(eos_id,)
  )
  expected = pairs.greedy_reference(kind, B, eos_id=eos_id)
  ended = set()
  for scale in (0.0, 0.1, 0.3, 2.0):
    samples = speculative.generate(
        model,
        params,
        model,
        pairs.perturbed(params, scale),
        *pairs.ragged_inputs(),
        pairs.keys_of(B),
        decoding,
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    pairs.check_statistics(samples, decoding)
    last = np.take_along_axis(
        np.asarray(samples.origins), np.asarray(samples.lengths)[:, None] - 1, 1
    )[:, 0]
    ended |= set(last[np.asarray(samples.lengths) < L])
  assert len(set(np.asarray(expected.lengths))) > 1
  # EOS has been drafted and accepted, and it has been the target's own token.
  assert pairs.Origin.ACCEPTED in ended
  assert ended & {pairs.Origin.CORRECTED, pairs.Origin.BONUS}


# The draft is the target: everything is accepted.


@pytest.mark.parametrize('temperature', [0.0, 1.0])
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_draft_that_is_the_target_is_always_accepted(kind, temperature):
  model, params = pairs.make(kind)
  decoding = decoding_lib.Decoding(
      temperature=temperature, block_length=3, max_new_tokens=L
  )
  samples = speculative.generate(
      model,
      params,
      model,
      params,
      *pairs.ragged_inputs(),
      pairs.keys_of(B),
      decoding,
  )
  counts = jax.tree.map(np.asarray, samples.statistics)
  pairs.check_statistics(samples, decoding)
  assert samples.statistics.acceptance_rate == 1.0
  np.testing.assert_array_equal(counts.accepted_at, counts.reached_at)
  np.testing.assert_array_equal(
      counts.blocks, np.ceil(np.asarray(samples.lengths) / 4)
  )
  full = np.asarray(samples.lengths) == L
  assert full.any()  # so that caches are used after full acceptance, often
  efficiency = counts.emitted.sum() / counts.blocks.sum()
  assert samples.statistics.block_efficiency == pytest.approx(efficiency)


# Rows do not know of each other.


def sample(kind, method, rows):
  """Sampled rows of the ragged batch: those with these numbers."""
  model, params = pairs.make(kind)
  rows = np.asarray(rows)
  inputs, segments = pairs.ragged_inputs()
  keys = randomness.row_keys(jax.random.key(5), jnp.asarray(rows))
  arguments = (inputs[rows], segments[rows], keys, pairs.SAMPLED)
  if method == 'autoregressive':
    return autoregressive.generate(model, params, *arguments)
  draft = pairs.perturbed(params, 0.3)
  return speculative.generate(model, params, model, draft, *arguments)


@pytest.mark.parametrize('method', ['autoregressive', 'speculative'])
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_row_is_the_same_in_every_batch(kind, method):
  together = sample(kind, method, range(B))
  order = np.array([3, 7, 0, 2, 6, 5, 1, 4])
  permuted = sample(kind, method, order)
  jax.tree.map(
      lambda one, two: np.testing.assert_array_equal(one[order], two),
      together,
      permuted,
  )
  alone = [sample(kind, method, [row]) for row in range(B)]
  jax.tree.map(
      lambda one, *rows: np.testing.assert_array_equal(
          one, np.concatenate(rows)
      ),
      together,
      *alone,
  )
  distinct = {tuple(row) for row in np.asarray(together.tokens)}
  assert len(distinct) > B // 2  # some may say EOS at once
  if method == 'speculative':
    pairs.check_statistics(together, pairs.SAMPLED)
    assert 0.1 < together.statistics.acceptance_rate < 0.95


def test_another_key_gives_another_sample():
  model, params = pairs.make('decoder_only')
  inputs = pairs.ragged_inputs()
  one, two = (
      autoregressive.generate(
          model, params, *inputs, pairs.keys_of(B, seed), pairs.SAMPLED
      )
      for seed in (0, 1)
  )
  assert (np.asarray(one.tokens) != np.asarray(two.tokens)).any(1).all()


def test_autoregressive_samples_count_one_call_a_token():
  samples = sample('decoder_only', 'autoregressive', range(B))
  lengths = np.asarray(samples.lengths)
  real = np.arange(L)[None] < lengths[:, None]
  np.testing.assert_array_equal(samples.statistics.blocks, lengths)
  np.testing.assert_array_equal(samples.statistics.emitted, lengths)
  assert (np.asarray(samples.statistics.drafted) == 0).all()
  assert samples.statistics.block_efficiency == 1.0
  assert samples.statistics.acceptance_rate == 0.0
  np.testing.assert_array_equal(
      np.asarray(samples.origins), np.where(real, pairs.Origin.TARGET, 0)
  )
  assert (np.asarray(samples.tokens)[~real] == 0).all()


# Sampled: the target's own law.


@pytest.mark.parametrize('name', ['plain', 'top_p'])
def test_autoregressive_samples_have_the_models_law(name):
  model, params, _ = pairs.law_models()
  decoding = pairs.law_decoding(name, 1)
  samples = autoregressive.generate(
      model, params, *pairs.law_inputs(ROWS), pairs.keys_of(ROWS, 12), decoding
  )
  law = pairs.exact_law(decoding)
  assert sum(law.values()) == pytest.approx(1.0, abs=1e-5)
  assert pairs.law_p_value(samples.tokens, law) > FALSE_ALARM


@pytest.mark.parametrize('rule', ['token', 'block'])
@pytest.mark.parametrize(
    'name, block', [('plain', 1), ('plain', 2), ('top_k', 2), ('top_p', 2)]
)
def test_speculative_samples_have_the_targets_law(name, block, rule):
  decoding = dataclasses.replace(
      pairs.law_decoding(name, block), verification=rule
  )
  samples = pairs.speculate(decoding)
  pairs.check_statistics(samples, decoding)
  assert (pairs.accepted_histogram(samples.statistics) > ROWS / 20).all()
  law = pairs.exact_law(decoding)
  assert pairs.law_p_value(samples.tokens, law) > FALSE_ALARM


@pytest.mark.parametrize(
    'rule, draft_stop',
    [('token', ('confidence', 0.395)), ('block', ('entropy', 1.68))],
)
def test_samples_of_drafts_that_stop_have_the_targets_law(rule, draft_stop):
  plain = pairs.law_decoding('plain', 2)
  decoding = dataclasses.replace(
      plain, verification=rule, draft_stop=draft_stop
  )
  samples = pairs.speculate(decoding)
  counts = samples.statistics
  share = counts.drafted.sum() / counts.blocks.sum() / 2
  assert 0.6 < share < 0.95  # some blocks are short, and some are not
  assert pairs.law_p_value(samples.tokens, pairs.exact_law(plain)) > FALSE_ALARM


LEAST = 2


def law_without_early_eos():
  """The law of all outputs where the first two tokens are not EOS."""
  model, params, _ = pairs.law_models()
  outputs, logits = pairs.all_outputs(model, params)
  p = np.array(jax.nn.softmax(logits), np.float64)
  p[:, :LEAST, 1] = 0.0
  p /= p.sum(-1, keepdims=True)
  rows = np.arange(len(outputs))[:, None]
  chances = p[rows, np.arange(pairs.LAW_L)[None], outputs].prod(1)
  return dict(zip(map(tuple, outputs.tolist()), chances))


@pytest.mark.parametrize('method', ['autoregressive', 'speculative'])
def test_samples_with_a_least_length_have_the_law_without_early_eos(method):
  model, params, draft_params = pairs.law_models()
  decoding = pairs.law_decoding('plain', 2)
  least = controls_lib.Controls(min_new_tokens=jnp.full(ROWS, LEAST))
  rows = (*pairs.law_inputs(ROWS), pairs.keys_of(ROWS, 11), decoding)
  if method == 'autoregressive':
    samples = autoregressive.generate(model, params, *rows, controls=least)
  else:
    samples = speculative.generate(
        model, params, model, draft_params, *rows, least
    )
  law = law_without_early_eos()
  assert sum(law.values()) == pytest.approx(1.0, abs=1e-5)
  assert pairs.law_p_value(samples.tokens, law) > FALSE_ALARM
  # The test can fail: EOS comes earlier where it may.
  assert (
      sum(
          chance
          for row, chance in pairs.exact_law(decoding).items()
          if 1 in row[:LEAST]
      )
      > 0.05
  )


def test_lenient_samples_have_another_law():
  lossy = dataclasses.replace(
      pairs.law_decoding('plain', 2), lenience=('linear', 0.5)
  )
  samples = pairs.speculate(lossy)
  law = pairs.exact_law(pairs.law_decoding('plain', 2))
  assert pairs.law_p_value(samples.tokens, law) < FALSE_ALARM
  lossless = dataclasses.replace(lossy, lenience=('linear', 1.0))
  assert pairs.law_p_value(pairs.speculate(lossless).tokens, law) > FALSE_ALARM


@pytest.fixture(scope='module', name='law')
def _law():
  """The law of whole outputs, made before anything is patched."""
  return pairs.exact_law(pairs.law_decoding('plain', 2))


def test_a_verifier_that_resamples_the_target_is_caught(monkeypatch, law):
  monkeypatch.setattr(verification, 'token', laws.resamples_target)
  assert is_caught(law)


def test_a_key_used_in_two_blocks_is_caught(monkeypatch, law):
  events = randomness.events
  monkeypatch.setattr(
      randomness, 'events', lambda keys, number: events(keys, 0)
  )
  assert is_caught(law)


def test_a_draft_that_is_warped_otherwise_is_caught(monkeypatch, law):
  warp = warping.warp

  def uneven(
      logits, decoding, temperature
  ):  # what is verified is not what was drafted
    return warp(logits if logits.ndim == 3 else 2.0 * logits, decoding)

  def token(keys, drafted, q_logits, p_logits, lengths=None):
    return exact(keys, drafted, q_logits / 2.0, p_logits)

  exact = verification.token
  monkeypatch.setattr(warping, 'warp', uneven)
  monkeypatch.setattr(verification, 'token', token)
  assert is_caught(law)


def is_caught(law):
  decoding = pairs.law_decoding('plain', 1)
  samples = pairs.speculate(decoding, pairs.fresh())
  return pairs.law_p_value(samples.tokens, law) < FALSE_ALARM


# Vocabularies that differ by padding rows.


@pytest.mark.parametrize(
    'target_size, draft_size, temperature',
    [(50, 52, 0.0), (52, 50, 0.0), (52, 50, 1.0)],
)
def test_padding_rows_of_the_larger_vocabulary_are_never_said(
    target_size, draft_size, temperature
):
  target, target_params = pairs.make('decoder_only', target_size)
  draft, draft_params = pairs.make('decoder_only', draft_size, seed=0)
  decoding = decoding_lib.Decoding(
      temperature=temperature, block_length=3, max_new_tokens=L
  )

  def loud(params, size):  # the padding rows would win if they were read
    kernel = params['decoder']['logits_dense']['kernel']
    kernel = jnp.concatenate([kernel[:, :50], 50.0 * kernel[:, 50:]], axis=1)
    assert kernel.shape[1] == size
    decoder = {**params['decoder'], 'logits_dense': {'kernel': kernel}}
    return {**params, 'decoder': decoder}

  target_params = loud(target_params, target_size)
  draft_params = loud(draft_params, draft_size)
  samples = speculative.generate(
      target,
      target_params,
      draft,
      draft_params,
      *pairs.ragged_inputs(),
      pairs.keys_of(B),
      decoding,
  )
  pairs.check_statistics(samples, decoding)
  assert np.asarray(samples.tokens).max() < 50
  if decoding.greedy:
    expected = autoregressive.generate(
        target,
        target_params,
        *pairs.ragged_inputs(),
        pairs.keys_of(B),
        decoding,
        vocabulary=50,
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)


# One program, and nothing goes to the host before it ends.


@pytest.mark.parametrize('method', ['autoregressive', 'speculative'])
def test_generation_is_one_program_without_host_transfers(method):
  model, params = pairs.make('decoder_only')
  arguments = (*pairs.ragged_inputs(), pairs.keys_of(B), pairs.SAMPLED)
  if method == 'autoregressive':
    generate = autoregressive.generate
    arguments = (model, params, *arguments)
  else:
    generate = speculative.generate
    arguments = (model, params, model, pairs.perturbed(params, 0.3), *arguments)
  program = generate.lower(*arguments).compile()
  text = program.as_text()
  assert ' while(' in text
  for transfer in ('infeed', 'outfeed', 'callback', ' send(', ' recv('):
    assert transfer not in text, transfer

  dynamic = jax.block_until_ready(
      [argument for argument in arguments if not is_static(argument)]
  )
  with jax.transfer_guard('disallow'):
    samples = jax.block_until_ready(program(*dynamic))
  assert (np.asarray(samples.lengths) > 1).any()


def is_static(argument):
  return isinstance(argument, (transformer.Transformer, decoding_lib.Decoding))


def test_the_transfer_guard_sees_transfers():
  disallowed = pytest.raises(Exception, match='[Dd]isallowed')
  with jax.transfer_guard('disallow'), disallowed:
    jax.jit(lambda x: x + 1)(np.ones(3))


def test_equal_settings_are_compiled_once():
  model, params = pairs.make('decoder_only')
  again = transformer.Transformer(model.config)
  arguments = (*pairs.ragged_inputs(), pairs.keys_of(B))
  autoregressive.generate(model, params, *arguments, pairs.SAMPLED)
  size = autoregressive.generate._cache_size()
  same = decoding_lib.Decoding(
      temperature=1.0, block_length=3, max_new_tokens=L
  )
  autoregressive.generate(again, params, *arguments, same)
  assert autoregressive.generate._cache_size() == size


def test_statistics_hold_in_bfloat16():
  model, params = pairs.make('encoder_decoder', dtype='bfloat16')
  samples = speculative.generate(
      model,
      params,
      model,
      pairs.perturbed(params, 0.1),
      *pairs.ragged_inputs(),
      pairs.keys_of(B),
      pairs.SAMPLED,
  )
  pairs.check_statistics(samples, pairs.SAMPLED)
