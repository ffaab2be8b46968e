"""The figures of a study, drawn by matplotlib, for light and dark pages.

A figure is one panel of a size that stays readable on a telephone; the page
sets panels of a section beside or below each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib import figure as figure_lib
from matplotlib import ticker
from matplotlib.backends import backend_agg

from distillspec_jax.reporting import curves as curves_lib
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import rows as rows_lib


class Theme(NamedTuple):
  """Colours of a page.

  Attributes:
    name: 'light' or 'dark'.
    ink: of text.
    soft: of axes and grid.
    paper: behind the figure.
  """

  name: str
  ink: str
  soft: str
  paper: str


LIGHT = Theme('light', '#1c2128', '#d5dae0', '#ffffff')
DARK = Theme('dark', '#e6edf3', '#3a424c', '#161b22')

# Okabe and Ito's colours, which colour-blind readers tell apart; every draft
# also has a marker or a hatch of its own. (light, dark)
_COLOURS = {
    'fine-tuned': ('#E69F00', '#F0B030'),
    'fine-tuned longer': ('#CC79A7', '#D98CB8'),
    'distilled': ('#0072B2', '#56B4E9'),
    'target': ('#009E73', '#2FC79A'),
}
_OTHERS = (
    ('#D55E00', '#E8813A'),
    ('#6A51A3', '#A48DDB'),
    ('#777777', '#999999'),
)
_MARKERS = {'fine-tuned': 'o', 'fine-tuned longer': 's', 'distilled': 'D'}
_HATCHES = {'fine-tuned': '', 'fine-tuned longer': 'xx', 'distilled': '//'}
_SIZE = (5.0, 3.3)  # inches
_FONT = 10.5  # points


class Panel(NamedTuple):
  """A drawn figure.

  Attributes:
    name: of its file.
    title: above it.
    alt: what it shows, in words and numbers.
    figure: matplotlib's.
  """

  name: str
  title: str
  alt: str
  figure: figure_lib.Figure


class Section(NamedTuple):
  """Figures that answer one question; `caption` says how to read them."""

  title: str
  caption: str
  panels: list[Panel]


def draw(study: rows_lib.Study, theme: Theme) -> list[Section]:
  """All sections that the study has data for."""
  makers = (
      _before_and_after,
      _by_position,
      _by_block_length,
      _wall_clock,
      _training,
      _plans,
  )
  made = (maker(study, theme) for maker in makers)
  return [section for section in made if section.panels]


def _before_and_after(study: rows_lib.Study, theme: Theme) -> Section:
  found = headlines.acceptance_rows(study)
  length = headlines.block_length(found)
  here = rows_lib.select(found, block_length=length)
  panels = [
      _bars(here, theme, metric, name, title, label, top)
      for metric, name, title, label, top in (
          (
              'acceptance_rate',
              'acceptance',
              'Acceptance rate',
              'acceptance rate',
              1.0,
          ),
          (
              'block_efficiency',
              'block_efficiency',
              f'Block efficiency, block length {length}',
              'tokens per target call',
              None,
          ),
      )
  ]
  return Section(
      'Before and after distillation',
      'How much of what the draft proposes the target accepts, and how many'
      ' tokens one call of the target yields. Bars: one standard error.',
      [panel for panel in panels if panel is not None],
  )


def _bars(found, theme, metric, name, title, label, top) -> Panel | None:
  """Bars of a metric: groups of temperatures, in each one bar a draft."""
  found = [row for row in found if row.value(metric)]
  if not found:
    return None
  temperatures = rows_lib.values_of(found, 'temperature')
  names = rows_lib.drafts(found)
  figure, ax = _new(theme)
  width = 0.76 / len(names)
  highest, said = 0.0, []
  for i, draft in enumerate(names):
    for j, temperature in enumerate(temperatures):
      row = rows_lib.select(found, draft=draft, temperature=temperature)
      if not row:
        continue
      value = row[0].metrics[metric]
      at = j + (i - (len(names) - 1) / 2) * width
      ax.bar(
          at,
          value.value,
          width * 0.9,
          yerr=value.error,
          capsize=3,
          color=_colour(draft, names, theme),
          hatch=_HATCHES.get(draft, ''),
          edgecolor=(theme.paper, 0.4),  # which is the hatch's
          linewidth=0,
          error_kw={'ecolor': theme.ink, 'elinewidth': 1.2},
          label=draft if j == 0 else None,
      )
      ax.annotate(
          f'{value.value:.2f}',
          (at, value.value + (value.error or 0.0)),
          (0, 3),
          textcoords='offset points',
          ha='center',
          fontsize=_FONT,
          color=theme.ink,
      )
      highest = max(highest, value.value + (value.error or 0.0))
      said.append(
          f'{draft} {rows_lib.temperature_name(temperature)}'
          f' {value.text(2)}'
      )
  ax.set_xticks(
      range(len(temperatures)), map(rows_lib.temperature_name, temperatures)
  )
  ax.set_xlim(-0.6, len(temperatures) - 0.4)
  ax.set_ylim(0, top or 1.14 * highest)
  ax.set_ylabel(label)
  _legend(figure, ax, theme)
  return Panel(name, title, f'{title}, bars: {"; ".join(said)}.', figure)


def _by_position(study: rows_lib.Study, theme: Theme) -> Section:
  found = headlines.acceptance_rows(study)
  length = max(rows_lib.values_of(found, 'block_length'), default=0)
  here = rows_lib.select(found, block_length=length)
  names = rows_lib.drafts(here)
  panels = []
  for temperature in rows_lib.values_of(here, 'temperature'):
    figure, ax = _new(theme)
    said = []
    for draft in names:
      for row in rows_lib.select(here, draft=draft, temperature=temperature):
        points = [
            (place, value)
            for place in range(1, length + 1)
            if (value := row.value(f'acceptance_at_{place}'))
        ]
        if not points:
          continue
        _points(ax, theme, names, draft, points, line='-')
        said.append(
            f'{draft} ' + ', '.join(f'{value.value:.2f}' for _, value in points)
        )
    if not said:
      continue
    ax.set_xticks(range(1, length + 1))
    ax.set_ylim(0, 1)
    ax.set_xlabel('position in the drafted block')
    ax.set_ylabel('accepted, if reached')
    _legend(figure, ax, theme)
    title = _first_upper(rows_lib.temperature_name(temperature))
    panels.append(
        Panel(
            f'acceptance_by_position_{_slug(temperature)}',
            title,
            f'Share accepted by position 1 to {length}, {title}:'
            f' {"; ".join(said)}.',
            figure,
        )
    )
  return Section(
      'Acceptance by position',
      f'How often the token at each place of a block of {length} is accepted,'
      ' given that all before it were. Late places are reached seldom, so their'
      ' errors are larger.',
      panels,
  )


def _by_block_length(study: rows_lib.Study, theme: Theme) -> Section:
  found = headlines.acceptance_rows(study)
  lengths = rows_lib.values_of(found, 'block_length')
  names = rows_lib.drafts(found)
  panels = []
  for temperature in rows_lib.values_of(found, 'temperature'):
    figure, ax = _new(theme)
    said = []
    for draft in names:
      some = sorted(
          (
              row
              for row in rows_lib.select(
                  found, draft=draft, temperature=temperature
              )
              if row.value('block_efficiency')
          ),
          key=lambda row: row.decoding['block_length'],
      )
      if not some:
        continue
      points = [
          (row.decoding['block_length'], row.metrics['block_efficiency'])
          for row in some
      ]
      _points(ax, theme, names, draft, points, line='none')
      rates = [v.value for row in some if (v := row.value('acceptance_rate'))]
      if rates:
        rate = sum(rates) / len(rates)
        grid = range(1, max(lengths) + 1)
        ax.plot(
            grid,
            [rows_lib.predicted_block_efficiency(rate, g) for g in grid],
            color=_colour(draft, names, theme),
            linewidth=1.4,
            linestyle='--',
            zorder=1,
        )
      said.append(
          f'{draft} '
          + ', '.join(f'{value.text(2)} at {g}' for g, value in points)
      )
    if not said:
      continue
    ax.set_xticks(range(1, max(lengths) + 1))
    ax.set_ylim(bottom=1)
    ax.set_xlabel('block length')
    ax.set_ylabel('tokens per target call')
    _legend(figure, ax, theme, {'predicted': ('--', '')})
    title = _first_upper(rows_lib.temperature_name(temperature))
    panels.append(
        Panel(
            f'block_efficiency_by_block_length_{_slug(temperature)}',
            title,
            f'Measured block efficiency by block length, {title}:'
            f' {"; ".join(said)}. Dashed: predicted.',
            figure,
        )
    )
  return Section(
      'Block efficiency by block length',
      'Points: measured, with one standard error. Dashed: predicted from the'
      ' acceptance rate, as if every token were accepted independently.',
      panels,
  )


def _wall_clock(study: rows_lib.Study, theme: Theme) -> Section:
  found = headlines.latency_rows(study)
  panels = []
  temperatures = rows_lib.values_of(found, 'temperature')
  for temperature in temperatures:
    here = rows_lib.select(found, temperature=temperature)
    which = _slug(temperature)
    plain = [
        row
        for row in study.rows('latency')
        if row.draft is None and row.decoding.get('temperature') == temperature
    ]
    height = _height([*plain, *here])
    panels.append(
        _speedup(here, theme, f'speedup_{which}', temperature, height)
    )
    panels.append(
        _throughput(
            [*plain, *here],
            theme,
            f'tokens_per_second_{which}',
            temperature,
            height,
        )
    )
  return Section(
      'Wall clock',
      'Left of the line at 1, speculative decoding is slower than decoding'
      ' without a draft. The prediction takes a check of a whole block to be as'
      ' fast as one step of the target; the prediction with verification uses'
      ' the time that was measured for it.',
      panels,
  )


def _speedup(found, theme, name, temperature, height) -> Panel:
  """Horizontal bars of the measured speed-up, the predicted as markers."""
  figure, ax, places = _rows_of_bars(found, theme, height)
  names = rows_lib.drafts(found)
  said = []
  for row, y in zip(found, places):
    value = row.metrics['measured_speedup']
    _bar(ax, theme, names, row, y, value)
    for metric, marker, label in (
        ('predicted_speedup', 'D', 'predicted'),
        (
            'predicted_speedup_with_verify',
            '^',
            'predicted with verification',
        ),
    ):
      predicted = row.value(metric)
      if predicted is not None:
        ax.plot(
            predicted.value,
            y,
            marker=marker,
            markersize=6 if marker == 'D' else 8,
            markerfacecolor=theme.paper if marker == 'D' else theme.ink,
            markeredgecolor=theme.ink if marker == 'D' else theme.paper,
            markeredgewidth=1.2,
            zorder=4,
            linestyle='none',
            label=None if label in ax.get_legend_handles_labels()[1] else label,
        )
    said.append(f'{row.draft}, {_place(row)}: {value.text(2)}')
  ax.axvline(1.0, color=theme.ink, linewidth=1.2, linestyle=':', zorder=3)
  ax.set_xlabel('times the speed of autoregressive decoding')
  _legend(figure, ax, theme)
  title = f'Speed-up, {rows_lib.temperature_name(temperature)}'
  return Panel(name, title, f'{title}, measured: {"; ".join(said)}.', figure)


def _throughput(found, theme, name, temperature, height) -> Panel:
  figure, ax, places = _rows_of_bars(found, theme, height)
  names = rows_lib.drafts(found)
  said = []
  for row, y in zip(found, places):
    value = row.metrics['tokens_per_second']
    _bar(ax, theme, names, row, y, value)
    who = row.draft or 'autoregressive'
    said.append(f'{who}, {_place(row)}: {value.text(0)}')
  ax.set_xlabel('tokens per second')
  ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  _legend(figure, ax, theme)
  title = f'Tokens per second, {rows_lib.temperature_name(temperature)}'
  return Panel(name, title, f'{title}: {"; ".join(said)}.', figure)


def _height(found) -> float:
  """Inches for a bar a row and space between the settings."""
  gaps = len({_setting(row) for row in found})
  return max(_SIZE[1], 1.2 + 0.26 * (len(found) + gaps))


def _rows_of_bars(found, theme, height) -> tuple[Any, Any, list[float]]:
  """A figure with a place for every row: settings apart, drafts together."""
  settings = sorted({_setting(row) for row in found})
  counts = [sum(_setting(row) == one for row in found) for one in settings]
  figure, ax = _new(theme, height)
  starts, at = {}, 0.0
  for one, count in zip(settings, counts):
    starts[one] = at
    at += count + 0.7
  used: dict[Any, int] = {}
  names = [None, *rows_lib.drafts(found)]
  places: dict[int, float] = {}
  for index, row in sorted(
      enumerate(found), key=lambda pair: names.index(pair[1].draft)
  ):
    one = _setting(row)
    places[index] = starts[one] + used.get(one, 0)
    used[one] = used.get(one, 0) + 1
  ax.set_yticks(
      [starts[s] + (c - 1) / 2 for s, c in zip(settings, counts)],
      [_place(next(r for r in found if _setting(r) == s)) for s in settings],
  )
  ax.tick_params(axis='y', length=0)
  ax.invert_yaxis()
  ax.grid(visible=False, axis='y')
  ax.grid(visible=True, axis='x', color=theme.soft, linewidth=0.8)
  return figure, ax, [places[i] for i in range(len(found))]


def _bar(ax, theme, names, row, y, value) -> None:
  label = row.draft or 'autoregressive'
  ax.barh(
      y,
      value.value,
      0.86,
      xerr=value.error,
      capsize=2.5,
      color=_colour(row.draft or 'target', names, theme),
      hatch=_HATCHES.get(row.draft, ''),
      edgecolor=(theme.paper, 0.4),  # which is the hatch's
      linewidth=0,
      error_kw={'ecolor': theme.ink, 'elinewidth': 1.2},
      label=None if label in ax.get_legend_handles_labels()[1] else label,
  )


def _setting(row) -> tuple[int, int]:
  """Order of the groups; autoregressive decoding has no block length."""
  settings = row.decoding
  return (settings.get('batch_size') or 0, settings.get('block_length') or 0)


def _place(row) -> str:
  batch, block = _setting(row)
  return f'batch {batch}\n' + (f'block {block}' if block else 'no draft')


def _training(study: rows_lib.Study, theme: Theme) -> Section:
  distilled = curves_lib.distillations(study.training)

  def of(metric, split, distillation):
    return [
        curve
        for curve in curves_lib.curves(study.training, metric, split)
        if (curve.run in distilled) == distillation
    ]

  panels = []
  for name, title, label, solid, dotted in (
      (
          'training_loss',
          'Fine-tuning: cross-entropy',
          'nats per token',
          of('loss', 'train', False),
          of('cross_entropy', 'validation', False),
      ),
      (
          'distillation_loss',
          'Distillation: divergence from the target',
          'nats per token',
          of('loss', 'train', True),
          [],
      ),
      (
          'training_acceptance',
          'Distillation: expected acceptance rate',
          'expected acceptance rate',
          of('acceptance_rate', 'train', True),
          [],
      ),
      (
          'validation_block_efficiency',
          'Distillation: block efficiency on validation',
          'tokens per target call',
          [],
          of('block_efficiency', 'validation', True),
      ),
  ):
    if solid or dotted:
      panels.append(_lines(name, title, label, solid, dotted, theme))
  return Section(
      'Training',
      'Lines: means over the steps between two records. Points: on validation'
      ' data. Shaded, where there are several seeds: one standard error over'
      ' seeds. The acceptance rate is expected, from the distributions; block'
      ' efficiency is measured by decoding.',
      panels,
  )


def _lines(name, title, label, solid, dotted, theme) -> Panel:
  figure, ax = _new(theme)
  said = []
  names = list(dict.fromkeys(c.run for c in (*solid, *dotted)))
  for kind, found in (('training', solid), ('validation', dotted)):
    for curve in found:
      steps, values, errors = zip(*curve.points)
      colour = _colour(curve.run, names, theme)
      if kind == 'training':
        ax.plot(steps, values, color=colour, linewidth=1.8, label=curve.run)
        ax.fill_between(
            steps,
            [v - e for v, e in zip(values, errors)],
            [v + e for v, e in zip(values, errors)],
            color=colour,
            alpha=0.25,
            linewidth=0,
        )
      else:
        shown = any(curve.run == other.run for other in solid)
        ax.errorbar(
            steps,
            values,
            errors if any(errors) else None,
            color=colour,
            marker=_MARKERS.get(curve.run, 'o'),
            markersize=6,
            markerfacecolor=theme.paper,
            markeredgewidth=1.6,
            linestyle='none' if shown else '-',
            linewidth=1.2,
            capsize=2,
            label=None if shown else curve.run,
        )
      said.append(
          f'{curve.run}, {kind}: {values[0]:.2f} at step {steps[0]:g}'
          f' to {values[-1]:.2f} at step {steps[-1]:g}'
      )
  ax.set_xlabel('step')
  ax.set_ylabel(label)
  _legend(figure, ax, theme)
  return Panel(name, title, f'{title}. {"; ".join(said)}.', figure)


def _plans(study: rows_lib.Study, theme: Theme) -> Section:
  found = [row for row in study.rows('plan') if row.value('step_s')]
  names = [_slice(row, found) for row in found]
  panels = []
  for name, title, label, parts in (
      (
          'plan_step',
          'Predicted training step',
          'seconds',
          (('learning', 'learning_s', 1), ('rollouts', 'rollout_s', 1)),
      ),
      (
          'plan_memory',
          'Memory of a chip',
          '% of what there is',
          (('most of step and samplers', 'memory_share', 100),),
      ),
  ):
    if not found:
      break
    figure, ax = _new(theme)
    bottoms, said = [0.0] * len(found), []
    for i, (part, metric, factor) in enumerate(parts):
      heights = [factor * row.metrics[metric].value for row in found]
      colour = list(_COLOURS.values())[2 - i][theme.name == 'dark']
      ax.bar(names, heights, 0.6, bottoms, color=colour, label=part)
      bottoms = [b + h for b, h in zip(bottoms, heights)]
      said += [f'{n} {part} {h:.3g}' for n, h in zip(names, heights)]
    ax.set_ylabel(label)
    ax.set_ylim(0, 1.14 * max(bottoms))
    _legend(figure, ax, theme)
    text = f'{title}, {label}: {"; ".join(said)}.'
    panels.append(Panel(name, title, text, figure))
  return Section(
      'Plans for TPU slices',
      'What the TPU compiler expects, without a TPU. Learning is the target'
      ' forward, the draft forward and backward, and the update.',
      panels,
  )


def _slice(row: rows_lib.Row, found: Sequence[rows_lib.Row]) -> str:
  """The slice, with what tells it from others of the same kind."""
  names = [other.decoding.get('topology') for other in found]
  name = str(row.decoding.get('topology'))
  if names.count(name) == 1:
    return name
  same = [o for o in found if o.decoding.get('topology') == name]
  told = [
      str(row.decoding[key])
      for key in ('mesh', 'batch_size', 'micro_batches', 'remat')
      if len({str(other.decoding.get(key)) for other in same}) > 1
  ]
  return '\n'.join([name, row.draft or '', *told])


def _points(ax, theme, names, draft, points, line) -> None:
  """Points with error bars, shifted a little so that bars do not overlap."""
  shift = 0.12 * (names.index(draft) - (len(names) - 1) / 2)
  errors = [value.error for _, value in points]
  ax.errorbar(
      [x + shift for x, _ in points],
      [value.value for _, value in points],
      None if None in errors else errors,
      marker=_MARKERS.get(draft, 'o'),
      markersize=6,
      linestyle=line,
      linewidth=1.8,
      color=_colour(draft, names, theme),
      capsize=3,
      label=draft,
  )


def _new(theme: Theme, height: float = _SIZE[1]) -> tuple[Any, Any]:
  """An empty figure in the theme's colours, and its axes."""
  figure = figure_lib.Figure(
      figsize=(_SIZE[0], height),
      dpi=200,
      layout='constrained',
      facecolor=theme.paper,
  )
  backend_agg.FigureCanvasAgg(figure)
  ax = figure.subplots()
  ax.set_facecolor(theme.paper)
  ax.spines[['top', 'right']].set_visible(False)
  ax.spines[['left', 'bottom']].set_color(theme.soft)
  ax.grid(axis='y', color=theme.soft, linewidth=0.8)
  ax.set_axisbelow(True)
  ax.tick_params(colors=theme.ink, labelsize=_FONT, color=theme.soft)
  for axis in (ax.xaxis, ax.yaxis):
    axis.label.set_color(theme.ink)
    axis.label.set_fontsize(_FONT)
  return figure, ax


