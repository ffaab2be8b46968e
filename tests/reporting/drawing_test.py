"""Panels become SVG in the page's colours, PNG, and words."""

import html
import re

import pytest

from distillspec_jax.reporting import drawing
from distillspec_jax.reporting import figures
from distillspec_jax.reporting import measurements


def value(number, error=None):
  return measurements.Value(number, error, 1, 1)


def bars(label='distilled', number=0.5, **how):
  points = [drawing.Point((0, 'greedy'), value(number, 0.125))]
  series = [drawing.Series(label, points, 'bars')]
  return drawing.Panel('rate', 'Acceptance', series, 'rate', **how)


def lines(*series):
  return drawing.Panel('loss', 'Loss', list(series), 'nats', 'step')


@pytest.fixture(scope='module')
def panels(all_lines):
  (study,) = measurements.studies(all_lines)
  return [
      panel for section in figures.sections(study) for panel in section.panels
  ]


@pytest.fixture(scope='module')
def drawn(panels):
  """The SVG of every figure of the page."""
  return [drawing.images(panel)[0] for panel in panels]


def test_svg_has_no_colour_of_its_own(drawn):
  used = set()
  for text in drawn:
    assert not re.search(r'#[0-9a-f]{6}\b', text)
    used |= set(re.findall(r'var\(--([\w-]+)\)', text))
  assert {'ink', 'card', 'grid', 'series-1', 'series-3'} <= used
  # Both themes of the page define every colour that is used.
  themes = drawing.STYLE.split('@media')[:2]
  for theme in themes:
    assert used <= set(re.findall(r'--([\w-]+):', theme))


def test_ids_are_unique_on_the_page(panels, drawn):
  drawn = [*drawn, drawing.images(panels[0], 'other_')[0]]
  ids = [set(re.findall(r' id="([^"]+)"', text)) for text in drawn]
  assert sum(map(len, ids)) == len(set.union(*ids))
  for text, known in zip(drawn, ids):
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= known


def test_svg_is_reproducible_and_has_no_style_sheet(panels, drawn):
  assert drawing.images(panels[0])[0] == drawn[0]
  assert '<style' not in drawn[0] and '<metadata' not in drawn[0]
  assert '<text' in drawn[0]  # not outlines


def test_png():
  assert drawing.images(bars())[1][:4] == b'\x89PNG'


def test_svg_gives_its_numbers_to_screen_readers(panels, drawn):
  for panel, text in zip(panels, drawn):
    label = re.match(r'<svg role="img" aria-label="([^"]*)"', text)
    assert html.unescape(label[1]) == panel.alt
    assert any(character.isdigit() for character in panel.alt)


def test_bars_in_words():
  assert bars().alt == 'Acceptance, rate: distilled 0.50 ± 0.12 (greedy).'


def test_lines_in_words():
  curve = [drawing.Point(step, value(step / 10)) for step in range(20)]
  panel = lines(
      drawing.Series('target', curve, 'band'),
      drawing.Series('validation', curve[:2], 'open', 'target'),
      drawing.Series('predicted', curve, 'dashed', 'target'),
      drawing.Series('draft alone', curve[:1], 'level'),
  )
  assert panel.alt == (
      'Loss, nats: target 0.00 (at 0), 1.90 (at 19); target validation 0.00 (at'
      ' 0), 0.10 (at 1); draft alone 0.00.'
  )


def test_bars_have_the_height_of_their_values():
  (bar,) = drawing.draw(bars()).axes[0].patches
  assert bar.get_height() == 0.5
  (bar,) = drawing.draw(bars(horizontal=2)).axes[0].patches
  assert bar.get_width() == 0.5


def test_a_label_that_begins_with_an_underscore_is_shown():
  assert '_draft' in drawing.images(bars('_draft'))[0]


def test_marks_are_on_their_bars():
  panel = bars()
  points = [drawing.Point((0, 'greedy'), value(0.75))]
  mark = drawing.Series('predicted', points, 'diamond', 'distilled')
  ax = drawing.draw(panel._replace(series=[*panel.series, mark])).axes[0]
  (bar,) = ax.patches
  drawn = next(line for line in ax.lines if line.get_label() == ' predicted')
  centre = bar.get_x() + bar.get_width() / 2
  assert drawn.get_xydata().tolist() == [[pytest.approx(centre), 0.75]]


def test_errors_are_drawn_in_both_directions():
  points = [drawing.Point(3.0, value(0.5, 0.25), 'linear', at_error=0.5)]
  ax = drawing.draw(lines(drawing.Series('lenient', points, 'line'))).axes[0]
  extents = [part.get_paths()[0].get_extents() for part in ax.collections]
  assert {(one.width, one.height) for one in extents} == {
      (1.0, 0.0),
      (0.0, 0.5),
  }
  assert [text.get_text() for text in ax.texts] == ['linear']


def test_unknown_drafts_have_colours_of_their_own():
  points = [drawing.Point((0, 'greedy'), value(0.5))]
  series = [drawing.Series(name, points, 'bars') for name in ('mine', 'yours')]
  patches = drawing.draw(bars()._replace(series=series)).axes[0].patches
  assert len({bar.get_facecolor() for bar in patches}) == 2


def test_names_are_not_mathematics():
  assert '>cost: $1 or $2<' in drawing.images(bars('cost: $1 or $2'))[0]
