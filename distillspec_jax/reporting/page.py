"""The page: headlines, figures, sample texts and tables in one file."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import re

import jinja2

from distillspec_jax.reporting import cards
from distillspec_jax.reporting import drawing
from distillspec_jax.reporting import figures
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import provenance
from distillspec_jax.reporting import sample_texts
from distillspec_jax.reporting import tables

_TEMPLATE = pathlib.Path(__file__).parent / 'page.html.j2'
_MISSING = {
    'acceptance': 'Acceptance was not measured; run `distillspec evaluate`.',
    'latency': 'Wall clock was not measured; run `distillspec benchmark`.',
    'task_quality': 'Task quality was not measured.',
    'training': 'No training was recorded.',
}


def render(
    name: str,
    lines: Sequence[measurements.Line],
    drawn: Sequence[tuple[measurements.Study, Sequence[figures.Section]]],
    samples: Sequence[sample_texts.Sample],
) -> str:
  """HTML that needs no other file and no network.

  Args:
    name: of the run.
    lines: all results.
    drawn: studies, with figures as (title, SVG).
    samples: sample texts.
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
      cards=cards.cards,
      sentences=headlines.sentences,
      tables=tables.tables,
      tied=_tied,
      studies=drawn,
      samples=samples,
      rule=sample_texts.RULE,
      errors=provenance.errors(lines),
      missing=missing(lines, bool(samples)),
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
