"""Multi-path drafts: exact all the same, and no fewer tokens accepted.

The distribution of what a block of K paths emits is written down by
enumeration, from tables of small vocabularies, and is the target's; the code's
verdicts are then measured against it. Each has twins that prove it can fail.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from distillspec_jax.core import randomness
from distillspec_jax.sampling import verification
from distillspec_jax.sampling.verification import multi_path
from distillspec_jax.sampling.verification import verifier as verifier_lib
from tests.sampling import enumeration

FALSE_ALARM = enumeration.FALSE_ALARM
Token = verification.Token
V, G = 3, 2


# By enumeration.


def same_token(paths, depth, accepted, number):
  """The paths that stay alive: all that drafted the accepted token."""
  del number
  return [path for path in paths if path[depth] == accepted]


def emitted_distribution(
    p, q, paths, residual=enumeration.exact_residual, survive=same_token
):
  """P(tokens that a block emits), given its paths; tables by prefix.

  Args:
    p: function of the accepted tokens: float64[V], the target's distribution.
    q: likewise, the draft's.
    paths: K tuples of tokens, of equal or of different lengths.
    residual: (p, q) -> what is left of p after a rejection.
    survive: (paths, depth, accepted, number of the one that passed) -> paths.
  """
  distribution = {}

  def walk(prefix, paths, mass):
    here, depth = p(prefix), len(prefix)
    if paths and len(paths[0]) > depth:
      proposed = q(prefix)
      for number, path in enumerate(paths):
        x = path[depth]
        passes = min(1.0, here[x] / proposed[x]) if here[x] > 0.0 else 0.0
        if passes > 0.0:
          left = survive(paths, depth, x, number)
          walk((*prefix, x), left, mass * passes)
        mass *= 1.0 - passes
        if mass <= 0.0:
          return
        here = residual(here, proposed)
    for token, share in enumerate(here):
      tokens = (*prefix, token)
      distribution[tokens] = distribution.get(tokens, 0.0) + mass * share

  walk((), list(paths), 1.0)
  return distribution


def sequence_distribution(p, q, length, number, stop=None, **wrong):
  """The distribution of whole sequences, block by block; surplus is cut.

  Args:
    p: prefix -> distribution, from `enumeration.random_tables`.
    q: likewise.
    length: of the sequences.
    number: K.
    stop: whether a path of these tokens, after that prefix, ends here.
    **wrong: see `emitted_distribution`.
  """
  sequences = itertools.product(range(V), repeat=length)
  distribution = dict.fromkeys(sequences, 0.0)

  def after(tables, prefix, tokens):
    uniform = np.full(V, 1.0 / V)  # beyond the end: no effect
    return tables.get(prefix + tokens, uniform)

  def cut(prefix, path):
    for size in range(1, G):
      if stop is not None and stop(prefix, path[:size]):
        return path[:size]
    return path

  @functools.cache
  def one_path(prefix):
    """Path -> its chance."""
    chances = {}
    for path in itertools.product(range(V), repeat=G):
      chance, path = 1.0, cut(prefix, path)
      for i, x in enumerate(path):
        chance *= after(q, prefix, path[:i])[x]
      chances[path] = chance
    return {path: chance for path, chance in chances.items() if chance > 0.0}

  pending = {(): 1.0}
  while pending:
    prefix = min(pending, key=len)
    mass = pending.pop(prefix)
    drafts = one_path(prefix)
    for paths in itertools.product(drafts, repeat=number):
      chance = mass * np.prod([drafts[path] for path in paths])
      appended = emitted_distribution(
          functools.partial(after, p, prefix),
          functools.partial(after, q, prefix),
          paths,
          **wrong,
      )
      for tokens, share in appended.items():
        end = (prefix + tokens)[:length]
        into = distribution if len(end) == length else pending
        into[end] = into.get(end, 0.0) + chance * share
  return distribution


def tables(seed, length, sparse=False):
  return (
      enumeration.random_tables(seed, V, length, sparse),
      enumeration.random_tables(seed + 10, V, length, sparse),
  )


def sampled_first_token(prefix, path):
  """A rule that ends some paths early: a function of the path's own past."""
  return (sum(prefix) + path[0]) % 2 == 0


@pytest.mark.parametrize('stop', [None, sampled_first_token])
@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('number, length', [(1, 4), (2, 4), (3, 3)])
def test_the_distribution_of_all_blocks_is_the_targets(
    number, length, sparse, stop
):
  p, q = tables(0, length, sparse)
  distribution = sequence_distribution(p, q, length, number, stop)
  assert abs(sum(distribution.values()) - 1.0) < 1e-12
  expected = enumeration.sequence_distribution(p, V, length)
  assert enumeration.largest_difference(distribution, expected) < 1e-12


