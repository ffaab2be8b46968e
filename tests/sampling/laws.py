"""The laws of verification rules, by enumeration over small random tables.

A rule's law is P(num_accepted, next_token) of one drafted block. From it
follows the law of whole sequences, block by block, which of a lossless rule is
the target's; and the frequencies that the code's verdicts must have.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from distillspec_jax.core import randomness
from distillspec_jax.sampling import verification

FALSE_ALARM = 1e-6  # chance that correct code fails one assertion
EXACT = verification.token  # which tests put others in the place of


def exact_residual(p, q):
  residual = np.maximum(p - q, 0.0)
  total = residual.sum()
  return residual / total if total > 0 else p / max(p.sum(), 1e-300)


def token_law(p, q, drafted, residual=exact_residual):
  """Token verification: float64[G+1, V], given the drafted tokens.

  Args:
    p: float64[G+1, V] the target's tables after each drafted prefix.
    q: float64[G, V] the draft's.
    drafted: up to G tokens; tables of places after them do not count.
    residual: (p, q) -> law of the token that replaces a rejected one.
  """
  law = np.zeros(p.shape)
  reached = 1.0
  for i, x in enumerate(drafted):
    passes = min(1.0, p[i, x] / q[i, x])
    law[i] = reached * (1.0 - passes) * residual(p[i], q[i])
    reached *= passes
  law[len(drafted)] = reached * p[len(drafted)]
  return law


def block_law(p, q, drafted, residual=exact_residual):
  """Block verification: float64[G+1, V]; arguments as of `token_law`."""
  length = len(drafted)
  weights = [1.0]
  for i, x in enumerate(drafted):
    weights.append(min(1.0, weights[-1] * p[i, x] / q[i, x]))
  chances = [1.0]
  for i in range(1, length):
    mass = np.maximum(weights[i] * p[i] - q[i], 0.0).sum()
    left = 1.0 - weights[i]
    chances.append(mass / (mass + left) if mass + left > 0.0 else 1.0)
  chances.append(weights[-1])
  law = np.zeros(p.shape)
  later = 1.0  # chance that no longer prefix passes
  for i in range(length, -1, -1):
    if i == length:
      law[i] = chances[i] * p[i]
    else:
      law[i] = later * chances[i] * residual(weights[i] * p[i], q[i])
    later *= 1.0 - chances[i]
  return law


def random_tables(seed, vocabulary, length, sparse=False):
  """Prefix -> next-token law, for all prefixes shorter than `length`."""
  rng = np.random.default_rng(seed)
  tables = {}
  for size in range(length):
    for prefix in itertools.product(range(vocabulary), repeat=size):
      law = rng.dirichlet(np.ones(vocabulary))
      if sparse:  # as after top-k: some tokens cannot be sampled
        law = np.where(law < law.max() / 3, 0.0, law)
      tables[prefix] = law / law.sum()
  return tables


def sequence_law(tables, vocabulary, length):
  """The law of whole sequences, token by token."""
  return {
      tokens: np.prod([tables[tokens[:i]][tokens[i]] for i in range(length)])
      for tokens in itertools.product(range(vocabulary), repeat=length)
  }


def never(context):
  """The draft stops at no place by itself."""
  del context
  return False


def speculative_law(
    p, q, vocabulary, length, block, verdict_law=token_law, stops=never
):
  """The law of whole sequences, block by block; surplus tokens are cut.

  Args:
    p: the target's tables.
    q: the draft's.
    vocabulary: how many tokens there are.
    length: of the sequences.
    block: tokens drafted at most.
    verdict_law: (p, q, drafted) -> law of the verdict.
    stops: context -> whether the token drafted there is a block's last.
  """
  law = dict.fromkeys(itertools.product(range(vocabulary), repeat=length), 0.0)
  uniform = np.full(vocabulary, 1.0 / vocabulary)  # beyond the end: no matter

  def drafts(prefix):
    """What may be drafted, and its chance."""
    pending = [((), 1.0)]
    while pending:
      drafted, chance = pending.pop()
      context = prefix + drafted
      for token, share in enumerate(chance * q.get(context, uniform)):
        more = (drafted + (token,), share)
        if share == 0.0:
          continue
        if len(drafted) + 1 == block or stops(context):
          yield more
        else:
          pending.append(more)

  @functools.cache
  def continuations(prefix):
    """Law of what one block appends to `prefix`, cut at `length`."""
    appended = {}
    for drafted, chance in drafts(prefix):
      # What is beyond the last drafted token must not count.
      whole = drafted + (0,) * (block - len(drafted))
      contexts = [prefix + whole[:i] for i in range(block + 1)]
      p_rows = np.stack([p.get(context, uniform) for context in contexts])
      q_rows = np.stack([q.get(context, uniform) for context in contexts[:-1]])
      verdicts = verdict_law(p_rows, q_rows, drafted)
      for (accepted, token), share in np.ndenumerate(verdicts):
        end = (prefix + drafted[:accepted] + (token,))[:length]
        appended[end] = appended.get(end, 0.0) + chance * share
    return appended

  pending = {(): 1.0}
  while pending:
    prefix, mass = pending.popitem()
    for tokens, share in continuations(prefix).items():
      into = law if len(tokens) == length else pending
      into[tokens] = into.get(tokens, 0.0) + mass * share
  return law


def largest_difference(one, two):
  assert one.keys() == two.keys()
  return max(abs(one[tokens] - two[tokens]) for tokens in one)


V, G = 3, 2
DRAFTS = np.array(list(itertools.product(range(V), repeat=G)), np.int32)


def small_tables(seed):
  rng = np.random.default_rng(seed)
  return rng.dirichlet(np.ones(V), G + 1), rng.dirichlet(np.ones(V), G)


def logits_of(table, rows):
  with np.errstate(divide='ignore'):
    logits = np.log(table).astype(np.float32)
  return jnp.broadcast_to(jnp.asarray(logits), (rows, *table.shape))


N = 20_000  # verdicts for each of the nine drafts


def verdict_p_values(seed, verify, verdict_law=token_law, lengths=None):
  """Chi-squared fit of verdicts to their law, one p-value a draft.

  Args:
    seed: of the tables.
    verify: a verification rule.
    verdict_law: what it should do.
    lengths: how many tokens of each draft count; None: both.
  """
  p, q = small_tables(seed)
  rows = N * len(DRAFTS)
  if lengths is None:
    lengths, verify = [G] * len(DRAFTS), jax.jit(verify)
  else:
    each = jnp.asarray(np.repeat(lengths, N), jnp.int32)
    verify = jax.jit(functools.partial(verify, lengths=each))
  verdict = verify(
      randomness.row_keys(jax.random.key(seed), rows),
      jnp.asarray(np.repeat(DRAFTS, N, axis=0)),
      logits_of(q, rows),
      logits_of(p, rows),
  )
  cells = np.asarray(verdict.num_accepted) * V + np.asarray(verdict.next_token)
  p_values = []
  for drafted, length, own_cells in zip(DRAFTS, lengths, cells.reshape(-1, N)):
    expected = N * verdict_law(p, q, drafted[:length]).ravel()
    observed = np.bincount(own_cells, minlength=expected.size)
    possible = expected > 1e-6
    if observed[~possible].any():
      p_values.append(0.0)
    elif possible.sum() > 1:
      fit = stats.chisquare(observed[possible], expected[possible])
      p_values.append(fit.pvalue)
  return np.array(p_values)


def resamples_target(keys, drafted, q_logits, p_logits, lengths=None):
  """A biased verifier: the correction comes from p, not from the residual."""
  verdict = EXACT(keys, drafted, q_logits, p_logits, lengths)
  weights = verification.at(p_logits, verdict.num_accepted)
  again = randomness.categorical(randomness.streams(keys, 'next'), weights)
  return verdict._replace(next_token=again)
