"""Speculative generation against autoregressive generation.

Greedy the tokens are equal, sampled the laws are. A draft that is the target
with noise added makes rejections at every place of a block, so that a cache
that is wrong after any of them shows as a wrong token.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from distillspec_jax.core import randomness
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from distillspec_jax.sampling import warping

FALSE_ALARM = 1e-6  # chance that correct code fails one assertion
V, B, S, L = 50, 8, 6, 24
KINDS = {
    'encoder_decoder': {'num_encoder_layers': 1, 'num_decoder_layers': 1},
    'decoder_only': {'num_encoder_layers': 0, 'num_decoder_layers': 1},
}
Origin = samples_lib.Origin


def random_params(model, seed):
  """Parameters of about the usual size; quicker than `init`."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'scale':
      return jnp.ones(leaf.shape)
    deviation = leaf.shape[-2] ** -0.5 if name == 'kernel' else 1.0
    values = deviation * rng.standard_normal(leaf.shape)
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, model.abstract())


@functools.cache
def make(kind, vocabulary=V, seed=0, **changes):
  changes = {**KINDS[kind], **changes}
  config = config_lib.published('test', vocabulary, **changes)
  model = transformer.Transformer(config)
  return model, random_params(model, seed)


def perturbed(params, scale):
  """The parameters with noise of `scale` times their own size."""
  rng = np.random.default_rng(7)

  def add_noise(leaf):
    noise = rng.standard_normal(leaf.shape) * scale * np.std(leaf)
    return jnp.asarray(leaf + noise, jnp.float32)

  return jax.tree.map(add_noise, jax.tree.map(np.asarray, params))


@functools.cache
def ragged_inputs(rows=B):
  """Inputs of several lengths; the third row has none."""
  rng = np.random.default_rng(3)
  lengths = np.array([S, 2, 0, 5, 1, 3, S, 4])[:rows, None]
  segments = (np.arange(S) < lengths).astype(np.int32)
  inputs = rng.integers(2, V, (B, S))[:rows].astype(np.int32) * segments
  return jnp.asarray(inputs), jnp.asarray(segments)


def keys_of(rows, seed=0):
  return randomness.row_keys(jax.random.key(seed), rows)


def check_statistics(samples, decoding):
  """What must hold of any speculative generation."""
  tokens, lengths = np.asarray(samples.tokens), np.asarray(samples.lengths)
  origins = np.asarray(samples.origins)
  counts = jax.tree.map(np.asarray, samples.statistics)
  place = np.arange(decoding.max_new_tokens)[None]
  real = place < lengths[:, None]
  last = place == lengths[:, None] - 1
  is_eos = tokens == decoding.eos_ids[0]

  assert (lengths >= 1).all()
  assert (tokens[~real] == 0).all()
  assert not (is_eos & real & ~last).any()  # nothing is said after EOS
  full = lengths == decoding.max_new_tokens
  assert ((is_eos & last).any(1) | full).all()

  assert (counts.emitted == lengths).all()
  assert (counts.drafted == counts.blocks * decoding.block_length).all()
  assert (counts.accepted == counts.accepted_at.sum(1)).all()
  assert (counts.accepted <= counts.drafted).all()
  assert (counts.accepted_at <= counts.reached_at).all()
  assert (counts.reached_at[:, 0] == counts.blocks).all()
  assert (counts.reached_at[:, 1:] <= counts.accepted_at[:, :-1]).all()

  assert (origins[~real] == Origin.PADDING).all()
  assert np.isin(
      origins[real], [Origin.ACCEPTED, Origin.CORRECTED, Origin.BONUS]
  ).all()
  assert ((origins == Origin.ACCEPTED).sum(1) == counts.accepted).all()
  corrected = (origins == Origin.CORRECTED).sum(1)
  rejected = (counts.reached_at - counts.accepted_at).sum(1)
  assert (corrected == rejected).all()
  bonus = (origins == Origin.BONUS).sum(1)
  assert (bonus <= counts.accepted_at[:, -1]).all()
  # Only the last block of a row can end without the target's own token.
  assert (corrected + bonus <= counts.blocks).all()
  assert (corrected + bonus >= counts.blocks - 1).all()


