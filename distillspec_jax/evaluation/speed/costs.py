"""What single steps of decoding cost on a batch, each timed by itself.

The programs have the shapes of decoding: as many rows, caches as large, and the
choice of tokens (the most likely one, or warping and drawing) in them. What a
loop does besides is not in them, so that a prediction from these costs says
what a loop without any costs of its own would take.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import randomness
from distillspec_jax.evaluation.speed import stopwatch
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import rows as rows_lib
from distillspec_jax.sampling import rules
from distillspec_jax.sampling import warping


class Costs(NamedTuple):
  """Seconds on a batch.

  Attributes:
    prefill: of what comes before the first token: the target's encoder.
    step: of a step of autoregressive decoding.
    draft_prefill: likewise of the draft; without an encoder that it shares.
    draft_first: of the draft's first step in a block, which reads two tokens.
    draft: of each of its other steps.
    verify: block length -> of the target's call on 1 + block length tokens,
      and the verdict on them.
  """

  prefill: float
  step: float
  draft_prefill: float
  draft_first: float
  draft: float
  verify: dict[int, float]

  @property
  def draft_ratio(self) -> float:
    """c: time of a draft step over that of a target step."""
    return self.draft / self.step

  def verify_ratio(self, block_length: int) -> float:
    """Time of the target's call on a block over that of its step."""
    return self.verify[block_length] / self.step

  def block(self, block_length: int) -> float:
    """Seconds of a block: it is drafted and verified."""
    drafting_s = self.draft_first + (block_length - 1) * self.draft
    return drafting_s + self.verify[block_length]


class Inputs(NamedTuple):
  """What a batch reads.

  Attributes:
    tokens: int32[B, S].
    segments: int32[B, S], 0 is padding.
    encoded: float[B, S, E] of the target, where the draft shares its encoder.
  """

  tokens: jax.Array
  segments: jax.Array
  encoded: jax.Array | None = None


def inputs(
    target: loading.Model,
    draft: loading.Model,
    tokens: jax.Array,
    segments: jax.Array,
) -> Inputs:
  """What a pair reads of int32[B, S] each."""
  encoded = transformer_lib.shared_encoding(
      draft.transformer, target.transformer, target.params, tokens, segments
  )
  return Inputs(tokens, segments, encoded)


def measure(
    target: loading.Model,
    draft: loading.Model,
    inputs: Inputs,
    decodings: Sequence[decoding_lib.Decoding],
) -> Costs:
  """The costs of a pair; the draft's steps are those of the longest block.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    inputs: of one batch.
    decodings: settings that differ in block length alone.

  Raises:
    RuntimeError: the machine is too busy to time steps.
  """
  longest = max(decodings, key=lambda decoding: decoding.block_length)
  size = transformer_lib.shared_vocabulary(
      target.transformer, draft.transformer
  )
  found = stopwatch.read(
      {
          'prefill': prefill(target, inputs, longest),
          'step': step(target, inputs, longest, size, speculative=False),
          'draft_prefill': prefill(draft, inputs, longest),
          'draft_first': step(draft, inputs, longest, size, tokens=2),
          'draft': step(draft, inputs, longest, size),
          **{
              decoding.block_length: verify(target, inputs, decoding, size)
              for decoding in decodings
          },
      }
  )
  blocks = {d.block_length: found.pop(d.block_length) for d in decodings}
  return Costs(**found, verify=blocks)


def prefill(
    model: loading.Model, inputs: Inputs, decoding: decoding_lib.Decoding
) -> stopwatch.Stopwatch:
  """What comes before the first token."""
  size = slots(decoding, speculative=True)
  return stopwatch.once(lambda: prefilled(model, inputs, size))


