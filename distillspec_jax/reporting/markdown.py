"""The report as Markdown: headlines, tables with definitions, provenance."""

from __future__ import annotations

from collections.abc import Sequence

from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import page
from distillspec_jax.reporting import provenance
from distillspec_jax.reporting import tables


def render(
    name: str,
    lines: Sequence[measurements.Line],
    studies: Sequence[measurements.Study],
    has_samples: bool,
) -> str:
  """The text of report.md."""
  parts = [f'# DistillSpec report: {name}', provenance.errors(lines)]
  for study in studies:
    parts.append(f'## {study.heading}')
    parts += [
        f'- **{card.what}**: {card.number} ({card.badge}); {card.detail}.'
        for card in headlines.cards(study)
    ]
    parts += headlines.sentences(study)
    for table in tables.tables(study):
      parts += [f'### {table.title}', _table(table), _list(table.definitions)]
  parts += page.missing(lines, has_samples)
  parts += ['## Provenance', _list(provenance.entries(lines))]
  return '\n\n'.join(filter(None, parts)) + '\n'


def _list(definitions):
  return '\n'.join(f'- {term}: {text}' for term, text in definitions)


def _table(table):
  rows = [table.header, ['---'] * len(table.header), *table.body]
  return '\n'.join(
      f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in row)} |'
      for row in rows
  )