def only_the_accepted(paths, depth, accepted, number):
  """Others that drafted the same token are dropped: lossless, and a waste."""
  del depth, accepted
  return [paths[number]]


def test_dropping_paths_that_agree_is_lossless_too():
  p, q = tables(1, 3)
  distribution = sequence_distribution(p, q, 3, 2, survive=only_the_accepted)
  expected = enumeration.sequence_distribution(p, V, 3)
  assert enumeration.largest_difference(distribution, expected) < 1e-12


def dead_paths_stay_alive(paths, depth, accepted, number):
  """Paths that drafted another token are tried again further down."""
  del depth, accepted, number
  return paths


WRONG = {
    'p_is_not_reduced': {'residual': lambda p, q: p},
    'p_becomes_q': {'residual': lambda p, q: q},
    'dead_paths': {'survive': dead_paths_stay_alive},
}


@pytest.mark.parametrize('wrong', WRONG)
def test_a_wrong_rule_has_another_distribution(wrong):
  p, q = tables(1, 3)
  distribution = sequence_distribution(p, q, 3, 2, **WRONG[wrong])
  assert abs(sum(distribution.values()) - 1.0) < 1e-12
  expected = enumeration.sequence_distribution(p, V, 3)
  assert enumeration.largest_difference(distribution, expected) > 1e-3


def expected_accepted(p, q, number, **changes):
  """Accepted tokens of a block of G, over all drafts."""
  total = 0.0
  drafts = list(itertools.product(range(V), repeat=G))
  chances = [
      np.prod([q[path[:i]][x] for i, x in enumerate(path)]) for path in drafts
  ]
  for paths in itertools.product(range(len(drafts)), repeat=number):
    emitted = emitted_distribution(
        p.__getitem__, q.__getitem__, [drafts[i] for i in paths], **changes
    )
    accepted = sum(
        share * (len(tokens) - 1) for tokens, share in emitted.items()
    )
    total += np.prod([chances[i] for i in paths]) * accepted
  return total


@pytest.mark.parametrize('seed', range(3))
def test_more_paths_accept_more(seed):
  p, q = tables(seed, G + 1)
  one, two, three = (expected_accepted(p, q, number) for number in (1, 2, 3))
  closed_form = sum(
      np.prod([min(p[x[:i]][x[i]], q[x[:i]][x[i]]) for i in range(size)])
      for size in (1, 2)
      for x in itertools.product(range(V), repeat=size)
  )
  assert one == pytest.approx(closed_form, rel=1e-12)
  assert one + 0.02 < two and two + 0.01 < three
  wasted = expected_accepted(p, q, 2, survive=only_the_accepted)
  assert one < wasted < two


# The code, by frequency.

ROWS = {2: 3_000, 3: 500}  # verdicts for each choice of paths


def node_logits(table, number, paths):
  """Logits before and after each token of paths int[N, G, K], as the code's."""
  rows = len(paths)
  logits = np.zeros((rows, 1 + G * number, V), np.float32)
  with np.errstate(divide='ignore'):
    logs = {prefix: np.log(p) for prefix, p in table.items()}
  logits[:, 0] = logs[()]
  for row, depth, k in np.ndindex(*paths.shape):
    prefix = tuple(paths[row, : depth + 1, k].tolist())
    logits[row, 1 + depth * number + k] = logs[prefix]
  return logits


def verdicts(seed, number, verifier, sparse=False):
  """(p, q, paths, verdicts of every choice of paths, many of each)."""
  p, q = tables(seed, G + 1, sparse)
  choices = np.array(
      list(itertools.product(range(V), repeat=G * number)), np.int32
  ).reshape(-1, G, number)
  p_logits = node_logits(p, number, choices)
  q_nodes = node_logits(q, number, choices)
  q_logits = np.concatenate(
      [np.repeat(q_nodes[:, :1], number, 1), q_nodes[:, 1:-number]], axis=1
  ).reshape(-1, G, number, V)
  many = ROWS[number]
  verdict = enumeration.compiled(verifier)(
      randomness.row_keys(jax.random.key(seed), many * len(choices)),
      *(jnp.repeat(x, many, axis=0) for x in (choices, q_logits, p_logits)),
  )
  return p, q, choices, jax.tree.map(np.asarray, verdict)


