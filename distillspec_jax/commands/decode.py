"""`distillspec decode`: text in, text out, in the order of the input.

Inputs of similar length are decoded together. What a row becomes depends on
its number, its text and the settings, not on the rows beside it. An interrupted
file goes on with the batches that an uninterrupted run would have decoded, the
same rows at the same places, so that rounding is the same, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import json as json_lib
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple, TextIO

import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.core import progress
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import requests as requests_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import stopping


class Answer(NamedTuple):
  """What one input became."""

  text: str
  tokens: list[int]
  statistics: dict[str, Any]


def decode(
    *texts: str,
    target: str,
    draft: str | None = None,
    file: str | None = None,
    field: str = 'inputs',
    prefix: str = '',
    out: str | None = None,
    json: bool = False,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    min_new_tokens: int = 0,
    block_length: int = 5,
    num_drafts: int = 1,
    draft_stop: tuple | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    verification: str = 'token',
    lenience: tuple | None = None,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    dtype: str | None = None,
    target_weights: str | None = None,
    draft_weights: str | None = None,
    vocabulary: str | None = None,
) -> None:
  """Prints or writes the target's answers, proposed by the draft if given.

  Args:
    *texts: inputs; without any, --file is read, or else standard input, one
      input a line, or else a prompt asks for them.
    target: the model that decides: a folder or name, as `load` takes it.
    draft: the model that proposes; without one it decodes autoregressively.
    file: inputs, one a line; of a .jsonl file the field that --field names.
      Empty lines are inputs, too.
    field: of each object in a .jsonl file.
    prefix: put before each input, e.g. 'translate English to German: '.
    out: file of JSON lines to write, with text, tokens and statistics; if it
      is there, it goes on after the last complete line. Local.
    json: prints JSON lines instead of plain text.
    batch_size: inputs that are decoded together.
    max_new_tokens: length of an answer at most, EOS included.
    min_new_tokens: tokens before EOS may come.
    block_length: tokens drafted before each call of the target.
    num_drafts: blocks drafted side by side, of which the target goes along with
      the one that it accepts farthest.
    draft_stop: ends a row's block sooner: confidence,0.4 after a place where
      the draft gave no token more than 0.4; entropy,2 after one where its
      entropy was above 2 nats.
    temperature: 0 is greedy.
    top_k: only the k most likely tokens; 0 allows all.
    top_p: only the most likely tokens that reach this probability together.
    verification: 'token', or 'block', which accepts no fewer tokens.
    lenience: accepts more, and is lossy: linear,0.5 or square,0.5 or
      exponential,0.5 or typical,0.09,0.3.
    stop: a string that ends an answer, which is given without it; may be given
      several times.
    seed: input i draws from the stream (seed, i); in [0, 2**32).
    dtype: what to compute in, 'float32' or 'bfloat16'; default: as saved.
    target_weights: 'int8_weight_only' or 'int8': a target near the saved one,
      in a quarter of the bytes.
    draft_weights: likewise; whatever they are, the target decides.
    vocabulary: where it is, if not beside the target.

  Raises:
    UserError: inputs, models or settings that do not fit.
  """
  if batch_size < 1:
    raise errors.UserError(
        f'batch_size is {batch_size}; it must be at least 1.'
    )
  stop = requests_lib.stop_strings(stop)
  requests_lib.check_numbers(
      1,
      max_new_tokens=max_new_tokens,
      min_new_tokens=min_new_tokens,
      seed=seed,
  )
  if draft is None:
    block_length = min(block_length, max_new_tokens)  # it has no effect
  settings = decoding_lib.Decoding(
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      block_length=block_length,
      num_drafts=num_drafts,
      draft_stop=draft_stop,
      verification=verification,
      lenience=lenience,
      max_new_tokens=max_new_tokens,
  )
  _check_text(prefix, '--prefix')
  inputs = _inputs(texts, file, field)
  if inputs is not None:
    inputs = [prefix + text for text in inputs]
  described = {
      'target': target,
      'draft': draft,
      **settings.describe(speculative=draft is not None, batch_size=batch_size),
      'min_new_tokens': min_new_tokens or None,
      'stop': list(stop) or None,
      'seed': seed,
      'dtype': dtype,
      'target_weights': target_weights,
      'draft_weights': draft_weights if draft is not None else None,
      'vocabulary': vocabulary,
  }
  del described['batch_size']  # has no influence on what comes out
  done = 0
  if out is not None:
    if inputs is None:
      raise errors.UserError(
          '--out needs inputs: give texts, --file, or lines on standard input.'
      )
    done = _resume(out, inputs, described)
    if done == len(inputs):
      print(f'{out} has all {done} answers already.', file=sys.stderr)
      return

  pair = _load(
      target, draft, dtype, (target_weights, draft_weights), vocabulary
  )
  decoder = _Decoder(
      *pair,
      settings,
      seed,
      min_new_tokens,
      stop,
      requests_lib.stop_automaton(pair[0], stop),
  )
  if inputs is None:
    _converse(decoder, prefix, described if json else None)
    return
  rows = [generation.tokenize(pair[0], text) for text in inputs]
  batches = list(batching.plan([len(row) for row in rows], batch_size, done))
  if out is not None or not sys.stdout.isatty():
    # Else the answers themselves are what a person watches.
    batches = progress.shown(batches, 'decoding')
  size = min(batch_size, len(rows))
  answers = _in_order(_answers(decoder, rows, batches, size), done)
  summary = _Summary(len(inputs) - done, draft is not None)
  try:
    with _open(out) as stream:
      for number, answer in answers:
        summary.add(answer)
        line = answer.text
        if out is not None or json:
          line = _line(number, inputs[number], answer, described)
        stream.write(line + '\n')
        stream.flush()
  except BrokenPipeError:  # whoever read has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return
  print(summary, file=sys.stderr)


def _inputs(
    texts: Sequence[str], file: str | None, field: str
) -> list[str] | None:
  """The inputs, or None where a person is to be asked."""
  if texts and file is not None:
    raise errors.UserError(
        f'Both texts and --file={file} are given; give one of them.'
    )
  if file is not None:
    found = _read(file, field)
    name = file
  elif texts and list(texts) != ['-']:
    for number, text in enumerate(texts, start=1):
      _check_text(text, f'Text {number} of the command line')
    return list(texts)
  elif texts or not sys.stdin.isatty():
    name = 'standard input'
    found = _lines(sys.stdin.buffer.read(), name)
  else:
    return None
  if not found:
    raise errors.UserError(f'{name} is empty; it must have at least one line.')
  return found


def _check_text(text: str, name: str) -> None:
  """Raises for halves of characters, which no UTF-8 can spell.

  Python makes them of bytes of the command line that are not UTF-8, and JSON
  may have them escaped.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise errors.UserError(
        f'{name} is not Unicode ({text[error.start]!a} at character'
        f' {error.start}); give it as UTF-8.'
    ) from error


