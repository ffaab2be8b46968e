"""What the figures of a study show; `drawing` decides how they look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import itertools

import numpy as np

from distillspec_jax.reporting import drawing
from distillspec_jax.reporting import figures
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import ranking as ranking_lib
from distillspec_jax.reporting import rows as rows_lib
from distillspec_jax.reporting import study_tables

_MAX_POINTS = 400  # of single examples in a figure
_LOSSLESS = 'lossless'  # among the functions of a study of lossy decoding
_MAX_LINES = 5  # as many as there are distinct looks


def sections(
    study: rows_lib.Comparison, rankings: Sequence[ranking_lib.Ranking]
) -> list[figures.Section]:
  """All sections that the study has data for."""
  shown = ranking_lib.headline(rankings)
  drawn = [
      figures.Section(title, caption, list(panels(study, shown)))
      for title, caption, panels in _SECTIONS
  ]
  return [section for section in drawn if section.panels]


def _name(ranking, shown):
  """Title of a panel."""
  text = study_tables.title(ranking, shown).removeprefix('Ranking: ')
  return text[0].upper() + text[1:]


def _ranked(study, shown):
  """Values of all rows, and their changes against their controls."""
  if study.kind in ranking_lib.FRONTIERS:
    return
  for number, ranking in enumerate(shown):
    measure, name = ranking.measure, _name(ranking, shown)
    values, changes = [], []
    for i, entry in enumerate(ranking.entries):
      label = entry.row.name
      if entry.missing:
        label += f' ({len(entry.measurement.by_seed)} of {len(ranking.seeds)})'
      at = i, label
      values.append(drawing.Point(at, ranking.value(entry)))
      if entry.change is not None and entry.change.interval:
        low, high = entry.change.interval
        value = measurements.Value(entry.change.value, (high - low) / 2, 1, 1)
        changes.append((entry.change.unit, drawing.Point(at, value)))
    words = study_tables.words(measure)
    series = [drawing.Series('mean and standard error', values, 'forest')]
    yield drawing.Panel(
        f'ranking_{number}', name, series, words, horizontal=len(values),
        digits=study_tables.digits(measure),
    )  # fmt: skip
    if changes:
      unit = {unit for unit, _ in changes}
      points = [point for _, point in changes]
      label = 'change and 95 % interval'
      yield drawing.Panel(
          f'change_{number}', f'{name}: change against the control',
          [drawing.Series(label, points, 'forest')],
          f'change in {words}, %' if unit == {'%'} else f'change in {words}',
          horizontal=len(points), reference=0.0, digits=1,
      )  # fmt: skip


def _heat_maps(study, shown):
  """Two axes of a grid, a map for each setting of the others and decoding."""
  labelled = [
      row for row in study.rows if sum(a in row.labels for a in study.axes) > 1
  ]
  values = {
      axis: list(
          dict.fromkeys(
              row.labels[axis] for row in labelled if axis in row.labels
          )
      )
      for axis in study.axes
  }
  axes = [axis for axis, names in values.items() if len(names) > 1]
  if study.kind != 'grid' or len(axes) < 2:
    return
  # Columns are narrower than rows are low, so the longer axis goes down.
  down, across = sorted(axes[:2], key=lambda axis: -len(values[axis]))
  rest = axes[2:]
  for number, ranking in enumerate(shown):
    best = ranking.ties()
    for place, others in enumerate(
        itertools.product(*(values[axis] for axis in rest))
    ):
      here = [
          row
          for row in labelled
          if down in row.labels
          and across in row.labels
          and all(row.labels.get(a) == v for a, v in zip(rest, others))
      ]
      cells = {}
      for row in here:
        at = values[down].index(row.labels[down])
        at = at, values[across].index(row.labels[across])
        cells[at] = _cell(ranking, row, best)
      if not any(cell.value for cell in cells.values()):
        continue
      name = _name(ranking, shown)
      if rest:
        name += ', ' + ', '.join(f'{a} {v}' for a, v in zip(rest, others))
      yield drawing.HeatMap(
          f'map_{number}_{place}', name, study_tables.words(ranking.measure),
          values[down], values[across], cells, (down, across),
          min(2, study_tables.digits(ranking.measure)),
      )  # fmt: skip


def _cell(ranking, row, best):
  entry = ranking.entry(row)
  if entry is None:
    return drawing.Cell(None, 'failed' if row.failed else 'not measured')
  note = ''
  if entry.missing:
    note = f'{len(entry.measurement.by_seed)} of {len(ranking.seeds)} seeds'
  elif entry in best[1:]:
    note = '≈ best'
  is_best = bool(best) and entry is best[0]
  return drawing.Cell(ranking.value(entry), note, is_best)


def _along_axes(study, shown):
  """The measure along an axis of numbers, such as the training length."""
  if study.kind != 'grid':
    return
  for axis in study.axes:
    names = {row.labels[axis] for row in study.rows if axis in row.labels}
    if len(names) < 2 or rows_lib.numbers(sorted(names)) is None:
      continue
    for number, ranking in enumerate(shown):
      curves: dict[str, list[drawing.Point]] = {}
      for entry in ranking.ranked:
        labels = dict(entry.row.labels)
        if axis in labels:
          at = float(labels.pop(axis))
          # A row without a label of a method is told by its name.
          own = ', '.join(labels.values()) or entry.row.title.split(',')[0]
          point = drawing.Point(at, ranking.value(entry))
          curves.setdefault(own, []).append(point)
      curves = {
          name: sorted(points, key=lambda point: point.at)
          for name, points in curves.items()
          if len(points) > 1
      }
      title = _name(ranking, shown)
      for part, series in _portions(
          [drawing.Series(*one, 'line') for one in curves.items()]
      ):
        yield drawing.Panel(
            f'along_{axis}_{number}{part}'.replace(' ', '_'), title, series,
            study_tables.words(ranking.measure), axis, shift=True,
        )  # fmt: skip


def _portions(
    series: Sequence[drawing.Series],
) -> Iterator[tuple[str, list[drawing.Series]]]:
  """(suffix of a name, series) with no more lines than can be told apart."""
  for start in range(0, len(series), _MAX_LINES):
    suffix = f'_{start // _MAX_LINES}' if len(series) > _MAX_LINES else ''
    yield suffix, list(series[start : start + _MAX_LINES])


def _frontiers(study, shown):
  """Quality against latency (garden) or block efficiency (lossy)."""
  if study.kind not in ranking_lib.FRONTIERS:
    return
  is_garden = study.kind == 'garden'
  for number, ranking in enumerate(shown):
    for metric in ranking.qualities:
      words = study_tables.words(metric)
      found = _curves(study, ranking, metric)
      for part, ((draft, residual), series) in enumerate(found.items()):
        title = _name(ranking, shown)
        if residual:
          title = f'{residual} residual, {title}'
        if draft:
          title = f'{draft[:1].upper()}{draft[1:]}: {title}'
        yield drawing.Panel(
            f'frontier_{metric}_{number}_{part}', title, series,
            f'{words} of greedy text' if is_garden else words,
            'ms per token' if is_garden
            else study_tables.words(ranking.measure),
            digits=3,
        )  # fmt: skip


def _curves(study, ranking, metric):
  """(draft, residual) -> curves; what has no residual is in each panel."""
  panels: dict[tuple[str, str], dict[str, list[drawing.Point]]] = {}
  for row in study.rows:
    entry = ranking.entry(row)
    if entry is None or entry.rank is None or entry.quality is None:
      continue
    quality = entry.quality.value(metric)
    if quality is not None:
      at, error = _position(ranking.value(entry), study.kind == 'garden')
      panel, curve, note = _place(study, row)
      point = drawing.Point(at, quality, note, error)
      panels.setdefault(panel, {}).setdefault(curve, []).append(point)
  shown = {}
  for (draft, residual), curves in panels.items():
    if residual:
      curves = {**curves, **panels.get((draft, ''), {})}
    elif any(other[0] == draft and other[1] for other in panels):
      continue
    shown[draft, residual] = [
        drawing.Series(
            name,
            sorted(points, key=lambda point: point.at),
            'line' if points[1:] else 'points',
        )
        for name, points in curves.items()
    ] + [
        drawing.Series('the target’s text', points, 'level')
        for name, points in curves.items()
        if name == _LOSSLESS
    ]
  return shown


def _position(value, is_garden):
  """(latency in ms per token, or the value; its error)."""
  if not is_garden:
    return value.value, value.error
  latency = 1e3 / value.value
  error = None if value.error is None else latency * value.error / value.value
  return latency, error


def _place(study, row):
  """(panel, curve, place on the curve) of a row of a frontier."""
  labels = dict(row.labels)
  if study.kind == 'garden':
    curve = labels.pop('curve', row.title)
    return ('', ''), curve, ', '.join(labels.values())
  panel = labels.get('draft', ''), labels.get('residual', '')
  function = labels.get('function', row.title)
  if 'epsilon' in labels or function == _LOSSLESS:
    return panel, function, labels.get('epsilon', '')
  # Truncated: by what differs from the target's own distribution.
  whole = {'temperature': '1', 'top k': '0', 'top p': '1'}
  by = {
      axis: labels[axis]
      for axis, value in whole.items()
      if labels.get(axis, value) != value
  }
  return panel, ', '.join((function, *by)), ', '.join(by.values())


def _examples(study, shown):
  """Block efficiency of single examples: the best row and its control."""
  for number, ranking in enumerate(shown):
    if ranking.measure != ranking_lib.MEASURE or not ranking.ranked:
      continue
    best = ranking.ranked[0]
    control = study.control(best.row)
    if control is None:
      continue
    before, after = (_by_example(row, ranking) for row in (control, best.row))
    pairs = [
        pair
        for key in before.keys() & after.keys()
        if len(before[key]) == len(after[key])
        for pair in zip(before[key], after[key])
    ]
    if not pairs:
      continue
    pairs = pairs[:: -(-len(pairs) // _MAX_POINTS)]
    points = [
        drawing.Point(x, measurements.Value(y, None, 1, 1)) for x, y in pairs
    ]
    above = np.mean([y > x for x, y in pairs])
    below = np.mean([y < x for x, y in pairs])
    label = f'{above:.0%} above, {below:.0%} below the diagonal'
    yield drawing.Panel(
        f'examples_{number}', _name(ranking, shown),
        [drawing.Series(label, points, 'cloud')], best.row.name,
        control.name, diagonal=True,
    )  # fmt: skip


def _by_example(row, ranking):
  """(seed, inputs) -> tokens per target call of each example."""
  found = {}
  for line in row.lines:
    columns = line.get('examples', {}).get('metrics', {}).get(ranking.measure)
    decoding = line['decoding'] or {}
    if columns is None or (line['task'], line['split']) != (
        ranking.task, ranking.split,
    ):  # fmt: skip
      continue
    if all(
        decoding.get(name) == value
        for name, value in ranking.decoding.items()
        if name != 'batch_size'
    ):
      totals, counts = map(np.asarray, columns)
      key = line['provenance']['seed'], line['examples']['inputs']
      found[key] = totals / np.maximum(counts, 1)
  return found


def _bound(study, shown):
  """Rejection on the target's text beside the draft's own, and the bound."""
  for number, ranking in enumerate(shown):
    ours = [entry for entry in ranking.ranked[:1] if entry.row.records]
    control = ranking.entry(study.control(ours[0].row)) if ours else None
    if control is not None and control.row.records:
      ours.insert(0, control)
    series = []
    for entry in ours:
      points, ratios = [], []
      for record in entry.row.records:
        decoding = record['decoding']
        if decoding.get('temperature') != ranking.decoding.get(
            'temperature'
        ) or (record['task'], record['split']) != (ranking.task, ranking.split):
          continue
        apart = record['draft_variation'] / record['draft_emitted']
        rejected = 1 - record['expected'] / record['emitted']
        # Theorem 4.1 for one input: rejection <= T^2 / L times the variation.
        bound = decoding['max_new_tokens'] ** 2 / record['emitted'] * apart
        value = measurements.Value(rejected, None, 1, 1)
        points.append(drawing.Point(apart, value))
        ratios.append((bound, rejected))
      if points:
        bounds, rejected = np.array(ratios).T
        factor = np.median(bounds / np.maximum(rejected, 1e-3))
        label = (
            f'{entry.row.name}: bound {factor:.0f} × larger (median), below 1'
            f' for {np.mean(bounds < 1):.0%}'
        )
        points = points[:: -(-len(points) // _MAX_POINTS)]
        series.append(drawing.Series(label, points, 'cloud'))
    if series:
      yield drawing.Panel(
          f'bound_{number}', _name(ranking, shown), series,
          'rejection on the target’s text',
          'total variation on the draft’s text', diagonal=True,
      )  # fmt: skip


def _theory(study, shown):
  """Block efficiency from expected acceptance, and as measured."""
  del shown
  series: dict[str, list[drawing.Point]] = {}
  for row in study.rows:
    for place in row.places:
      for one in row.measurements('acceptance', place):
        predicted = one.value('predicted_block_efficiency')
        measured = one.value('block_efficiency')
        if predicted and measured:
          name = measurements.sampling_name(one.decoding['temperature'])
          at, error, *_ = predicted
          point = drawing.Point(at, measured, '', error)
          series.setdefault(name, []).append(point)
  if series:
    yield drawing.Panel(
        'theory', 'Measured against predicted',
        [drawing.Series(*one, 'points') for one in series.items()],
        study_tables.words(ranking_lib.MEASURE),
        'predicted from the expected acceptance', diagonal=True,
    )  # fmt: skip


def _training(study, shown):
  del shown
  lines = [line for row in study.rows for line in row.training]
  yield from figures.training(lines)


_SECTIONS = (
    (
        'Rows',
        'All rows, the best first. Left: means and one standard error, over'
        ' seeds and examples. Right: the change against the row’s control,'
        ' paired by seed and example, with its 95 % interval; one that does not'
        ' cross the dotted line is clear.',
        _ranked,
    ),
    (
        'Heat maps',
        'Means, and one standard error over seeds and examples; the darker, the'
        ' larger. Framed: the largest. “≈ best”: the 95 % interval of the'
        ' paired difference with the largest contains 0. The largest of many'
        ' is partly the luckiest: where cells differ little, another study may'
        ' frame another.',
        _heat_maps,
    ),
    ('Along an axis', 'Means and one standard error.', _along_axes),
    (
        'Quality against speed',
        'One point for each row, with one standard error in both directions.'
        ' Up is better text; left is faster where the axis is time, right where'
        ' it is tokens per target call. Dotted: what the lossless verifier'
        ' emits, which is the target’s own text.',
        _frontiers,
    ),
    (
        'Single examples',
        'Each point is an example and a seed: tokens per target call with the'
        ' control and with the best row. Points above the dotted line gain.'
        f' At most about {_MAX_POINTS} points are drawn.',
        _examples,
    ),
    (
        'How tight is the bound?',
        'Each point is an example and a seed. DistillSpec’s theorem 4.1, for a'
        ' single input: the chance that the target rejects a token of the draft'
        ' (1 − acceptance, on the target’s text) is at most T² / L times the'
        ' total variation on a text that the draft writes, where T is the'
        ' longest length and L that of the target’s text. A bound above 1 says'
        ' nothing. On the dotted line both are equal.',
        _bound,
    ),
    (
        'Theory and measurement',
        'Each point is a row and a decoding. The prediction takes every drafted'
        ' token to be accepted independently with the expected acceptance; on'
        ' the dotted line it is right.',
        _theory,
    ),
    (
        'Training',
        'Lines: means over the steps since the previous record; shaded: one'
        ' standard error over seeds, if there are several. Points: on'
        ' validation data. At most five runs share a panel; panels of one'
        ' measure have the same axes.',
        _training,
    ),
)