def verdict_p_value(seed, number, verifier, sparse=False):
  """Smallest chi-squared p-value of emitted tokens, over choices of paths."""
  p, q, choices, verdict = verdicts(seed, number, verifier, sparse)
  many, p_values = ROWS[number], []
  for i, paths in enumerate(choices):
    if not all(
        q[tuple(path[:depth])][path[depth]] > 0.0
        for path in paths.T.tolist()
        for depth in range(G)
    ):
      continue  # cannot be drafted
    emitted = emitted_distribution(
        p.__getitem__, q.__getitem__, list(map(tuple, paths.T))
    )
    observed = dict.fromkeys(emitted, 0)
    own = slice(i * many, (i + 1) * many)
    for accepted, token, path in zip(*(part[own] for part in verdict)):
      tokens = (*paths[:accepted, path].tolist(), int(token))
      observed[tokens] = observed.get(tokens, 0) + 1
    expected = many * np.array(
        [emitted.get(tokens, 0.0) for tokens in observed]
    )
    counts = np.array(list(observed.values()))
    if counts[expected < 1e-9].any():
      return 0.0
    common = expected >= 5.0
    expected = np.append(expected[common], expected[~common].sum())
    counts = np.append(counts[common], counts[~common].sum())
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1.0)).sum()
    p_values.append(stats.chi2.sf(statistic, len(counts) - 1))
  return min(p_values)


@pytest.mark.parametrize(
    'seed, number, sparse',
    [(0, 2, False), (2, 2, False), (0, 2, True), (0, 3, False)],
)
def test_emitted_tokens_have_the_enumerated_frequencies(seed, number, sparse):
  # Of 729 p-values the smallest is 729 times as often so low.
  p_value = verdict_p_value(seed, number, Token(), sparse)
  assert p_value > FALSE_ALARM / 3 ** (G * number)


def p_is_not_reduced(monkeypatch):
  monkeypatch.setattr(verifier_lib, 'residual', lambda p, q: p)


def q_is_subtracted_from_less(monkeypatch):
  """The residual is not normalised before the next candidate is tried."""
  monkeypatch.setattr(
      verifier_lib, 'residual', lambda p, q: jnp.maximum(p - q, 0.0)
  )


def agreement_is_ignored(monkeypatch):
  monkeypatch.setattr(
      multi_path,
      'survivors',
      lambda alive, drafted, token, passed: alive & passed[:, None],
  )


def one_draw_for_all_candidates(monkeypatch):
  uniform = randomness.uniform
  monkeypatch.setattr(
      randomness,
      'uniform',
      lambda keys, shape: jnp.broadcast_to(
          uniform(keys, (shape[0], 1)), (len(keys), *shape)
      ),
  )


# With each, tables in which it matters.
MUTATIONS = [
    (p_is_not_reduced, 0),
    (q_is_subtracted_from_less, 0),
    (agreement_is_ignored, 0),
    (one_draw_for_all_candidates, 2),
]


@pytest.mark.parametrize('mutate, seed', MUTATIONS)
def test_a_mutated_rule_has_other_frequencies(mutate, seed, monkeypatch):
  mutate(monkeypatch)

  class Mutant(Token):  # a class of its own is compiled anew
    pass

  assert verdict_p_value(seed, 2, Mutant()) < FALSE_ALARM / V ** (2 * G)


# Special cases.


def random_block(rows, number, depths=4, size=7):
  """Keys, the draft's logits, the target's, and drafted tokens."""
  rng = np.random.default_rng(0)
  p_logits = rng.normal(size=(rows, 1 + depths * number, size))
  before = np.repeat(p_logits[:, :1], number, 1), p_logits[:, 1:-number]
  q_logits = np.concatenate(before, axis=1).reshape(rows, depths, number, size)
  q_logits = q_logits + 0.8 * rng.normal(size=q_logits.shape)
  drafted = np.argmax(q_logits + rng.gumbel(size=q_logits.shape), axis=-1)
  keys = randomness.row_keys(jax.random.key(0), rows)
  return (
      keys,
      q_logits.astype(np.float32),
      p_logits.astype(np.float32),
      drafted.astype(np.int32),
  )


def test_one_path_is_token_verification():
  keys, q_logits, p_logits, drafted = random_block(600, 1)
  judge = enumeration.compiled(Token())
  one = judge(keys, drafted, q_logits, p_logits)
  token = judge(keys, drafted[..., 0], q_logits[:, :, 0], p_logits)
  np.testing.assert_array_equal(one.num_accepted, token.num_accepted)
  np.testing.assert_array_equal(one.next_token, token.next_token)
  assert set(np.unique(one.num_accepted)) == set(range(5))