def _read(file: str, field: str) -> list[str]:
  try:
    data = pathlib.Path(file).read_bytes()
  except OSError as error:
    raise errors.UserError(
        f'{file} cannot be read: {error.strerror}. Name a text file, or a'
        ' .jsonl file, with --file.'
    ) from error
  lines = _lines(data, file)
  if not file.endswith('.jsonl'):
    return lines
  found = []
  for number, line in enumerate(lines, start=1):
    try:
      value = json_lib.loads(line)
    except ValueError as error:
      raise errors.UserError(
          f'{file}, line {number} is not JSON: {error}.'
      ) from error
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
      raise errors.UserError(
          f'{file}, line {number} has no text in the field {field!r}; name the'
          ' field with --field.'
      )
    _check_text(value[field], f'{file}, line {number}, field {field!r}')
    found.append(value[field])
  return found


def _lines(data: bytes, name: str) -> list[str]:
  """The lines of UTF-8 text, without their ends."""
  lines = data.removeprefix(b'\xef\xbb\xbf').split(b'\n')
  if not lines[-1]:
    lines.pop()  # the last line's own end
  found = []
  for number, line in enumerate(lines, start=1):
    try:
      found.append(line.removesuffix(b'\r').decode())
    except UnicodeDecodeError as error:
      raise errors.UserError(
          f'{name}, line {number} is not UTF-8 ({error.reason} at byte'
          f' {error.start}); convert it, e.g. with iconv.'
      ) from error
  return found


