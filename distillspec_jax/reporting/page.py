"""The page: headline numbers, figures, sample texts and tables in one file."""

from __future__ import annotations

import base64
import io
import pathlib
from typing import Any

import jinja2

from distillspec_jax.reporting import figures as figures_lib
from distillspec_jax.reporting import tables

_HERE = pathlib.Path(__file__).resolve().parent


def render(
    lines: list[tables.Line],
    figures: list[figures_lib.Figure],
    samples: list[dict[str, Any]],
    name: str,
) -> str:
  """HTML that needs no other file and no network."""
  environment = jinja2.Environment(
      autoescape=True, trim_blocks=True, lstrip_blocks=True
  )
  template = environment.from_string((_HERE / 'page.html.j2').read_text())
  made = [
      tables.acceptance_table(lines),
      tables.latency_table(lines),
      tables.quality_table(lines),
  ]
  tasks = sorted({line['task'] for line in lines})
  kinds = {line['kind'] for line in lines}
  missing = [
      f'No {what} was measured.'
      for kind, what in (
          ('acceptance', 'acceptance'),
          ('latency', 'wall clock'),
      )
      if kind not in kinds
  ]
  return template.render(
      title=f'Speculative decoding: {name}',
      subtitle=f'Task: {", ".join(tasks)}. The draft proposes, the target'
      ' verifies; the output has exactly the target’s distribution.',
      style=(_HERE / 'page.css').read_text(),
      headlines=_headlines(lines),
      sentences=_sentences(lines),
      figures=[
          {'title': f.title, 'alt': f.alt, 'data': _encoded(f)} for f in figures
      ],
      samples=samples,
      tables=[table for table in made if table is not None],
      missing=missing,
      provenance=_provenance(lines),
  )


def markdown(lines: list[tables.Line]) -> str:
  """The tables as Markdown."""
  parts = []
  for make in (
      tables.acceptance_table,
      tables.latency_table,
      tables.quality_table,
  ):
    table = make(lines)
    if table is None:
      continue
    rows = [table.header, ['---'] * len(table.header), *table.body]
    parts.append(f'## {table.title}\n')
    parts.append('\n'.join('| ' + ' | '.join(row) + ' |' for row in rows))
    parts.append('\n' + '\n'.join(f'- {d}' for d in table.definitions) + '\n')
  parts.append(_provenance(lines))
  return '\n'.join(parts) + '\n'


def _headlines(lines: list[tables.Line]) -> list[dict[str, str]]:
  """Cards: block efficiency before and after, and the best speed-up."""
  found = tables.rows(lines, 'acceptance')
  cards = []
  lengths = tables.values_of(found, 'block_length')
  if lengths:
    block = 5 if 5 in lengths else max(lengths)
    for temperature in tables.values_of(found, 'temperature'):
      pair = tables.gain(
          lines,
          lambda row, t=temperature: row.decoding['temperature'] == t
          and row.decoding['block_length'] == block,
      )
      if pair is None:
        continue
      before, after = (row.metrics['block_efficiency'] for row in pair)
      percent = 100 * (after.value / before.value - 1)
      cards.append(
          {
              'what': 'Block efficiency,'
              f' {tables.temperature_name(temperature)}',
              'number': f'{before.value:.2f} → {after.value:.2f}'
              f' ({percent:+.0f} %)',
              'detail': f'tokens a target call, fine-tuned {before.text()} →'
              f' distilled {after.text()}, block length {block}',
          }
      )
  best = _best_speedup(lines)
  if best is not None:
    value = best.metrics['measured_speedup']
    cards.append(
        {
            'what': 'Best measured speed-up here',
            'number': f'{value.text(2)} ×',
            'detail': f'{best.draft} draft,'
            f' batch {best.decoding["batch_size"]},'
            f' block length {best.decoding["block_length"]}, against'
            ' autoregressive decoding',
        }
    )
  return cards


def _sentences(lines: list[tables.Line]) -> list[str]:
  """What the numbers mean, in words, also where they disappoint."""
  best = _best_speedup(lines)
  if best is None:
    return []
  value = best.metrics['measured_speedup'].value
  c = best.metrics['cost_ratio'].value
  if value > 1:
    return [
        f'On this machine speculative decoding with the {best.draft} draft'
        f' makes the target {value:.2f} times as fast (batch'
        f' {best.decoding["batch_size"]}). A draft step takes {c:.2f} of a'
        ' target step.'
    ]
  return [
      'On this machine speculative decoding is slower than plain decoding: the'
      f' best setting reaches {value:.2f} times its speed. A draft step takes'
      f' {c:.2f} of a target step here; the models are so small that overhead,'
      ' not arithmetic, sets the time. What carries over to large models is'
      ' block efficiency.'
  ]


def _best_speedup(lines: list[tables.Line]) -> tables.Row | None:
  found = [
      row
      for row in tables.rows(lines, 'latency')
      if 'measured_speedup' in row.metrics
  ]
  return max(
      found, key=lambda row: row.metrics['measured_speedup'].value, default=None
  )


def _encoded(figure: figures_lib.Figure) -> str:
  data = io.BytesIO()
  figure.figure.savefig(data, format='png')
  return base64.b64encode(data.getvalue()).decode()


def _provenance(lines: list[tables.Line]) -> str:
  """Where the numbers come from."""
  parts = []
  for name in ('device', 'jax', 'git', 'config_hash', 'seed'):
    values = sorted({str(line['provenance'][name]) for line in lines} - {''})
    if values:
      parts.append(f'{name}: {", ".join(values)}')
  last = max(line['provenance']['time_utc'] for line in lines)
  return ' · '.join([*parts, f'measured until {last}'])
