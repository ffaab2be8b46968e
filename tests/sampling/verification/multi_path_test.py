"""Several drafts: the target's law all the same, and no fewer accepted.

The law of what a block of K paths emits is written down by enumeration, from
tables of small vocabularies, and is the target's; the code's verdicts are then
measured against it. Each has twins that prove it can fail.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from distillspec_jax.core import randomness
from distillspec_jax.sampling import multi_draft
from distillspec_jax.sampling import verification
from tests.sampling import laws

FALSE_ALARM = laws.FALSE_ALARM
V, G = 3, 2


# The law, by enumeration.


def same_token(paths, depth, accepted, number):
  """The paths that live on: all that say the accepted token."""
  del number
  return [path for path in paths if path[depth] == accepted]


def emitted_law(p, q, paths, residual=laws.exact_residual, survive=same_token):
  """P(tokens that a block emits), given its paths; tables by prefix.

  Args:
    p: function of the accepted tokens: float64[V], the target's law.
    q: likewise, the draft's.
    paths: K tuples of tokens, of equal or of different lengths.
    residual: (p, q) -> what is left of p after a rejection.
    survive: (paths, depth, accepted, number of the one that passed) -> paths.
  """
  law = {}

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
      law[(*prefix, token)] = law.get((*prefix, token), 0.0) + mass * share

  walk((), list(paths), 1.0)
  return law


def sequence_law(p, q, length, number, stop=None, **wrong):
  """The law of whole sequences, block by block; surplus tokens are cut.

  Args:
    p: prefix -> law, as `laws.random_tables` makes them.
    q: likewise.
    length: of the sequences.
    number: K.
    stop: whether a path of these tokens, after that prefix, ends here.
    **wrong: see `emitted_law`.
  """
  law = dict.fromkeys(itertools.product(range(V), repeat=length), 0.0)

  def after(tables, prefix, tokens):
    uniform = np.full(V, 1.0 / V)  # beyond the end: no matter
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
      appended = emitted_law(
          functools.partial(after, p, prefix),
          functools.partial(after, q, prefix),
          paths,
          **wrong,
      )
      for tokens, share in appended.items():
        end = (prefix + tokens)[:length]
        into = law if len(end) == length else pending
        into[end] = into.get(end, 0.0) + chance * share
  return law


def tables(seed, length, sparse=False):
  return (
      laws.random_tables(seed, V, length, sparse),
      laws.random_tables(seed + 10, V, length, sparse),
  )


def sampled_first_token(prefix, path):
  """A rule that ends some paths early: a function of the path's own past."""
  return (sum(prefix) + path[0]) % 2 == 0


@pytest.mark.parametrize('stop', [None, sampled_first_token])
@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('number, length', [(1, 4), (2, 4), (3, 3)])
def test_the_law_of_all_blocks_is_the_targets(number, length, sparse, stop):
  p, q = tables(0, length, sparse)
  law = sequence_law(p, q, length, number, stop)
  assert abs(sum(law.values()) - 1.0) < 1e-12
  expected = laws.sequence_law(p, V, length)
  assert laws.largest_difference(law, expected) < 1e-12


def only_the_accepted(paths, depth, accepted, number):
  """Others that say the same are given up: lossless, and a waste."""
  del depth, accepted
  return [paths[number]]


def test_to_give_up_paths_that_say_the_same_is_lossless_too():
  p, q = tables(1, 3)
  law = sequence_law(p, q, 3, 2, survive=only_the_accepted)
  expected = laws.sequence_law(p, V, 3)
  assert laws.largest_difference(law, expected) < 1e-12


def the_dead_live_on(paths, depth, accepted, number):
  """Paths that said something else are tried again further down."""
  del depth, accepted, number
  return paths


WRONG_LAWS = {
    'p_is_not_reduced': {'residual': lambda p, q: p},
    'p_becomes_q': {'residual': lambda p, q: q},
    'dead_paths': {'survive': the_dead_live_on},
}


@pytest.mark.parametrize('wrong', WRONG_LAWS)
def test_a_wrong_rule_has_another_law(wrong):
  p, q = tables(1, 3)
  law = sequence_law(p, q, 3, 2, **WRONG_LAWS[wrong])
  assert abs(sum(law.values()) - 1.0) < 1e-12
  assert laws.largest_difference(law, laws.sequence_law(p, V, 3)) > 1e-3