def _load(
    target: str,
    draft: str | None,
    dtype: str | None,
    weights: tuple[str | None, str | None],
    vocabulary: str | None,
) -> tuple[loading.Model, loading.Model | None]:
  model = loading.load(
      target, dtype=dtype, weights=weights[0], vocabulary=vocabulary
  )
  if model.vocabulary is None:
    raise errors.UserError(
        f'{target} has no vocabulary, so it cannot read text; name one with'
        ' --vocabulary: a SentencePiece .model file, a tokenizer.json, or a'
        ' folder.'
    )
  if draft is None:
    return model, None
  proposer = loading.load(draft, dtype=dtype, weights=weights[1])
  loading.check_pair(model, proposer)
  return model, proposer


class _Decoder(NamedTuple):
  """A pair and how to decode with it."""

  target: loading.Model
  draft: loading.Model | None
  settings: decoding_lib.Decoding
  seed: int
  min_new_tokens: int
  stop: tuple[str, ...]
  automaton: stopping.Automaton | None

  def __call__(
      self, rows: Sequence[Sequence[int]], numbers: Sequence[int], width: int
  ) -> list[Answer]:
    """The answers to tokenised inputs with these numbers."""
    tokens, segments = batching.pad(rows, width)
    least = None
    if self.min_new_tokens:
      least = np.full(len(rows), self.min_new_tokens, np.int32)
    samples = generation.sample(
        self.target,
        self.draft,
        tokens,
        segments,
        np.array(numbers),
        self.settings,
        self.seed,
        controls_lib.Controls(min_new_tokens=least, stop=self.automaton),
    )
    return [_answer(self, samples, row) for row in range(len(rows))]


def _answers(
    decoder: _Decoder,
    rows: Sequence[Sequence[int]],
    batches: Iterable[batching.Batch],
    size: int,
) -> Iterator[tuple[int, Answer]]:
  """Number and answer of each input, batch by batch, each of `size` rows."""
  for batch in batches:
    # Rows that are wanting are filled with the last one, which ends when it
    # ends; one shape is one compiled program.
    more = [batch.numbers[-1]] * (size - len(batch.numbers))
    numbers = [*batch.numbers, *more]
    answers = decoder([rows[i] for i in numbers], numbers, batch.width)
    yield from zip(batch.numbers, answers)


def _answer(
    decoder: _Decoder, samples: samples_lib.Samples, row: int
) -> Answer:
  tokens = samples.tokens[row, : samples.lengths[row]]
  counts = samples.statistics
  reached_at = accepted_at = []  # there are no blocks without a draft
  if decoder.draft is not None:
    reached_at = counts.reached_at[row].tolist()
    accepted_at = counts.accepted_at[row].tolist()
  judged = sum(reached_at)
  blocks, emitted = int(counts.blocks[row]), int(counts.emitted[row])
  accepted = int(counts.accepted[row])
  statistics = {
      'blocks': blocks,
      'drafted': int(counts.drafted[row]),
      'accepted': accepted,
      'emitted': emitted,
      'reached_at': reached_at,
      'accepted_at': accepted_at,
      'acceptance_rate': accepted / judged if judged else None,
      'block_efficiency': emitted / blocks if blocks else None,
  }
  text = generation.detokenize(decoder.target.vocabulary, tokens)
  text = stopping.cut(text, decoder.stop)
  return Answer(text, tokens.tolist(), statistics)


def _in_order(
    answers: Iterator[tuple[int, Answer]], start: int
) -> Iterator[tuple[int, Answer]]:
  """Those from `start` on, each as soon as all before it have been given."""
  waiting: dict[int, Answer] = {}
  following = start
  for number, answer in answers:
    if number >= start:
      waiting[number] = answer
    while following in waiting:
      yield following, waiting.pop(following)
      following += 1


def _line(
    number: int, text: str, answer: Answer, settings: dict[str, Any]
) -> str:
  values = {
      'index': number,
      'input': text,
      'text': answer.text,
      'tokens': answer.tokens,
      'statistics': answer.statistics,
      'settings': settings,
  }
  return json_lib.dumps(values, ensure_ascii=False)


