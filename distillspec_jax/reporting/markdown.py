"""The report as Markdown: headlines, tables with definitions, provenance."""

from __future__ import annotations

from collections.abc import Sequence

from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import page
from distillspec_jax.reporting import provenance
from distillspec_jax.reporting import rows as rows_lib
from distillspec_jax.reporting import tables


def render(
    name: str,
    lines: Sequence[rows_lib.Line],
    studies: Sequence[rows_lib.Study],
    samples: bool,
) -> str:
  """The text of report.md."""
  parts = [f'# DistillSpec report: {name}', provenance.errors(lines)]
  for study in studies:
    parts.append(f'## {page.heading(study)}')
    parts += [
        f'- **{card.what}**: {card.number} ({card.badge}); {card.detail}.'
        for card in headlines.cards(study)
    ]
    parts += headlines.sentences(study)
    for table in tables.tables(study):
      parts += [f'### {table.title}', _table(table)]
      parts.append('\n'.join(f'- {t}: {text}' for t, text in table.definitions))
  parts += page.missing(lines, samples)
  parts.append('## Provenance')
  parts.append(
      '\n'.join(f'- {what}: {text}' for what, text in provenance.entries(lines))
  )
  return '\n\n'.join(parts) + '\n'


def _table(table: tables.Table) -> str:
  rows = [table.header, ['---'] * len(table.header), *table.body]
  return '\n'.join(
      f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in row)} |'
      for row in rows
  )
