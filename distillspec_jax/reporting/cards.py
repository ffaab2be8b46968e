"""What the page answers first, a card for each question.

How much faster is speculative decoding than plain decoding, at what cost, is it
lossless, and what did distillation change?
"""

from __future__ import annotations

from typing import NamedTuple

from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import runs as runs_lib
from distillspec_jax.reporting import tables

_TIMED = ('batch_size', 'temperature')


class Card(NamedTuple):
  """The answer to a question.

  Attributes:
    what: the question.
    number: the answer, in a number or a word.
    badge: what it means, in a few words.
    tone: 'good', 'bad' or 'even': the colour of the badge.
    detail: a sentence or two.
    table: the numbers behind it, if there are more.
    command: that made it, if recorded.
  """

  what: str
  number: str
  badge: str
  tone: str
  detail: str
  table: tables.Table | None = None
  command: str = ''


def cards(study: measurements.Study) -> list[Card]:
  """The cards that the study has data for."""
  return [
      *_how_much_faster(study),
      *_at_what_cost(study),
      *_lossless(study),
      *_block_efficiency(study),
  ]


def _how_much_faster(study):
  measured, best = headlines.lossless_speedups(study)
  if best is None:
    return
  word, tone = headlines.verdict(best)
  badges = {
      headlines.UNCLEAR: 'no clear difference to plain decoding',
      headlines.NO_SPEEDUP: 'not faster than plain decoding',
  }
  detail = f'{_interval(best)}: {headlines.setting(best)}'
  speed, plain = best.value('tokens_per_second'), _plain(study, best)
  if speed and plain:
    detail += (
        f'; {speed.value:,.0f} tokens/s, plain decoding {plain.value:,.0f}'
    )
  if measured[1:]:
    detail += f'. The best of {len(measured)} settings, on this machine'
  if best.pairs:
    slower = sum(gain < 1 for gain in best.pairs)
    detail += f'; {slower} of {len(best.pairs)} pairs of runs are slower'
  yield Card(
      'How much faster is it?',
      f'{best.metrics["measured_speedup"].value:.2f} ×',
      badges.get(word, f'{word} than plain decoding'),
      tone,
      f'{detail}.',
      _wall_clock(study, measured),
  )


def _plain(study, one):
  """Tokens per second of plain decoding in the setting of a measurement."""
  settings = {name: one.decoding.get(name) for name in _TIMED}
  for plain in measurements.select(
      study.measurements('latency'), draft=None, **settings
  ):
    return plain.value('tokens_per_second')
  return None


def _wall_clock(study, measured):
  """Plain decoding and each draft at its best, by batch and temperature."""
  groups: dict[tuple, list] = {}
  for one in measured:
    key = tuple(one.decoding.get(name) or 0 for name in _TIMED)
    groups.setdefault(key, []).append(one)
  body = []
  for _, here in sorted(groups.items(), key=lambda group: group[0]):
    plain = _plain(study, here[0])
    where = {name: here[0].decoding.get(name) for name in _TIMED}
    where = measurements.describe(where)
    if plain:
      body.append([where, 'plain decoding', f'{plain.value:,.0f}', '1'])
    for draft in measurements.draft_names(here):
      best = max(
          measurements.select(here, draft=draft),
          key=lambda one: one.metrics['measured_speedup'].value,
      )
      speed = best.value('tokens_per_second')
      settings = dict(best.decoding, **dict.fromkeys(_TIMED))
      body.append(
          [
              where,
              f'{draft} draft, {measurements.describe(settings)}',
              '–' if speed is None else f'{speed.value:,.0f}',
              _interval(best),
          ]
      )
  header = ['setting', 'decoding', 'tokens/s', 'times plain (95 % interval)']
  return tables.Table('Wall clock', header, body)


def _interval(one):
  """The speed-up with its interval."""
  speed = headlines.speedup(one)
  ends = speed.interval()
  if ends is None:
    return f'{speed.value:.2f}'
  return f'{speed.value:.2f} ({ends[0]:.2f} to {ends[1]:.2f})'


