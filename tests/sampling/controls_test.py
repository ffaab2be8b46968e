"""Settings of rows, against a plain loop over teacher-forced logits.

All tests but the last share one program for each model and method: every
control is there, and what it says differs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import stopping
from tests.sampling import pairs

B, L, P = 4, 14, 8
EOS = (1, 23, 33, 40)
DECODING = decoding_lib.Decoding(
    temperature=1.0,
    block_length=3,
    max_new_tokens=L,
    eos_ids=EOS,
    log_probs=True,
)
METHODS = ['autoregressive', 'speculative']
# Tokens spell letters; some spell several.
LETTERS = [chr(97 + i % 7) * (1 + i // 40) for i in range(pairs.V)]
SURFACES = [letter.encode() for letter in LETTERS]


def controls(
    temperature=0.0, most=L, least=0, prefix=((),) * B, stop=None
) -> controls_lib.Controls:
  """The controls of a batch, of one structure and one shape."""
  tokens, segments = batching.pad(prefix, P)
  automaton = stopping.automaton(stop or ['abc'], SURFACES)
  if stop is None:  # nothing is ever found
    automaton = automaton.replace(found=jnp.int32(2**15))
  return controls_lib.Controls(
      temperature=jnp.broadcast_to(jnp.float32(temperature), B),
      max_new_tokens=jnp.broadcast_to(jnp.int32(most), B),
      min_new_tokens=jnp.broadcast_to(jnp.int32(least), B),
      prefix=jnp.asarray(tokens),
      prefix_segments=jnp.asarray(segments),
      stop=automaton,
  )


def run(method, kind, settings, scale=0.1, params=None, draft_params=None):
  """Samples of a method; of speculation, after checking its counters."""
  model, own = pairs.make(kind)
  params = own if params is None else params
  rows = (*pairs.ragged_inputs(B), pairs.keys_of(B))
  if method == 'autoregressive':
    samples = autoregressive.generate(
        model, params, *rows, DECODING, controls=settings
    )
  else:
    if draft_params is None:
      draft_params = pairs.perturbed(own, scale)
    samples = speculative.generate(
        model, params, model, draft_params, *rows, DECODING, settings
    )
  return jax.tree.map(np.asarray, samples)


@functools.cache
def _logits(kind):
  model, _ = pairs.make(kind)
  return jax.jit(model.logits)


def forced_logits(kind, labels):
  """Teacher-forced logits [B, P + L, V] of labels after the prefix."""
  _, params = pairs.make(kind)
  labels = jnp.asarray(labels, jnp.int32)
  segments = jnp.ones_like(labels)
  return np.asarray(
      _logits(kind)(
          params,
          *pairs.ragged_inputs(B),
          transformer_lib.shift_right(labels, segments),
          segments,
      )
  )


def reference(kind, most=L, least=0, prefix=((),) * B, stop=None):
  """Greedy tokens of each row, and their log-probabilities, by a plain loop."""
  most, least = np.broadcast_to(most, B), np.broadcast_to(least, B)
  labels = np.zeros((B, P + L), int)
  rows = [list(one) for one in prefix]
  said = [[] for _ in range(B)]
  log_probs = [[] for _ in range(B)]
  done = np.zeros(B, bool)
  while not done.all():
    for b in range(B):
      labels[b, : len(rows[b])] = rows[b]
    logits = forced_logits(kind, labels)
    for b in np.flatnonzero(~done):
      here = logits[b, len(rows[b])]
      allowed = here.copy()
      if len(said[b]) < least[b]:
        allowed[list(EOS)] = -np.inf
      token = int(allowed.argmax())
      rows[b].append(token)
      said[b].append(token)
      log_probs[b].append(here[token] - np.log(np.exp(here).sum()))
      text = ''.join(LETTERS[token] for token in said[b])
      done[b] = token in EOS or len(said[b]) == most[b]
      done[b] |= any(string in text for string in stop or ())
  return said, log_probs


def check(samples, expected):
  """The tokens and log-probabilities are those of the reference."""
  said, log_probs = expected
  for b in range(B):
    length = len(said[b])
    assert samples.lengths[b] == length
    assert samples.tokens[b, :length].tolist() == said[b]
    assert (samples.tokens[b, length:] == 0).all()
    np.testing.assert_allclose(
        samples.log_probs[b, :length], log_probs[b], atol=2e-4
    )
    assert (samples.log_probs[b, length:] == 0.0).all()
  assert (samples.nonfinite_at == -1).all()


CASES = {
    'nothing': {},
    'limits': {'most': [1, 5, 14, 8]},
    'least': {'least': [14, 6, 0, 9]},
    'least of some': {'least': [3, 12, 4, 0], 'most': [3, 13, 4, 9]},
    'prefix': {'prefix': [[5], [7, 1, 30, 12], [], [8, 8, 8, 8, 8, 8, 8, 8]]},
    'stop': {'stop': ['abc']},
    'everything': {
        'least': [4, 0, 2, 7],
        'most': [9, 14, 11, 7],
        'prefix': [[], [3, 4, 5], [44, 45], [20]],
    },
}


def early_word(kind):
  """A string of three letters after which rows say most, and their texts."""
  said, _ = reference(kind)
  texts = [''.join(LETTERS[token] for token in row) for row in said]
  words = [text[i : i + 3] for text in texts for i in range(len(text) - 2)]
  said_after = lambda word: sum(len(t.partition(word)[2]) for t in texts)
  return max(words, key=lambda word: (said_after(word), word)), texts


@functools.cache
def expected(kind, case):
  return reference(kind, **settings_of(kind, case))


def settings_of(kind, case):
  settings = dict(CASES[case])
  if 'stop' in settings:
    settings['stop'] = [early_word(kind)[0]]
  return settings


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_rows_are_those_of_a_plain_loop(kind, case, method):
  settings = settings_of(kind, case)
  samples = run(method, kind, controls(**settings))
  check(samples, expected(kind, case))
  if method == 'speculative':
    limit, may_stop = settings.get('most', L), 'stop' in settings
    pairs.check_statistics(samples, DECODING, limit, may_stop)
    for scale in (0.0, 0.3):  # everything is accepted, and little is
      samples = run(method, kind, controls(**settings), scale)
      check(samples, expected(kind, case))
      pairs.check_statistics(samples, DECODING, limit, may_stop)


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_the_cases_are_not_empty(kind):
  plain, _ = expected(kind, 'nothing')
  assert min(map(len, plain)) < L  # rows end at an EOS
  assert len({row[-1] for row in plain} & set(EOS)) > 1  # at several
  longer, _ = expected(kind, 'least')
  assert any(len(a) > len(b) for a, b in zip(longer, plain))
  word, texts = early_word(kind)
  stopped, _ = expected(kind, 'stop')
  assert any(word in text for text in texts)
  assert any(len(a) < len(b) for a, b in zip(stopped, plain))


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_stop_string_may_end_inside_an_accepted_block(kind):
  settings = settings_of(kind, 'stop')
  samples = run('speculative', kind, controls(**settings), scale=0.0)
  check(samples, expected(kind, 'stop'))
  # Nothing of the rest of the block is counted.
  counts = samples.statistics
  np.testing.assert_array_equal(counts.emitted, samples.lengths)
  inside = (samples.lengths % 4 != 0) & (samples.lengths < L)
  assert inside.any()
  np.testing.assert_array_equal(
      counts.accepted, samples.lengths - samples.lengths // 4
  )
  np.testing.assert_array_equal(counts.accepted_at, counts.reached_at)


@pytest.mark.parametrize('method', METHODS)
def test_rows_of_a_mixed_batch_are_as_in_batches_of_one_temperature(method):
  temperature = np.array([0.0, 1.0, 0.5, 2.0], np.float32)
  mixed = run(method, 'decoder_only', controls(temperature))
  for row, value in enumerate(temperature):
    same = run(method, 'decoder_only', controls(value))
    jax.tree.map(
        lambda one, two, row=row: np.testing.assert_array_equal(
            one[row], two[row]
        ),
        mixed,
        same,
    )
  greedy, _ = expected('decoder_only', 'nothing')
  assert mixed.tokens[0, : mixed.lengths[0]].tolist() == greedy[0]
  assert mixed.tokens[3, : mixed.lengths[3]].tolist() != greedy[3]


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_log_probabilities_are_the_targets_at_temperature_one(kind, method):
  prefix = CASES['prefix']['prefix']
  settings = controls([1.0, 0.0, 0.5, 2.0], prefix=prefix, least=[0, 5, 3, 0])
  samples = run(method, kind, settings, scale=0.3)
  labels = np.zeros((B, P + L), int)
  for b, length in enumerate(samples.lengths):
    labels[b, : len(prefix[b])] = prefix[b]
    labels[b, len(prefix[b]) :][:length] = samples.tokens[b, :length]
  log_p = np.asarray(jax.nn.log_softmax(forced_logits(kind, labels)))
  for b, length in enumerate(samples.lengths):
    place = len(prefix[b]) + np.arange(length)
    np.testing.assert_allclose(
        samples.log_probs[b, :length],
        log_p[b, place, samples.tokens[b, :length]],
        atol=2e-4,
    )
  assert samples.log_probs.min() < -0.1


# Logits that are no numbers.


def with_nan(kind, token, params=None):
  """Parameters whose embedding of one token is nan."""
  params = pairs.make(kind)[1] if params is None else params
  table = params['token_embedder']['embedding']
  table = table.at[token].set(jnp.nan)
  return {**params, 'token_embedder': {'embedding': table}}


def said_by_one_row(kind):
  """A token that one row alone reads, the row, and where it says it."""
  said, _ = expected(kind, 'nothing')
  inputs = np.asarray(pairs.ragged_inputs(B)[0])
  for row in range(B):
    for at, token in enumerate(said[row][:-1]):
      others = [said[b] for b in range(B) if b != row]
      if at > 2 and token not in inputs and token not in sum(others, []):
        return token, row, said[row].index(token)
  raise AssertionError('choose another seed')


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_row_whose_targets_logits_are_no_numbers_ends_there(kind, method):
  token, row, at = said_by_one_row(kind)
  # The draft proposes to no other row what would spoil its block.
  params = with_nan(kind, token)
  samples = run(method, kind, controls(), scale=0.0, params=params)
  said, _ = expected(kind, 'nothing')
  others = np.arange(B) != row
  assert (samples.nonfinite_at[others] == -1).all()
  assert samples.nonfinite_at[row, 1] == -1
  step = samples.nonfinite_at[row, 0]
  if method == 'autoregressive':
    assert step == at + 1
  else:  # the block in which it shows is dropped
    assert at + 1 - DECODING.block_length <= step <= at + 1
  assert samples.lengths[row] == step
  assert samples.tokens[row, :step].tolist() == said[row][:step]
  for b in np.flatnonzero(others):
    assert samples.tokens[b, : samples.lengths[b]].tolist() == said[b]


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_row_whose_drafts_logits_are_no_numbers_ends_there(kind):
  token, row, at = said_by_one_row(kind)
  noisy = pairs.perturbed(pairs.make(kind)[1], 0.1)
  broken = with_nan(kind, token, noisy)
  samples = run('speculative', kind, controls(), draft_params=broken)
  said, _ = expected(kind, 'nothing')
  others = np.arange(B) != row
  assert (samples.nonfinite_at[row] >= 0).tolist() == [False, True]
  step = samples.nonfinite_at[row, 1]
  assert at + 1 - DECODING.block_length <= step <= at + 1
  assert samples.lengths[row] == step
  for b in np.flatnonzero(others & (samples.nonfinite_at[:, 1] < 0)):
    assert samples.tokens[b, : samples.lengths[b]].tolist() == said[b]
  assert (samples.nonfinite_at[others, 1] < 0).sum() >= 2


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_logits_of_every_kind_of_nonsense_are_seen(value):
  """In the output layer, so that all rows break at once."""
  model, params = pairs.make('decoder_only')
  kernel = params['decoder']['logits_dense']['kernel']
  spoilt = kernel.at[:, 30].set(value)
  if value == -np.inf:  # times a negative activation it is +inf
    spoilt = jnp.full_like(kernel, value)
  decoder = {**params['decoder'], 'logits_dense': {'kernel': spoilt}}
  samples = run(
      'autoregressive', 'decoder_only', controls(1.0),
      params={**params, 'decoder': decoder},
  )  # fmt: skip
  assert model.config.is_decoder_only
  assert (samples.nonfinite_at[:, 0] >= 0).any()
  assert (samples.lengths == np.where(samples.nonfinite_at[:, 0] >= 0,
                                      samples.nonfinite_at[:, 0],
                                      samples.lengths)).all()  # fmt: skip


def test_a_nan_that_the_draft_shares_is_not_accepted():
  # Greedy, both take the nan for the largest logit.
  kind = 'decoder_only'
  model, params = pairs.make(kind)
  kernel = params['decoder']['logits_dense']['kernel']
  spoilt = kernel.at[:, 30].set(jnp.nan)
  decoder = {**params['decoder'], 'logits_dense': {'kernel': spoilt}}
  params = {**params, 'decoder': decoder}
  greedy = dataclasses.replace(DECODING, temperature=0.0, log_probs=False)
  samples = speculative.generate(
      model,
      params,
      model,
      params,
      *pairs.ragged_inputs(B),
      pairs.keys_of(B),
      greedy,
  )
  np.testing.assert_array_equal(samples.nonfinite_at, 0)
  np.testing.assert_array_equal(samples.lengths, 0)
