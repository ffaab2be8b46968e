"""Settings of single rows, against a plain loop over teacher-forced logits.

All tests but the last share one program for each model and method: every
control is there, and what it says differs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.core import types
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import sampler
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import stopping
from tests.sampling import pairs

B, L, P = 4, 14, 8
EOS = (1, 10, 11, 25, 35)
DECODING = pairs.decoding(
    temperature=1.0, length=3, max_new_tokens=L, eos_ids=EOS, log_probs=True
)
METHODS = ['autoregressive', 'speculative']
# Tokens spell letters; some spell several.
LETTERS = [chr(97 + i % 7) * (1 + i // 32) for i in range(pairs.V)]
SURFACES = [letter.encode() for letter in LETTERS]


def controls(
    temperature=0.0, max_new_tokens=L, min_new_tokens=0, prefix=((),) * B
):
  """The controls of a batch, of one structure and one shape."""
  return controls_lib.Controls(
      temperature=jnp.broadcast_to(jnp.float32(temperature), B),
      max_new_tokens=jnp.broadcast_to(jnp.int32(max_new_tokens), B),
      min_new_tokens=jnp.broadcast_to(jnp.int32(min_new_tokens), B),
      prefix=types.Prompt(*map(jnp.asarray, batching.pad(prefix, P))),
  )


def automaton(stop):
  """Of one stop string of three letters; of none, one that never occurs."""
  if stop is None:
    automaton = stopping.automaton(['abc'], SURFACES)
    return automaton.replace(complete=jnp.int32(2**15))
  return stopping.automaton([stop], SURFACES)


def run(
    method, kind, scale=0.1, target=None, draft=None, stop=None, **settings
):
  """Samples of a method; settings as of `controls`."""
  if draft is None:
    draft = pairs.noisy(kind, scale)
  samples = sampler.generate(
      pairs.make(kind) if target is None else target,
      pairs.prompt(B),
      pairs.keys_of(B),
      DECODING,
      draft=draft if method == 'speculative' else None,
      controls=controls(**settings),
      stop=automaton(stop),
  )
  return jax.tree.map(np.asarray, samples)


@jax.jit
def _forced_logits(model, labels):
  segments = jnp.ones_like(labels)
  return model.logits(
      pairs.prompt(B), model_lib.shift_right(labels, segments), segments
  )


def forced_logits(kind, labels):
  """Teacher-forced logits [B, P + L, V] of labels after the prefix."""
  labels = jnp.asarray(labels, jnp.int32)
  return np.asarray(_forced_logits(pairs.make(kind), labels))


def reference(
    kind, max_new_tokens=L, min_new_tokens=0, prefix=((),) * B, stop=None
):
  """Greedy tokens of each row, and their log-probabilities, by a plain loop."""
  limit = np.broadcast_to(max_new_tokens, B)
  minimum = np.broadcast_to(min_new_tokens, B)
  labels = np.zeros((B, P + L), int)
  rows = [list(one) for one in prefix]
  emitted = [[] for _ in range(B)]
  log_probs = [[] for _ in range(B)]
  done = np.zeros(B, bool)
  while not done.all():
    for b in range(B):
      labels[b, : len(rows[b])] = rows[b]
    logits = forced_logits(kind, labels)
    for b in np.flatnonzero(~done):
      here = logits[b, len(rows[b])]
      allowed = here.copy()
      if len(emitted[b]) < minimum[b]:
        allowed[list(EOS)] = -np.inf
      token = int(allowed.argmax())
      rows[b].append(token)
      emitted[b].append(token)
      log_probs[b].append(here[token] - np.log(np.exp(here).sum()))
      text = ''.join(LETTERS[token] for token in emitted[b])
      done[b] = token in EOS or len(emitted[b]) == limit[b]
      done[b] |= stop is not None and stop in text
  return emitted, log_probs


def check(samples, expected):
  """The tokens and log-probabilities are those of the reference."""
  tokens, log_probs = expected
  for b in range(B):
    length = len(tokens[b])
    assert samples.lengths[b] == length
    assert samples.tokens[b, :length].tolist() == tokens[b]
    assert (samples.tokens[b, length:] == 0).all()
    np.testing.assert_allclose(
        samples.log_probs[b, :length], log_probs[b], atol=2e-4
    )
    assert (samples.log_probs[b, length:] == 0.0).all()
  assert (samples.nonfinite_at == -1).all()


CASES = {
    'nothing': {},
    'limits': {'max_new_tokens': [1, 5, 14, 8]},
    'minima': {'min_new_tokens': [14, 6, 0, 9]},
    'minima and limits': {
        'min_new_tokens': [3, 12, 4, 0],
        'max_new_tokens': [3, 13, 4, 9],
    },
    'prefix': {'prefix': [[5], [7, 1, 30, 12], [], [8, 8, 8, 8, 8, 8, 8, 8]]},
    'stop': {'stop': 'early word'},
    'several': {
        'min_new_tokens': [4, 0, 2, 7],
        'max_new_tokens': [9, 14, 11, 7],
        'prefix': [[], [3, 4, 5], [34, 35], [20]],
    },
}


@functools.cache
def early_word(kind):
  """Three letters that much text follows, and the texts of all rows."""
  tokens, _ = reference(kind)
  texts = [''.join(LETTERS[token] for token in row) for row in tokens]
  words = [text[i : i + 3] for text in texts for i in range(len(text) - 2)]
  follows = lambda word: sum(len(t.partition(word)[2]) for t in texts)
  return max(words, key=lambda word: (follows(word), word)), texts


def settings_of(kind, case):
  settings = dict(CASES[case])
  if 'stop' in settings:
    settings['stop'] = early_word(kind)[0]
  return settings


@functools.cache
def expected(kind, case='nothing'):
  return reference(kind, **settings_of(kind, case))


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_rows_are_those_of_a_plain_loop(kind, case, method):
  settings = settings_of(kind, case)
  # The draft differs now and then; everything is accepted; little is.
  scales = (0.1, 0.0, 0.3) if method == 'speculative' else (0.1,)
  for scale in scales:
    samples = run(method, kind, scale, **settings)
    check(samples, expected(kind, case))
    if method == 'speculative':
      limit = settings.get('max_new_tokens', L)
      pairs.check_statistics(samples, DECODING, limit, 'stop' in settings)


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_the_cases_are_not_empty(kind):
  plain, _ = expected(kind)
  assert min(map(len, plain)) < L  # rows end at an EOS
  assert len({row[-1] for row in plain} & set(EOS)) > 1  # at several
  longer, _ = expected(kind, 'minima')
  assert any(len(a) > len(b) for a, b in zip(longer, plain))
  word, texts = early_word(kind)
  stopped, _ = expected(kind, 'stop')
  assert any(word in text for text in texts)
  assert any(len(a) < len(b) for a, b in zip(stopped, plain))


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_stop_string_may_end_inside_an_accepted_block(kind):
  samples = run('speculative', kind, scale=0.0, **settings_of(kind, 'stop'))
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
  mixed = run(method, 'decoder_only', temperature=temperature)
  for row, value in enumerate(temperature):
    same = run(method, 'decoder_only', temperature=value)
    jax.tree.map(
        np.testing.assert_array_equal,
        pairs.take(mixed, row),
        pairs.take(same, row),
    )
  greedy, _ = expected('decoder_only')
  assert mixed.tokens[0, : mixed.lengths[0]].tolist() == greedy[0]
  assert mixed.tokens[3, : mixed.lengths[3]].tolist() != greedy[3]


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_log_probabilities_are_the_targets_at_temperature_one(kind, method):
  prefix = CASES['prefix']['prefix']
  samples = run(
      method, kind, scale=0.3, temperature=[1.0, 0.0, 0.5, 2.0], prefix=prefix,
      min_new_tokens=[0, 5, 3, 0],
  )  # fmt: skip
  labels = np.zeros((B, P + L), int)
  for b, length in enumerate(samples.lengths):
    labels[b, : len(prefix[b])] = prefix[b]
    labels[b, len(prefix[b]) :][:length] = samples.tokens[b, :length]
  log_p = np.asarray(jax.nn.log_softmax(forced_logits(kind, labels)))
  for b, length in enumerate(samples.lengths):
    position = len(prefix[b]) + np.arange(length)
    np.testing.assert_allclose(
        samples.log_probs[b, :length],
        log_p[b, position, samples.tokens[b, :length]],
        atol=2e-4,
    )
  assert samples.log_probs.min() < -0.1


# Non-finite logits.


def with_nan(model, token):
  """The model with nan for the embedding of one token."""
  table = model.params['token_embedder']['embedding'].at[token].set(jnp.nan)
  params = {**model.params, 'token_embedder': {'embedding': table}}
  return model.replace(params=params)


def with_output(model, kernel):
  """The model with another output layer."""
  decoder = {**model.params['decoder'], 'logits_dense': {'kernel': kernel}}
  return model.replace(params={**model.params, 'decoder': decoder})


def emitted_by_one_row(kind):
  """A token that one row alone reads, the row, and where it emits it."""
  tokens, _ = expected(kind)
  inputs = np.asarray(pairs.prompt(B).tokens)
  for row in range(B):
    others = sum((tokens[b] for b in range(B) if b != row), [])
    for at, token in enumerate(tokens[row][:-1]):
      if at > 2 and token not in inputs and token not in others:
        return token, row, tokens[row].index(token)
  raise AssertionError('choose another seed')


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_row_ends_where_the_targets_logits_are_not_finite(kind, method):
  token, row, at = emitted_by_one_row(kind)
  # The draft proposes to no other row what would make its block non-finite.
  target = with_nan(pairs.make(kind), token)
  samples = run(method, kind, scale=0.0, target=target)
  tokens, _ = expected(kind)
  others = np.arange(B) != row
  assert (samples.nonfinite_at[others] == -1).all()
  assert samples.nonfinite_at[row, 1] == -1
  step = samples.nonfinite_at[row, 0]
  if method == 'autoregressive':
    assert step == at + 1
  else:  # the block in which it shows is dropped
    assert at + 1 - DECODING.drafting.length <= step <= at + 1
  assert samples.lengths[row] == step
  assert samples.tokens[row, :step].tolist() == tokens[row][:step]
  for b in np.flatnonzero(others):
    assert samples.tokens[b, : samples.lengths[b]].tolist() == tokens[b]


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_row_ends_where_the_drafts_logits_are_not_finite(kind):
  token, row, at = emitted_by_one_row(kind)
  draft = with_nan(pairs.noisy(kind, 0.1), token)
  samples = run('speculative', kind, draft=draft)
  tokens, _ = expected(kind)
  others = np.arange(B) != row
  assert (samples.nonfinite_at[row] >= 0).tolist() == [False, True]
  step = samples.nonfinite_at[row, 1]
  assert at + 1 - DECODING.drafting.length <= step <= at + 1
  assert samples.lengths[row] == step
  for b in np.flatnonzero(others & (samples.nonfinite_at[:, 1] < 0)):
    assert samples.tokens[b, : samples.lengths[b]].tolist() == tokens[b]
  assert (samples.nonfinite_at[others, 1] < 0).sum() >= 2


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_non_finite_logits_of_every_kind_are_seen(value):
  """In the output layer, so that all rows are affected at once."""
  model = pairs.make('decoder_only')
  kernel = model.params['decoder']['logits_dense']['kernel']
  changed = kernel.at[:, 30].set(value)
  if value == -np.inf:  # times a negative activation it is +inf
    changed = jnp.full_like(kernel, value)
  samples = run(
      'autoregressive', 'decoder_only', temperature=1.0,
      target=with_output(model, changed),
  )  # fmt: skip
  nonfinite_at = samples.nonfinite_at[:, 0]
  assert (nonfinite_at >= 0).any()
  np.testing.assert_array_equal(
      samples.lengths,
      np.where(nonfinite_at >= 0, nonfinite_at, samples.lengths),
  )


def test_a_nan_that_the_draft_shares_is_not_accepted():
  # Greedy, both take the nan for the largest logit.
  model = pairs.make('decoder_only')
  kernel = model.params['decoder']['logits_dense']['kernel']
  model = with_output(model, kernel.at[:, 30].set(jnp.nan))
  greedy = DECODING.replace(temperature=0.0, log_probs=False)
  samples = speculative.generate(
      model, model, pairs.prompt(B), pairs.keys_of(B), greedy
  )
  np.testing.assert_array_equal(samples.nonfinite_at, 0)
  np.testing.assert_array_equal(samples.lengths, 0)


# The value itself.


def test_what_is_not_set_is_as_the_decoding_says():
  decoding = decoding_lib.Decoding(max_new_tokens=9)
  nothing = controls_lib.NO_CONTROLS
  assert not jax.tree.leaves(nothing)
  assert nothing.is_greedy(decoding)
  assert not nothing.is_greedy(decoding.replace(temperature=1.0))
  assert nothing.limit(decoding) == 9
  logits = jnp.zeros((2, 3, 5))
  position = jnp.zeros((2, 3), jnp.int32)
  assert nothing.forbid_early_eos(logits, position, decoding) is logits


def test_limits_are_kept_within_those_of_the_decoding():
  settings = controls_lib.Controls(max_new_tokens=jnp.array([-1, 4, 12]))
  decoding = decoding_lib.Decoding(max_new_tokens=9)
  np.testing.assert_array_equal(settings.limit(decoding), [1, 4, 9])
  # Temperatures of single rows need the sampling program.
  cold = controls_lib.Controls(temperature=jnp.zeros(3))
  assert not cold.is_greedy(decoding)


def test_early_eos_is_forbidden_by_token_and_not_by_index():
  settings = controls_lib.Controls(min_new_tokens=jnp.array([1, 3]))
  decoding = decoding_lib.Decoding(eos_ids=(1, 6))
  position = jnp.array([[0, 1], [2, 3]])
  early = np.array([[True, False], [True, False]])
  for tokens in (range(8), (0, 1, 4, 6)):
    vocabulary = trimmed_vocabulary.TrimmedVocabulary(tuple(tokens), 8)
    logits = settings.forbid_early_eos(
        jnp.zeros((2, 2, len(tokens))), position, decoding, vocabulary
    )
    is_eos = np.isin(list(tokens), decoding.eos_ids)
    np.testing.assert_array_equal(logits == -np.inf, early[..., None] & is_eos)