def expected_accepted(p, q, number, **changes):
  """Accepted tokens of a block of G, over all drafts."""
  total = 0.0
  drafts = list(itertools.product(range(V), repeat=G))
  chances = [
      np.prod([q[path[:i]][x] for i, x in enumerate(path)]) for path in drafts
  ]
  for paths in itertools.product(range(len(drafts)), repeat=number):
    law = emitted_law(
        p.__getitem__, q.__getitem__, [drafts[i] for i in paths], **changes
    )
    accepted = sum(share * (len(tokens) - 1) for tokens, share in law.items())
    total += np.prod([chances[i] for i in paths]) * accepted
  return total


@pytest.mark.parametrize('seed', range(3))
def test_more_drafts_accept_more(seed):
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


# The code against the law, by frequency.

ROWS = {2: 3_000, 3: 500}  # verdicts for each choice of paths


def node_logits(table, number, paths):
  """Logits before and after each token of paths int[N, G, K], as the code's."""
  rows = len(paths)
  logits = np.zeros((rows, 1 + G * number, V), np.float32)
  with np.errstate(divide='ignore'):
    logs = {prefix: np.log(law) for prefix, law in table.items()}
  logits[:, 0] = logs[()]
  for row, depth, k in np.ndindex(*paths.shape):
    prefix = tuple(paths[row, : depth + 1, k].tolist())
    logits[row, 1 + depth * number + k] = logs[prefix]
  return logits


def verdicts(seed, number, verify, sparse=False):
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
  verdict = jax.jit(verify)(
      randomness.row_keys(jax.random.key(seed), many * len(choices)),
      *(jnp.repeat(x, many, axis=0) for x in (choices, q_logits, p_logits)),
  )
  return p, q, choices, jax.tree.map(np.asarray, verdict)


def verdict_p_value(seed, number, verify, sparse=False):
  """Smallest chi-squared p-value of emitted tokens, over choices of paths."""
  p, q, choices, verdict = verdicts(seed, number, verify, sparse)
  many, p_values = ROWS[number], []
  for i, paths in enumerate(choices):
    if not all(
        q[tuple(path[:depth])][path[depth]] > 0.0
        for path in paths.T.tolist()
        for depth in range(G)
    ):
      continue  # cannot be drafted
    law = emitted_law(p.__getitem__, q.__getitem__, list(map(tuple, paths.T)))
    observed = dict.fromkeys(law, 0)
    own = slice(i * many, (i + 1) * many)
    for accepted, token, path in zip(*(part[own] for part in verdict)):
      tokens = (*paths[:accepted, path].tolist(), int(token))
      observed[tokens] = observed.get(tokens, 0) + 1
    expected = many * np.array([law.get(tokens, 0.0) for tokens in observed])
    counts = np.array(list(observed.values()))
    if counts[expected < 1e-9].any():
      return 0.0
    common = expected >= 5.0
    expected = np.append(expected[common], expected[~common].sum())
    counts = np.append(counts[common], counts[~common].sum())
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1.0)).sum()
    p_values.append(stats.chi2.sf(statistic, len(counts) - 1))
  return min(p_values)


def fresh(verify=multi_draft.paths):
  """A function of its own, so that nothing compiled before is used again."""
  return lambda *args: verify(*args)


@pytest.mark.parametrize(
    'seed, number, sparse',
    [(0, 2, False), (2, 2, False), (0, 2, True), (0, 3, False)],
)
def test_emitted_tokens_have_the_enumerated_frequencies(seed, number, sparse):
  # Of 729 p-values the smallest is 729 times as often so low.
  p_value = verdict_p_value(seed, number, fresh(), sparse)
  assert p_value > FALSE_ALARM / 3 ** (G * number)


def p_is_not_reduced(monkeypatch):
  monkeypatch.setattr(verification, 'residual', lambda p, q: p)


def q_is_subtracted_from_less(monkeypatch):
  """The residual is not normalised before the next candidate is tried."""
  monkeypatch.setattr(
      verification, 'residual', lambda p, q: jnp.maximum(p - q, 0.0)
  )


def dead_paths_live_on(monkeypatch):
  monkeypatch.setattr(
      multi_draft,
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
    (dead_paths_live_on, 0),
    (one_draw_for_all_candidates, 2),
]


@pytest.mark.parametrize('mutate, seed', MUTATIONS)
def test_a_mutated_rule_has_other_frequencies(mutate, seed, monkeypatch):
  mutate(monkeypatch)
  assert verdict_p_value(seed, 2, fresh()) < FALSE_ALARM / V ** (2 * G)


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
  one = jax.jit(multi_draft.paths)(keys, drafted, q_logits, p_logits)
  token = jax.jit(verification.token)(
      keys, drafted[..., 0], q_logits[:, :, 0], p_logits
  )
  np.testing.assert_array_equal(one.num_accepted, token.num_accepted)
  np.testing.assert_array_equal(one.next_token, token.next_token)
  assert set(np.unique(one.num_accepted)) == set(range(5))


