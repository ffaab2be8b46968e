"""samples.json -> sample texts of the page, grouped by input."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

from distillspec_jax.core import errors
from distillspec_jax.reporting import measurements

SOURCES = ('accepted', 'corrected', 'bonus')
RULE = (
    'the inputs at random, takes at most one from each source file, and passes'
    ' over outputs that repeat a stretch of text three times in a row, or of'
    ' whose tokens more than a third are the same, while there are others.'
)


class Piece(NamedTuple):
  """A stretch of text from one source, split into lines."""

  source: str
  lines: list[str]


class Text(NamedTuple):
  """What was generated with one draft; the pieces in order are the text."""

  draft: str
  decoding: str
  counts: str
  pieces: list[Piece]


class Sample(NamedTuple):
  """An input and the texts generated for it; `note` compares them."""

  input: str
  file: str | None
  texts: list[Text]
  note: str


def read(path: pathlib.Path) -> list[Sample]:
  """One sample per distinct input; [] if the file is absent.

  Raises:
    UserError: the file does not hold sample texts.
  """
  if not path.is_file():
    return []
  groups: dict[str, list[dict[str, Any]]] = {}
  try:
    for entry in json.loads(path.read_bytes()):
      groups.setdefault(entry['input'], []).append(entry)
    return [
        Sample(
            text,
            group[0].get('file'),
            [_text(entry) for entry in group],
            _note(group),
        )
        for text, group in groups.items()
    ]
  # JSON's errors are ValueErrors; the others come from missing entries.
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
        f'{path} does not hold sample texts ({type(error).__name__}: {error}).'
        ' Remove the file.'
    ) from error


def _text(entry: dict[str, Any]) -> Text:
  pieces = [
      Piece(piece['source'], piece['text'].split('\n'))
      for piece in entry['pieces']
  ]
  for piece in pieces:
    if piece.source not in SOURCES:
      raise ValueError(f'source {piece.source!r} is not one of {SOURCES}')
  calls, tokens = entry['blocks'], entry['emitted']
  counts = f'{tokens} tokens in {calls} target calls'
  if calls:
    counts += f', {tokens / calls:.2f} per call'
  decoding = {**entry['decoding'], 'batch_size': None}
  return Text(entry['draft'], measurements.describe(decoding), counts, pieces)


def _note(group: list[dict[str, Any]]) -> str:
  """Whether greedy texts agree, as they must with a lossless verifier."""
  settings = [entry['decoding'] for entry in group]
  is_exact = all(
      one.get('temperature') == 0 and not measurements.is_lossy(one)
      for one in settings
  )
  if len(group) < 2 or not is_exact:
    return ''
  texts = {''.join(p['text'] for p in entry['pieces']) for entry in group}
  if len(texts) == 1:
    return 'All drafts lead to the same text, with different numbers of calls.'
  return (
      'The texts differ although greedy decoding is exact: up to rounding, two'
      ' tokens were equally likely.'
  )