def test_greedy_follows_the_path_that_agrees_longest():
  # The target emits 4, 2, 3 whatever was before.
  p_logits = jax.nn.one_hot(jnp.array([[4] + [2] * 3 + [3] * 3]), 6)
  p_logits = jnp.repeat(p_logits, 3, axis=0)
  drafted = jnp.array(
      [
          [[4, 0, 4], [5, 2, 2]],  # 4 5, 0 2, 4 2: the last, in full
          [[4, 0, 4], [5, 2, 1]],  # a tie: the first
          [[3, 0, 5], [2, 2, 2]],  # none
      ]
  )
  keys = randomness.row_keys(jax.random.key(0), 3)
  verdict = Token().greedy(keys, drafted, p_logits)
  np.testing.assert_array_equal(verdict.num_accepted, [2, 1, 0])
  np.testing.assert_array_equal(verdict.next_token, [3, 2, 4])
  np.testing.assert_array_equal(verdict.path, [2, 0, 0])
  # Of a path that ends early, what is after its end does not count.
  lengths = jnp.array([[2, 2, 1], [2, 1, 2], [1, 1, 1]])
  verdict = Token().greedy(keys, drafted, p_logits, lengths)
  np.testing.assert_array_equal(verdict.num_accepted, [1, 1, 0])
  np.testing.assert_array_equal(verdict.next_token, [2, 2, 4])


def test_greedy_is_the_limit_of_sampling():
  rows, number, size = 300, 3, 7
  keys, q_logits, p_logits, drafted = random_block(rows, number)
  # The first tokens differ, and whatever follows has a distribution of its own
  # that allows nothing else. At the root any will do that allows all three.
  drafted[:, 0] = np.argsort(-q_logits[:, 0, 0])[:, :number]
  q_logits = np.where(np.eye(size)[drafted] > 0.0, 0.0, -np.inf)
  q_logits[:, 0] = q_logits[:, 0].max(axis=1, keepdims=True)
  limit = np.where(
      np.eye(size)[p_logits.argmax(axis=-1)] > 0.0, 0.0, -np.inf
  ).astype(np.float32)
  greedy = multi_path.greedy(jnp.asarray(drafted), jnp.asarray(p_logits))
  paths = enumeration.compiled(Token())(
      keys, drafted, q_logits.astype(np.float32), limit
  )
  np.testing.assert_array_equal(paths.num_accepted, greedy.num_accepted)
  np.testing.assert_array_equal(paths.next_token, greedy.next_token)
  np.testing.assert_array_equal(paths.path, greedy.path)
  assert set(np.unique(greedy.num_accepted)) == set(range(5))
  assert set(np.unique(greedy.path)) == {0, 1, 2}


def test_a_path_that_ends_early_is_followed_by_the_targets_token():
  rows, depths, number, size = 4_000, 4, 2, 7
  _, *one, _ = random_block(1, number)
  q_logits, p_logits = (np.repeat(logits, rows, axis=0) for logits in one)
  keys = randomness.row_keys(jax.random.key(5), rows)
  # The target agrees with the first tokens, and with nothing after.
  drafted = np.zeros((rows, depths, number), np.int32)
  p_logits[:, 0] = q_logits[:, 0, 0]
  lengths = np.full((rows, number), 1)
  verdict = enumeration.compiled(Token())(
      keys, drafted, q_logits, p_logits, lengths
  )
  assert (np.asarray(verdict.num_accepted) == 1).all()
  weights = np.exp(p_logits[0, 1].astype(np.float64))
  counts = np.bincount(verdict.next_token, minlength=size)
  fit = stats.chisquare(counts, rows * weights / weights.sum())
  assert fit.pvalue > FALSE_ALARM


def test_a_draft_that_is_the_target_is_accepted_in_full():
  keys, _, p_logits, drafted = random_block(300, 2)
  before = np.repeat(p_logits[:, :1], 2, 1), p_logits[:, 1:-2]
  q_logits = np.concatenate(before, axis=1).reshape(300, 4, 2, 7)
  verdict = enumeration.compiled(Token())(keys, drafted, q_logits, p_logits)
  assert (np.asarray(verdict.num_accepted) == 4).all()
  assert (np.asarray(verdict.path) == 0).all()


def test_shapes_that_do_not_fit_are_named():
  keys = randomness.row_keys(jax.random.key(0), 2)
  drafted, q_logits = jnp.zeros((2, 3, 2), jnp.int32), jnp.zeros((2, 3, 2, 9))
  with pytest.raises(ValueError) as error:
    Token().sampled(keys, drafted, q_logits, jnp.zeros((2, 4, 9)))
  assert str(error.value) == (
      '`p_logits` has 4 positions; 2 paths of 3 tokens need 7.'
  )
  with pytest.raises(ValueError, match='Axis V is 9 in `q_logits` but 8'):
    Token().sampled(keys, drafted, q_logits, jnp.zeros((2, 7, 8)))
  with pytest.raises(ValueError, match='has 4 positions'):
    Token().greedy(keys, drafted, jnp.zeros((2, 4, 9)))
