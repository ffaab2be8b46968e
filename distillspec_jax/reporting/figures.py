"""What the figures of a study show; `drawing` decides how they look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from distillspec_jax.reporting import curves
from distillspec_jax.reporting import drawing
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import runs

_TOKENS = 'tokens per target call'
_NATS = 'nats per token'
_MAX_LINES = 5  # of a panel: as many as there are distinct looks


class Section(NamedTuple):
  """Figures that answer one question; `caption` says how to read them."""

  title: str
  caption: str
  panels: list[drawing.Panel]


def sections(study: measurements.Study) -> list[Section]:
  """All sections that the study has data for."""
  drawn = (
      Section(title, caption, [one for one in panels(study) if one.series])
      for title, caption, panels in _SECTIONS
  )
  return [section for section in drawn if section.panels]


def _acceptance(study):
  measured = headlines.acceptance(study)
  length = headlines.block_length(measured)
  here = measurements.select(measured, block_length=length)
  series = _by_draft(here, 'expected_acceptance', _sampling, 'bars')
  yield drawing.Panel(
      'acceptance',
      'Expected acceptance',
      series,
      'expected acceptance',
      limits=(0, 1),
  )
  series = _by_draft(here, 'block_efficiency', _sampling, 'bars')
  title = f'Block efficiency, block length {length}'
  yield drawing.Panel('block_efficiency', title, series, _TOKENS)


def _by_position(study):
  measured = headlines.acceptance(study)
  length = max(measurements.values_of(measured, 'block_length'), default=0)
  for sampling, slug, here in _by_temperature(measured, block_length=length):
    series = []
    names = measurements.draft_names(here)
    for one in sorted(here, key=lambda one: names.index(one.draft)):
      values = [
          (i, one.value(f'acceptance_at_{i}')) for i in range(1, length + 1)
      ]
      points = [drawing.Point(i, value) for i, value in values if value]
      if points:
        series.append(drawing.Series(one.draft, points, 'line'))
    yield drawing.Panel(
        f'acceptance_by_position_{slug}', sampling.capitalize(), series,
        'acceptance rate', 'position in the block', limits=(0, 1), shift=True,
    )  # fmt: skip


def _by_block_length(study):
  measured = headlines.acceptance(study)
  for sampling, slug, here in _by_temperature(measured):
    here.sort(key=_length)
    series = _by_draft(here, 'block_efficiency', _length, 'points')
    for one in _by_draft(here, 'predicted_block_efficiency', _length, 'dashed'):
      points = [_exact(point.at, point.value.value) for point in one.points]
      series.append(drawing.Series('predicted', points, 'dashed', one.label))
    yield drawing.Panel(
        f'block_efficiency_by_block_length_{slug}', sampling.capitalize(),
        series, _TOKENS, 'block length', limits=(1, None), shift=True,
    )  # fmt: skip


def _trade_off(study):
  """Quality against block efficiency, a panel per metric."""
  measured = measurements.trade_off(study)
  alone = [
      one
      for one in study.measurements('task_quality')
      if one.decoding.get('model') != 'pair'
  ]
  for sampling, slug, here in _by_temperature(measured):
    here.sort(key=lambda one: one.metrics['block_efficiency'].value)
    models = measurements.select(
        alone, temperature=here[0].decoding['temperature']
    )
    for metric in measurements.qualities(here):
      groups = {}
      for one in here:
        if value := one.value(metric):
          name, parameters = _verifier(one, measured)
          x, error, *_ = one.metrics['block_efficiency']
          point = drawing.Point(x, value, parameters, error)
          groups.setdefault(name, []).append(point)
      series = [drawing.Series(x, y, 'line') for x, y in groups.items()]
      for one in models:
        if value := one.value(metric):
          label = f'{one.decoding["model"]} alone'
          series.append(
              drawing.Series(label, [drawing.Point(1.0, value)], 'level')
          )
      quality = metric.replace('_', ' ')
      title = f'{quality[0].upper()}{quality[1:]}, {sampling}'
      name = f'trade_off_{metric}_{slug}'
      yield drawing.Panel(name, title, series, quality, _TOKENS)


def _verifier(one, measured):
  """(label of the series, parameters of the verifier)."""
  family, _, parameters = one.decoding['verifier'].partition('(')
  parts = [one.draft] if len(measurements.draft_names(measured)) > 1 else []
  parts.append(family)
  for name in ('block_length', 'paths', 'adaptive', 'parallel'):
    if len({repr(other.decoding.get(name)) for other in measured}) > 1:
      parts.append(f'{name.replace("_", " ")} {one.decoding.get(name)}')
  return ', '.join(parts), parameters.removesuffix(')')


def _wall_clock(study):
  measured = headlines.latency(study)
  for sampling, slug, here in _by_temperature(measured):
    temperature = here[0].decoding['temperature']
    plain = measurements.select(
        study.measurements('latency'), draft=None, temperature=temperature
    )
    bars = len(plain + here) + len({_group(one) for one in plain + here})
    series = _by_draft(here, 'measured_speedup', _group, 'bars')
    for metric, label, style in (
        ('predicted_speedup', 'predicted', 'diamond'),
        ('predicted_speedup_with_verify', 'with verification', 'triangle'),
    ):
      series += [
          drawing.Series(label, one.points, style, one.label)
          for one in _by_draft(here, metric, _group, style)
      ]
    yield drawing.Panel(
        f'speedup_{slug}', f'Speed-up, {sampling}', series,
        'speed relative to autoregressive decoding', horizontal=bars,
        reference=1.0,
    )  # fmt: skip
    series = _by_draft(plain + here, 'tokens_per_second', _group, 'bars')
    yield drawing.Panel(
        f'tokens_per_second_{slug}', f'Throughput, {sampling}', series,
        'tokens per second', horizontal=bars, digits=0,
    )  # fmt: skip


def _training(study):
  return training(study.training)


def training(
    lines: Sequence[measurements.Line],
) -> Iterator[drawing.Panel]:
  """Curves of all runs, a few to a panel; panels of a metric share axes."""
  made = {run.name: run for run in runs.runs(lines)}

  def select(metric, split, is_distillation):
    for name, values in curves.curves(lines, metric, split):
      if made[name].is_distillation == is_distillation:
        how = made[name].divergence if is_distillation else ''
        label = f'{name} ({how})' if how and how not in name else name
        yield label, [drawing.Point(*point) for point in values.items()]

  for name, title, label, is_distillation, train, validation in (
      ('training_loss', 'Fine-tuning: cross-entropy', _NATS,
       False, 'loss', 'cross_entropy'),
      ('distillation_loss', 'Distillation: divergence from the target', _NATS,
       True, 'loss', None),
      ('training_acceptance', 'Distillation: expected acceptance',
       'expected acceptance', True, 'expected_acceptance', None),
      ('validation_block_efficiency', 'Distillation: block efficiency',
       _TOKENS, True, None, 'block_efficiency'),
  ):  # fmt: skip
    shown = {
        run: [drawing.Series(run, points, 'band')]
        for run, points in select(train, 'train', is_distillation)
    }
    for run, points in select(validation, 'validation', is_distillation):
      if run in shown:
        shown[run].append(drawing.Series('validation', points, 'open', run))
      else:
        shown[run] = [drawing.Series(run, points, 'line')]
    names = list(shown)
    parts = [
        [series for run in names[i : i + _MAX_LINES] for series in shown[run]]
        for i in range(0, len(names), _MAX_LINES)
    ]
    limits = _limits(shown.values()) if parts[1:] else (None, None)
    for number, series in enumerate(parts, start=1):
      several = f' ({number} of {len(parts)})' if parts[1:] else ''
      suffix = f'_{number}' if parts[1:] else ''
      yield drawing.Panel(
          name + suffix, title + several, series, label, 'step', limits
      )


def _limits(shown):
  """An axis that shows all points."""
  values = [
      point.value.value
      for series in shown
      for one in series
      for point in one.points
  ]
  margin = 0.05 * (max(values) - min(values))
  return min(values) - margin, max(values) + margin


def _plans(study):
  measured = [one for one in study.measurements('plan') if one.value('step_s')]
  if not measured:
    return
  names = [(i, _slice(one, measured)) for i, one in enumerate(measured)]
  for name, title, label, parts in (
      ('plan_step', 'Predicted training step', 'seconds',
       (('learning', 'learning_s', 1), ('rollouts', 'rollout_s', 1))),
      ('plan_memory', 'Memory of a chip', '% of capacity',
       (('peak of training step and samplers', 'memory_share', 100),)),
  ):  # fmt: skip
    series = []
    for part, metric, factor in parts:
      values = [factor * one.metrics[metric].value for one in measured]
      points = [_exact(*pair) for pair in zip(names, values)]
      series.append(drawing.Series(part, points, 'bars'))
    yield drawing.Panel(name, title, series, label)


def _slice(one, measured):
  """The slice, and what distinguishes the plan from others for it."""
  topology = one.decoding.get('topology')
  same = measurements.select(measured, topology=topology)
  if len(same) == 1:
    return str(topology)
  differing = [
      str(one.decoding[key])
      for key in ('mesh', 'batch_size', 'micro_batches', 'remat')
      if len({str(other.decoding.get(key)) for other in same}) > 1
  ]
  return '\n'.join([str(topology), one.draft or '', *differing])


def _by_draft(measured, metric, position, style):
  """One series per draft, and one without a draft: autoregressive decoding."""
  groups = {}
  for one in measured:
    if value := one.value(metric):
      point = drawing.Point(position(one), value)
      groups.setdefault(one.draft, []).append(point)
  return [
      drawing.Series(draft or 'autoregressive', groups[draft], style)
      for draft in (*measurements.draft_names(measured), None)
      if draft in groups
  ]


def _by_temperature(measured, **wanted):
  """(name of the sampling, the same for a file, measurements)."""
  for temperature in measurements.values_of(measured, 'temperature'):
    name = measurements.sampling_name(temperature)
    slug = name.replace('T = ', 'temperature_')
    yield name, slug, measurements.select(
        measured, temperature=temperature, **wanted
    )


def _exact(at, value):
  return drawing.Point(at, measurements.Value(value, None, 1, 1))


# Positions of bars are (order, name).
def _sampling(one):
  temperature = one.decoding['temperature']
  return temperature, measurements.sampling_name(temperature)


def _group(one):
  batch = one.decoding.get('batch_size') or 0
  length = one.decoding.get('block_length') or 0
  what = f'length {length}' if length else 'no draft'
  return (batch, length), f'batch {batch}\n{what}'


def _length(one):
  return one.decoding['block_length']


_SECTIONS = (
    (
        'Acceptance and block efficiency',
        'How often the target accepts a drafted token, and how many tokens one'
        ' target call yields. Error bars: one standard error.',
        _acceptance,
    ),
    (
        'Acceptance by position',
        'How often the token at each position of a block is accepted, given'
        ' that all before it were. Late positions are rarely reached, hence'
        ' their larger errors.',
        _by_position,
    ),
    (
        'Block efficiency by block length',
        'Points: measured, with one standard error. Dashed: predicted from'
        ' the expected acceptance, as if tokens were accepted independently,'
        ' for texts of the measured lengths (their last block is cut).',
        _by_block_length,
    ),
    (
        'Lossy verification',
        'Lossy verifiers accept more drafted tokens than the target’s'
        ' distribution allows: more tokens per target call, at the price of'
        ' task quality. One point per decoding, labelled with the parameters of'
        ' its verifier. Dotted: each model alone.',
        _trade_off,
    ),
    (
        'Wall clock',
        'Left of the dotted line, speculative decoding is slower than'
        ' autoregressive decoding. The prediction assumes that verifying a'
        ' block takes as long as one target step; “with verification” uses the'
        ' measured time instead.',
        _wall_clock,
    ),
    (
        'Training',
        'Lines: means over the steps since the previous record; shaded: one'
        ' standard error over seeds, if there are several. Points: on'
        ' validation data. The expected acceptance is computed from the'
        ' distributions; block efficiency is measured by decoding.',
        _training,
    ),
    (
        'Plans for TPU slices',
        'Estimates of the TPU compiler; nothing was run. Learning is the'
        ' target’s forward pass, the draft’s forward and backward passes and'
        ' the update.',
        _plans,
    ),
)
