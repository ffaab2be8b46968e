"""From a compiled program to seconds and shares of the chip's peak.

Predicted seconds are the compiler's own: the cycles that it expects of every
instruction, as often as the loops run, over the clock. They are a heuristic,
which may say less than is possible: a block takes at least as long as its
matrix products and its traffic to and from HBM take at the chip's peak. A
kernel of Pallas, of which the compiler does not tell cycles, counts with that.

What the compiler leaves out is added here: exchanges between chips take as long
as their bytes need on the links of the torus, plus a microsecond per hop. They
count in full where the program waits for them; where they overlap with
computation only what exceeds it counts.

  step       work + exchanges + sum over loops of trips x body
  roofline   the longest of FLOPs, HBM bytes and exchanged bytes at the chip's
             peak, over the predicted seconds
  MFU        FLOPs by formula / (predicted seconds x peak)
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from distillspec_jax.models import config as model_config
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import config as config_lib
from distillspec_jax.planning import hlo
from distillspec_jax.planning import topologies

# Trips of loops whose end depends on the data: of the outermost ones, of those
# in them, and so on; the last number holds for all deeper ones.
Trips = Sequence[int]


class Visit(NamedTuple):
  """A block of a program, and how often the program runs it."""

  block: hlo.Block
  times: int
  depth: int  # how many loops whose end depends on the data are around it


def walk(
    block: hlo.Block,
    trips: Trips,
    skip: Callable[[hlo.Block], bool] = lambda block: False,
    times: int = 1,
    depth: int = 0,
) -> Iterator[Visit]:
  """The block and all loops in it, but for those to skip."""
  yield Visit(block, times, depth)
  for inner in block.inner:
    if skip(inner):
      continue
    is_known = inner.trips is not None
    count = inner.trips if is_known else trips[min(depth, len(trips) - 1)]
    yield from walk(inner, trips, skip, times * count, depth + (not is_known))


class Cost(NamedTuple):
  """What a program, or a part of it, costs a chip.

  Attributes:
    seconds: predicted.
    added_s: of these, what the compiler's cycles lack to what is possible.
    waited_s: of these, the seconds of waiting for other chips.
    flops: of matrix products.
    hbm_bytes: read and written.
    exchange_s: seconds of exchanges at the links' peak, without hops.
    exchanges: how many.
    sent: bytes that a chip sends, for each of `hlo.COLLECTIVES`.
  """

  seconds: float = 0.0
  added_s: float = 0.0
  waited_s: float = 0.0
  flops: float = 0.0
  hbm_bytes: float = 0.0
  exchange_s: float = 0.0
  exchanges: int = 0
  sent: tuple[float, ...] = (0.0,) * len(hlo.COLLECTIVES)

  def plus(self, other: Cost, times: float = 1) -> Cost:
    add = lambda mine, its: mine + times * its
    return Cost(
        *map(add, self[:-1], other[:-1]),
        sent=tuple(map(add, self.sent, other.sent)),
    )

  def ideal_s(self, chip: topologies.Chip) -> float:
    """Seconds at the peak of what it needs most of."""
    return max(
        self.flops / chip.flops,
        self.hbm_bytes / chip.hbm_bandwidth,
        self.exchange_s,
    )

  def roofline(self, chip: topologies.Chip) -> float:
    return self.ideal_s(chip) / self.seconds if self.seconds else 0.0


def cost(
    block: hlo.Block,
    topology: topologies.Topology,
    places: Sequence[Sequence[int]],
    trips: Trips,
    skip: Callable[[hlo.Block], bool] = lambda block: False,
) -> Cost:
  """What a block and all loops in it cost.

  Args:
    block: from `hlo`.
    topology: that it was compiled for.
    places: coordinates of the chips, in the order of the mesh.
    trips: of loops whose end depends on the data.
    skip: inner blocks that are left out.
  """
  total = Cost()
  for visit in walk(block, trips, skip):
    total = total.plus(_own(visit.block, topology, places), visit.times)
  return total


def _own(
    block: hlo.Block,
    topology: topologies.Topology,
    places: Sequence[Sequence[int]],
) -> Cost:
  """What a block costs without the loops in it."""
  chip = topology.chip
  waited, hidden, exchange_s = 0.0, 0.0, 0.0
  sent = dict.fromkeys(hlo.COLLECTIVES, 0.0)
  for each in block.collectives:
    chips = [places[i] for i in each.group] or list(places)
    seconds = topology.exchange_s(each.kind, each.bytes, chips)
    if each.hidden:
      hidden += seconds
    else:
      waited += seconds
    sent[each.kind] += topologies.moved_bytes(each.kind, each.bytes, len(chips))
    exchange_s += topology.exchange_s(each.kind, each.bytes, chips, hop_s=0.0)
  bound = lambda work: max(
      work.flops / chip.flops, work.hbm_bytes / chip.hbm_bandwidth
  )
  expected = block.cycles / chip.clock + sum(map(bound, block.kernels))
  work = max(expected, bound(block))
  return Cost(
      seconds=max(work, hidden) + waited,
      added_s=max(0.0, work - max(expected, hidden)),
      waited_s=waited + max(0.0, hidden - work),
      flops=block.flops,
      hbm_bytes=block.hbm_bytes,
      exchange_s=exchange_s,
      exchanges=len(block.collectives),
      sent=tuple(sent.values()),
  )


def forward_flops(
    config: model_config.T5Config, rows: int, inputs: int, outputs: int
) -> float:
  """FLOPs of logits for all outputs: two per multiplication, none for masks.

  Args:
    config: of an encoder-decoder, or of a draft that shares an encoder.
    rows: B.
    inputs: tokens of a row, S.
    outputs: tokens of a row, T.
  """
  encoder = config.num_encoder_layers * _layer(config, inputs, inputs)
  if config.shares_encoder:
    encoder = inputs * config.encoded_dim * config.emb_dim
  joined = config.num_heads * config.head_dim
  # Keys and values of the inputs; queries, and the output projection.
  cross = 2 * inputs * config.emb_dim * joined
  cross += 2 * outputs * config.emb_dim * joined
  cross += 2 * outputs * inputs * joined
  decoder = _layer(config, outputs, outputs) + cross
  decoder *= config.num_decoder_layers
  logits = outputs * config.emb_dim * config.num_logits
  return 2.0 * rows * (encoder + decoder + logits)


def _layer(config: model_config.T5Config, queries: int, keys: int) -> int:
  """Multiplications per row of self-attention and feed-forward."""
  joined = config.num_heads * config.head_dim
  weights = 4 * config.emb_dim * joined
  branches = len(config.mlp_activations)
  weights += (branches + 1) * config.emb_dim * config.mlp_dim
  return queries * weights + 2 * queries * keys * joined


class Step(NamedTuple):
  """A training step.

  Attributes:
    total: all of it.
    rollout: sampling the tokens that it learns from, all of T.
    model_flops: per chip, by formula, without rollouts: the target forward, the
      draft forward and backward.
    mfu: `model_flops` over the peak, in the seconds without rollouts.
  """

  total: Cost
  rollout: Cost
  model_flops: float
  mfu: float


def step(
    config: config_lib.PlanConfig, program: compiled_program.CompiledProgram
) -> Step:
  """What a training step costs."""
  topology = config.topology
  arguments = program.block, topology, program.places, (config.output_length,)
  total = cost(*arguments)
  # Rollouts are loops of the sampler's function.
  learning = cost(*arguments, skip=lambda block: 'generate' in block.op_name)
  shape = config.batch_size, config.input_length, config.output_length
  flops = 3 * forward_flops(config.draft, *shape)
  if config.target is not None and config.training.method.is_distillation:
    flops += forward_flops(config.target, *shape)
  flops /= topology.chips
  mfu = flops / (learning.seconds * topology.chip.flops)
  return Step(total, total.plus(learning, -1), flops, mfu)


class Sampling(NamedTuple):
  """The samplers, a block or a token at a time.

  Attributes:
    token: autoregressive, a token of the target.
    block: speculative, a block: G steps of the draft, one of the target.
    draft: a step of the draft, in the block; None where a block is so short
      that the compiler has unrolled the loop over its tokens, or is drafted in
      parallel.
    prefill_s: seconds of both encoders and all else before the first block.
  """

  token: Cost
  block: Cost
  draft: Cost | None
  prefill_s: float

  @property
  def cost_ratio(self) -> float:
    """c: a step of the draft over one of the target."""
    return self.draft.seconds / self.token.seconds

  def verify_ratio(self, block_length: int) -> float:
    """v: a block without its draft steps over a step of the target.

    As the compiler has it; below 1 is impossible, since a block is no less work
    than a token.
    """
    return (self.block.seconds - self._drafted_s(block_length)) / (
        self.token.seconds
    )

  def block_s(self, block_length: int) -> float:
    """Seconds of a block, at least those of its drafts and of a token."""
    least = self._drafted_s(block_length) + self.token.seconds
    return max(self.block.seconds, least)

  def _drafted_s(self, block_length: int) -> float:
    return block_length * self.draft.seconds if self.draft else 0.0


def sampling(
    config: config_lib.PlanConfig,
    speculative: compiled_program.CompiledProgram,
    autoregressive: compiled_program.CompiledProgram,
) -> Sampling:
  """What a token and a block of the samplers cost."""
  (token,) = data_dependent(autoregressive.block)
  (block,) = data_dependent(speculative.block)
  is_draft = lambda each: each.op_name.endswith('draft_loop/while')
  draft = list(filter(is_draft, block.inner))

  def part(program, block, trips):
    return cost(block, config.topology, program.places, (trips,))

  # The first token of a block is drafted before the loop over the others.
  others = config.decoding.drafting.length - 1
  return Sampling(
      token=part(autoregressive, token, 0),
      block=part(speculative, block, others),
      draft=part(speculative, draft[0], 0) if draft else None,
      prefill_s=part(speculative, speculative.block, 0).seconds,
  )


def data_dependent(block: hlo.Block) -> list[hlo.Block]:
  """The outermost loops in a block whose end depends on the data."""
  loops = []
  for inner in block.inner:
    loops += [inner] if inner.trips is None else data_dependent(inner)
  return loops


class Exchanges(NamedTuple):
  """Equal exchanges of a program.

  Attributes:
    where: the program, and the depth of the loop.
    kind: one of `hlo.COLLECTIVES`.
    shape: of one.
    chips: how many take part.
    hidden: they overlap with computation.
    bytes: that a chip sends in all of them.
    count: how many exchanges.
  """

  where: str
  kind: str
  shape: str
  chips: int
  hidden: bool
  bytes: float
  count: int = 1


def exchanges(
    name: str, program: compiled_program.CompiledProgram, trips: Trips
) -> list[Exchanges]:
  """All exchanges of a program, those with most bytes first.

  Args:
    name: of the program.
    program: as it was compiled.
    trips: of loops whose end depends on the data.
  """
  counts: collections.Counter[Exchanges] = collections.Counter()
  for visit in walk(program.block, trips):
    where = f'{name}: loop {visit.depth}' if visit.depth else name
    for each in visit.block.collectives:
      chips = len(each.group) or len(program.places)
      sent = topologies.moved_bytes(each.kind, each.bytes, chips)
      one = Exchanges(where, each.kind, each.shape, chips, each.hidden, sent)
      counts[one] += visit.times
  listed = (
      each._replace(count=count, bytes=count * each.bytes)
      for each, count in counts.items()
  )
  return sorted(listed, key=lambda each: -each.bytes)
