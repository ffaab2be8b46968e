"""From what the compiler says of a program to seconds and shares of the peak.

Predicted seconds are the compiler's own: the cycles that it expects of every
instruction, as often as the loops run, over the clock. What it does not say is
added here: exchanges between chips take as long as their bytes need on the
links of the torus, plus a microsecond a hop; they count in full where the
program waits for them, and where they run beside computation, as copies from
HBM to fast memory do, as far as they take longer than it.

  step       work + exchanges + sum over loops of trips x body
  roofline   the longest of FLOPs, HBM bytes and exchanged bytes at the chip's
             peak, over the predicted seconds
  MFU        FLOPs by formula / (predicted seconds x peak)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib
from distillspec_jax.planning import compiled as compiled_lib
from distillspec_jax.planning import hlo
from distillspec_jax.planning import setting as setting_lib
from distillspec_jax.planning import topologies

# Loop and depth among loops whose trips only the data tells -> trips.
Trips = Callable[[hlo.Block, int], int]


class Cost(NamedTuple):
  """What a program, or a part of it, costs a chip.

  Attributes:
    seconds: predicted.
    flops: of matrix products.
    hbm_bytes: read and written.
    exchange_s: of the exchanges between chips, at the links' peak, hops left
      out.
    exchanged: kind -> bytes that a chip sends.
    exchanges: how many.
    waited_s: of `seconds`, those in which it waits for other chips.
  """

  seconds: float = 0.0
  flops: float = 0.0
  hbm_bytes: float = 0.0
  exchange_s: float = 0.0
  exchanged: Mapping[str, float] = {}
  exchanges: float = 0
  waited_s: float = 0.0

  def plus(self, other: Cost, times: float = 1) -> Cost:
    kinds = {*self.exchanged, *other.exchanged}
    return Cost(
        *(
            mine + times * its
            if not isinstance(mine, Mapping)
            else {
                kind: mine.get(kind, 0.0) + times * its.get(kind, 0.0)
                for kind in sorted(kinds)
            }
            for mine, its in zip(self, other)
        )
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
    places: tuple[tuple[int, ...], ...],
    trips: Trips,
    skip: Callable[[hlo.Block], bool] = lambda block: False,
    depth: int = 0,
) -> Cost:
  """Of a block and all loops in it.

  Args:
    block: from `hlo`.
    topology: that it was compiled for.
    places: coordinates of the chips, in the order of the mesh.
    trips: of loops whose trips only the data tells.
    skip: inner blocks that are left out.
    depth: how many such loops are around the block.
  """
  made = _own(block, topology, places)
  for inner in block.inner:
    if skip(inner):
      continue
    is_known = inner.trips is not None
    times = inner.trips if is_known else trips(inner, depth)
    below = cost(inner, topology, places, trips, skip, depth + (not is_known))
    made = made.plus(below, times)
  return made


def _own(
    block: hlo.Block,
    topology: topologies.Topology,
    places: tuple[tuple[int, ...], ...],
) -> Cost:
  """Of a block without the loops in it."""
  chip = topology.chip
  waited, hidden, exchange_s = 0.0, 0.0, 0.0
  exchanged: dict[str, float] = {}
  for each in block.collectives:
    chips = [places[i] for i in each.group] or list(places)
    seconds = topology.exchange_s(each.kind, each.bytes, chips)
    if each.hidden:
      hidden += seconds
    else:
      waited += seconds
    moved = topologies.moved_bytes(each.kind, each.bytes, len(chips))
    exchanged[each.kind] = exchanged.get(each.kind, 0.0) + moved
    exchange_s += topology.exchange_s(each.kind, each.bytes, chips, hop_s=0.0)
  work = block.cycles / chip.clock
  beside = max(hidden, block.prefetched_bytes / chip.hbm_bandwidth)
  seconds = max(work, beside) + waited
  return Cost(
      seconds,
      block.flops,
      block.hbm_bytes,
      exchange_s,
      exchanged,
      len(block.collectives),
      waited + max(0.0, hidden - work),
  )


def forward_flops(
    config: config_lib.T5Config, rows: int, inputs: int, outputs: int
) -> float:
  """FLOPs of logits for all outputs: two a multiplication, none for masks.

  Args:
    config: of the model.
    rows: B.
    inputs: tokens a row, S.
    outputs: tokens a row, T.

  Raises:
    UserError: the model is decoder-only, which is not planned for.
  """
  if config.is_decoder_only:
    raise errors.UserError(
        'A decoder-only model (num_encoder_layers = 0) was given to plan, which'
        ' knows encoder-decoder models; take one with an encoder.'
    )
  encoder = config.num_encoder_layers * _layer(config, inputs, inputs)
  if config.shares_encoder:
    encoder = inputs * config.encoded_dim * config.emb_dim
  joined = config.num_heads * config.head_dim
  # Keys and values of the inputs; queries and what is made of the mixture.
  cross = 2 * inputs * config.emb_dim * joined
  cross += 2 * outputs * config.emb_dim * joined
  cross += 2 * outputs * inputs * joined
  decoder = _layer(config, outputs, outputs) + cross
  decoder *= config.num_decoder_layers
  logits = outputs * config.emb_dim * config.num_logits
  return 2.0 * rows * (encoder + decoder + logits)


def _layer(config: config_lib.T5Config, queries: int, keys: int) -> int:
  """Multiplications a row of self-attention and feed-forward."""
  joined = config.num_heads * config.head_dim
  weights = 4 * config.emb_dim * joined
  branches = len(config.mlp_activations)
  weights += (branches + 1) * config.emb_dim * config.mlp_dim
  return queries * weights + 2 * queries * keys * joined


class Step(NamedTuple):
  """A training step.

  Attributes:
    whole: all of it.
    rollout: sampling the tokens that it learns on, all of T.
    model_flops: a chip, by formula, without rollouts: the target forward, the
      draft forward and backward.
    mfu: `model_flops` over the peak, of the seconds without rollouts.
  """

  whole: Cost
  rollout: Cost
  model_flops: float
  mfu: float


def step(setting: setting_lib.Setting, compiled: compiled_lib.Compiled) -> Step:
  """What a training step costs."""
  topology = setting.topology
  trips = lambda block, depth: setting.output_length
  arguments = compiled.block, topology, compiled.places, trips
  whole = cost(*arguments)
  # What is sampled stands in loops of a program of its own.
  learned = cost(*arguments, skip=lambda block: 'generate' in block.op_name)
  shape = setting.batch_size, setting.input_length, setting.output_length
  flops = 3 * forward_flops(setting.draft, *shape)
  if setting.target is not None and setting.method.is_distillation:
    flops += forward_flops(setting.target, *shape)
  flops /= topology.chips
  mfu = flops / (learned.seconds * topology.chip.flops)
  return Step(whole, whole.plus(learned, -1), flops, mfu)


class Sampling(NamedTuple):
  """The samplers, a block or a token at a time.

  Attributes:
    token: autoregressive, a token of the target.
    block: speculative, a block: G steps of the draft, one of the target.
    draft: a step of the draft, in the block.
    begin_s: seconds of both encoders and all else before the first block.
    plain_begin_s: the same without a draft.
  """

  token: Cost
  block: Cost
  draft: Cost
  begin_s: float
  plain_begin_s: float

  @property
  def cost_ratio(self) -> float:
    """c: a step of the draft over one of the target."""
    return self.draft.seconds / self.token.seconds

  def verify_ratio(self, block_length: int) -> float:
    """v: a block without its draft steps over a step of the target."""
    drafted = block_length * self.draft.seconds
    return (self.block.seconds - drafted) / self.token.seconds


def sampling(
    setting: setting_lib.Setting,
    speculative: compiled_lib.Compiled,
    autoregressive: compiled_lib.Compiled,
) -> Sampling:
  """What a token and a block of the samplers cost."""
  # Of a block the first token is drafted before the loop over the others.
  trips = lambda block, depth: setting.block_length - 1

  def part(compiled, block):
    return cost(block, setting.topology, compiled.places, trips)

  (token,) = _unknown(autoregressive.block)
  (block,) = _unknown(speculative.block)
  (draft,) = (
      each for each in block.inner if each.op_name.endswith('draft_loop/while')
  )
  prefill = lambda compiled: cost(
      compiled.block, setting.topology, compiled.places, lambda *_: 0
  )
  return Sampling(
      part(autoregressive, token),
      part(speculative, block),
      part(speculative, draft),
      prefill(speculative).seconds,
      prefill(autoregressive).seconds,
  )


def _unknown(block: hlo.Block) -> list[hlo.Block]:
  """The loops in a block whose trips only the data tells."""
  found = []
  for inner in block.inner:
    found += [inner] if inner.trips is None else _unknown(inner)
  return found


class Exchanges(NamedTuple):
  """Equal exchanges of a loop.

  Attributes:
    where: 'step', 'rollout', 'block' or 'draft' loop.
    kind: of `hlo.COLLECTIVES`.
    shape: of one.
    chips: that take part.
    count: how many.
    bytes: that a chip sends, of all.
    hidden: beside computation.
  """

  where: str
  kind: str
  shape: str
  chips: int
  count: int
  bytes: float
  hidden: bool


def exchanges(
    name: str, compiled: compiled_lib.Compiled, trips: Trips
) -> list[Exchanges]:
  """All exchanges of a program, those with most bytes first.

  Args:
    name: of the program.
    compiled: it.
    trips: of loops whose trips only the data tells.
  """
  found: dict[tuple, int] = {}

  def walk(block, depth, times):
    for each in block.collectives:
      chips = len(each.group) or len(compiled.places)
      where = name if depth == 0 else f'{name}: loop {depth}'
      key = where, each.kind, each.shape, chips, each.hidden, each.bytes
      found[key] = found.get(key, 0) + times
    for inner in block.inner:
      is_known = inner.trips is not None
      count = inner.trips if is_known else trips(inner, depth)
      walk(inner, depth + (not is_known), times * count)

  walk(compiled.block, 0, 1)
  listed = [
      Exchanges(
          where, kind, shape, chips, count,
          count * topologies.moved_bytes(kind, size, chips), hidden,
      )
      for (where, kind, shape, chips, hidden, size), count in found.items()
  ]  # fmt: skip
  return sorted(listed, key=lambda each: -each.bytes)
