"""The plan of one run on one slice, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import re

import numpy as np

from distillspec_jax.core import cost_model
from distillspec_jax.core import results
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import config as config_lib
from distillspec_jax.planning import estimate
from distillspec_jax.planning import hlo


@dataclasses.dataclass(frozen=True)
class SlicePlan:
  """What is known of a configuration after it was compiled.

  Attributes:
    config: that was compiled.
    compilation: what came of it.
    acceptance_rates: for which the speed-up is predicted; each one for all
      positions of a block, or one for each of them.
    instead_of: the plan of the configuration that was asked for and does not
      fit.
  """

  config: config_lib.PlanConfig
  compilation: compiled_program.Compilation
  acceptance_rates: Sequence[float | Sequence[float]]
  instead_of: SlicePlan | None = None

  def program(self, name: str) -> compiled_program.CompiledProgram | None:
    """A program that was compiled and fits."""
    program = self.compilation.programs.get(name)
    return program if program and program.block else None

  def shortage(self) -> str:
    """What does not fit, and by how much."""
    memory = self.config.topology.chip.hbm_bytes
    return ', '.join(
        f'{name} needs {gib(program.needed_bytes)} GiB per chip, of'
        f' {gib(memory)}: {gib(program.needed_bytes - memory)} GiB too many'
        for name, program in self.compilation.programs.items()
        if program.exceeds
    )

  @functools.cached_property
  def step(self) -> estimate.Step | None:
    program = self.program('step')
    return program and estimate.step(self.config, program)

  @functools.cached_property
  def sampling(self) -> estimate.Sampling | None:
    programs = self.program('speculative'), self.program('autoregressive')
    return estimate.sampling(self.config, *programs) if all(programs) else None

  def exchanges(self) -> list[estimate.Exchanges]:
    """Those of a step, with all of its rollout, and of a block."""
    drafted = self.config.decoding.drafting.length - 1
    listed = []
    for name, trips in (
        ('step', (self.config.output_length,)),
        ('speculative', (1, drafted)),
    ):
      program = self.program(name)
      if program:
        listed += estimate.exchanges(name, program, trips)
    return listed

  def most_work(self) -> list[str]:
    """Instructions of a step by their share of it: what, and where from."""
    visits = estimate.walk(
        self.program('step').block, (self.config.output_length,)
    )
    ordered = sorted(
        ((visit.times * work.cycles, work) for visit in visits
         for work in visit.block.work),
        reverse=True,
    )  # fmt: skip
    total = self.step.total.seconds * self.config.topology.chip.clock
    return [
        f'{100 * cycles / total:.1f} %  {work.shape}  {work.op_name[-70:]}'
        for cycles, work in ordered
    ]

  def gathered_logits(self) -> int:
    """How often logits of all tokens are gathered from several chips.

    In a step with its rollout and in a block. An array with both V and the
    width of a model is no logits but an output layer.
    """
    models = [m for m in (self.config.target, self.config.draft) if m]
    widths = {model.emb_dim for model in models}
    sizes = {n for m in models for n in (m.vocab_size, m.num_logits)}

    def are_logits(dims: str) -> bool:
      *rows, last = map(int, dims.split(','))
      return last in sizes and bool(rows) and widths.isdisjoint(rows)

    return sum(
        each.count
        for each in self.exchanges()
        if each.kind == 'all-gather'
        and any(map(are_logits, re.findall(r'\[([\d,]+)\]', each.shape)))
    )

  def host_transfers(self) -> int:
    """Instructions in all programs that wait for the host."""
    return sum(
        visit.block.host_transfers
        for program in self.compilation.programs.values()
        if program.block
        for visit in estimate.walk(program.block, (1,))
    )

  def speedup(self, acceptance: float | Sequence[float]) -> float:
    """Of speculative over autoregressive sampling, predicted."""
    length, sampling = self.config.decoding.drafting.length, self.sampling
    if isinstance(acceptance, Sequence):
      chances = cost_model.block_distribution(acceptance)
      tokens = float(chances @ np.arange(1, length + 2))
    else:
      tokens = cost_model.predicted_block_efficiency(acceptance, length)
    return tokens * sampling.token.seconds / sampling.block_s(length)

  def corrections(self) -> list[str]:
    """What the compiler expects though it is impossible, and what counts."""
    found = []
    if self.step:
      found += _correction('a step', self.step.total)
    sampling = self.sampling
    if sampling:
      length = self.config.decoding.drafting.length
      parts = {
          'a token': sampling.token,
          'a token of the draft': sampling.draft,
          'a block': sampling.block,
      }
      for name, part in parts.items():
        found += _correction(name, part) if part else []
      if sampling.draft and sampling.verify_ratio(length) < 1.0:
        found.append(
            f'reading {length + 1} tokens in'
            f' {sampling.verify_ratio(length):.2f} of the time of one; counted'
            ' as 1'
        )
    return found

  def numbers(self) -> dict[str, results.Metric]:
    """All of them, per chip."""
    memory = self.config.topology.chip.hbm_bytes
    programs = self.compilation.programs
    values = {'hbm_bytes': memory}
    values |= {f'{k}_bytes': x for k, x in self.compilation.bytes.items()}
    for name, program in programs.items():
      values[f'{name}_memory_bytes'] = program.needed_bytes
      if program.block:
        values[f'{name}_temporary_bytes'] = program.temporary_bytes
    needed = max(program.needed_bytes for program in programs.values())
    values['fits'] = float(self.compilation.fits)
    values['memory_share'] = needed / memory
    if self.step:
      values |= self._of_step(self.step)
    if self.sampling:
      values |= self._of_sampling(self.sampling)
    encoder = self.program('encoder')
    if encoder:
      values['encoder_s'] = estimate.cost(
          encoder.block, self.config.topology, encoder.places, (0,)
      ).seconds
    values['gathered_logits'] = self.gathered_logits()
    values['host_transfers'] = self.host_transfers()
    values['corrections'] = len(self.corrections())
    values['compile_s'] = sum(each.compile_s for each in programs.values())
    units = {'bytes': 'bytes', 's': 's', 'flops': 'flop'}  # by the name's end
    return {
        name: results.Metric(
            value, None, 1, units.get(name.rpartition('_')[2], '1')
        )
        for name, value in values.items()
    }

  def _of_step(self, step: estimate.Step) -> dict[str, float]:
    chip, total = self.config.topology.chip, step.total
    sent = {
        f'{kind.replace("-", "_")}_bytes': size
        for kind, size in zip(hlo.COLLECTIVES, total.sent)
    }
    return {
        'step_s': total.seconds,
        'rollout_s': step.rollout.seconds,
        'learning_s': total.seconds - step.rollout.seconds,
        'waiting_s': total.waited_s,
        'step_flops': total.flops,
        'step_hbm_traffic_bytes': total.hbm_bytes,
        'step_roofline': total.roofline(chip),
        'model_flops': step.model_flops,
        'mfu': step.mfu,
        'mfu_with_rollouts': step.model_flops / (total.seconds * chip.flops),
        **sent,
    }

  def _of_sampling(self, sampling: estimate.Sampling) -> dict[str, float]:
    drafting, chip = self.config.decoding.drafting, self.config.topology.chip
    values = {
        'prefill_s': sampling.prefill_s,
        'block_exchanges': sampling.block.exchanges,
    }
    read = self.compilation.bytes
    token, step = read['token_read'], read['draft_step_read']
    draft_calls = 1 if drafting.parallel else drafting.length
    parts = [
        ('token', sampling.token, token),
        ('block', sampling.block, token + draft_calls * step),
    ]
    if sampling.draft:
      parts.append(('draft_step', sampling.draft, step))
      values['draft_loop_exchanges'] = sampling.draft.exchanges
      values['cost_ratio'] = sampling.cost_ratio
      ratio = sampling.verify_ratio(drafting.length)
      values['verify_ratio'] = max(1.0, ratio)
    for name, part, size in parts:
      seconds = part.seconds
      if name == 'block':
        seconds = sampling.block_s(drafting.length)
      values[f'{name}_s'] = seconds
      values[f'{name}_memory_floor'] = size / chip.hbm_bandwidth / seconds
      values[f'{name}_utilisation'] = part.flops / chip.flops / seconds
    if drafting.paths == 1 and drafting.adaptive is None:
      # Otherwise tokens per block do not follow from an acceptance rate.
      for rate in self.acceptance_rates:
        values[f'speedup_at_{_rate_text(rate)}'] = self.speedup(rate)
    return values


def _rate_text(rate: float | Sequence[float]) -> str:
  rates = rate if isinstance(rate, Sequence) else [rate]
  return ', '.join(f'{one:g}' for one in rates)


def _correction(name: str, cost: estimate.Cost) -> list[str]:
  if cost.added_s < 0.01 * cost.seconds:
    return []
  expected = 1e3 * (cost.seconds - cost.added_s)
  return [
      f'{name} in {expected:.4g} ms, less than its matrix products or its'
      f' memory traffic take at the peak; counted as {1e3 * cost.seconds:.4g}'
      ' ms'
  ]


def gib(size: float) -> str:
  return f'{size / 2**30:.2f}'