def accepted_histogram(statistics):
  """How many blocks accepted exactly 0, 1, ... G tokens and then went on."""
  reached = np.asarray(statistics.reached_at).sum(0)
  accepted = np.asarray(statistics.accepted_at).sum(0)
  return [*(reached - accepted), accepted[-1]]


# Greedy: the target's own tokens.


@functools.cache
def greedy_reference(kind, rows, length=L, eos_id=1):
  model, params = make(kind)
  decoding = decoding_lib.Decoding(
      max_new_tokens=length, block_length=1, eos_ids=(eos_id,)
  )
  return autoregressive.generate(
      model, params, *ragged_inputs(rows), keys_of(rows), decoding
  )


@pytest.mark.parametrize(
    'block, rows', [(1, 8), (3, 8), (5, 8), (3, 1), (5, 3)]
)
@pytest.mark.parametrize('kind', KINDS)
def test_greedy_tokens_are_the_targets_whatever_the_draft(kind, block, rows):
  model, params = make(kind)
  expected = greedy_reference(kind, rows)
  decoding = decoding_lib.Decoding(block_length=block, max_new_tokens=L)
  histogram = np.zeros(block + 1, int)
  for scale in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 2.0):
    samples = speculative.generate(
        model,
        params,
        model,
        perturbed(params, scale),
        *ragged_inputs(rows),
        keys_of(rows),
        decoding,
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    check_statistics(samples, decoding)
    histogram += accepted_histogram(samples.statistics)
  if rows == B:
    # Rejection at every place, and full acceptance, have occurred.
    assert (histogram > 0).all(), histogram


@pytest.mark.parametrize('kind', KINDS)
def test_a_draft_of_another_shape_changes_no_greedy_token(kind):
  model, params = make(kind)
  shape = {'num_decoder_layers': 2, 'emb_dim': 8, 'scan_layers': True}
  draft, draft_params = make(kind, seed=5, **shape)
  decoding = decoding_lib.Decoding(block_length=4, max_new_tokens=L)
  samples = speculative.generate(
      model,
      params,
      draft,
      draft_params,
      *ragged_inputs(),
      keys_of(B),
      decoding,
  )
  np.testing.assert_array_equal(
      samples.tokens, greedy_reference(kind, B).tokens
  )
  check_statistics(samples, decoding)


@pytest.mark.parametrize('length, block', [(1, 1), (4, 4), (7, 3)])
def test_a_full_row_is_cut_where_it_is_full(length, block):
  model, params = make('decoder_only')
  decoding = decoding_lib.Decoding(block_length=block, max_new_tokens=length)
  expected = greedy_reference('decoder_only', B).tokens[:, :length]
  for scale in (0.0, 0.2):
    samples = speculative.generate(
        model,
        params,
        model,
        perturbed(params, scale),
        *ragged_inputs(),
        keys_of(B),
        decoding,
    )
    np.testing.assert_array_equal(samples.tokens, expected)
    check_statistics(samples, decoding)


@pytest.mark.parametrize('kind', KINDS)
def test_rows_end_at_eos_wherever_it_stands_in_a_block(kind):
  model, params = make(kind)
  free = np.asarray(greedy_reference(kind, B).tokens)
  # The EOS is a token that most rows say, each at a place of its own.
  said = [len(np.unique(np.argmax(free == v, 1))) for v in range(V)]
  eos_id = int(np.argmax(said[2:])) + 2
  block = 3
  decoding = decoding_lib.Decoding(
      block_length=block, max_new_tokens=L, eos_ids=(eos_id,)
  )
  expected = greedy_reference(kind, B, eos_id=eos_id)
  ended = set()
  for scale in (0.0, 0.1, 0.3, 2.0):
    samples = speculative.generate(
        model,
        params,
        model,
        perturbed(params, scale),
        *ragged_inputs(),
        keys_of(B),
        decoding,
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    check_statistics(samples, decoding)
    last = np.take_along_axis(
        np.asarray(samples.origins), np.asarray(samples.lengths)[:, None] - 1, 1
    )[:, 0]
    ended |= set(last[np.asarray(samples.lengths) < L])
  assert len(set(np.asarray(expected.lengths))) > 1
  # EOS has been drafted and accepted, and it has been the target's own token.
  assert Origin.ACCEPTED in ended
  assert ended & {Origin.CORRECTED, Origin.BONUS}


# The draft is the target: everything is accepted.


@pytest.mark.parametrize('temperature', [0.0, 1.0])
@pytest.mark.parametrize('kind', KINDS)
def test_a_draft_that_is_the_target_is_always_accepted(kind, temperature):
  model, params = make(kind)
  decoding = decoding_lib.Decoding(
      temperature=temperature, block_length=3, max_new_tokens=L
  )
  samples = speculative.generate(
      model, params, model, params, *ragged_inputs(), keys_of(B), decoding
  )
  counts = jax.tree.map(np.asarray, samples.statistics)
  check_statistics(samples, decoding)
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


SAMPLED = decoding_lib.Decoding(
    temperature=1.0, block_length=3, max_new_tokens=L
)


def sample(kind, method, rows):
  """Sampled rows of the ragged batch: those with these numbers."""
  model, params = make(kind)
  rows = np.asarray(rows)
  inputs, segments = ragged_inputs()
  keys = randomness.row_keys(jax.random.key(5), jnp.asarray(rows))
  arguments = (inputs[rows], segments[rows], keys, SAMPLED)
  if method == 'autoregressive':
    return autoregressive.generate(model, params, *arguments)
  draft = perturbed(params, 0.3)
  return speculative.generate(model, params, model, draft, *arguments)


@pytest.mark.parametrize('method', ['autoregressive', 'speculative'])
@pytest.mark.parametrize('kind', KINDS)
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
    check_statistics(together, SAMPLED)
    assert 0.1 < together.statistics.acceptance_rate < 0.95


def test_another_key_gives_another_sample():
  model, params = make('decoder_only')
  inputs = ragged_inputs()
  one, two = (
      autoregressive.generate(model, params, *inputs, keys_of(B, seed), SAMPLED)
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
      np.asarray(samples.origins), np.where(real, Origin.TARGET, 0)
  )
  assert (np.asarray(samples.tokens)[~real] == 0).all()


# Sampled: the target's own law.

LAW_V, LAW_L, ROWS = 8, 3, 20_000
SETTINGS = {
    'plain': {},
    'top_k': {'top_k': 3},
    'top_p': {'top_p': 0.7, 'temperature': 1.5},
}


@functools.cache
def law_models():
  """A tiny target and a draft that is accepted about half of the time."""
  model, params = make('encoder_decoder', LAW_V, seed=1, emb_dim=8)
  _, draft_params = make('encoder_decoder', LAW_V, seed=2, emb_dim=8)
  return model, params, draft_params


def law_inputs(rows):
  return (
      jnp.broadcast_to(jnp.array([[5, 3, 1]], jnp.int32), (rows, 3)),
      jnp.ones((rows, 3), jnp.int32),
  )


@functools.cache
def exact_law(decoding):
  """P(tokens) of all outputs, from teacher-forced logits of all prefixes."""
  model, params, _ = law_models()
  size = decoding.max_new_tokens
  outputs = np.array(list(itertools.product(range(LAW_V), repeat=size)))
  labels = jnp.asarray(outputs, jnp.int32)
  segments = jnp.ones_like(labels)
  logits = jax.jit(model.logits)(
      params,
      *law_inputs(len(outputs)),
      transformer.shift_right(labels, segments),
      segments,
  )
  p = np.asarray(jax.nn.softmax(warping.warp(logits, decoding)), np.float64)
  law = {}
  for row, tokens in enumerate(outputs):
    ends = np.flatnonzero(tokens == decoding.eos_ids[0])
    length = ends[0] + 1 if len(ends) else size
    key = (*tokens[:length], *[0] * (size - length))
    chance = np.prod([p[row, i, tokens[i]] for i in range(length)])
    law[tuple(map(int, key))] = chance  # equal for all that continue it
  return law


def law_p_value(tokens, law):
  """Chi-squared fit of rows to the law of whole outputs.

  Outputs that are expected less than five times share one cell. Zero if an
  impossible output occurs.
  """
  observed = dict.fromkeys(law, 0)
  for row in map(tuple, np.asarray(tokens).tolist()):
    observed[row] += 1
  chances = np.array(list(law.values()))
  counts = np.array(list(observed.values()))
  if counts[chances < 1e-12].any():
    return 0.0
  expected = chances * len(tokens)
  common = expected >= 5.0
  expected = np.append(expected[common], expected[~common].sum())
  counts = np.append(counts[common], counts[~common].sum())
  if expected[-1] < 5.0:
    expected[-2] += expected[-1]
    counts[-2] += counts[-1]
    expected, counts = expected[:-1], counts[:-1]
  # Chances come from float32 and miss 1 by rounding.
  return stats.chisquare(
      counts, expected * counts.sum() / expected.sum()
  ).pvalue


def law_decoding(name, block):
  return decoding_lib.Decoding(
      **{'temperature': 1.0, **SETTINGS[name]},
      block_length=block,
      max_new_tokens=LAW_L,
  )


def speculate(decoding, generate=speculative.generate):
  model, params, draft_params = law_models()
  return generate(
      model,
      params,
      model,
      draft_params,
      *law_inputs(ROWS),
      keys_of(ROWS, 11),
      decoding,
  )


@pytest.mark.parametrize('name', ['plain', 'top_p'])
def test_autoregressive_samples_have_the_models_law(name):
  model, params, _ = law_models()
  decoding = law_decoding(name, 1)
  samples = autoregressive.generate(
      model, params, *law_inputs(ROWS), keys_of(ROWS, 12), decoding
  )
  law = exact_law(decoding)
  assert sum(law.values()) == pytest.approx(1.0, abs=1e-5)
  assert law_p_value(samples.tokens, law) > FALSE_ALARM


@pytest.mark.parametrize('rule', ['token', 'block'])
@pytest.mark.parametrize(
    'name, block', [('plain', 1), ('plain', 2), ('top_k', 2), ('top_p', 2)]
)
def test_speculative_samples_have_the_targets_law(name, block, rule):
  decoding = dataclasses.replace(law_decoding(name, block), verification=rule)
  samples = speculate(decoding)
  check_statistics(samples, decoding)
  assert (np.array(accepted_histogram(samples.statistics)) > ROWS / 20).all()
  assert law_p_value(samples.tokens, exact_law(decoding)) > FALSE_ALARM


@pytest.mark.parametrize(
    'rule, draft_stop',
    [('token', ('confidence', 0.395)), ('block', ('entropy', 1.68))],
)
def test_samples_of_drafts_that_stop_have_the_targets_law(rule, draft_stop):
  plain = law_decoding('plain', 2)
  decoding = dataclasses.replace(
      plain, verification=rule, draft_stop=draft_stop
  )
  samples = speculate(decoding)
  counts = samples.statistics
  share = counts.drafted.sum() / counts.blocks.sum() / 2
  assert 0.6 < share < 0.95  # some blocks are short, and some are not
  assert law_p_value(samples.tokens, exact_law(plain)) > FALSE_ALARM


LEAST = 2


def law_without_early_eos():
  """The law of all outputs where the first two tokens are not EOS."""
  model, params, _ = law_models()
  outputs = np.array(list(itertools.product(range(LAW_V), repeat=LAW_L)))
  labels = jnp.asarray(outputs, jnp.int32)
  segments = jnp.ones_like(labels)
  logits = jax.jit(model.logits)(
      params,
      *law_inputs(len(outputs)),
      transformer.shift_right(labels, segments),
      segments,
  )
  p = np.array(jax.nn.softmax(logits), np.float64)
  p[:, :LEAST, 1] = 0.0
  p /= p.sum(-1, keepdims=True)
  rows = np.arange(len(outputs))[:, None]
  chances = p[rows, np.arange(LAW_L)[None], outputs].prod(1)
  return dict(zip(map(tuple, outputs.tolist()), chances))


@pytest.mark.parametrize('method', ['autoregressive', 'speculative'])
def test_samples_with_a_least_length_have_the_law_without_early_eos(method):
  model, params, draft_params = law_models()
  decoding = law_decoding('plain', 2)
  least = controls_lib.Controls(min_new_tokens=jnp.full(ROWS, LEAST))
  rows = (*law_inputs(ROWS), keys_of(ROWS, 11), decoding)
  if method == 'autoregressive':
    samples = autoregressive.generate(model, params, *rows, controls=least)
  else:
    samples = speculative.generate(
        model, params, model, draft_params, *rows, least
    )
  law = law_without_early_eos()
  assert sum(law.values()) == pytest.approx(1.0, abs=1e-5)
  assert law_p_value(samples.tokens, law) > FALSE_ALARM
  # The test can fail: EOS comes earlier where it may.
  assert (
      sum(
          chance
          for row, chance in exact_law(decoding).items()
          if 1 in row[:LEAST]
      )
      > 0.05
  )


def test_lenient_samples_have_another_law():
  lossy = dataclasses.replace(
      law_decoding('plain', 2), lenience=('linear', 0.5)
  )
  samples = speculate(lossy)
  law = exact_law(law_decoding('plain', 2))
  assert law_p_value(samples.tokens, law) < FALSE_ALARM
  lossless = dataclasses.replace(lossy, lenience=('linear', 1.0))
  assert law_p_value(speculate(lossless).tokens, law) > FALSE_ALARM


def test_a_verifier_that_resamples_the_target_is_caught(monkeypatch):
  exact = verification.token

  def biased(keys, drafted, q_logits, p_logits, lengths=None):
    verdict = exact(keys, drafted, q_logits, p_logits)
    weights = p_logits[jnp.arange(len(drafted)), verdict.num_accepted]
    again = randomness.categorical(randomness.streams(keys, 'next'), weights)
    return verdict._replace(next_token=again)

  monkeypatch.setattr(verification, 'token', biased)
  assert caught_in_the_law()


def test_a_key_used_in_two_blocks_is_caught(monkeypatch):
  events = randomness.events
  monkeypatch.setattr(
      randomness, 'events', lambda keys, number: events(keys, 0)
  )
  assert caught_in_the_law()


def test_a_draft_that_is_warped_otherwise_is_caught(monkeypatch):
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
  assert caught_in_the_law()


def caught_in_the_law():
  decoding = law_decoding('plain', 1)
  law = exact_law(law_decoding('plain', 2))
  # Compiled afresh: what was compiled before does not hold the change.
  mutant = jax.jit(
      lambda *args: speculative.generate.__wrapped__(*args),
      static_argnums=(0, 2, 7),
  )
  samples = speculate(decoding, mutant)
  return law_p_value(samples.tokens, law) < FALSE_ALARM


# Vocabularies that differ by padding rows.


@pytest.mark.parametrize(
    'target_size, draft_size, temperature',
    [(50, 52, 0.0), (52, 50, 0.0), (52, 50, 1.0)],
)
def test_padding_rows_of_the_larger_vocabulary_are_never_said(
    target_size, draft_size, temperature
):
  target, target_params = make('decoder_only', target_size)
  draft, draft_params = make('decoder_only', draft_size, seed=0)
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
      *ragged_inputs(),
      keys_of(B),
      decoding,
  )
  check_statistics(samples, decoding)
  assert np.asarray(samples.tokens).max() < 50
  if decoding.greedy:
    expected = autoregressive.generate(
        target,
        target_params,
        *ragged_inputs(),
        keys_of(B),
        decoding,
        vocabulary=50,
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)


# One program, and nothing goes to the host before it ends.


@pytest.mark.parametrize('method', ['autoregressive', 'speculative'])
def test_generation_is_one_program_without_host_transfers(method):
  model, params = make('decoder_only')
  arguments = (*ragged_inputs(), keys_of(B), SAMPLED)
  if method == 'autoregressive':
    generate = autoregressive.generate
    arguments = (model, params, *arguments)
  else:
    generate = speculative.generate
    arguments = (model, params, model, perturbed(params, 0.3), *arguments)
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
  model, params = make('decoder_only')
  again = transformer.Transformer(model.config)
  arguments = (*ragged_inputs(), keys_of(B))
  autoregressive.generate(model, params, *arguments, SAMPLED)
  size = autoregressive.generate._cache_size()
  same = decoding_lib.Decoding(
      temperature=1.0, block_length=3, max_new_tokens=L
  )
  autoregressive.generate(again, params, *arguments, same)
  assert autoregressive.generate._cache_size() == size


def test_statistics_hold_in_bfloat16():
  model, params = make('encoder_decoder', dtype='bfloat16')
  samples = speculative.generate(
      model,
      params,
      model,
      perturbed(params, 0.1),
      *ragged_inputs(),
      keys_of(B),
      SAMPLED,
  )
  check_statistics(samples, SAMPLED)
