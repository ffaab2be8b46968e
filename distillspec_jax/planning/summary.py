"""The plan of one run on one slice, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import NamedTuple

from distillspec_jax.core import cost_model
from distillspec_jax.planning import compiling
from distillspec_jax.planning import estimate
from distillspec_jax.planning import hlo
from distillspec_jax.planning import setting as setting_lib


class Number(NamedTuple):
  """A value and its unit: 'bytes', 's', 'flop', '1', 'per cent'."""

  value: float
  unit: str


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known of a setting after it was compiled.

  Attributes:
    setting: that was compiled.
    answer: what came of it.
    acceptance_rates: for which the speed-up is predicted.
    instead_of: the plan of the setting that was asked for and does not fit.
  """

  setting: setting_lib.Setting
  answer: compiling.Answer
  acceptance_rates: Sequence[float]
  instead_of: Plan | None = None

  @property
  def fits(self) -> bool:
    return not any(made.exceeds for made in self.answer.compiled.values())

  def shortage(self) -> str:
    """What does not fit, and by how much."""
    there = self.setting.topology.chip.hbm_bytes
    said = []
    for name, made in self.answer.compiled.items():
      if made.exceeds:
        lacking = made.needed_bytes - there
        said.append(
            f'{name} needs {gib(made.needed_bytes)} GiB a chip, of'
            f' {gib(there)}: {gib(lacking)} GiB too many'
        )
    return ', '.join(said)

  @functools.cached_property
  def step(self) -> estimate.Step | None:
    made = self.answer.compiled.get('step')
    if not (made and made.block):
      return None
    return estimate.step(self.setting, made)

  @functools.cached_property
  def sampling(self) -> estimate.Sampling | None:
    names = 'speculative', 'autoregressive'
    made = [self.answer.compiled.get(name) for name in names]
    if not all(each and each.block for each in made):
      return None
    return estimate.sampling(self.setting, *made)

  def exchanges(self) -> list[estimate.Exchanges]:
    """Of a step, with all of its rollout, and of a block of the sampler."""
    setting, found = self.setting, []
    for name, trips in (
        ('step', lambda block, depth: setting.output_length),
        (
            'speculative',
            lambda block, depth: setting.block_length - 1 if depth else 1,
        ),
    ):
      made = self.answer.compiled.get(name)
      if made and made.block:
        found += estimate.exchanges(name, made, trips)
    return found

  def most_work(self) -> list[str]:
    """Instructions of a step by their share of it: what, and where from."""
    found = []

    def walk(block, times):
      for work in block.work:
        found.append((times * work.cycles, work))
      for inner in block.inner:
        known = inner.trips is not None
        walk(
            inner,
            times * (inner.trips if known else self.setting.output_length),
        )

    walk(self.answer.compiled['step'].block, 1)
    seconds = self.step.whole.seconds * self.setting.topology.chip.clock
    found.sort(reverse=True)
    return [
        f'{100 * cycles / seconds:.1f} %  {work.shape}  {work.op_name[-70:]}'
        for cycles, work in found
    ]

  def gathered_logits(self) -> int:
    """How often logits of all tokens are gathered from several chips.

    In a step with its rollout and in a block. What has a width of a model
    beside V is an output layer.
    """
    models = [m for m in (self.setting.target, self.setting.draft) if m]
    widths = {str(model.emb_dim) for model in models}
    sizes = {str(n) for m in models for n in (m.vocab_size, m.num_logits)}
    found = 0
    for each in self.exchanges():
      if each.kind == 'all-gather':
        arrays = [
            dims.split(',') for dims in re.findall(r'\[([\d,]+)\]', each.shape)
        ]
        is_logits = [
            dims[-1] in sizes and dims[:-1] and not widths & set(dims[:-1])
            for dims in arrays
        ]
        found += each.count * any(is_logits)
    return found

  def host_transfers(self) -> int:
    """Instructions in all programs that wait for the host."""
    return sum(
        block.host_transfers
        for made in self.answer.compiled.values()
        if made.block
        for block in made.block.walk()
    )

  def draft_loop_exchanges(self) -> int:
    """Exchanges between chips in every further token that the draft drafts."""
    return int(self.sampling.draft.exchanges)

  def speedup(self, acceptance: float) -> float:
    """Of speculative over autoregressive sampling, predicted."""
    size, sampling = self.setting.block_length, self.sampling
    return cost_model.speedup(
        cost_model.predicted_block_efficiency(acceptance, size),
        sampling.cost_ratio,
        size,
        sampling.verify_ratio(size),
    )

  def numbers(self) -> dict[str, Number]:
    """All of them, a chip."""
    chip, counted = self.setting.topology.chip, self.answer.bytes
    made = {'hbm_bytes': Number(chip.hbm_bytes, 'bytes')}
    for name, size in counted.items():
      made[f'{name.replace(" ", "_")}_bytes'] = Number(size, 'bytes')
    for name, each in self.answer.compiled.items():
      made[f'{name}_memory_bytes'] = Number(each.needed_bytes, 'bytes')
      if each.block:
        made[f'{name}_temporary_bytes'] = Number(each.temporary_bytes, 'bytes')
    made['fits'] = Number(float(self.fits), '1')
    needed = max(each.needed_bytes for each in self.answer.compiled.values())
    made['memory_share'] = Number(needed / chip.hbm_bytes, '1')
    if self.step:
      made |= self._of_step()
    if self.sampling:
      made |= self._of_sampling()
    encoder = self.answer.compiled.get('encoder')
    if encoder and encoder.block:
      seconds = estimate.cost(
          encoder.block, self.setting.topology, encoder.places, lambda *_: 0
      ).seconds
      made['encoder_s'] = Number(seconds, 's')
    made['gathered_logits'] = Number(self.gathered_logits(), '1')
    made['host_transfers'] = Number(self.host_transfers(), '1')
    total = sum(each.compile_s for each in self.answer.compiled.values())
    made['compile_s'] = Number(total, 's')
    return made

  def _of_step(self) -> dict[str, Number]:
    chip, step = self.setting.topology.chip, self.step
    whole = step.whole
    learned_s = whole.seconds - step.rollout.seconds
    made = {
        'step_s': Number(whole.seconds, 's'),
        'rollout_s': Number(step.rollout.seconds, 's'),
        'learning_s': Number(learned_s, 's'),
        'waiting_s': Number(whole.waited_s, 's'),
        'step_flops': Number(whole.flops, 'flop'),
        'step_hbm_traffic_bytes': Number(whole.hbm_bytes, 'bytes'),
        'step_roofline': Number(whole.roofline(chip), '1'),
        'model_flops': Number(step.model_flops, 'flop'),
        'mfu': Number(step.mfu, '1'),
        'mfu_with_rollouts': Number(
            step.model_flops / (whole.seconds * chip.flops), '1'
        ),
    }
    for kind in hlo.COLLECTIVES:
      size = whole.exchanged.get(kind, 0.0)
      made[f'{kind.replace("-", "_")}_bytes'] = Number(size, 'bytes')
    return made

  def _of_sampling(self) -> dict[str, Number]:
    chip, sampling = self.setting.topology.chip, self.sampling
    size = self.setting.block_length
    made = {
        'token_s': Number(sampling.token.seconds, 's'),
        'draft_step_s': Number(sampling.draft.seconds, 's'),
        'block_s': Number(sampling.block.seconds, 's'),
        'begin_s': Number(sampling.begin_s, 's'),
        'token_roofline': Number(sampling.token.roofline(chip), '1'),
        'cost_ratio': Number(sampling.cost_ratio, '1'),
        'verify_ratio': Number(sampling.verify_ratio(size), '1'),
        'block_exchanges': Number(sampling.block.exchanges, '1'),
        'draft_loop_exchanges': Number(self.draft_loop_exchanges(), '1'),
    }
    for rate in self.acceptance_rates:
      made[f'speedup_at_{rate:g}'] = Number(self.speedup(rate), '1')
    return made


def gib(size: float) -> str:
  return f'{size / 2**30:.2f}'