def _legend(figure, ax, theme, more: dict[str, tuple[str, str]] | None = None):
  """The legend above the axes, where it hides nothing."""
  entries = dict(zip(*reversed(ax.get_legend_handles_labels())))
  first = [*_COLOURS, 'autoregressive']
  labels = sorted(
      entries, key=lambda x: first.index(x) if x in first else len(first)
  )
  handles = [entries[label] for label in labels]
  for label, (line, marker) in (more or {}).items():
    handles += ax.plot(
        [], [], linestyle=line, marker=marker, color=theme.ink, linewidth=1.4
    )
    labels.append(label)
  figure.legend(
      handles,
      labels,
      loc='outside upper left',
      ncols=3 if max(map(len, labels)) < 18 else 2,
      frameon=False,
      fontsize=_FONT,
      labelcolor=theme.ink,
      handlelength=1.6,
      columnspacing=1.3,
  )


def _colour(name: str, names: Sequence[str], theme: Theme) -> str:
  if name in _COLOURS:
    return _COLOURS[name][theme.name == 'dark']
  others = [one for one in names if one not in _COLOURS]
  place = others.index(name) if name in others else 0
  return _OTHERS[place % len(_OTHERS)][theme.name == 'dark']


def _first_upper(text: str) -> str:
  return text[0].upper() + text[1:]


def _slug(temperature: float) -> str:
  return 'greedy' if temperature == 0 else f'sampled_{temperature:g}'
