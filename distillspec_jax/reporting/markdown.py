"""The report as Markdown: headlines, tables with definitions, provenance."""

from __future__ import annotations

from collections.abc import Sequence
import html
import re

from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import page
from distillspec_jax.reporting import provenance
from distillspec_jax.reporting import rows


def render(
    name: str,
    lines: Sequence[measurements.Line],
    chapters: Sequence[page.Chapter],
    has_samples: bool,
    study: rows.Comparison | None = None,
) -> str:
  """The text of report.md."""
  parts = [
      f'# DistillSpec report: {_escaped(name)}',
      provenance.errors(lines, bool(study and study.targets[1:])),
  ]
  for chapter in chapters:
    parts.append(f'## {_escaped(chapter.heading)}')
    for card in chapter.cards:
      text = f'{card.number} ({card.badge}). {card.detail}'
      parts.append(f'**{_escaped(card.what)}** {_escaped(text)}')
      if card.table is not None:
        parts.append(_table(card.table))
      if card.command:
        parts.append(f'Command: {_escaped(card.command)}')
    parts += map(_escaped, chapter.sentences)
    for table in (*chapter.leading, *chapter.tables):
      title = f'### {_escaped(table.title)}'
      parts += [title, _table(table), _list(table.definitions)]
  if study is None:
    parts += page.missing(lines, has_samples)
  parts += ['## Provenance', _list(provenance.entries(lines))]
  return '\n\n'.join(filter(None, parts)) + '\n'


def _list(definitions):
  return '\n'.join(
      f'- {_escaped(term)}: {_escaped(text)}' for term, text in definitions
  )


def _escaped(text: str) -> str:
  """Text in which nothing is markup, neither of Markdown nor of HTML."""
  text = html.escape(' '.join(text.split()), quote=False)
  return re.sub(r'[\\`*\[\]|~$]|(?<!\w)[_#]|_(?!\w)', r'\\\g<0>', text)


def _table(table):
  header, *body = [[*map(_escaped, row)] for row in (table.header, *table.body)]
  rows = [header, ['---'] * len(header), *body]
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)
