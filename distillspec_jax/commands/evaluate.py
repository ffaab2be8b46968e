"""`distillspec evaluate`: a table of what was measured."""

from __future__ import annotations

import rich.table

from distillspec_jax.core import results
from distillspec_jax.evaluation import acceptance


def tables(
    title: str, measured: list[acceptance.Measured]
) -> list[rich.table.Table]:
  """Acceptance, block efficiency and task quality of each decoding."""
  names = list(dict.fromkeys(name for one in measured for name in one.quality))
  table = rich.table.Table(
      'decoding', 'acceptance rate', 'tokens per target call', 'gain', *names,
      title=title,
  )  # fmt: skip
  for one in measured:
    table.add_row(
        one.decoding.label(),
        _show(one.acceptance['acceptance_rate']),
        _show(one.acceptance['block_efficiency']),
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