def test_greedy_follows_the_path_that_agrees_longest():
  # The target says 4, 2, 3 whatever was before.
  p_logits = jax.nn.one_hot(jnp.array([[4] + [2] * 3 + [3] * 3]), 6)
  p_logits = jnp.repeat(p_logits, 3, axis=0)
  drafted = jnp.array(
      [
          [[4, 0, 4], [5, 2, 2]],  # 4 5, 0 2, 4 2: the last, whole
          [[4, 0, 4], [5, 2, 1]],  # a tie: the first
          [[3, 0, 5], [2, 2, 2]],  # none
      ]
  )
  verdict = multi_draft.greedy(drafted, p_logits)
  np.testing.assert_array_equal(verdict.num_accepted, [2, 1, 0])
  np.testing.assert_array_equal(verdict.next_token, [3, 2, 4])
  np.testing.assert_array_equal(verdict.path, [2, 0, 0])


def test_greedy_is_the_limit_of_sampling():
  rows, number, size = 300, 3, 7
  keys, q_logits, p_logits, drafted = random_block(rows, number)
  # The first tokens differ, and whatever follows has an own law: one that says
  # nothing else. At the root any law does that can say all three.
  drafted[:, 0] = np.argsort(-q_logits[:, 0, 0])[:, :number]
  q_logits = np.where(np.eye(size)[drafted] > 0.0, 0.0, -np.inf)
  q_logits[:, 0] = q_logits[:, 0].max(axis=1, keepdims=True)
  limit = np.where(
      np.eye(size)[p_logits.argmax(axis=-1)] > 0.0, 0.0, -np.inf
  ).astype(np.float32)
  greedy = multi_draft.greedy(jnp.asarray(drafted), jnp.asarray(p_logits))
  paths = jax.jit(multi_draft.paths)(
      keys, drafted, q_logits.astype(np.float32), limit
  )
  np.testing.assert_array_equal(paths.num_accepted, greedy.num_accepted)
  np.testing.assert_array_equal(paths.next_token, greedy.next_token)
  np.testing.assert_array_equal(paths.path, greedy.path)
  assert set(np.unique(greedy.num_accepted)) == set(range(5))
  assert set(np.unique(greedy.path)) == {0, 1, 2}


def test_a_path_that_is_cut_ends_with_the_targets_token():
  rows, depths, number, size = 4_000, 4, 2, 7
  _, *one, _ = random_block(1, number)
  q_logits, p_logits = (np.repeat(logits, rows, axis=0) for logits in one)
  keys = randomness.row_keys(jax.random.key(5), rows)
  # The target agrees with the first tokens, and with nothing after.
  drafted = np.zeros((rows, depths, number), np.int32)
  p_logits[:, 0] = q_logits[:, 0, 0]
  lengths = np.full((rows, number), 1)
  verdict = jax.jit(multi_draft.paths)(
      keys, drafted, q_logits, p_logits, lengths
  )
  assert (np.asarray(verdict.num_accepted) == 1).all()
  weights = np.exp(p_logits[0, 1].astype(np.float64))
  counts = np.bincount(verdict.next_token, minlength=size)
  fit = stats.chisquare(counts, rows * weights / weights.sum())
  assert fit.pvalue > FALSE_ALARM


def test_a_draft_that_is_the_target_is_accepted_whole():
  keys, _, p_logits, drafted = random_block(300, 2)
  before = np.repeat(p_logits[:, :1], 2, 1), p_logits[:, 1:-2]
  q_logits = np.concatenate(before, axis=1).reshape(300, 4, 2, 7)
  verdict = jax.jit(multi_draft.paths)(keys, drafted, q_logits, p_logits)
  assert (np.asarray(verdict.num_accepted) == 4).all()
  assert (np.asarray(verdict.path) == 0).all()


def test_shapes_that_do_not_fit_are_named():
  keys = randomness.row_keys(jax.random.key(0), 2)
  drafted, q_logits = jnp.zeros((2, 3, 2), jnp.int32), jnp.zeros((2, 3, 2, 9))
  with pytest.raises(ValueError) as error:
    multi_draft.paths(keys, drafted, q_logits, jnp.zeros((2, 4, 9)))
  assert str(error.value) == (
      '`p_logits` has 4 places a row; 2 paths of 3 tokens need 7.'
  )
  with pytest.raises(ValueError, match='Axis V is 9 in `q_logits` but 8'):
    multi_draft.paths(keys, drafted, q_logits, jnp.zeros((2, 7, 8)))
  with pytest.raises(ValueError, match='4 places a row'):
    multi_draft.greedy(drafted, jnp.zeros((2, 4, 9)))
