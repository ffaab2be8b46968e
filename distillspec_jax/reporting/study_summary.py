"""A study in a few kilobytes: means, errors and changes, no single examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distillspec_jax.reporting import figures
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import ranking as ranking_lib
from distillspec_jax.reporting import rows as rows_lib
from distillspec_jax.reporting import study_cards
from distillspec_jax.reporting import study_figures
from distillspec_jax.reporting import study_tables
from distillspec_jax.reporting import tables

# Sections of the page whose pictures tell most, by the kind of study.
_PICTURES = {
    'experiment': ('Rows',),
    'grid': ('Heat maps', 'Along an axis'),
    'transfer': ('Rows',),
    'garden': ('Quality against speed',),
    'lossy': ('Quality against speed',),
}


def summary(study: rows_lib.Comparison) -> dict[str, Any]:
  """The study as JSON: answers, rankings of the page, what failed."""
  rankings = ranking_lib.rankings(study)
  answers = study_cards.cards(study, rankings)
  return {
      'kind': study.kind,
      'title': study.title,
      'targets': study.targets,
      'answers': [[one.what, one.number, one.badge, one.detail]
                  for one in answers],
      'remarks': study_cards.sentences(study, rankings),
      'rankings': [
          {
              'title': study_tables.title(ranking, rankings),
              'measure': ranking.measure,
              'seeds': ranking.seeds,
              'rows': [_row(study, ranking, one) for one in ranking.entries],
          }
          for ranking in ranking_lib.headline(rankings)
      ],
      'averages': study.averages,
      'failed': [
          [row.name, row.units[seed], text]
          for row in study.rows
          for seed, text in row.failed.items()
      ],
  }  # fmt: skip


def _row(study, ranking, entry):
  control, seconds = study.control(entry.row), entry.row.seconds
  quality = {}
  for name in ranking.qualities:
    if entry.quality and entry.quality.value(name):
      quality[name] = [
          entry.quality.value(name),
          entry.quality_changes.get(name),
      ]
  return {
      'name': entry.row.name,
      'rank': entry.rank,
      'value': ranking.value(entry),
      'change': entry.change,
      'control': control and control.name,
      'quality': quality,
      'seeds': study_tables.seeds(entry),
      'seconds': sum(seconds.values()) / len(seconds) if seconds else None,
  }


def pictures(study: rows_lib.Comparison) -> Sequence[figures.Section]:
  """The figures that are worth keeping beside the numbers."""
  found = study_figures.sections(study, ranking_lib.rankings(study))
  return [one for one in found if one.title in _PICTURES[study.kind]]


def ranked(ranking: dict[str, Any]) -> tables.Table:
  """The table of a ranking of `summary`, also after a way through JSON."""
  metrics = list(
      dict.fromkeys(name for row in ranking['rows'] for name in row['quality'])
  )
  measure, body = ranking['measure'], []
  for row in ranking['rows']:
    change = row['change'] and _gain(row['change'])
    cells = [
        '–' if row['rank'] is None else str(row['rank']),
        row['name'],
        _value(row['value'], measure),
        change.text() if change else '–',
        change.ends or '–' if change else '–',
        ('yes' if change.is_clear else 'no') if change else '–',
    ]
    for name in metrics:
      value, of_quality = row['quality'].get(name, (None, None))
      cells += [
          _value(value, name) if value else '–',
          _gain(of_quality).text() if of_quality else '–',
      ]
    body.append([*cells, row['seeds']])
  header = ['rank', 'row', study_tables.words(measure), 'change']
  header += ['95 % interval', 'clear']
  for name in metrics:
    header += [study_tables.words(name), 'its change']
  return tables.Table(ranking['title'], [*header, 'seeds'], body)


def _value(entries, measure):
  return measurements.Value(*entries).text(study_tables.digits(measure))


def _gain(entries):
  return headlines.Gain(*entries)