def step(
    model: loading.Model,
    inputs: Inputs,
    decoding: decoding_lib.Decoding,
    vocabulary: int,
    tokens: int = 1,
    speculative: bool = True,
) -> stopwatch.Stopwatch:
  """Reading `tokens` tokens a row and choosing the next.

  Args:
    model: whose step.
    inputs: of one batch.
    decoding: how the token is chosen; with the block length, the cache's size.
    vocabulary: logits from here on are padding.
    tokens: 2 in a draft's first step of a block.
    speculative: with the cache of speculative decoding.
  """
  transformer = model.transformer
  columns = transformer.columns(vocabulary)
  state, start = prefilled(model, inputs, slots(decoding, speculative))

  def one(arguments, carry, number):
    params, keys, start = arguments
    state, read = carry
    hidden, state = transformer.extend(params, state, read)
    logits = columns.cut(transformer.unembed(params, hidden[:, -1:]))[:, 0]
    token = columns.tokens(choose(logits, keys, number, decoding))
    state = transformer.rollback(
        state, start + (number + 1) % decoding.max_new_tokens
    )
    return state, jnp.broadcast_to(token[:, None], read.shape)

  rows = inputs.tokens.shape[0]
  arguments = model.params, row_keys(rows), start
  carry = state, jnp.zeros((rows, tokens), jnp.int32)
  return stopwatch.loop(one, arguments, carry)


def verify(
    model: loading.Model,
    inputs: Inputs,
    decoding: decoding_lib.Decoding,
    vocabulary: int,
) -> stopwatch.Stopwatch:
  """The target's call on 1 + block length tokens, and the verdict on them."""
  transformer, size = model.transformer, decoding.block_length
  state, start = prefilled(model, inputs, slots(decoding, speculative=True))

  def one(arguments, carry, number):
    params, keys, start = arguments
    state, read, q_logits = carry
    hidden, state = transformer.extend(params, state, read)
    p_logits = transformer.all_logits(params, hidden, vocabulary)
    verdict, q_logits = judge(
        read[:, 1:], q_logits, p_logits, keys, number, decoding
    )
    state = transformer.rollback(
        state, start + (number + 1) % decoding.max_new_tokens
    )
    # The next block is another one, so that nothing can be done in advance.
    read = (read + verdict.next_token[:, None] + 1) % vocabulary
    return state, read, q_logits

  rows = inputs.tokens.shape[0]
  arguments = model.params, row_keys(rows), start
  carry = (
      state,
      jnp.zeros((rows, size + 1), jnp.int32),
      proposals(rows, decoding, vocabulary),
  )
  return stopwatch.loop(one, arguments, carry)


def prefilled(model: loading.Model, inputs: Inputs, slots: int) -> Any:
  """The state before the first token, and the length int32[B] of its cache."""
  if not model.config.shares_encoder:
    inputs = inputs._replace(encoded=None)
  return _prefill(model.transformer, model.params, inputs, slots)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _prefill(transformer, params, inputs, slots):
  tokens, segments, encoded = inputs
  state, prefix = transformer.prefill(
      params, tokens, segments, slots, encoded=encoded
  )
  return state, prefix.length - 1


def slots(decoding: decoding_lib.Decoding, speculative: bool) -> int:
  """Slots of a cache for new tokens; speculative decoding has a block more."""
  more = decoding.block_length + 1 if speculative else 0
  return decoding.max_new_tokens + more


def choose(
    logits: jax.Array,
    keys: jax.Array,
    number: jax.Array,
    decoding: decoding_lib.Decoding,
) -> jax.Array:
  """int32[B], the next token's column by logits float[B, V'] and key[B]."""
  if decoding.greedy:
    return rows_lib.best(logits)
  now = randomness.events(keys, number)
  return randomness.categorical(now, warping.warp(logits, decoding))


def judge(drafted, q_logits, p_logits, keys, number, decoding):
  """The verdict on a block, and the draft's logits, a little changed.

  Their change makes them other ones in each step of a loop.
  """
  if q_logits is not None:
    q_logits = q_logits.at[0, 0, 0].add(1e-3)
  finite = jnp.ones(drafted.shape[0], bool)
  block = drafting.Block(drafted, q_logits, None, finite, drafted.shape[1])
  verdict = rules.verify(
      randomness.events(keys, number),
      block,
      p_logits,
      decoding,
      controls_lib.NO_CONTROLS,
  )
  return verdict, q_logits


def proposals(
    rows: int, decoding: decoding_lib.Decoding, vocabulary: int
) -> jax.Array | None:
  """Some logits of a draft, float32[B, G, V]; greedy there are none."""
  if decoding.greedy:
    return None
  shape = rows, decoding.block_length, vocabulary
  return jax.random.normal(jax.random.key(1), shape)


def row_keys(rows: int) -> jax.Array:
  return randomness.row_keys(jax.random.key(0), rows)
