"""What single steps of decoding cost on a batch, each timed by itself.

The programs have the shapes of decoding: the same number of rows, caches of the
same size, and the choice of tokens (the most likely one, or warping and
sampling) included. What a loop does besides is not, so a prediction from these
costs is for a loop without overhead.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.evaluation.speed import stopwatch
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import rows as rows_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import warping


class Costs(NamedTuple):
  """Seconds on a batch.

  Attributes:
    prefill: before the first token: the target's encoder or prompt.
    step: one step of autoregressive decoding.
    draft_prefill: as `prefill`, of the draft; without a shared encoder.
    draft_first: the draft's first step in a block, which reads two tokens.
    draft: each of its other steps, which read one token of each path.
    verify: block length -> the target's call on a block, and the verdict.
    parallel: block length -> a parallel draft's only step in a block; of other
      drafts empty.
  """

  prefill: float
  step: float
  draft_prefill: float
  draft_first: float
  draft: float
  verify: dict[int, float]
  parallel: dict[int, float] = {}

  def draft_ratio(self, block_length: int) -> float:
    """c: time of a draft step over that of a target step."""
    return self.parallel.get(block_length, self.draft) / self.step

  def verify_ratio(self, block_length: int) -> float:
    """Time of the target's call on a block over that of its step."""
    return self.verify[block_length] / self.step

  def block(self, block_length: int) -> float:
    """Seconds to draft and verify a block."""
    drafting_s = self.draft_first + (block_length - 1) * self.draft
    drafting_s = self.parallel.get(block_length, drafting_s)
    return drafting_s + self.verify[block_length]


def measure(
    target: model_lib.Model,
    draft: model_lib.Model,
    prompt: types.Prompt,
    decodings: Sequence[decoding_lib.Decoding],
) -> Costs:
  """The costs of a pair; the draft's steps are those of the longest block.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    prompt: of one batch.
    decodings: settings that differ in block length alone.

  Raises:
    RuntimeError: the machine is too busy to time steps.
  """
  # As the samplers hold them.
  target, draft = target.for_decoding(), draft.for_decoding()
  prompt = model_lib.with_shared_encoding(prompt, target, draft)
  longest = max(decodings, key=lambda decoding: decoding.drafting.length)
  size = model_lib.common_vocabulary(target, draft)
  paths = longest.drafting.paths

  def block(length):
    return step(draft, prompt, longest, size, tokens=2 * length, drafted=length)

  lengths = [decoding.drafting.length for decoding in decodings]
  seconds = stopwatch.read(
      {
          'prefill': prefill(target, prompt, longest),
          'step': step(target, prompt, longest, size, speculative=False),
          'draft_prefill': prefill(draft, prompt, longest),
          'draft_first': step(draft, prompt, longest, size, tokens=2),
          'draft': step(draft, prompt, longest, size, tokens=paths),
          **{
              decoding.drafting.length: verify(target, prompt, decoding, size)
              for decoding in decodings
          },
          **{
              -length: block(length)
              for length in lengths
              if longest.drafting.parallel
          },
      }
  )
  verify_s = {length: seconds.pop(length) for length in lengths}
  parallel = {n: seconds.pop(-n) for n in lengths if -n in seconds}
  return Costs(**seconds, verify=verify_s, parallel=parallel)


def prefill(
    model: model_lib.Model,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
) -> stopwatch.Stopwatch:
  """What comes before the first token."""
  size = slots(decoding, speculative=True)
  return stopwatch.once(lambda: prefilled(model, prompt, size))


def step(
    model: model_lib.Model,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
    vocabulary_size: int,
    tokens: int = 1,
    speculative: bool = True,
    drafted: int = 1,
) -> stopwatch.Stopwatch:
  """Reading `tokens` tokens in each row and choosing the next.

  Args:
    model: whose step.
    prompt: of one batch.
    decoding: how the token is chosen; with the block length, the cache's size.
    vocabulary_size: tokens from here on do not exist.
    tokens: 2 in a draft's first step of a block.
    speculative: with the cache of speculative decoding.
    drafted: how many are chosen at once, each after one of the last tokens.
  """
  vocabulary = model.trimmed_vocabulary(vocabulary_size)
  state, start = prefilled(model, prompt, slots(decoding, speculative))

  def one(arguments, carry, number):
    model, keys, start = arguments
    state, read = carry
    hidden, state = model.extend(state, read)
    logits = vocabulary.trim(model.unembed(hidden[:, -drafted:]))
    numbers = drafted * number + jnp.arange(drafted)
    choices = jax.vmap(
        lambda *at: choose(at[0], keys, at[1], decoding), (1, 0), 1
    )(logits, numbers)
    # All of them matter, or the compiler would leave some out.
    token = vocabulary.to_tokens(jnp.sum(choices, axis=1) % logits.shape[-1])
    state = rewound(model, state, start, number, decoding, tokens)
    return state, jnp.broadcast_to(token[:, None], read.shape)

  rows = prompt.tokens.shape[0]
  arguments = model, row_keys(rows), start
  carry = state, jnp.zeros((rows, tokens), jnp.int32)
  return stopwatch.loop(one, arguments, carry)


