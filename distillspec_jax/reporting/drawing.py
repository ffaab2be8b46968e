"""Panels -> SVG in the colours of the page, and PNG.

A panel is data, which `figures` fills in; how it looks is decided here, and
matplotlib is used nowhere else. Panels are small enough for a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
import html
import io
import pathlib
import re
import textwrap
from typing import Any, NamedTuple

import matplotlib
from matplotlib import figure as figure_lib
from matplotlib import patches
from matplotlib import ticker
import numpy as np

from distillspec_jax.reporting import measurements

STYLE = (pathlib.Path(__file__).parent / 'page.css').read_text(encoding='utf-8')
# page.css has every colour. Figures are drawn in those of its light theme; in
# SVG they then become references to its variables, so that dark pages work too.
_COLOURS = dict(
    re.findall(r'--([\w-]+): (#[0-9a-f]{6});', STYLE.split('@media')[0])
)
_CARD, _GRID, _INK = (_COLOURS[role] for role in ('card', 'grid', 'ink'))
_VARIABLES = {
    colour: f'var(--{role})'
    for role, colour in _COLOURS.items()
    if role in ('card', 'grid', 'ink') or role.startswith('series-')
}
_SETTINGS = {
    'font.size': 10.5,
    'svg.fonttype': 'none',  # text stays text
    'svg.hashsalt': 'distillspec',  # the same figure gives the same file
    'text.parse_math': False,  # names may contain $
    'legend.frameon': False,
    'errorbar.capsize': 3,
    'lines.linewidth': 1.8,
    'lines.markersize': 6,
}
_GAP = 0.7  # between groups of bars, in bars

# Okabe and Ito's colours, which colour-blind readers can distinguish; markers
# and hatches tell series apart without colour: (colour, marker, hatch).
_LOOKS = {
    'pretrained': ('series-1', 'o', ''),
    'fine-tuned': ('series-1', 'o', ''),
    'fine-tuned longer': ('series-2', 's', 'xx'),
    'distilled': ('series-3', 'D', '//'),
    'target': ('series-4', '^', ''),
    'autoregressive': ('series-4', '', ''),
}
_OTHER_LOOKS = (
    ('series-5', 'o', ''),
    ('series-6', 's', '\\\\'),
    ('series-7', 'v', '..'),
    ('series-3', 'D', '//'),
    ('series-1', '^', 'xx'),
    ('series-4', 'P', 'oo'),
    ('series-2', 'X', '--'),
)
# In matplotlib's short names: linestyle, linewidth, markersize, ...
_STYLES: dict[str, dict[str, Any]] = {
    'line': {},
    'band': {'marker': ''},
    'points': {'ls': 'none'},
    'open': {'ls': 'none', 'mfc': _CARD, 'mew': 1.6},
    'dashed': {'ls': '--', 'marker': '', 'lw': 1.4, 'zorder': 1},
    'level': {'ls': ':', 'marker': '', 'zorder': 1},
    'diamond': {'ls': 'none', 'marker': 'D', 'mfc': _CARD},
    'triangle': {'ls': 'none', 'marker': '^', 'ms': 8, 'mec': _CARD},
    'cloud': {'ls': 'none', 'ms': 4, 'mew': 0, 'alpha': 0.5},
    'forest': {'ls': 'none'},
}
_PREDICTED = ('dashed', 'diamond', 'triangle')


class Point(NamedTuple):
  """A value at a position.

  Attributes:
    at: a number; of a bar, and in a forest, (order, name of the group).
    value: what was measured there.
    note: written next to it.
    at_error: standard error of `at`, if it was measured too.
  """

  at: Any
  value: measurements.Value
  note: str = ''
  at_error: float | None = None


class Series(NamedTuple):
  """Values that belong together.

  Attributes:
    label: in the legend.
    points: its values.
    style: 'bars', or 'diamond' or 'triangle' on top of bars; else 'line',
      'points', 'open' (hollow points), 'dashed', 'band' (shaded by the error),
      'level' (one value, everywhere), 'cloud' (of many points) or 'forest' (a
      row for each name).
    owner: label of the series whose place and colour it takes; the legend then
      explains the style alone.
  """

  label: str
  points: list[Point]
  style: str
  owner: str | None = None


class Panel(NamedTuple):
  """A figure.

  Attributes:
    name: of its file.
    title: above it.
    series: what it shows.
    label: of the axis of values.
    position_label: of the other axis.
    limits: of the axis of values; None leaves an end free.
    shift: whether series share positions and are drawn side by side.
    horizontal: bars lie; the number of them, and of groups, to make room for.
    reference: a value to compare with.
    digits: of values in words.
    diagonal: whether to show where both axes have the same value.
  """

  name: str
  title: str
  series: list[Series]
  label: str
  position_label: str = ''
  limits: tuple[float | None, float | None] = (None, None)
  shift: bool = False
  horizontal: int = 0
  reference: float | None = None
  digits: int = 2
  diagonal: bool = False

  @property
  def is_forest(self) -> bool:
    return self.series[0].style == 'forest'

  @property
  def is_categorical(self) -> bool:
    return self.is_forest or self.has_bars

  @property
  def has_bars(self) -> bool:
    return self.series[0].style == 'bars'

  @property
  def alt(self) -> str:
    """The measured numbers in words, for readers who do not see the figure."""

    def text(point):
      at = point.at[1] if self.is_categorical else f'at {point.at:.4g}'
      at = ', '.join(filter(None, (point.note, at.replace('\n', ' '))))
      return f'{point.value.text(self.digits)} ({at})'

    parts = []
    for one in self.series:
      points = one.points
      if one.style == 'cloud':
        means = (
            np.mean([each.at for each in points]),
            np.mean([each.value.value for each in points]),
        )
        parts.append(
            f'{one.label}, {len(points)} points whose mean is {means[1]:.2f} at'
            f' {means[0]:.2f}'
        )
        continue
      if (
          len(points) > 11 and one.style != 'forest'
      ):  # of a curve, where it starts and where it ends
        points = [points[0], points[-1]]
      who = ' '.join(filter(None, (one.owner, one.label)))
      if one.style == 'level':
        parts.append(f'{who} {points[0].value.text(self.digits)}')
      elif one.style not in _PREDICTED:
        parts.append(f'{who} {", ".join(map(text, points))}')
    return f'{self.title}, {self.label}: {"; ".join(parts)}.'


class Cell(NamedTuple):
  """A cell of a heat map; without a value, the note says why."""

  value: measurements.Value | None
  note: str = ''
  is_best: bool = False


class HeatMap(NamedTuple):
  """A value for each of two settings; the darker, the larger.

  Attributes:
    name: of its file.
    title: above it.
    label: what the values are.
    rows: names, from top to bottom.
    columns: names, from left to right.
    cells: (row, column) -> what is there.
    axis_names: of rows and of columns.
    digits: of values.
  """

  name: str
  title: str
  label: str
  rows: list[str]
  columns: list[str]
  cells: dict[tuple[int, int], Cell]
  axis_names: tuple[str, str]
  digits: int = 2

  @property
  def has_notes(self) -> bool:
    return any(cell.note for cell in self.cells.values() if cell.value)

  @property
  def alt(self) -> str:
    """The numbers in words."""
    parts = []
    for (row, column), cell in sorted(self.cells.items()):
      text = cell.value.text(self.digits) if cell.value else ''
      note = ', '.join(filter(None, (cell.note, 'best' * cell.is_best)))
      text += f' ({note})' if note and text else note
      parts.append(f'{self.rows[row]}, {self.columns[column]}: {text}')
    return f'{self.title}, {self.label}: {"; ".join(parts)}.'


def standalone(panel: Panel | HeatMap) -> str:
  """An SVG file in the light or dark colours that its reader prefers."""
  svg, _ = images(panel)
  light, dark = STYLE.split('@media')[:2]
  themes = [
      ' '.join(
          f'--{role}: {colour};'
          for role, colour in re.findall(r'--([\w-]+): (#[0-9a-f]{6});', theme)
          if f'var(--{role})' in svg
      )
      for theme in (light, dark)
  ]
  style = (
      f'<style>:root {{ {themes[0]} font-family: sans-serif }} @media'
      f' (prefers-color-scheme: dark) {{ :root {{ {themes[1]} }} }}</style>'
  )
  width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
  start = (
      '<svg xmlns="http://www.w3.org/2000/svg"'
      f' xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}"'
      f' height="{height}"'
  )
  head, rest = svg.split('>', 1)
  return f'{head.replace("<svg", start, 1)}>{style}{rest}'


def images(panel: Panel | HeatMap, prefix: str = '') -> tuple[str, bytes]:
  """(an <svg> element in the colours and the font of its page, a PNG file).

  Args:
    panel: what to draw.
    prefix: makes the panel's name unique on the page.
  """
  svg, png = io.BytesIO(), io.BytesIO()
  with matplotlib.rc_context(_SETTINGS):
    figure = draw(panel)
    figure.savefig(svg, format='svg', metadata={'Date': None})
    figure.savefig(png, format='png', dpi=200)
  text = svg.getvalue().decode()
  text = text[text.index('<svg') :]
  text = re.sub(r'<(metadata|style).*?</\1>', '', text, flags=re.DOTALL)
  text = re.sub(r'fill="(#\w{6})"', r'style="fill: \1"', text)  # of hatches
  text = re.sub(r'(?<=: )#\w{6}', lambda m: _VARIABLES[m[0]], text)
  # Ids are unique within a figure; make them unique on the page.
  name = f'{prefix}{panel.name}-'
  text = re.sub(r'( id="|href="#|url\(#)', lambda m: m[0] + name, text)
  label = html.escape(panel.alt)
  text = re.sub(
      r'<svg [^>]*(viewBox="[^"]*")[^>]*>',
      lambda m: f'<svg role="img" aria-label="{label}" {m[1]}>',
      text,
      count=1,
  )
  return text, png.getvalue()


def draw(panel: Panel | HeatMap) -> figure_lib.Figure:
  """The figure in light colours."""
  is_map = isinstance(panel, HeatMap)
  height = (
      1.0 + (0.66 if panel.has_notes else 0.5) * len(panel.rows)
      if is_map
      else max(2.2 if panel.is_forest else 3.3, 1.2 + 0.26 * panel.horizontal)
  )
  figure = figure_lib.Figure(
      figsize=(5.0, height), layout='constrained', facecolor=_CARD  # inches
  )
  ax = figure.subplots()
  ax.set_facecolor(_CARD)
  ax.spines[:].set_visible(False)
  ax.tick_params(length=0, labelcolor=_INK)
  ax.set_axisbelow(True)
  if is_map:
    _heat_map(ax, panel)
  else:
    _panel(figure, ax, panel)
  return figure


def _panel(figure, ax, panel):
  values, positions = ax.yaxis, ax.xaxis
  if panel.horizontal:
    values, positions = positions, values
    values.set_major_formatter(
        lambda x, _: f'{x / 1000:g}k' if x >= 1000 else f'{x:g}'
    )
  values.grid(color=_GRID)
  values.set_label_text(panel.label, color=_INK)
  positions.set_label_text(panel.position_label, color=_INK)
  if panel.is_forest:
    _forest(ax, panel)
  else:
    (_bars if panel.has_bars else _lines)(ax, panel)
  if panel.reference is not None:
    ax.axvline(panel.reference, color=_INK, linewidth=1.2, linestyle=':')
  (ax.set_xlim if panel.horizontal else ax.set_ylim)(*panel.limits)
  if panel.diagonal:
    # Both axes show the same values.
    ends = [*ax.get_xlim(), *ax.get_ylim()]
    ax.set_xlim(min(ends), max(ends))
    ax.set_ylim(min(ends), max(ends))
    ax.axline((0, 0), slope=1, color=_INK, linewidth=1.2, linestyle=':')
  _legend(figure, ax, [one.label for one in panel.series])


def _heat_map(ax, panel):
  """One colour, the more of it the larger; the numbers are in ink."""
  known = [cell.value.value for cell in panel.cells.values() if cell.value]
  low, high = min(known), max(known)
  for (row, column), cell in panel.cells.items():
    if cell.value is None:
      how = {'fill': False, 'hatch': '///', 'edgecolor': _GRID, 'linewidth': 0}
      lines = [cell.note]
    else:
      share = (cell.value.value - low) / (high - low) if high > low else 0.0
      how = {'facecolor': _COLOURS['series-3'], 'alpha': 0.06 + 0.44 * share}
      text = cell.value._replace(error=None).text(panel.digits)
      lines = [text]
      if cell.value.error is not None:
        lines.append(f'± {cell.value.error:.{panel.digits}f}')
      if cell.note:
        lines.append(cell.note)
    ax.add_patch(
        patches.Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, **how)
    )
    if cell.is_best:
      ax.add_patch(
          patches.Rectangle(
              (column - 0.48, row - 0.47), 0.96, 0.94, fill=False,
              edgecolor=_INK, linewidth=1.8,
          )
      )  # fmt: skip
    for i, line in enumerate(lines):
      place = row + (i - (len(lines) - 1) / 2) * (0.29 if lines[2:] else 0.36)
      ax.text(
          column, place + 0.02, line, color=_INK, ha='center', va='center',
          fontsize=10.5 if i == 0 and cell.value else 8.5,
          fontweight='bold' if cell.is_best and i == 0 else 'normal',
      )  # fmt: skip
  ax.set_xlim(-0.5, len(panel.columns) - 0.5)
  ax.set_ylim(len(panel.rows) - 0.5, -0.5)  # from top to bottom
  width = max(6, 40 // len(panel.columns))
  ax.set_xticks(
      range(len(panel.columns)),
      [textwrap.fill(name, width) for name in panel.columns],
  )
  ax.set_yticks(
      range(len(panel.rows)), [textwrap.fill(name, 16) for name in panel.rows]
  )
  ax.xaxis.tick_top()
  ax.xaxis.set_label_position('top')
  ax.set_xlabel(panel.axis_names[1], color=_INK)
  ax.set_ylabel(panel.axis_names[0], color=_INK)


def _forest(ax, panel):
  """A row for each name, with its value and error."""
  groups = sorted({point.at for one in panel.series for point in one.points})
  labels = [one.label for one in panel.series]
  for series in panel.series:
    colour, marker, _ = _look(series.label, labels)
    ax.errorbar(
        [point.value.value for point in series.points],
        [groups.index(point.at) for point in series.points],
        xerr=_errors(point.value.error for point in series.points),
        color=colour, marker=marker, elinewidth=1.4,
        label=_shown(series.label), **_STYLES[series.style],
    )  # fmt: skip
  ax.set_yticks(
      range(len(groups)), [textwrap.fill(name, 30) for _, name in groups]
  )
  ax.set_ylim(len(groups) - 0.5, -0.5)  # from top to bottom
  ax.grid(axis='y', color=_GRID)


def _lines(ax, panel):
  """Series of numbers against numbers."""
  labels = [one.label for one in panel.series if one.owner is None]
  for series in panel.series:
    owner, label = series.owner or series.label, _shown(series.label)
    colour, marker, _ = _look(owner.removesuffix(' alone'), labels)
    style = {'marker': marker, **_STYLES[series.style], 'color': colour}
    if series.owner is not None:
      ax.plot([], [], **{**style, 'color': _INK}, label=label)
      label = None
    style['clip_on'] = False  # a point at a limit is shown in full
    y = np.array([point.value.value for point in series.points])
    if series.style == 'level':
      ax.axhline(y[0], **style, label=label)
      continue
    x = np.array([point.at for point in series.points], np.float64)
    errors = _errors(point.value.error for point in series.points)
    if series.style in ('band', 'dashed'):
      ax.plot(x, y, **style, label=label)
      if errors:
        ax.fill_between(
            x, y - errors, y + errors, color=colour, alpha=0.25, linewidth=0
        )
      continue
    if panel.shift:  # keeps the error bars of equal positions apart
      offset = labels.index(owner) - (len(labels) - 1) / 2
      x += 0.015 * (np.ptp(x) + 1) * offset
    at_errors = _errors(point.at_error for point in series.points)
    ax.errorbar(x, y, errors, at_errors, elinewidth=1.2, label=label, **style)
    for point, *place in zip(series.points, x, y):
      _note(ax, point.note, place, (7, 6), fontsize=9)
  positions = [point.at for one in panel.series for point in one.points]
  if all(float(at).is_integer() for at in positions):
    steps = [1, 2, 5, 10]
    locator = ticker.MaxNLocator(8, integer=True, steps=steps)
    ax.xaxis.set_major_locator(locator)


def _bars(ax, panel):
  """Groups of bars side by side, and marks on top of them."""
  groups = {
      one.label: {point.at for point in one.points}
      for one in panel.series
      if one.owner is None
  }
  place, ticks, end = {}, {}, 0.0
  for group in sorted(set().union(*groups.values())):
    start = end
    for label in groups:
      if group in groups[label]:
        place[label, group] = end
        end += 1
    ticks[group[1]] = (start + end - 1) / 2
    end += _GAP
  for series in panel.series:
    name = series.owner or series.label
    at = [place[name, point.at] for point in series.points]
    values = [point.value.value for point in series.points]
    errors = _errors(point.value.error for point in series.points)
    if series.owner is not None:
      ax.plot(
          *((values, at) if panel.horizontal else (at, values)), color=_INK,
          label=_shown(series.label), **_STYLES[series.style],
      )  # fmt: skip
      continue
    colour, _, hatch = _look(name, list(groups))
    (ax.barh if panel.horizontal else ax.bar)(
        at, values, 0.88, color=colour, hatch=hatch, linewidth=0,
        edgecolor=(_CARD, 0.4),  # of the hatch
        error_kw={'color': _INK, 'ecolor': _INK, 'lw': 1.2},
        label=_shown(series.label),
        **{'xerr' if panel.horizontal else 'yerr': errors},
    )  # fmt: skip
    if not panel.horizontal:
      for x, y, error in zip(at, values, errors or [0.0] * len(at)):
        _note(ax, f'{y:.2f}', (x, y + error), (0, 3), ha='center')
  limits = (-0.5 - _GAP / 2, end - 0.5 - _GAP / 2)
  if panel.horizontal:
    ax.set_yticks([*ticks.values()], [*ticks])
    ax.set_ylim(*reversed(limits))  # from top to bottom
  else:
    ax.set_xticks([*ticks.values()], [*ticks])
    ax.set_xlim(*limits)
    ax.margins(y=0.12)  # room for the numbers


def _errors(errors):
  errors = [error or 0.0 for error in errors]
  return errors if any(errors) else None


def _note(ax, text, place, offset, **how):
  ax.annotate(
      text, place, offset, textcoords='offset points', color=_INK, **how
  )


def _shown(label: str) -> str:
  """The label; Matplotlib leaves those that begin with `_` out."""
  return f' {label}'


def _legend(figure, ax, labels):
  """The legend above the axes, where it hides nothing."""
  handles = dict(zip(*reversed(ax.get_legend_handles_labels())))
  labels = list(dict.fromkeys(labels))
  figure.legend(
      [handles[_shown(label)] for label in labels],
      labels,
      loc='outside upper left',
      ncols=3 if max(map(len, labels)) < 18 else 2,
      labelcolor=_INK,
      handlelength=1.6,
      columnspacing=1.3,
  )


def _look(label: str, labels: Sequence[str]) -> tuple[str, str, str]:
  """(colour, marker, hatch); those of unknown labels go by their order."""
  known = label.partition(' (')[0]  # without how it was made
  others = [one for one in labels if one.partition(' (')[0] not in _LOOKS]
  place = others.index(label) if label in others else 0
  role, *rest = _LOOKS.get(known, _OTHER_LOOKS[place % len(_OTHER_LOOKS)])
  return _COLOURS[role], *rest
