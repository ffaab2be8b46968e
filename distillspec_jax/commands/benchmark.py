"""`distillspec benchmark`: wall-clock time of a pair."""

from __future__ import annotations

import argparse
import typing

import rich.table

from distillspec_jax.commands import devices
from distillspec_jax.commands import gin_configuration
from distillspec_jax.commands import terminal
from distillspec_jax.core import results

if typing.TYPE_CHECKING:
  from distillspec_jax.evaluation.speed import latency

HELP = (
    'wall-clock time, autoregressive and speculative, over batch sizes and'
    ' decodings'
)
EXAMPLE = (
    'distillspec benchmark --gin_file=tasks/python.gin'
    ' --gin_file=runs/benchmark.gin --run=runs/measured'
    ' --gin.TARGET=runs/target --gin.DRAFT=runs/draft'
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  gin_configuration.add_flags(parser)
  devices.add_host_flags(parser)
  devices.add_mesh_flag(parser)


def run(options: argparse.Namespace) -> None:
  from distillspec_jax.evaluation.speed import latency

  benchmark = gin_configuration.configured(latency.benchmark, options)
  with devices.using(options), results.together():
    benchmark(show=lambda *shown: terminal.print_tables(tables(*shown)))


def tables(
    title: str, measured: list[latency.Measured]
) -> list[rich.table.Table]:
  """Speeds, plans, and where the time of a block goes."""
  speeds = rich.table.Table(
      'batch', 'decoding', 'tokens/s', 'c', 'predicted', 'measured',
      title=title,
  )  # fmt: skip
  plans = rich.table.Table(
      'batch', 'decoding', 'plan', 'predicted', 'measured', 'best measured',
      title=f'{title}: choice of block length',
  )  # fmt: skip
  breakdowns = []
  for one in measured:
    batch = str(one.batch_size)
    for decoding, metrics in zip(one.decodings, one.fast):
      predicted = metrics.get('predicted_speedup_by_place')
      speeds.add_row(
          batch,
          decoding.label(),
          f'{one.plain["tokens_per_second"].value:.0f} ->'
          f' {metrics["tokens_per_second"].value:.0f}',
          f'{metrics["cost_ratio"].value:.2f}',
          '–' if predicted is None else f'{predicted.value:.2f}',
          f'{metrics["measured_speedup"].value:.2f}',
      )
    if one.plan is not None:
      label = one.decodings[0].label()
      plans.add_row(batch, label, *_plan_cells(one))
    if one.breakdown is not None:
      breakdowns.append(_breakdown_table(one))
  return [speeds, plans, *breakdowns]


def _plan_cells(one: latency.Measured) -> tuple[str, ...]:
  """What is planned, predicted, measured, and the best that was measured."""
  planned = one.fast[0]['planned_measured_speedup'].value
  plan = 'autoregressive'
  if one.plan.block_length is not None:
    plan = f'block length {one.plan.block_length}'
  speedup = one.fast[one.best]['measured_speedup'].value
  length = one.decodings[one.best].drafting.length
  best = f'{speedup:.2f} (block length {length})'
  if speedup <= 1.0:
    best = '1.00 (autoregressive)'
  return plan, f'{one.plan.speedup:.2f}', f'{planned:.2f}', best


def _breakdown_table(one: latency.Measured) -> rich.table.Table:
  """Where a block's time goes, and what comes before the first."""
  breakdown = one.breakdown
  table = rich.table.Table(
      'part', 'calls', 'ms per call', 'ms', 'share',
      title=f'A block, batch {one.batch_size},'
      f' {one.decodings[one.best].label()}',
  )  # fmt: skip

  def add(name, seconds, calls='', call=''):
    share = f'{seconds / breakdown.block_s:.0%}'
    table.add_row(name, calls, call, f'{1e3 * seconds:.3f}', share)

  for part in breakdown.parts:
    each = f'{1e3 * part.seconds:.3f}'
    add(part.name, part.total_s, str(part.calls), each)
  add('all parts', breakdown.parts_s)
  add('the block in the loop', breakdown.block_s)
  for part in breakdown.prefill:
    add(f'once per generation: prefill of the {part.name}', part.total_s)
  return table
