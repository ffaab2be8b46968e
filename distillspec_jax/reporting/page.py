"""The page: headlines, figures, sample texts and tables in one file."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import re
from typing import NamedTuple

import jinja2

from distillspec_jax.reporting import cards as cards_lib
from distillspec_jax.reporting import drawing
from distillspec_jax.reporting import figures
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import provenance
from distillspec_jax.reporting import ranking
from distillspec_jax.reporting import rows as rows_lib
from distillspec_jax.reporting import sample_texts
from distillspec_jax.reporting import study_cards
from distillspec_jax.reporting import study_figures
from distillspec_jax.reporting import study_tables
from distillspec_jax.reporting import tables as tables_lib

_TEMPLATE = pathlib.Path(__file__).parent / 'page.html.j2'
_MISSING = {
    'acceptance': 'Acceptance was not measured; run `distillspec evaluate`.',
    'latency': 'Wall clock was not measured; run `distillspec benchmark`.',
    'task_quality': 'Task quality was not measured.',
    'training': 'No training was recorded.',
}


class Chapter(NamedTuple):
  """A part of the page.

  Attributes:
    heading: above it, where there are several.
    cards: answers to questions.
    sentences: the findings in words.
    sections: figures; when rendered, as (title, SVG).
    tables: the numbers.
    leading: tables before the figures.
  """

  heading: str
  cards: list[cards_lib.Card]
  sentences: list[str]
  sections: list[figures.Section]
  tables: list[tables_lib.Table]
  leading: list[tables_lib.Table] = []


def chapter(study: measurements.Study) -> Chapter:
  """The chapter of results that are comparable with each other."""
  return Chapter(
      study.heading,
      cards_lib.cards(study),
      headlines.sentences(study),
      figures.sections(study),
      tables_lib.tables(study),
  )


def study_chapters(
    study: rows_lib.Comparison,
    lines: Sequence[measurements.Line],
    measure: str | None,
) -> list[Chapter]:
  """The chapters of a study: its rows, and all results.

  The page of an experiment begins as that of any run does. The figures of other
  studies would show dozens of rows at once, so only their tables are here.

  Args:
    study: the rows.
    lines: all results, those of no row too.
    measure: by which rows are ranked, see `ranking.rankings`.
  """
  rankings = ranking.rankings(study, measure)
  compared = Chapter(
      f'{study.title}: {study.kind} of {len(study.rows)} rows',
      study_cards.cards(study, rankings),
      study_cards.sentences(study, rankings),
      study_figures.sections(study, rankings),
      study_tables.others(study, rankings, lines),
      study_tables.leading(study, rankings),
  )
  if study.kind == 'experiment':
    lines = [{**line, 'target': study.target(line)} for line in lines]
    chapters = [chapter(one) for one in measurements.studies(lines)]
    shown = {section.title for one in chapters for section in one.sections}
    sections = [one for one in compared.sections if one.title not in shown]
    compared = compared._replace(cards=[], sections=sections, tables=[])
    return [*chapters, compared]
  return [
      compared,
      *(
          one._replace(
              heading=f'All results: {one.heading}', cards=[], sentences=[],
              sections=[],
          )
          for one in map(chapter, measurements.studies(study.lines))
      ),
  ]  # fmt: skip


def render(
    name: str,
    lines: Sequence[measurements.Line],
    chapters: Sequence[Chapter],
    samples: Sequence[sample_texts.Sample],
    study: rows_lib.Comparison | None = None,
) -> str:
  """HTML that needs no other file and no network.

  Args:
    name: of the run.
    lines: all results.
    chapters: of the page, with figures as (title, SVG).
    samples: sample texts.
    study: that the folder holds, if any.
  """
  environment = jinja2.Environment(
      autoescape=True,
      trim_blocks=True,
      lstrip_blocks=True,
      undefined=jinja2.StrictUndefined,
  )
  template = environment.from_string(_TEMPLATE.read_text(encoding='utf-8'))
  return template.render(
      name=name,
      style=drawing.STYLE,
      tied=_tied,
      chapters=chapters,
      command=study.command if study else '',
      samples=samples,
      rule=sample_texts.RULE,
      errors=provenance.errors(lines, bool(study and study.targets[1:])),
      missing=[] if study else missing(lines, bool(samples)),
      provenance=provenance.entries(lines),
  )


def _tied(text: str) -> str:
  """Keeps a number and its error on one line."""
  return re.sub(r' (?=[±%])|(?<=±) ', '\N{NO-BREAK SPACE}', text)


def missing(lines: Sequence[measurements.Line], has_samples: bool) -> list[str]:
  """Sentences on the parts of the page that have no data."""
  kinds = {line['kind'] for line in lines}
  if kinds == {'plan'}:
    return []
  texts = [text for kind, text in _MISSING.items() if kind not in kinds]
  return texts if has_samples else [*texts, 'There are no sample texts.']