def _resume(name: str, inputs: Sequence[str], settings: dict[str, Any]) -> int:
  """How many answers are in the file; what follows them is cut off.

  Raises:
    UserError: they are to other inputs or of other settings.
  """
  if '://' in name:
    raise errors.UserError(
        f'--out is {name}, but lines are added to local files only; name one,'
        ' and copy it when it is done.'
    )
  out = pathlib.Path(name)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open('ab'):
      pass
    data = out.read_bytes()
  except OSError as error:
    raise errors.UserError(
        f'Nothing can be written to {out}: {error.strerror}. Name another file.'
    ) from error
  whole = data[: data.rfind(b'\n') + 1]
  for number, line in enumerate(whole.splitlines()):
    what = _difference(line, number, inputs, settings)
    if what is not None:
      raise errors.UserError(
          f'{out}, line {number + 1} {what}; remove the file, or name another.'
      )
  if len(whole) < len(data):
    os.truncate(out, len(whole))
  return whole.count(b'\n')


def _difference(
    line: bytes, number: int, inputs: Sequence[str], settings: dict[str, Any]
) -> str | None:
  """What a line is instead of the answer to input `number`, if it is not."""
  try:
    value = json_lib.loads(line)
    index, found, had = value['index'], value['input'], dict(value['settings'])
  except (ValueError, KeyError, TypeError):
    return 'is not an answer of decode'
  if number >= len(inputs) or (index, found) != (number, inputs[number]):
    return 'is an answer to another input'
  # A setting that a file does not have yet is None.
  names = [
      key for key in {**settings, **had} if had.get(key) != settings.get(key)
  ]
  return f'was made with another {" and ".join(names)}' if names else None


def _open(out: str | None) -> Any:
  """Where lines go to, as a context."""
  if out is not None:
    return open(out, 'a', encoding='utf-8', newline='\n')
  return _Borrowed(sys.stdout)


class _Borrowed:
  """A stream that is not closed."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def __enter__(self) -> TextIO:
    return self._stream

  def __exit__(self, *exception: Any) -> None:
    pass


class _Summary:
  """How many, how fast, and how well speculated."""

  def __init__(self, texts: int, is_speculative: bool):
    self._texts = texts
    self._is_speculative = is_speculative
    self._start = time.monotonic()
    self._tokens = self._blocks = 0

  def add(self, answer: Answer) -> None:
    self._tokens += answer.statistics['emitted']
    self._blocks += answer.statistics['blocks']

  def __str__(self) -> str:
    seconds = time.monotonic() - self._start
    text = (
        f'{self._texts:,} text{"s" * (self._texts != 1)},'
        f' {self._tokens:,} tokens in {seconds:,.1f} s with compiling'
        f' ({self._tokens / seconds:,.0f} tokens/s)'
    )
    if self._is_speculative:
      efficiency = self._tokens / max(self._blocks, 1)
      text += f', {efficiency:.2f} tokens a call of the target'
    return text


def _converse(
    decoder: _Decoder,
    prefix: str,
    described: dict[str, Any] | None,
) -> None:
  """Asks for inputs and prints answers until an empty line.

  Args:
    decoder: the pair, and how to decode.
    prefix: put before each input.
    described: settings for lines of JSON; None prints plain text.
  """
  print('An empty line ends.', file=sys.stderr)
  number = 0
  while True:
    try:
      text = _ask()
      _check_text(text, 'The text')
    except EOFError:
      print(file=sys.stderr)
      return
    except errors.UserError as error:
      print(error, file=sys.stderr)
      continue
    if not text:
      return
    text = prefix + text
    row = generation.tokenize(decoder.target, text)
    summary = _Summary(1, decoder.draft is not None)
    answer = decoder([row], [number], batching.width(len(row)))[0]
    summary.add(answer)
    line = answer.text
    if described is not None:
      line = _line(number, text, answer, described)
    print(line, flush=True)
    print(summary, file=sys.stderr)
    number += 1


def _ask() -> str:
  """A line that a person types."""
  if sys.stdout.isatty():
    return input('> ')
  # The answers go to a file, where the prompt would be in the way.
  print('> ', end='', file=sys.stderr, flush=True)
  return input()
