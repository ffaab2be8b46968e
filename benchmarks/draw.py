"""The ratios to peers in a run's results.jsonl, as a table and a figure.

    python benchmarks/draw.py --run=runs/peers

writes peers.md and peers.png there. Where something was measured several times
the last one counts.
"""

import argparse
import pathlib
from typing import Any, NamedTuple

from matplotlib import figure as figure_lib
from matplotlib.backends import backend_agg

from distillspec_jax.core import results


class Row(NamedTuple):
  """One ratio: what was measured, beside whom, median and range."""

  what: str
  peer: str
  median: float
  lowest: float
  highest: float
  rounds: int


def rows(lines: list[dict[str, Any]]) -> list[Row]:
  """All ratios of lines of comparisons with peers, the last of each."""
  found = {}
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
          *(
              metrics[name + end]['value']
              for end in ('', '_lowest', '_highest')
          ),
          metrics[name]['count'],
      )
      found[row.what, row.peer] = row
  return list(found.values())


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


def table(found: list[Row]) -> str:
  """Markdown."""
  head = '| what | ratio | median | range | rounds |\n'
  return (
      head
      + '| --- ' * 5
      + '|\n'
      + ''.join(
          f'| {row.what} | {row.peer} | {row.median:.2f} |'
          f' {row.lowest:.2f} to {row.highest:.2f} | {row.rounds} |\n'
          for row in found
      )
  )


def draw(found: list[Row]) -> figure_lib.Figure:
  """Medians as dots, ranges as bars, on a logarithmic axis."""
  figure = figure_lib.Figure(
      figsize=(9.0, 1.0 + 0.28 * len(found)), layout='constrained'
  )
  backend_agg.FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  for place, row in enumerate(reversed(found)):
    colour = '#0072B2' if row.peer.startswith('ours') else '#777777'
    axes.plot([row.lowest, row.highest], [place] * 2, color=colour, linewidth=3)
    axes.plot(row.median, place, 'o', color=colour)
  axes.axvline(1.0, color='#1c2128', linewidth=1)
  axes.set_xscale('log', base=2)
  axes.xaxis.set_major_formatter('{x:g}')
  axes.set_yticks(
      range(len(found)), [f'{r.what}: {r.peer}' for r in reversed(found)]
  )
  axes.set_xlabel('times as fast (median, range)')
  axes.grid(axis='x', color='#d5dae0')
  return figure


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--run', required=True, type=pathlib.Path)
  options = parser.parse_args()
  found = rows(results.read(options.run / results.FILE))
  (options.run / 'peers.md').write_text(table(found))
  draw(found).savefig(options.run / 'peers.png', dpi=150)
  print(table(found), end='')
  print(options.run / 'peers.png')


if __name__ == '__main__':
  main()