def _at_what_cost(study):
  trained = runs_lib.runs(study.training)
  students = [run for run in trained if run.is_distillation]
  if not students:
    return
  names = {run.name: run for run in reversed(students)}
  student = names.get(headlines.AFTER, students[0])
  parts = [f'{max(student.steps.values(), default=0):.0f} steps']
  if batch := student.settings.get('steps.batch_size'):
    parts[0] += f' of {batch} sequences'
  if student.text:
    parts.append(f'text: {student.text}')
  for name, key in (('target', 'target_parameters'), ('draft', 'parameters')):
    if size := student.sizes.get(key):
      parts.append(f'{name} of {runs_lib.number(size)} parameters')
  taken = [runs_lib.mean(run.wall_s) or 0.0 for run in trained]
  rows = [
      [
          run.name,
          runs_lib.number(size)
          if (size := run.sizes.get('parameters'))
          else '–',
          f'{max(run.steps.values(), default=0):.0f}',
          _duration(seconds) if seconds else '–',
      ]
      for run, seconds in zip(trained, taken)
  ]
  if all(taken):
    parts.append(f'training in all {_duration(sum(taken))}')
  seconds = runs_lib.mean(student.wall_s)
  commands = dict.fromkeys(
      line['provenance'].get('command') or '' for line in study.training
  )
  yield Card(
      'At what cost?',
      _duration(seconds) if seconds else parts[0],
      f'distilled by {student.divergence or "the target"}',
      'even',
      f'Training the {student.name} draft: {"; ".join(parts)}.',
      tables.Table('', ['model', 'parameters', 'steps', 'time'], rows),
      '\n'.join(filter(None, commands)),
  )


def _duration(seconds):
  if seconds < 60:
    return f'{seconds:.0f} s'
  minutes, seconds = divmod(round(seconds), 60)
  return f'{minutes} min {seconds} s'


def _lossless(study):
  decodings = [
      one.decoding
      for kind in ('latency', 'acceptance')
      for one in headlines.speculative(study, kind)
  ]
  if not decodings:
    return

  def verifiers(lossy):
    return dict.fromkeys(
        str(decoding.get('verifier'))
        for decoding in decodings
        if measurements.is_lossy(decoding) == lossy
    )

  exact, others = verifiers(False), verifiers(True)
  if exact:
    detail = (
        'With this verifier, the output has exactly the target’s distribution,'
        ' whatever the draft; greedy output is the target’s own.'
    )
    if others:
      detail += (
          f' Lossy verifiers ({", ".join(others)}) were measured, too; they'
          ' count in no speed above.'
      )
  else:
    detail = 'These verifiers change the output distribution.'
  yield Card(
      'Is it lossless?',
      'yes' if exact else 'no',
      f'verifier {", ".join(exact or others)}',
      'good' if exact else 'bad',
      f'{detail} {_certificate(study)}',
  )


def _certificate(study):
  holds = {
      name.removesuffix(': holds'): one['value']
      for line in study.lines
      if line['kind'] == 'certificate'
      for name, one in line['metrics'].items()
      if name.endswith(': holds')
  }
  if not holds:
    return 'There is no certificate here; make one with distillspec certify.'
  failed = [name for name, value in holds.items() if not value]
  if failed:
    return f'The certificate FAILS: {", ".join(failed)}.'
  return f'The certificate holds: all of {len(holds)} checks on this pair.'


def _block_efficiency(study):
  """Before and after distillation, a card for each temperature."""
  for sampling, settings, here in headlines.block_efficiency(study):
    what = f'Block efficiency, {sampling}'
    detail = f'tokens per target call at {settings}'
    values = {
        name: one.metrics['block_efficiency'] for name, one in here.items()
    }
    name, after = headlines.baseline(here), headlines.AFTER
    change = headlines.gain(here.get(name), here.get(after), 'block_efficiency')
    if change is None:
      for draft, value in values.items():
        text = f'{detail}: {value.text(2)}'
        yield Card(what, f'{value.value:.2f}', draft, 'even', text)
      continue
    first, last = values[name], values[after]
    detail += (
        f': {name} {first.text(2)}, {after} {last.text(2)};'
        f' {change.interval_text()}'
    )
    start = headlines.baseline(here, control=False)
    total = headlines.gain(here.get(start), here.get(after), 'block_efficiency')
    if start != name and total is not None:
      detail += f'. Over the {start} draft: {total.text()}'
    for draft, value in values.items():
      if draft not in (name, start, after):
        detail += f'. {draft.capitalize()}: {value.text(2)}'
    tone = 'good' if change.value > 0 else 'bad'
    tone = tone if change.is_clear else 'even'
    number = f'{first.value:.2f} → {last.value:.2f}'
    yield Card(what, number, change.text(), tone, detail)
