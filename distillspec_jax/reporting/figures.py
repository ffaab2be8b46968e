"""The figures of the page, drawn from table rows by matplotlib."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from matplotlib import figure as figure_lib
from matplotlib.backends import backend_agg

from distillspec_jax.reporting import tables

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = {
    'fine-tuned': '#E69F00',
    'fine-tuned longer': '#CC79A7',
    'distilled': '#0072B2',
    'target': '#009E73',
}
_MARKERS = {'fine-tuned': 'o', 'fine-tuned longer': 's', 'distilled': 'D'}


class Figure(NamedTuple):
  """A drawn figure.

  Attributes:
    name: of its file.
    title: above it.
    alt: what it shows, in words.
    figure: matplotlib's.
  """

  name: str
  title: str
  alt: str
  figure: figure_lib.Figure


def draw(lines: list[tables.Line]) -> list[Figure]:
  """All figures that the lines have data for."""
  makers = (
      _acceptance,
      _by_position,
      _by_block_length,
      _speedup,
      _training_loss,
      _training_acceptance,
  )
  found = (maker(lines) for maker in makers)
  return [one for one in found if one is not None]


def _new(columns: int = 1) -> tuple[figure_lib.Figure, Any]:
  figure = figure_lib.Figure(
      figsize=(6.4, 3.7), dpi=160, layout='constrained', facecolor='white'
  )
  backend_agg.FigureCanvasAgg(figure)
  axes = figure.subplots(1, columns, squeeze=False, sharey=columns > 1)[0]
  for ax in axes:
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(axis='y', color='#dddddd', linewidth=0.8)
    ax.set_axisbelow(True)
  return figure, axes


def _error(value: tables.Value) -> float:
  return 0.0 if math.isnan(value.error) else value.error


def _acceptance(lines: list[tables.Line]) -> Figure | None:
  found = tables.rows(lines, 'acceptance')
  if not found:
    return None
  block = max(tables.values_of(found, 'block_length'))
  temperatures = tables.values_of(found, 'temperature')
  names = tables.drafts(found)
  figure, (ax,) = _new()
  width = 0.8 / len(names)
  for i, name in enumerate(names):
    for j, temperature in enumerate(temperatures):
      row = tables.select(
          found, draft=name, block_length=block, temperature=temperature
      )
      if not row:
        continue
      value = row[0].metrics['acceptance_rate']
      at = j + (i - (len(names) - 1) / 2) * width
      ax.bar(
          at,
          value.value,
          width * 0.92,
          yerr=_error(value),
          capsize=3,
          color=_COLOURS.get(name, '#777777'),
          label=name if j == 0 else None,
      )
      ax.annotate(
          f'{value.value:.2f}',
          (at, value.value + _error(value)),
          (0, 2),
          textcoords='offset points',
          ha='center',
          fontsize=9,
      )
  ax.set_xticks(
      range(len(temperatures)), map(tables.temperature_name, temperatures)
  )
  ax.set_ylim(0, 1)
  ax.set_ylabel('acceptance rate')
  ax.legend(frameon=False, ncols=len(names), loc='upper left')
  return Figure(
      'acceptance',
      'Acceptance rate before and after distillation',
      f'Bars of the acceptance rate of {", ".join(names)}, by temperature.',
      figure,
  )


def _by_position(lines: list[tables.Line]) -> Figure | None:
  found = tables.rows(lines, 'acceptance')
  if not found:
    return None
  block = max(tables.values_of(found, 'block_length'))
  temperatures = tables.values_of(found, 'temperature')[:3]
  figure, axes = _new(len(temperatures))
  for ax, temperature in zip(axes, temperatures):
    for row in tables.select(
        found, block_length=block, temperature=temperature
    ):
      places = [
          place
          for place in range(1, block + 1)
          if f'acceptance_at_{place}' in row.metrics
      ]
      values = [row.metrics[f'acceptance_at_{place}'] for place in places]
      ax.errorbar(
          places,
          [v.value for v in values],
          [_error(v) for v in values],
          marker=_MARKERS.get(row.draft, 'o'),
          color=_COLOURS.get(row.draft, '#777777'),
          capsize=2,
          label=row.draft,
      )
    ax.set_title(tables.temperature_name(temperature), fontsize=10)
    ax.set_xticks(range(1, block + 1))
    ax.set_xlabel('position in the block')
    ax.set_ylim(0, 1)
  axes[0].set_ylabel('accepted, if reached')
  axes[0].legend(frameon=False)
  return Figure(
      'acceptance_by_position',
      'Acceptance by position in the block',
      'How often the token at each position of a drafted block is accepted,'
      ' given that all before it were.',
      figure,
  )


def _by_block_length(lines: list[tables.Line]) -> Figure | None:
  found = tables.rows(lines, 'acceptance')
  lengths = tables.values_of(found, 'block_length')
  if not lengths:
    return None
  temperatures = tables.values_of(found, 'temperature')[:3]
  figure, axes = _new(len(temperatures))
  for ax, temperature in zip(axes, temperatures):
    for name in tables.drafts(found):
      some = sorted(
          tables.select(found, draft=name, temperature=temperature),
          key=lambda row: row.decoding['block_length'],
      )
      if not some:
        continue
      colour = _COLOURS.get(name, '#777777')
      measured = [row.metrics['block_efficiency'] for row in some]
      x = [row.decoding['block_length'] for row in some]
      ax.errorbar(
          x,
          [v.value for v in measured],
          [_error(v) for v in measured],
          marker=_MARKERS.get(name, 'o'),
          linestyle='none' if len(x) > 1 else '-',
          color=colour,
          capsize=3,
          label=name,
      )
      alpha = some[-1].metrics['acceptance_rate'].value
      grid = range(1, max(lengths) + 1)
      ax.plot(
          grid,
          [sum(alpha**i for i in range(g + 1)) for g in grid],
          color=colour,
          linewidth=1,
          linestyle='--',
      )
    ax.set_title(tables.temperature_name(temperature), fontsize=10)
    ax.set_xlabel('block length')
  axes[0].set_ylabel('tokens a call of the target')
  axes[0].legend(frameon=False)
  return Figure(
      'block_efficiency',
      'Block efficiency by block length (dashed: predicted)',
      'Tokens emitted a call of the target against the number of drafted'
      ' tokens: measured points with error bars, and the curve that the'
      ' acceptance rate predicts.',
      figure,
  )


def _speedup(lines: list[tables.Line]) -> Figure | None:
  found = [row for row in tables.rows(lines, 'latency') if row.draft != 'none']
  if not found:
    return None
  figure, (ax,) = _new()
  for i, row in enumerate(found):
    measured = row.metrics['measured_speedup']
    ax.bar(
        i,
        measured.value,
        0.7,
        yerr=_error(measured),
        capsize=3,
        color=_COLOURS.get(row.draft, '#777777'),
    )
    ax.plot(
        [i - 0.35, i + 0.35],
        [row.metrics['predicted_speedup_with_verify'].value] * 2,
        color='black',
        linewidth=2,
    )
  ax.axhline(1.0, color='#555555', linewidth=1, linestyle=':')
  ax.set_xticks(
      range(len(found)),
      [
          f'{row.draft}\nbatch {row.decoding["batch_size"]},'
          f' block {row.decoding["block_length"]}'
          for row in found
      ],
      rotation=35 if len(found) > 3 else 0,
      ha='right' if len(found) > 3 else 'center',
      fontsize=8,
  )
  ax.set_ylabel('times autoregressive')
  return Figure(
      'speedup',
      'Speed-up over autoregressive decoding (line: predicted)',
      'Bars of the measured speed-up over autoregressive decoding, with the'
      ' predicted one as a line; at 1 there is no gain.',
      figure,
  )


def _training_loss(lines: list[tables.Line]) -> Figure | None:
  return _curve(
      lines,
      'cross_entropy',
      'training_loss',
      'Cross-entropy on the text that is trained on',
      'nats a token',
  )


def _training_acceptance(lines: list[tables.Line]) -> Figure | None:
  return _curve(
      lines,
      'acceptance_rate',
      'training_acceptance',
      'Expected acceptance during distillation',
      'expected acceptance rate',
  )


def _curve(lines, metric, name, title, label) -> Figure | None:
  found = {
      run: points
      for run, points in tables.curves(
          [line for line in lines if line['split'] == 'train'], metric
      ).items()
      if len(points) > 1
  }
  if not found:
    return None
  figure, (ax,) = _new()
  for run, points in found.items():
    x, y = zip(*points)
    ax.plot(
        x,
        y,
        color=_COLOURS.get(run.replace('_', ' '), '#777777'),
        label=run.replace('_', ' '),
    )
  ax.set_xlabel('step')
  ax.set_ylabel(label)
  ax.legend(frameon=False)
  return Figure(
      name, title, f'{title}: {label} against steps for {", ".join(found)}.',
      figure,
  )  # fmt: skip
