"""`distillspec evaluate`: how well a draft agrees with its target."""

from __future__ import annotations

import argparse
import typing

import rich.table

from distillspec_jax.commands import devices
from distillspec_jax.commands import gin_configuration
from distillspec_jax.commands import terminal
from distillspec_jax.core import results

if typing.TYPE_CHECKING:
  from distillspec_jax.evaluation import acceptance

HELP = 'expected acceptance, block efficiency and task quality of a pair'
EXAMPLE = (
    'distillspec evaluate --gin_file=tasks/python.gin'
    ' --gin_file=runs/evaluate.gin --run=runs/measured'
    ' --gin.TARGET=runs/target --gin.DRAFT=runs/draft'
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  gin_configuration.add_flags(parser)
  devices.add_host_flags(parser)
  devices.add_mesh_flag(parser)


def run(options: argparse.Namespace) -> None:
  from distillspec_jax.evaluation import acceptance

  evaluate = gin_configuration.configured(acceptance.evaluate, options)
  with devices.using(options), results.together():
    evaluate(show=lambda *shown: terminal.print_tables(tables(*shown)))


def tables(
    title: str, measured: list[acceptance.Measured]
) -> list[rich.table.Table]:
  """Acceptance and quality of each decoding, and of each model alone."""
  names = list(dict.fromkeys(name for one in measured for name in one.quality))
  table = rich.table.Table(
      'decoding', 'expected acceptance', 'tokens per target call', 'gain',
      *names, title=title,
  )  # fmt: skip
  for one in measured:
    table.add_row(
        f'{one.model} alone, greedy' if one.model else one.decoding.label(),
        _show(one.acceptance.get('expected_acceptance')),
        _show(one.acceptance.get('block_efficiency')),
        _show(one.acceptance.get('block_efficiency_gain')),
        *(_show(one.quality.get(name)) for name in names),
    )
  return [table]


def _show(metric: results.Metric | None) -> str:
  if metric is None:
    return '–'
  if metric.standard_error is None:
    return f'{metric.value:.3f}'
  return f'{metric.value:.3f} ± {metric.standard_error:.3f}'
