"""samples.json -> sample texts of the page, grouped by what they answer."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

from distillspec_jax.core import errors
from distillspec_jax.reporting import rows as rows_lib

SOURCES = ('accepted', 'corrected', 'bonus')


class Piece(NamedTuple):
  """A run of text of one source; `lines` are split at line ends."""

  source: str
  lines: list[str]


class Answer(NamedTuple):
  """An answer with one draft; `pieces` together are its text."""

  draft: str
  decoding: str
  counts: str
  pieces: list[Piece]


class Sample(NamedTuple):
  """One input, its answers, and what is the same or not about them."""

  input: str
  answers: list[Answer]
  note: str


def read(path: pathlib.Path) -> list[Sample]:
  """The samples of a file, which may be absent; one a different input.

  Raises:
    UserError: the file does not hold samples.
  """
  if not path.is_file():
    return []
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise errors.UserError(
        f'{path} is not JSON ({error}). Remove the file.'
    ) from error
  groups: dict[str, list[dict[str, Any]]] = {}
  try:
    for one in found:
      groups.setdefault(one['input'], []).append(one)
    return [
        Sample(text, [_answer(one) for one in group], _note(group))
        for text, group in groups.items()
    ]
  except (KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
        f'{path} does not hold sample texts ({type(error).__name__}: {error}).'
        ' Remove the file.'
    ) from error


def _answer(one: dict[str, Any]) -> Answer:
  for piece in one['pieces']:
    if piece['source'] not in SOURCES:
      raise TypeError(f'source {piece["source"]!r}, not one of {SOURCES}')
  blocks, emitted = one['blocks'], one['emitted']
  counts = f'{emitted} tokens in {blocks} target calls'
  if blocks:
    counts += f', {emitted / blocks:.2f} per call'
  settings = one['decoding'] or {}
  parts = []
  if settings.get('temperature') is not None:
    parts.append(rows_lib.temperature_name(settings['temperature']))
  if settings.get('block_length') is not None:
    parts.append(f'block length {settings["block_length"]}')
  return Answer(
      one['draft'],
      ', '.join(parts),
      counts,
      [
          Piece(piece['source'], piece['text'].split('\n'))
          for piece in one['pieces']
      ],
  )


def _note(group: list[dict[str, Any]]) -> str:
  """That the text does not depend on the draft, where this was seen."""
  greedy = all((one['decoding'] or {}).get('temperature') == 0 for one in group)
  texts = {''.join(p['text'] for p in one['pieces']) for one in group}
  if len(group) < 2 or not greedy:
    return ''
  if len(texts) == 1:
    return 'The same text with either draft; the calls differ.'
  return (
      'The texts differ, though greedy decoding is exact but for ties within'
      ' rounding.'
  )
