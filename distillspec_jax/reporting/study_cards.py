"""What the page of a study answers first, a card for each question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distillspec_jax.reporting import cards as cards_lib
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import ranking as ranking_lib
from distillspec_jax.reporting import rows as rows_lib
from distillspec_jax.reporting import study_tables
from distillspec_jax.reporting import tables

# What the text of a row's training is, by the names that labels may have.
_FIXED = ('labels', 'dataset', 'fixed', 'supervised KD')
_PLACE = 'measured on'  # axis of a study of transfer
_ON_POLICY = ('draft', 'on-policy', 'on-policy GKD')


def cards(
    study: rows_lib.Comparison, rankings: Sequence[ranking_lib.Ranking]
) -> list[cards_lib.Card]:
  """The cards that the study has data for."""
  shown = [one for one in ranking_lib.headline(rankings) if one.ranked]
  if not shown:
    return []
  if study.kind == 'garden':
    made = [_fastest(study, shown)]
  elif study.kind == 'lossy':
    made = [_cost_of_lenience(study, shown)]
  elif study.kind == 'transfer':
    made = [_transfer(study, shown), _more_than_control(study, shown)]
  else:
    made = [
        _winner(study, shown),
        _on_policy(study, shown),
        _more_than_control(study, shown),
    ]
  return [card for card in made if card is not None]


def sentences(
    study: rows_lib.Comparison, rankings: Sequence[ranking_lib.Ranking]
) -> list[str]:
  """What a reader must know of seeds, and of what is absent."""
  texts = []
  lacking = {
      entry.row.name: entry
      for ranking in rankings
      for entry in ranking.entries
      if entry.missing
  }
  if lacking:
    names = rows_lib.listed(
        f'{name} (lacks seed {", ".join(map(str, entry.missing))})'
        for name, entry in lacking.items()
    )
    texts.append(
        f'Not ranked, as seeds are missing: {names}. Their means are over'
        ' the seeds that they have, so they are not comparable with the others;'
        ' changes against controls are, being of seeds that both have.'
    )
  ranked = {id(e.row) for ranking in rankings for e in ranking.entries}
  absent = [row.name for row in study.rows if id(row) not in ranked]
  if absent:
    text = f'Without any measurement of this kind: {rows_lib.listed(absent)}.'
    texts.append(text)
  seeds = max((len(one.seeds) for one in rankings), default=0)
  if seeds == 1:
    texts.append(
        'There is one seed: errors are over examples alone, and say nothing of'
        ' how another training run would have ended.'
    )
  elif study.targets[1:]:
    texts.append(
        f'Each seed has a target of its own ({len(study.targets)} targets), so'
        ' errors cover the training of the target, too.'
    )
  elif seeds:
    texts.append(
        'All seeds share one target; errors say nothing of other targets.'
    )
  return texts


def _winner(study, shown):
  """The best row for each decoding, and how sure that is."""
  header = ['decoding', 'best', study_tables.words(shown[0].measure)]
  header += ['change against its control', 'not clearly worse']
  body, winners, details = [], [], []
  for ranking in shown:
    best, *ties = ranking.ties()
    winners.append(best.row.name)
    change = best.change
    text = f'{change.text()} ({change.interval_text()})' if change else '–'
    others = ', '.join(one.row.name for one in ties) or 'none'
    where = _where(ranking, shown)
    value = ranking.value(best).text(study_tables.digits(ranking.measure))
    body.append([where, best.row.name, value, text, others])
    details.append(
        f'{where}: {best.row.name}, {value}, the best of'
        f' {len(ranking.ranked)} rows'
        + (f'; {len(ties)} more are not clearly worse' if ties else '')
    )
  is_one = len(set(winners)) == 1
  clear = all(len(ranking.ties()) == 1 for ranking in shown)
  badge = 'clearly ahead of all others' if clear else 'not clearly ahead of all'
  if not is_one:
    badge = f'another for each of {len(shown)} decodings'
    if len(set(winners)) < len(shown):
      badge = f'{len(set(winners))} winners for {len(shown)} decodings'
  return cards_lib.Card(
      'Which recipe wins?',
      winners[0] if is_one else 'It depends',
      badge,
      'good' if is_one and clear else 'even',
      f'{"; ".join(details[:2])}. The best of many is partly the luckiest.',
      tables.Table('Winners', header, body),
  )


def _where(ranking, shown):
  """The decoding, with the task where there are several."""
  title = study_tables.title(ranking, shown)
  return title.removeprefix('Ranking').removeprefix(': ') or 'all'


def _on_policy(study, shown):
  """Rows that differ in nothing but the text that they learned from."""
  pairs = list(_pairs(study))
  if not pairs:
    return None
  header = ['decoding', 'fixed data', 'on-policy', 'change', '95 % interval']
  header += ['clear']
  body, means = [], []
  for ranking in shown:
    measured = []
    for fixed, own in pairs:
      before, after = ranking.entry(fixed), ranking.entry(own)
      if before is None or after is None:
        continue
      before, after = before.measurement, after.measurement
      change = ranking_lib.compare(before, after, ranking.measure)
      if change is None:
        continue
      measured.append((before, after))
      clear = 'yes' if change.is_clear else 'no'
      body.append(
          [
              _where(ranking, shown), fixed.name, own.name, change.text(),
              change.ends or '–', clear,
          ]
      )  # fmt: skip
    mean = ranking_lib.average(measured, ranking.measure, share_examples=True)
    if mean is not None:
      means.append((_where(ranking, shown), mean, len(measured)))
  if not means:
    return None
  clear = [mean for _, mean, _ in means if mean.is_clear]
  signs = {mean.value > 0 for mean in clear}
  words = {(): 'no clear difference', (True,): 'yes', (False,): 'no'}
  word = words.get(tuple(signs), 'it depends')
  if clear and len(clear) < len(means) and len(signs) == 1:
    word += f' in {len(clear)} of {len(means)} decodings'
  detail = '; '.join(
      f'{where}: {mean.text()} on average over {count}'
      f' {"pair" if count == 1 else "pairs"} of rows that differ in this alone'
      f' ({mean.interval_text()})'
      for where, mean, count in means
  )
  return cards_lib.Card(
      'Does on-policy text beat fixed data?',
      means[0][1].text(),
      word,
      'good' if signs == {True} else 'bad' if signs == {False} else 'even',
      f'{detail}.',
      tables.Table('On-policy and fixed data', header, body),
  )


def _pairs(study) -> Iterator[tuple[rows_lib.Row, rows_lib.Row]]:
  """(fixed, on-policy) rows that share all other labels."""
  for fixed in study.rows:
    for axis, label in fixed.labels.items():
      if label not in _FIXED:
        continue
      for own in study.rows:
        if own.labels.get(axis) in _ON_POLICY and (
            {**own.labels, axis: label} == fixed.labels
        ):
          yield fixed, own


def _more_than_control(study, shown):
  """How many rows gain more than their controls."""
  body, counts = [], []
  for ranking in shown:
    changes = [one.change for one in ranking.entries if one.change]
    if not changes:
      continue
    better = sum(one.is_clear and one.value > 0 for one in changes)
    worse = sum(one.is_clear and one.value < 0 for one in changes)
    counts.append((better, worse, len(changes)))
    unclear = len(changes) - better - worse
    body.append([_where(ranking, shown), *map(str, (better, unclear, worse))])
  if not counts:
    return None
  better, worse, total = map(sum, zip(*counts))
  best = next(
      (
          (ranking, entry)
          for ranking in shown
          for entry in ranking.ranked
          if entry.change
      ),
      None,
  )
  detail = f'Of {total} comparisons, {better} are clearly better than the'
  detail += f' control and {worse} clearly worse.'
  if best is not None:
    ranking, entry = best
    control = study.control(entry.row)
    detail += (
        f' {_where(ranking, shown)[:1].upper()}{_where(ranking, shown)[1:]},'
        f' {entry.row.name} changes'
        f' {study_tables.words(ranking.measure)} by {entry.change.text()}'
        f' against {control.name} ({entry.change.interval_text()}).'
    )
  detail += (
      ' By chance, one in twenty comparisons is clear without a difference.'
  )
  words = {total: 'all clearly more', 0: 'none clearly more'}
  tone = 'good' if better == total else 'bad' if worse > better else 'even'
  return cards_lib.Card(
      'Is the gain more than the control’s?',
      f'{better} of {total}',
      words.get(better, 'clearly more than the control'),
      tone,
      detail,
      tables.Table(
          'Against controls',
          ['decoding', 'clearly better', 'not clear', 'clearly worse'],
          body,
      ),
  )


def _cost_of_lenience(study, shown):
  """The largest gain in tokens per target call without a clear loss."""
  del study
  found, best = False, None
  for ranking in shown:
    for entry in ranking.ranked:
      is_lossy = measurements.is_lossy(entry.measurement.decoding)
      if not (is_lossy and entry.change and entry.quality_changes):
        continue
      found = True
      metric, loss = next(iter(entry.quality_changes.items()))
      is_loss = ranking_lib.may_be_loss(loss, metric)
      gains = entry.change.is_clear and entry.change.value > 0
      if gains and not is_loss:
        if best is None or entry.change.value > best[1].change.value:
          best = ranking, entry, metric, loss
  if not found:
    return None
  what = 'How much quality does lenience cost?'
  caution = (
      ' No clear loss is not no loss: the interval says how much may be lost.'
  )
  beside = _truncated(shown)
  if best is None:
    return cards_lib.Card(
        what, 'It costs', 'no gain without a clear loss of quality', 'bad',
        'No lenient row has clearly more tokens per target call without'
        f' clearly worse text.{beside}',
    )  # fmt: skip
  ranking, entry, metric, loss = best
  detail = (
      f'{_where(ranking, shown)}: {entry.row.name} changes tokens per target'
      f' call by {entry.change.text()} and {study_tables.words(metric)} by'
      f' {loss.text()} ({loss.interval_text()}).{caution}{beside}'
  )
  badge = 'the most without a clear loss of quality'
  number = entry.change.text()
  return cards_lib.Card(what, number, badge, 'even', detail)


def _truncated(shown):
  """The same of truncated sampling, against the lossless row of its draft."""
  best = None
  for ranking in shown:
    lossless = {
        one.row.labels.get('draft'): one
        for one in ranking.ranked
        if one.row.labels.get('function') == 'lossless' and one.quality
    }
    for entry in ranking.ranked:
      start = lossless.get(entry.row.labels.get('draft'))
      is_lossy = measurements.is_lossy(entry.measurement.decoding)
      if start in (None, entry) or is_lossy or not entry.quality:
        continue
      metric = ranking.qualities[0]
      change = ranking_lib.compare(
          start.measurement, entry.measurement, ranking.measure
      )
      loss = ranking_lib.compare(start.quality, entry.quality, metric)
      if change is None or loss is None:
        continue
      if ranking_lib.may_be_loss(loss, metric):
        continue
      if best is None or change.value > best[0].value:
        best = change, entry, metric, loss
  if best is None:
    return ''
  change, entry, metric, loss = best
  return (
      ' Truncated sampling, which speculation emits exactly, reaches'
      f' {change.text()} with {study_tables.words(metric)} {loss.text()}'
      f' ({entry.row.name}).'
  )


def _fastest(study, shown):
  """How much faster than the slowest, best model without a loss of quality."""
  ranking = shown[0]
  metric = next(iter(ranking.qualities), None)
  entries = [
      one
      for one in ranking.ranked
      if metric and one.quality and one.quality.value(metric)
  ]
  if not entries:
    return None
  # The largest target, token by token: the slowest of what is neither distilled
  # nor speculative.
  plain = [one for one in entries if one.row.labels.get('curve') == 'standard']
  plain = plain or [one for one in entries if study.control(one.row) is None]
  slowest = min(plain or entries, key=lambda one: ranking.value(one).value)
  as_good = [
      (entry, loss)
      for entry in entries
      if entry is not slowest
      and (loss := ranking_lib.compare(slowest.quality, entry.quality, metric))
      and not ranking_lib.may_be_loss(loss, metric)
  ]
  words = study_tables.words(metric)
  what = 'How much faster without a loss of quality?'
  if not as_good:
    return cards_lib.Card(
        what, '1 ×', f'nothing else reaches its {words}', 'even',
        f'All rows have clearly worse text than {slowest.row.name}, or no'
        ' interval.',
    )  # fmt: skip
  entry, loss = as_good[0]  # entries are ordered by speed
  ratio = ranking.value(entry).value / ranking.value(slowest).value
  return cards_lib.Card(
      what,
      f'{ratio:.2f} ×',
      f'{entry.row.name}',
      'good' if ratio > 1 else 'even',
      f'{_where(ranking, shown)}: {entry.row.name} emits'
      f' {ranking.value(entry).text(0)} tokens/s, {slowest.row.name}'
      f' {ranking.value(slowest).text(0)}; {words}'
      f' {entry.quality.metrics[metric].text()} and'
      f' {slowest.quality.metrics[metric].text()}, a change of {loss.text()}'
      f' ({loss.interval_text()}): no clear loss.',
  )


def _transfer(study, shown):
  """Gains on tasks that a draft was not distilled on."""
  groups: dict[str, list] = {}
  home = study.rows[0].labels.get(_PLACE)  # where the drafts were made
  for ranking in shown:
    for entry in ranking.entries:
      control = ranking.entry(study.control(entry.row))
      is_home = entry.row.labels.get(_PLACE) == home
      if entry.change and control and not is_home:
        sampling = measurements.sampling_name(
            ranking.decoding.get('temperature') or 0
        )
        pair = control.measurement, entry.measurement
        groups.setdefault(sampling, []).append((ranking, entry, pair))
  if not groups:
    return None
  body, details, means = [], [], []
  for sampling, found in groups.items():
    for ranking, entry, _ in found:
      body.append(
          [
              entry.row.labels.get(_PLACE, ranking.task), sampling,
              entry.row.name,
              ranking.value(entry).text(2), entry.change.text(),
              entry.change.ends or '–',
              'yes' if entry.change.is_clear else 'no',
          ]
      )  # fmt: skip
    measure = found[0][0].measure
    tasks = {ranking.task for ranking, *_ in found}
    mean = ranking_lib.average(
        [pair for *_, pair in found], measure,
        share_examples=len(tasks) < len(found),
    )  # fmt: skip
    if mean is not None:
      means.append(mean)
      details.append(
          f'{sampling}: {mean.text()} on average ({mean.interval_text()})'
      )
  if not means:
    return None
  clear = [mean for mean in means if mean.is_clear]
  up = [mean for mean in clear if mean.value > 0]
  word, tone = 'no clear change', 'even'
  if up and len(up) == len(means):
    word, tone = 'clearly better than the control', 'good'
  elif clear:
    word = f'clear in {len(clear)} of {len(means)}'
  header = [
      'measured on',
      'sampling',
      'row',
      'tokens per target call',
      'change',
  ]
  header += ['95 % interval', 'clear']
  return cards_lib.Card(
      'Does it transfer?',
      means[0].text(),
      word,
      tone,
      f'{"; ".join(details)}. The average is the geometric mean of the ratio to'
      f' the control, over the places where the drafts were not made (all but'
      f' {home}); each place has the same weight, whatever its number'
      ' of examples.',
      tables.Table('Transfer', header, body),
  )
