"""The tables of a study: rankings, averages, failures, how rows were made."""

from __future__ import annotations

from collections.abc import Sequence

from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import ranking as ranking_lib
from distillspec_jax.reporting import rows as rows_lib
from distillspec_jax.reporting import tables

_NONE = '–'
_WORDS = {
    'block_efficiency': 'tokens per target call',
    'tokens_per_second': 'tokens/s',
    'measured_speedup': 'measured speed-up',
}
_DIGITS = {'tokens_per_second': 0, 'measured_speedup': 2}


def words(measure: str) -> str:
  """A measure in words."""
  return _WORDS.get(measure, measure.replace('_', ' '))


def digits(measure: str) -> int:
  return _DIGITS.get(measure, 3)


def leading(
    study: rows_lib.Comparison, rankings: Sequence[ranking_lib.Ranking]
) -> list[tables.Table]:
  """The rankings that matter most, and what failed."""
  shown = ranking_lib.headline(rankings)
  drawn = [
      *(ranked(study, ranking, rankings) for ranking in shown),
      _averages(study),
      _failed(study),
  ]
  return [table for table in drawn if table.body]


def others(
    study: rows_lib.Comparison,
    rankings: Sequence[ranking_lib.Ranking],
    lines: Sequence[measurements.Line],
) -> list[tables.Table]:
  """How all models were made, and the rankings of other decodings.

  Args:
    study: the rows.
    rankings: of the page.
    lines: all results, those of targets too, which are no rows.
  """
  shown = ranking_lib.headline(rankings)
  targets = [
      line
      for line in lines
      if line['kind'] in ('training', 'run')
      and line['folder'] not in study.folders
  ]
  of_rows = [line for row in study.rows for line in row.training]
  drawn = [
      tables.made([*targets, *of_rows]),
      *(ranked(study, one, rankings) for one in rankings if one not in shown),
  ]
  return [table for table in drawn if table.body]


def ranked(
    study: rows_lib.Comparison,
    ranking: ranking_lib.Ranking,
    rankings: Sequence[ranking_lib.Ranking] = (),
) -> tables.Table:
  """The rows, the best first, with their changes against their controls."""
  body, controls = [], set()
  for entry in ranking.entries:
    quality = []
    for name in ranking.qualities:
      value = entry.quality and entry.quality.value(name)
      change = entry.quality_changes.get(name)
      quality += [
          value.text(digits(name)) if value else _NONE,
          change.text() if change else _NONE,
      ]
    control, seconds = study.control(entry.row), entry.row.seconds
    controls.add(control)
    body.append(
        [
            _NONE if entry.rank is None else str(entry.rank),
            entry.row.name,
            ranking.value(entry).text(digits(ranking.measure)),
            *_change(entry.change),
            _NONE if control is None else control.name,
            *quality,
            seeds(entry),
            _duration(sum(seconds.values()) / len(seconds))
            if seconds
            else _NONE,
        ]
    )
  header = ['rank', 'row', words(ranking.measure), 'change', '95 % interval']
  header += ['clear', 'control']
  for name in ranking.qualities:
    header += [words(name), f'its change ({words(name)})']
  header += ['seeds', 'training']
  name, controls = title(ranking, rankings), controls - {None}
  if len(controls) == 1:  # said once
    name += f'; changes against {next(iter(controls)).name}'
    body = [row[:6] + row[7:] for row in body]
    header.remove('control')
  return _filled(name, header, body)


def title(
    ranking: ranking_lib.Ranking, rankings: Sequence[ranking_lib.Ranking]
) -> str:
  """The task, where there are several, and the decoding."""
  places = {(one.task, one.split) for one in rankings}
  parts = [ranking.name]
  if len(places) > 1:
    parts.insert(0, f'{ranking.task.replace("_", " ")} {ranking.split}')
  text = ', '.join(filter(None, parts))
  return f'Ranking: {text}' if text else 'Ranking'


def seeds(entry: ranking_lib.Entry) -> str:
  """How many seeds; which ones, where the ranking has others."""
  have = sorted(entry.measurement.by_seed)
  if not entry.missing:
    return str(len(have))
  return (
      f'{len(have)} ({", ".join(map(str, have))}; lacks'
      f' {", ".join(map(str, entry.missing))})'
  )


def _change(change):
  if change is None:
    return [_NONE] * 3
  clear = 'yes' if change.is_clear else 'no'
  return [change.text(), change.ends or _NONE, clear if change.ends else _NONE]


def _averages(study):
  """What study.json averages, with its definitions."""
  body = []
  for one in study.averages:
    error = one.get('standard_error')
    text = f'{one["value"]:.3f}'
    text += '' if error is None else f' ± {error:.3f}'
    decoding = measurements.describe(one.get('decoding', {}))
    seeds = str(one.get('seeds', _NONE))
    body.append(
        [
            one['name'], words(one['metric']), decoding or _NONE, text, seeds,
            one['definition'],
        ]
    )  # fmt: skip
  header = ['average of', 'measure', 'decoding', 'value', 'seeds', 'definition']
  return _filled('Averages', header, body)


def _failed(study):
  body = [
      [row.name, str(row.units[seed]), text]
      for row in study.rows
      for seed, text in row.failed.items()
  ]
  return tables.Table('Failed', ['row', 'seed', 'what failed'], body)


def _filled(name, header, body):
  """A table without its empty columns."""
  kept = [i for i in range(len(header)) if any(row[i] != _NONE for row in body)]
  return tables.Table(
      name, [header[i] for i in kept], [[row[i] for i in kept] for row in body]
  )


def _duration(seconds):
  if seconds < 60:
    return f'{seconds:.0f} s'
  minutes, seconds = divmod(round(seconds), 60)
  return f'{minutes} min {seconds} s'
