"""Where a block's time goes: each of its parts, and the block as a whole.

A part is timed in a program of its own with the shapes that it has in the loop
of `speculative.generate`; a block is timed in that loop, by letting the very
same program emit few and many tokens. What the parts leave of it is the loop's
own overhead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.core import types
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.evaluation.speed import stopwatch
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification


class Part(NamedTuple):
  """A part of a block: seconds of one call, and how many calls per block."""

  name: str
  seconds: float
  calls: int

  @property
  def total_s(self) -> float:
    return self.seconds * self.calls


class Breakdown(NamedTuple):
  """What a block consists of.

  Attributes:
    parts: in the order of the loop.
    block_s: seconds of a block in the loop.
    prefill: what comes before the first block, once per generation.
  """

  parts: list[Part]
  block_s: float
  prefill: list[Part]

  @property
  def parts_s(self) -> float:
    return sum(part.total_s for part in self.parts)

  def metrics(self) -> dict[str, results.Metric]:
    """`block_ms`, `block_NAME_ms` of each part, and `prefill_NAME_ms`."""

    def metric(seconds):
      return results.Metric(1e3 * seconds, None, 1, 'ms')

    metrics = {'block_ms': metric(self.block_s)}
    for where, parts in (('block', self.parts), ('prefill', self.prefill)):
      for part in parts:
        name = part.name.replace("'s", '').replace(' ', '_')
        metrics[f'{where}_{name}_ms'] = metric(part.total_s)
    return metrics


def can_measure(decoding: decoding_lib.Decoding) -> bool:
  """Whether blocks have a fixed length and one path, as the parts have."""
  drafting = decoding.drafting
  return drafting.paths == 1 and drafting.adaptive is None


def measure(
    target: model_lib.Model,
    draft: model_lib.Model,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> Breakdown:
  """The time breakdown of a pair's blocks on a batch.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    prompt: of the batch.
    decoding: settings; EOS ends no sequence here.
    seed: of sampling.

  Raises:
    UserError: multi-path drafts or adaptive draft length.
    RuntimeError: the machine is too busy to time steps.
  """
  if not can_measure(decoding):
    raise errors.UserError(
        f'The decoding ({decoding.label()}) has multi-path drafts or adaptive'
        ' draft length, whose blocks have no fixed parts; break down one'
        ' without.'
    )
  # As the samplers hold them.
  target, draft = target.for_decoding(), draft.for_decoding()
  prompt = model_lib.with_shared_encoding(prompt, target, draft)
  size, rows = decoding.drafting.length, prompt.tokens.shape[0]
  vocabulary_size = model_lib.common_vocabulary(target, draft)

  def read(model, tokens):
    return _read(model, prompt, decoding, tokens, vocabulary_size)

  def unembed(model, tokens):
    return _unembed(model, rows, tokens, vocabulary_size)

  def choose(number):
    return _choose(draft, number * rows, decoding, vocabulary_size)

  if decoding.drafting.parallel:
    parts = {
        "draft's read": (read(draft, 2 * size), 1),
        "draft's output layer": (unembed(draft, size), 1),
        "draft's choice": (choose(size), 1),
    }
  else:
    parts = {
        "draft's first read": (read(draft, 2), 1),
        "draft's reads": (read(draft, 1), size - 1),
        "draft's output layer": (unembed(draft, 1), size),
        "draft's choice": (choose(1), size),
    }
  parts |= {
      "target's read": (read(target, size + 1), 1),
      "target's output layer": (unembed(target, size + 1), 1),
      'verification': (_verify(rows, decoding, vocabulary_size), 1),
      'commit': (_commit(rows, decoding, vocabulary_size), 1),
  }
  parts = {name: part for name, part in parts.items() if part[1]}
  prefill = {
      'target': costs.prefill(target, prompt, decoding),
      'draft': costs.prefill(draft, prompt, decoding),
  }
  seconds = stopwatch.read(
      {
          **{name: watch for name, (watch, _) in parts.items()},
          **prefill,
          'block': block(target, draft, prompt, decoding, seed),
      }
  )
  return Breakdown(
      [
          Part(name, seconds[name], number)
          for name, (_, number) in parts.items()
      ],
      seconds['block'],
      [Part(name, seconds[name], 1) for name in prefill],
  )


def block(
    target: model_lib.Model,
    draft: model_lib.Model,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> stopwatch.Stopwatch:
  """A block in the loop of `speculative.generate`."""
  rows = prompt.tokens.shape[0]
  endless = decoding.replace(eos_ids=())
  keys = randomness.row_keys(jax.random.key(seed), rows)

  def run(limit: int) -> Callable[[], Any]:
    limits = jnp.full(rows, limit, jnp.int32)
    controls = controls_lib.Controls(max_new_tokens=limits)
    return lambda: speculative.generate(
        target, draft, prompt, keys, endless, controls=controls
    )

  few = run(1)
  many = run(decoding.output_length)
  blocks = [int(np.max(call().statistics.blocks)) for call in (few, many)]
  return stopwatch.Stopwatch(few, many, blocks[1] - blocks[0])


def _read(model, prompt, decoding, tokens, vocabulary_size):
  slots = costs.slots(decoding, speculative=True)
  state, start = costs.prefilled(model, prompt, slots)

  def one(arguments, carry, number):
    model, start = arguments
    state, read, _ = carry
    hidden, state = model.extend(state, read)
    state = costs.rewound(model, state, start, number, decoding, tokens)
    return state, (read + 1) % vocabulary_size, hidden

  read = jnp.zeros((prompt.tokens.shape[0], tokens), jnp.int32)
  hidden = jax.eval_shape(lambda state: model.extend(state, read)[0], state)
  carry = state, read, jnp.zeros(hidden.shape, hidden.dtype)
  return stopwatch.loop(one, (model, start), carry)


def _unembed(model, rows, tokens, vocabulary_size):
  def one(model, carry, number):
    hidden, logits = carry
    hidden = hidden.at[0, 0, 0].set(logits[0, 0, 0].astype(hidden.dtype))
    return hidden, model.trimmed_logits(hidden, vocabulary_size)

  hidden = jnp.ones((rows, tokens, model.config.emb_dim), model.config.dtype)
  logits = jax.eval_shape(one, model, (hidden, jnp.zeros((1, 1, 1))), 0)[1]
  return stopwatch.loop(one, model, (hidden, jnp.zeros(logits.shape)))


def _choose(draft, rows, decoding, vocabulary_size):
  vocabulary = draft.trimmed_vocabulary(vocabulary_size)

  def one(keys, carry, number):
    logits, token = carry
    logits = logits.at[0, 0].add(1e-3)
    index = costs.choose(logits, keys, number, decoding)
    return logits, vocabulary.to_tokens(index)

  logits = jax.random.normal(jax.random.key(0), (rows, vocabulary_size))
  carry = vocabulary.trim(logits), jnp.zeros(rows, jnp.int32)
  return stopwatch.loop(one, costs.row_keys(rows), carry)


def _verify(rows, decoding, vocabulary_size):
  size = decoding.drafting.length

  def one(keys, carry, number):
    drafted, q_logits, p_logits, _ = carry
    p_logits = p_logits.at[0, 0, 0].add(1e-3)
    verdict, q_logits = costs.judge(
        drafted, q_logits, p_logits, keys, number, decoding
    )
    drafted = (drafted + 1) % vocabulary_size
    return drafted, q_logits, p_logits, verdict

  zeros = jnp.zeros(rows, jnp.int32)
  shape = (rows, size + 1, vocabulary_size)
  carry = (
      jnp.zeros((rows, size), jnp.int32),
      costs.proposals(rows, decoding, vocabulary_size),
      jax.random.normal(jax.random.key(0), shape),
      verification.Verdict(zeros, zeros),
  )
  return stopwatch.loop(one, costs.row_keys(rows), carry)


def _commit(rows, decoding, vocabulary_size):
  size = decoding.drafting.length
  is_finite = jnp.ones(rows, bool)

  def one(logits, carry, number):
    state, drafted = carry
    drafted = (drafted + 1) % vocabulary_size
    accepted = jnp.broadcast_to(number % (size + 1), (rows,))
    verdict = verification.Verdict(accepted, drafted[:, 0])
    block = drafting.Block(drafted, None, None, is_finite, size)
    state = speculative.commit(
        state, jnp.ones(rows, jnp.int32), block, verdict, logits, decoding,
        controls_lib.NO_CONTROLS,
    )  # fmt: skip
    # Taken back, so that there is always room for another block.
    ones = jnp.ones_like(state.total)
    return state.replace(total=ones, done=ones == 0), drafted

  logits = jnp.zeros((rows, size + 1, vocabulary_size))
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
      stop_state=None,
      target=None,
      draft=None,
      statistics=samples_lib.Statistics.zeros(rows, decoding.drafting.length),
      nonfinite_at=jnp.full((rows, 2), -1),
  )
