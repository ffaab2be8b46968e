"""Choice of block length and draft: from acceptance by position, and costs.

One run with long blocks tells how often the token at each position of a block
is accepted, and how long outputs are. A block of G tokens emits 1 + a_1 +
a_1 a_2 + .. + a_1 .. a_G of them on average, whatever G is, and costs what its
steps cost on this machine at this batch size. Sequences that are decoded
together wait for the slowest. So the speed-up of every block length follows
without decoding with it, and where none is above 1, plain decoding is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import cost_model
from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.evaluation.speed import costs as costs_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import samples as samples_lib

_GREEDY = decoding_lib.Decoding()


class BlockLengthPlan(NamedTuple):
  """How to decode.

  Attributes:
    block_length: with the largest predicted speed-up; None: do not speculate.
    speedup: predicted; 1 where there is no speculation.
    speedups: block length -> predicted speed-up over autoregressive decoding,
      encoders included, for all lengths that were considered.
    block_efficiency: block length -> predicted tokens per target call.
    acceptance: by position in a block: how often the token there is accepted if
      all before it are.
  """

  block_length: int | None
  speedup: float
  speedups: dict[int, float]
  block_efficiency: dict[int, float]
  acceptance: tuple[float, ...]


def plan(
    acceptance: Sequence[float],
    lengths: Sequence[int] | np.ndarray,
    costs: costs_lib.Costs,
    rows: int,
) -> BlockLengthPlan:
  """The block length that pays most, of those whose cost is known.

  Args:
    acceptance: by position, at least for the longest block.
    lengths: tokens of outputs.
    costs: on a batch of `rows` sequences.
    rows: sequences decoded together.

  Raises:
    UserError: acceptance is known for fewer positions than the longest block
      has.
  """
  longest = max(costs.verify)
  if len(acceptance) < longest:
    raise errors.UserError(
        f'Acceptance is known for {len(acceptance)} positions of a block; a'
        f' plan with blocks of {longest} needs as many. Measure it with blocks'
        f' of {longest} tokens, or plan with shorter ones.'
    )
  one = cost_model.block_distribution(())
  steps = cost_model.expected_calls(one, lengths, rows)
  plain_s = costs.prefill + steps * costs.step
  speedups, efficiency = {}, {}
  for size in sorted(costs.verify):
    emitted = cost_model.block_distribution(acceptance[:size])
    calls = cost_model.expected_calls(emitted, lengths, rows)
    seconds = costs.prefill + costs.draft_prefill + calls * costs.block(size)
    speedups[size] = plain_s / seconds
    efficiency[size] = float(emitted @ np.arange(1, size + 2))
  best = max(speedups, key=speedups.get)
  pays = speedups[best] > 1.0
  return BlockLengthPlan(
      block_length=best if pays else None,
      speedup=speedups[best] if pays else 1.0,
      speedups=speedups,
      block_efficiency=efficiency,
      acceptance=tuple(acceptance),
  )


def acceptance_by_position(
    reached_at: np.ndarray, accepted_at: np.ndarray
) -> tuple[float, ...]:
  """Conditional acceptance at each position of a block.

  A position that no sequence reached counts as never accepted.

  Args:
    reached_at: int[B, G] of `Statistics`.
    accepted_at: int[B, G].
  """
  reached, accepted = np.sum(reached_at, axis=0), np.sum(accepted_at, axis=0)
  return tuple((accepted / np.maximum(reached, 1)).tolist())


def plan_block_length(
    target: loading.Loaded,
    draft: loading.Loaded,
    inputs: Sequence[str] | np.ndarray | jax.Array,
    *,
    block_lengths: Sequence[int] = (1, 2, 3, 5, 7, 10),
    decoding: decoding_lib.Decoding = _GREEDY,
    batch_size: int = 32,
    seed: int = 0,
) -> BlockLengthPlan:
  """Whether the draft makes this target faster here, and with which blocks.

  Decodes the inputs once with the longest block, for acceptance and lengths,
  and times single steps of both models on one batch. That takes about as long
  as compiling a program for each block length. Example:

    plan = ds.plan_block_length(target, draft, inputs, batch_size=8)
    if plan.block_length is None:
      out = ds.generate(target, inputs, batch_size=8)
    else:
      out = ds.generate(target, inputs, draft=draft, batch_size=8,
                        block_length=plan.block_length)

  Args:
    target: the model that decides.
    draft: the model that proposes.
    inputs: typical ones: strings, or int32[B, S].
    block_lengths: to choose from.
    decoding: all other settings. With block verification, acceptance at a
      position depends slightly on the length of the block, which the plan
      neglects.
    batch_size: sequences decoded together; fewer if there are fewer inputs.
    seed: of sampling.

  Raises:
    UserError: as `generate`; no block lengths; adaptive draft length, whose
      blocks end by themselves.
    RuntimeError: the machine is too busy to time steps.
  """
  if not block_lengths:
    raise errors.UserError('block_lengths is empty; give at least one.')
  if decoding.drafting.adaptive is not None:
    raise errors.UserError(
        f'adaptive is {decoding.drafting.adaptive.describe()}, with which the'
        ' draft chooses the block length itself; leave it out to plan one.'
    )
  decodings = [decoding.replace(length=length) for length in block_lengths]
  longest = decoding.replace(length=max(block_lengths))
  out = generation.generate(
      target,
      inputs,
      draft=draft,
      decoding=longest,
      batch_size=batch_size,
      seed=seed,
  )
  tokens, segments, batches = generation.batched(
      target, inputs, batch_size, draft
  )
  rows = min(batch_size, len(tokens))
  typical = sorted(batches, key=lambda batch: batch.width)[len(batches) // 2]
  numbers = np.resize(typical.numbers, rows)
  prompt = types.Prompt(
      jnp.asarray(tokens[numbers, : typical.width]),
      jnp.asarray(segments[numbers, : typical.width]),
  )
  costs = costs_lib.measure(target.model, draft.model, prompt, decodings)
  return plan(*counted(out.statistics), costs, rows)


def counted(
    statistics: samples_lib.Statistics,
) -> tuple[tuple[float, ...], np.ndarray]:
  """Acceptance by position, and the lengths of outputs."""
  acceptance = acceptance_by_position(
      statistics.reached_at, statistics.accepted_at
  )
  return acceptance, np.asarray(statistics.emitted)


class DecodingPlan(NamedTuple):
  """Which draft to decode with, and how.

  Attributes:
    draft: one of those that were given; None: do not speculate.
    decoding: with the block length, token by token or in parallel.
    speedup: predicted; 1 where there is no speculation.
    plans: (number of the draft, whether it drafts in parallel) -> its plan.
  """

  draft: loading.Loaded | None
  decoding: decoding_lib.Decoding
  speedup: float
  plans: dict[tuple[int, bool], BlockLengthPlan]


def plan_decoding(
    target: loading.Loaded,
    drafts: Sequence[loading.Loaded],
    inputs: Sequence[str] | np.ndarray | jax.Array,
    *,
    decoding: decoding_lib.Decoding = _GREEDY,
    **options: Any,
) -> DecodingPlan:
  """The draft, and the way of drafting, that make this target fastest here.

  Plans the block length of every draft, token by token and, where it was
  trained for that, in parallel. The output has the same distribution with all
  of them, so that one model may compete in several forms: in float, with int8
  weights, with a trimmed vocabulary. Example:

    drafts = [ds.load('draft'), ds.load('draft', weights='int8')]
    plan = ds.plan_decoding(target, drafts, inputs, batch_size=8)
    out = ds.generate(target, inputs, draft=plan.draft, batch_size=8,
                      decoding=plan.decoding)

  Args:
    target: the model that decides.
    drafts: to choose from.
    inputs: typical ones, as in `plan_block_length`.
    decoding: all other settings.
    **options: as in `plan_block_length`.

  Raises:
    UserError: no drafts, or as `plan_block_length`.
  """
  if not drafts:
    raise errors.UserError('drafts is empty; give at least one.')
  plans = {}
  for number, draft in enumerate(drafts):
    can_parallel = draft.config.mask_token is not None
    for parallel in (False, True)[: 1 + can_parallel]:
      way = decoding.replace(parallel=parallel)
      plans[number, parallel] = plan_block_length(
          target, draft, inputs, decoding=way, **options
      )
  number, parallel = max(plans, key=lambda way: plans[way].speedup)
  best = plans[number, parallel]
  if best.block_length is None:
    return DecodingPlan(None, decoding, 1.0, plans)
  chosen = decoding.replace(length=best.block_length, parallel=parallel)
  return DecodingPlan(drafts[number], chosen, best.speedup, plans)