def verify(
    target: model_lib.Model,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
    vocabulary_size: int,
) -> stopwatch.Stopwatch:
  """The target's call on a block, and the verdict on it."""
  size, paths = decoding.drafting.length, decoding.drafting.paths
  state, start = prefilled(target, prompt, slots(decoding, speculative=True))

  def one(arguments, carry, number):
    target, keys, start = arguments
    state, read, q_logits = carry
    branches = drafting.slots_of_paths(state.length + 1, decoding.drafting)
    hidden, state = target.extend(state, read, branches)
    p_logits = target.all_logits(hidden, vocabulary_size)
    verdict, q_logits = judge(
        read[:, 1:], q_logits, p_logits, keys, number, decoding
    )
    state = rewound(target, state, start, number, decoding)
    # The next block is a different one, so that nothing is computed in advance.
    read = (read + verdict.next_token[:, None] + 1) % vocabulary_size
    return state, read, q_logits

  rows = prompt.tokens.shape[0]
  arguments = target, row_keys(rows), start
  carry = (
      state,
      jnp.zeros((rows, 1 + size * paths), jnp.int32),
      proposals(rows, decoding, vocabulary_size),
  )
  return stopwatch.loop(one, arguments, carry)


def rewound(
    model: model_lib.Model,
    state: model_lib.DecodeState,
    start: jax.Array,
    number: jax.Array,
    decoding: decoding_lib.Decoding,
    tokens: int = 1,
) -> model_lib.DecodeState:
  """The state at a length that cycles through an output; `tokens` more fit."""
  length = start + (number + 1) % decoding.output_length
  slots = jax.tree.leaves(state.cache)[0].shape[-2]
  return model.rollback(state, jnp.minimum(length, slots - tokens))


def prefilled(
    model: model_lib.Model, prompt: types.Prompt, slots: int
) -> tuple[model_lib.DecodeState, jax.Array]:
  """The state before the first token, and the length int32[B] of its cache."""
  if not model.config.shares_encoder:
    prompt = prompt._replace(encoded=None)  # its own encoder is timed, too
  return _prefilled(model, prompt, slots)


@functools.partial(jax.jit, static_argnames='slots')
def _prefilled(model, prompt, slots):
  state, context = model.prefill(prompt, slots)
  return state, context.length - 1


def slots(decoding: decoding_lib.Decoding, speculative: bool) -> int:
  """Slots of a cache for new tokens; speculative decoding has a block more."""
  drafting = decoding.drafting
  more = drafting.length * drafting.paths + 1 if speculative else 0
  return decoding.output_length + more


def choose(
    logits: jax.Array,
    keys: jax.Array,
    number: jax.Array,
    decoding: decoding_lib.Decoding,
) -> jax.Array:
  """int32[B], the next token's index into logits float[B, V'], by key[B]."""
  if decoding.is_greedy:
    return rows_lib.best(logits)
  now = randomness.events(keys, number)
  warped = warping.warp(logits, decoding.sampling)
  return randomness.categorical(now, warped)


def judge(tokens, q_logits, p_logits, keys, number, decoding):
  """The verdict on a block, and the draft's logits, slightly changed.

  The change makes them different ones in each step of a loop.
  """
  rows, size, paths = (
      tokens.shape[0],
      decoding.drafting.length,
      decoding.drafting.paths,
  )
  if q_logits is not None:
    q_logits = q_logits.at[(0,) * q_logits.ndim].add(1e-3)
  if paths > 1:
    tokens = tokens.reshape(rows, size, paths)
  is_finite = jnp.ones(rows, bool)
  block = drafting.Block(tokens, q_logits, None, is_finite, size * paths)
  now = randomness.events(keys, number)
  return speculative.verify(now, block, p_logits, decoding), q_logits


def proposals(
    rows: int, decoding: decoding_lib.Decoding, vocabulary_size: int
) -> jax.Array | None:
  """Some logits of a draft, float32[B, G, K, V]; None where it is greedy."""
  if decoding.is_greedy:
    return None
  length, paths = decoding.drafting.length, decoding.drafting.paths
  branches = (paths,) if paths > 1 else ()
  shape = (rows, length, *branches, vocabulary_size)
  return jax.random.normal(jax.random.key(1), shape)


def row_keys(rows: int) -> jax.Array:
  return randomness.row_keys(jax.random.key(0), rows)
