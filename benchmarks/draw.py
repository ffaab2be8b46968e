"""The ratios to peers in a run's results.jsonl, as a table and a figure.

    python benchmarks/draw.py --run=runs/peers

writes peers.md and peers.png there. Of repeated measurements the last counts.
"""

import argparse
import pathlib
from typing import Any, NamedTuple

from matplotlib import figure as figure_lib
from matplotlib.backends import backend_agg

from distillspec_jax.core import results

ENDS = ('', '_lowest', '_highest')


class Row(NamedTuple):
  """One ratio: what was measured, against what, median and range."""

  what: str
  peer: str
  median: float
  lowest: float
  highest: float
  rounds: int


def rows(lines: list[dict[str, Any]]) -> list[Row]:
  """The ratios in lines of comparisons with peers, the last of each."""
  latest = {}
  for line in lines:
    if line['split'] != 'peers':
      continue
    metrics = line['metrics']
    for name in metrics:
      if f'{name}_lowest' not in metrics:
        continue
      row = Row(
          _what(line),
          _peer(name),
          *(metrics[name + end]['value'] for end in ENDS),
          metrics[name]['count'],
      )
      latest[row.what, row.peer] = row
  return list(latest.values())


def _what(line: dict[str, Any]) -> str:
  parts = [line['task'], _size(line['target'])]
  if line['draft'] is not None:
    parts.append(f'draft {_size(line["draft"])}')
  decoding = line['decoding']
  if decoding is not None:
    greedy = decoding['temperature'] == 0.0
    parts.append('greedy' if greedy else 'sampled')
    parts.append(f'batch {decoding["batch_size"]}')
  return ', '.join(part for part in parts if part)


def _size(name: str | None) -> str:
  return (name or '').removeprefix('t5_1_1_')


def _peer(name: str) -> str:
  """E.g. 'ours to assisted', 'transformers to own autoregressive'."""
  side, _, other = name.partition('ratio_to_')
  return f'{side.rstrip("_") or "ours"} to {other.replace("_", " ")}'


def table(ratios: list[Row]) -> str:
  """Markdown."""
  lines = ['| what | ratio | median | range | rounds |', '| --- ' * 5 + '|']
  lines += [
      f'| {row.what} | {row.peer} | {row.median:.2f} |'
      f' {row.lowest:.2f} to {row.highest:.2f} | {row.rounds} |'
      for row in ratios
  ]
  return '\n'.join(lines) + '\n'


def draw(ratios: list[Row]) -> figure_lib.Figure:
  """Medians as dots, ranges as bars, on a logarithmic axis."""
  figure = figure_lib.Figure(
      figsize=(9.0, 1.0 + 0.28 * len(ratios)), layout='constrained'
  )
  backend_agg.FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  ratios = ratios[::-1]  # the first at the top
  for y, row in enumerate(ratios):
    colour = '#0072B2' if row.peer.startswith('ours') else '#777777'
    axes.plot([row.lowest, row.highest], [y] * 2, color=colour, linewidth=3)
    axes.plot(row.median, y, 'o', color=colour)
  axes.axvline(1.0, color='#1c2128', linewidth=1)
  axes.set_xscale('log', base=2)
  axes.xaxis.set_major_formatter('{x:g}')
  axes.set_yticks(range(len(ratios)), [f'{r.what}: {r.peer}' for r in ratios])
  axes.set_xlabel('times as fast (median, range)')
  axes.grid(axis='x', color='#d5dae0')
  return figure


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--run', required=True, type=pathlib.Path)
  options = parser.parse_args()
  ratios = rows(results.read(options.run / results.FILE))
  (options.run / 'peers.md').write_text(table(ratios))
  draw(ratios).savefig(options.run / 'peers.png', dpi=150)
  print(table(ratios), end='')
  print(options.run / 'peers.png')


if __name__ == '__main__':
  main()
