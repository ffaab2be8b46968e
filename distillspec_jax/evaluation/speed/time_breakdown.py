"""Where a block's time goes: its parts, each by itself, beside the whole.

A part is timed in a program of its own with the shapes that it has in the loop
of `speculative.generate`; the whole block is timed in that loop, by letting the
very same program make few and many tokens. What the parts leave of the whole is
what the loop itself costs.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.evaluation.speed import stopwatch
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification


class Part(NamedTuple):
  """A part of a block: seconds of one call, and how many calls a block has."""

  name: str
  seconds: float
  calls: int

  @property
  def total_s(self) -> float:
    return self.seconds * self.calls


class Profile(NamedTuple):
  """What a block is made of.

  Attributes:
    parts: in the order of the loop.
    block_s: seconds of a block in the loop.
    prefill: what comes before the first block, once a generation.
  """

  parts: list[Part]
  block_s: float
  prefill: list[Part]

  @property
  def parts_s(self) -> float:
    return sum(part.total_s for part in self.parts)

  def metrics(self) -> dict[str, results.Metric]:
    """`block_ms`, `block_NAME_ms` of each part, and `begin_NAME_ms`."""

    def metric(seconds):
      return results.Metric(1e3 * seconds, None, 1, 'ms')

    found = {'block_ms': metric(self.block_s)}
    for where, parts in (('block', self.parts), ('prefill', self.prefill)):
      for part in parts:
        name = part.name.replace("'s", '').replace(' ', '_')
        found[f'{where}_{name}_ms'] = metric(part.total_s)
    return found


def measure(
    target: loading.Model,
    draft: loading.Model,
    inputs: costs.Inputs,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> Profile:
  """The profile of a pair's blocks on a batch.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    inputs: of the batch.
    decoding: settings; EOS ends no row here.
    seed: of sampling.

  Raises:
    RuntimeError: the machine is too busy to time steps.
  """
  size, rows = decoding.block_length, inputs.tokens.shape[0]
  vocabulary = transformer_lib.shared_vocabulary(
      target.transformer, draft.transformer
  )

  def read(model, tokens):
    return _read(model, inputs, decoding, tokens, vocabulary)

  def unembed(model, tokens):
    return _unembed(model, rows, tokens, vocabulary)

  calls = {
      "draft's first read": (read(draft, 2), 1),
      "draft's reads": (read(draft, 1), size - 1),
      "draft's output layer": (unembed(draft, 1), size),
      "draft's choice": (_choose(draft, rows, decoding, vocabulary), size),
      "target's read": (read(target, size + 1), 1),
      "target's output layer": (unembed(target, size + 1), 1),
      'verification': (_verify(rows, decoding, vocabulary), 1),
      'commit': (_commit(rows, decoding, vocabulary), 1),
  }
  prefill = {
      'target': costs.prefill(target, inputs, decoding),
      'draft': costs.prefill(draft, inputs, decoding),
  }
  whole = block(target, draft, inputs, decoding, seed)
  found = stopwatch.read(
      {
          **{name: watch for name, (watch, number) in calls.items() if number},
          **prefill,
          'block': whole,
      }
  )
  return Profile(
      parts=[
          Part(name, found[name], number)
          for name, (_, number) in calls.items()
          if number
      ],
      block_s=found['block'],
      prefill=[Part(name, found[name], 1) for name in prefill],
  )


def block(
    target: loading.Model,
    draft: loading.Model,
    inputs: costs.Inputs,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> stopwatch.Stopwatch:
  """A block in the loop of `speculative.generate`."""
  rows = inputs.tokens.shape[0]
  endless = dataclasses.replace(decoding, eos_ids=())
  keys = randomness.row_keys(jax.random.key(seed), rows)

  def run(limit: int) -> Callable[[], Any]:
    limits = jnp.full(rows, limit, jnp.int32)
    controls = controls_lib.Controls(max_new_tokens=limits)
    return lambda: pair_lib.answer(
        target, draft, inputs.tokens, inputs.segments, keys, endless, controls
    )

  few = run(1)
  many = run(decoding.max_new_tokens)
  blocks = [int(np.max(call().statistics.blocks)) for call in (few, many)]
  return stopwatch.Stopwatch(few, many, blocks[1] - blocks[0])


def _read(model, inputs, decoding, tokens, vocabulary):
  transformer = model.transformer
  slots = costs.slots(decoding, speculative=True)
  state, start = costs.prefilled(model, inputs, slots)

  def one(arguments, carry, number):
    params, start = arguments
    state, read, _ = carry
    hidden, state = transformer.extend(params, state, read)
    state = transformer.rollback(
        state, start + (number + 1) % decoding.max_new_tokens
    )
    return state, (read + 1) % vocabulary, hidden

  read = jnp.zeros((inputs.tokens.shape[0], tokens), jnp.int32)
  hidden = jax.eval_shape(transformer.extend, model.params, state, read)[0]
  carry = state, read, jnp.zeros(hidden.shape, hidden.dtype)
  return stopwatch.loop(one, (model.params, start), carry)


def _unembed(model, rows, tokens, vocabulary):
  transformer = model.transformer
  columns = transformer.columns(vocabulary)

  def one(params, carry, number):
    hidden, logits = carry
    hidden = hidden.at[0, 0, 0].set(logits[0, 0, 0].astype(hidden.dtype))
    return hidden, columns.cut(transformer.unembed(params, hidden))

  hidden = jnp.ones((rows, tokens, model.config.emb_dim), model.config.dtype)
  logits = jax.eval_shape(one, model.params, (hidden, jnp.zeros((1, 1, 1))), 0)
  logits = jnp.zeros(logits[1].shape)
  return stopwatch.loop(one, model.params, (hidden, logits))


def _choose(draft, rows, decoding, vocabulary):
  columns = draft.transformer.columns(vocabulary)

  def one(keys, carry, number):
    logits, token = carry
    logits = logits.at[0, 0].add(1e-3)
    column = costs.choose(logits, keys, number, decoding)
    return logits, columns.tokens(column)

  logits = jax.random.normal(jax.random.key(0), (rows, vocabulary))
  logits = columns.cut(logits)
  carry = logits, jnp.zeros(rows, jnp.int32)
  return stopwatch.loop(one, costs.row_keys(rows), carry)


def _verify(rows, decoding, vocabulary):
  size = decoding.block_length

  def one(keys, carry, number):
    drafted, q_logits, p_logits, _ = carry
    p_logits = p_logits.at[0, 0, 0].add(1e-3)
    verdict, q_logits = costs.judge(
        drafted, q_logits, p_logits, keys, number, decoding
    )
    drafted = (drafted + 1) % vocabulary
    return drafted, q_logits, p_logits, verdict

  zeros = jnp.zeros(rows, jnp.int32)
  carry = (
      jnp.zeros((rows, size), jnp.int32),
      costs.proposals(rows, decoding, vocabulary),
      jax.random.normal(jax.random.key(0), (rows, size + 1, vocabulary)),
      verification.Verdict(zeros, zeros),
  )
  return stopwatch.loop(one, costs.row_keys(rows), carry)


def _commit(rows, decoding, vocabulary):
  size = decoding.block_length
  finite = jnp.ones(rows, bool)

  def one(logits, carry, number):
    state, drafted = carry
    drafted = (drafted + 1) % vocabulary
    accepted = jnp.broadcast_to(number % (size + 1), (rows,))
    verdict = verification.Verdict(accepted, drafted[:, 0])
    block = drafting.Block(drafted, None, None, finite, size)
    state = speculative.commit(
        state, jnp.ones(rows, jnp.int32), block, verdict, logits, decoding,
        controls_lib.NO_CONTROLS,
    )  # fmt: skip
    # Rewound, so that there is always room for another block.
    ones = jnp.ones_like(state.total)
    return state.replace(total=ones, done=ones == 0), drafted

  logits = jnp.zeros((rows, size + 1, vocabulary))
  drafted = jnp.zeros((rows, size), jnp.int32)
  carry = _state(rows, decoding), drafted
  return stopwatch.loop(one, logits, carry)


def _state(rows, decoding) -> speculative.SpeculativeState:
  """The loop's state before the first block, without caches."""
  width = 1 + costs.slots(decoding, speculative=True)
  return speculative.SpeculativeState(
      step=jnp.int32(0),
      tokens=jnp.zeros((rows, width), jnp.int32),
      origins=jnp.zeros((rows, width), jnp.int8),
      log_probs=jnp.zeros((rows, width)) if decoding.log_probs else None,
      total=jnp.ones(rows, jnp.int32),
      done=jnp.zeros(rows, bool),
      stopping=None,
      target=None,
      draft=None,
      statistics=samples_lib.Statistics.zeros(rows, decoding.block_length),
      nonfinite_at=jnp.full((rows, 2), -1),
  )
