"""Distributions of verifiers, by enumeration over small random tables.

A verifier's distribution is P(num_accepted, next_token) of one drafted block.
From it follows the distribution of whole sequences, block by block, which for a
lossless verifier is the target's; and the frequencies that the code's verdicts
must have.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from distillspec_jax.core import randomness
from distillspec_jax.sampling import verification
from distillspec_jax.sampling.verification import verifier as verifier_lib

FALSE_ALARM = 1e-6  # chance that correct code fails one assertion


def exact_residual(p, q):
  residual = np.maximum(p - q, 0.0)
  total = residual.sum()
  return residual / total if total > 0 else p / max(p.sum(), 1e-300)


def token_distribution(p, q, drafted, residual=exact_residual):
  """Token verification: float64[G+1, V], given the drafted tokens.

  Args:
    p: float64[G+1, V] the target's tables after each drafted prefix.
    q: float64[G, V] the draft's.
    drafted: up to G tokens; tables of positions after them do not count.
    residual: (p, q) -> distribution of the token that replaces a rejected one.
  """
  distribution = np.zeros(p.shape)
  reached = 1.0
  for i, x in enumerate(drafted):
    passes = min(1.0, p[i, x] / q[i, x])
    distribution[i] = reached * (1.0 - passes) * residual(p[i], q[i])
    reached *= passes
  distribution[len(drafted)] = reached * p[len(drafted)]
  return distribution


def block_distribution(p, q, drafted, residual=exact_residual):
  """Block verification: float64[G+1, V]; arguments as of
  `token_distribution`.
  """
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
  distribution = np.zeros(p.shape)
  later = 1.0  # chance that no longer prefix passes
  for i in range(length, -1, -1):
    if i == length:
      distribution[i] = chances[i] * p[i]
    else:
      distribution[i] = later * chances[i] * residual(weights[i] * p[i], q[i])
    later *= 1.0 - chances[i]
  return distribution


def random_tables(seed, vocabulary, length, sparse=False):
  """Prefix -> next-token distribution, for all prefixes below `length`."""
  rng = np.random.default_rng(seed)
  tables = {}
  for size in range(length):
    for prefix in itertools.product(range(vocabulary), repeat=size):
      table = rng.dirichlet(np.ones(vocabulary))
      if sparse:  # as after top-k: some tokens cannot be sampled
        table = np.where(table < table.max() / 3, 0.0, table)
      tables[prefix] = table / table.sum()
  return tables


def sequence_distribution(tables, vocabulary, length):
  """The distribution of whole sequences, token by token."""
  return {
      tokens: np.prod([tables[tokens[:i]][tokens[i]] for i in range(length)])
      for tokens in itertools.product(range(vocabulary), repeat=length)
  }


def never(context):
  """The draft never stops by itself."""
  del context
  return False


def speculative_distribution(
    p, q, vocabulary, length, block, of_verdicts=token_distribution, stops=never
):
  """The distribution of whole sequences, block by block; surplus is cut.

  Args:
    p: the target's tables.
    q: the draft's.
    vocabulary: how many tokens there are.
    length: of the sequences.
    block: maximum number of drafted tokens.
    of_verdicts: (p, q, drafted) -> distribution of the verdict.
    stops: context -> whether the token drafted there is a block's last.
  """
  sequences = itertools.product(range(vocabulary), repeat=length)
  distribution = dict.fromkeys(sequences, 0.0)
  # Tables beyond the end of the sequences have no effect.
  uniform = np.full(vocabulary, 1.0 / vocabulary)

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
    """Distribution of what one block appends to `prefix`, cut at `length`."""
    appended = {}
    for drafted, chance in drafts(prefix):
      # What is beyond the last drafted token must not count.
      padded = drafted + (0,) * (block - len(drafted))
      contexts = [prefix + padded[:i] for i in range(block + 1)]
      p_rows = np.stack([p.get(context, uniform) for context in contexts])
      q_rows = np.stack([q.get(context, uniform) for context in contexts[:-1]])
      verdicts = of_verdicts(p_rows, q_rows, drafted)
      for (accepted, token), share in np.ndenumerate(verdicts):
        end = (prefix + drafted[:accepted] + (token,))[:length]
        appended[end] = appended.get(end, 0.0) + chance * share
    return appended

  pending = {(): 1.0}
  while pending:
    prefix, mass = pending.popitem()
    for tokens, share in continuations(prefix).items():
      into = distribution if len(tokens) == length else pending
      into[tokens] = into.get(tokens, 0.0) + mass * share
  return distribution


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


LENGTHS = [1, 2, 1, 2, 1, 1, 2, 1, 2]  # of drafts that end early
N = 20_000  # verdicts for each of the nine drafts


@functools.cache
def compiled(verifier):
  """The verifier's function; equal verifiers share a program."""
  return jax.jit(verifier.sampled)


def verdict_p_values(
    seed, verifier, of_verdicts=token_distribution, lengths=None
):
  """Chi-squared fit of verdicts to their distribution: a p-value per draft.

  Args:
    seed: of the tables.
    verifier: whose verdicts.
    of_verdicts: (p, q, drafted) -> the distribution that they should have.
    lengths: how many tokens of each draft count; None: both.
  """
  p, q = small_tables(seed)
  rows = N * len(DRAFTS)
  each = None
  if lengths is not None:
    each = jnp.asarray(np.repeat(lengths, N), jnp.int32)
  verdict = compiled(verifier)(
      randomness.row_keys(jax.random.key(seed), rows),
      jnp.asarray(np.repeat(DRAFTS, N, axis=0)),
      logits_of(q, rows),
      logits_of(p, rows),
      each,
  )
  cells = np.asarray(verdict.num_accepted) * V + np.asarray(verdict.next_token)
  p_values = []
  for drafted, length, own_cells in zip(
      DRAFTS, lengths or [G] * len(DRAFTS), cells.reshape(-1, N)
  ):
    expected = N * of_verdicts(p, q, drafted[:length]).ravel()
    observed = np.bincount(own_cells, minlength=expected.size)
    possible = expected > 1e-6
    if observed[~possible].any():
      p_values.append(0.0)
    elif possible.sum() > 1:
      fit = stats.chisquare(observed[possible], expected[possible])
      p_values.append(fit.pvalue)
  return np.array(p_values)


def random_block(rows=200, length=4, size=5, noise=1.0):
  """Keys, drafted tokens, the draft's logits and the target's.

  Tests that judge blocks of one shape share the verifiers' programs.
  """
  rng = np.random.default_rng(0)
  p_logits = rng.normal(size=(rows, length + 1, size))
  q_logits = p_logits[:, :-1] + noise * rng.normal(size=(rows, length, size))
  drafted = np.argmax(q_logits + rng.gumbel(size=q_logits.shape), axis=-1)
  return (
      randomness.row_keys(jax.random.key(0), rows),
      drafted.astype(np.int32),
      q_logits.astype(np.float32),
      p_logits.astype(np.float32),
  )


class ResamplesTarget(verification.Token):
  """Biased: the correction comes from p, not from the residual."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    p_at = verifier_lib.at(p_logits, verdict.num_accepted)
    again = randomness.categorical(randomness.streams(keys, 'next'), p_at)
    return verdict._replace(next_token=again)
