"""The page: headlines, figures, sample texts and tables in one file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
import pathlib
from typing import Any, NamedTuple

import jinja2

from distillspec_jax.reporting import answers
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import provenance
from distillspec_jax.reporting import rows as rows_lib
from distillspec_jax.reporting import tables

_HERE = pathlib.Path(__file__).resolve().parent


class Image(NamedTuple):
  """A figure as PNG, for light and dark pages."""

  title: str
  alt: str
  light: bytes
  dark: bytes


class Images(NamedTuple):
  """The figures of a section; `caption` says how to read them."""

  title: str
  caption: str
  images: list[Image]


def render(
    name: str,
    lines: Sequence[rows_lib.Line],
    drawn: Sequence[tuple[rows_lib.Study, list[Images]]],
    samples: Sequence[answers.Sample],
) -> str:
  """HTML that needs no other file and no network."""
  environment = jinja2.Environment(
      autoescape=True,
      trim_blocks=True,
      lstrip_blocks=True,
      undefined=jinja2.StrictUndefined,
  )
  template = environment.from_string(
      (_HERE / 'page.html.j2').read_text(encoding='utf-8')
  )
  return template.render(
      name=name,
      style=(_HERE / 'page.css').read_text(encoding='utf-8'),
      errors=provenance.errors(lines),
      several=len(drawn) > 1,
      studies=[_study(study, sections) for study, sections in drawn],
      samples=samples,
      missing=missing(lines, bool(samples)),
      provenance=provenance.entries(lines),
  )


def heading(study: rows_lib.Study) -> str:
  """The study's name on the page."""
  parts = [study.task.replace('_', ' ')]
  if study.split:
    parts.append(study.split)
  if study.target:
    parts.append(f'target {rows_lib.short_name(study.target)}')
  return ', '.join(parts)


def missing(lines: Sequence[rows_lib.Line], samples: bool) -> list[str]:
  """Sentences on the parts of the page that have no data."""
  kinds = {line['kind'] for line in lines}
  if kinds == {'plan'}:
    return []
  found = [
      text
      for kind, text in (
          (
              'acceptance',
              'No acceptance was measured; `distillspec evaluate` does it.',
          ),
          (
              'latency',
              'No wall clock was measured; `distillspec benchmark` does it.',
          ),
          ('task_quality', 'No task quality was measured.'),
          ('training', 'No training was recorded.'),
      )
      if kind not in kinds
  ]
  if not samples:
    found.append('There are no sample texts.')
  return found


def _study(study: rows_lib.Study, sections: list[Images]) -> dict[str, Any]:
  return {
      'heading': heading(study),
      'cards': headlines.cards(study),
      'sentences': headlines.sentences(study),
      'sections': [
          section._replace(
              images=[
                  image._replace(
                      light=_encoded(image.light), dark=_encoded(image.dark)
                  )
                  for image in section.images
              ]
          )
          for section in sections
      ],
      'tables': tables.tables(study),
  }


def _encoded(data: bytes) -> str:
  return base64.b64encode(data).decode()
