"""`distillspec decode`: text in, text out, in the order of the inputs.

Inputs of similar length are decoded together. An output depends on the number
of its input, the text and the settings, not on the inputs beside it. A file
that was interrupted resumes with the batches that an uninterrupted run would
have decoded, every input at the same place, so that rounding is the same, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import os
import sys
import time
from typing import Any, NamedTuple, TextIO

import jax.numpy as jnp

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.commands import answers as answers_lib
from distillspec_jax.commands import devices
from distillspec_jax.commands import flags
from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import progress
from distillspec_jax.core import sources
from distillspec_jax.core import types
from distillspec_jax.data import files
from distillspec_jax.distributed import locks
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import requests as requests_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import stopping

HELP = 'text in, text out: arguments, a file, standard input, or a prompt'
EXAMPLE = (
    'distillspec decode --target=flan-t5-large --draft=runs/draft'
    " 'Who are you?'"
)
_GREEDY = decoding_lib.Decoding()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Where inputs come from.

  Attributes:
    file: inputs, one per line; of a .jsonl file the field that --field names.
      Empty lines are inputs, too.
    field: of each object in a .jsonl file.
    prefix: put before each input, e.g. 'translate English to German: '.
  """

  file: str | None = None
  field: str = 'inputs'
  prefix: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """Where answers go.

  Attributes:
    out: local file of JSON lines to write, with text, tokens and statistics;
      an existing one is resumed after its last complete line.
    json: prints JSON lines instead of plain text.
  """

  out: str | None = None
  json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
  """How the models are loaded.

  Attributes:
    dtype: of the computation, 'float32' or 'bfloat16'; default: as saved.
    target_weights: 'int8_weight_only' or 'int8': a target close to the saved
      one, in a quarter of the memory.
    draft_weights: likewise; whatever they are, the target decides.
    vocabulary: where it is, if not with the target.
  """

  dtype: str | None = None
  target_weights: str | None = None
  draft_weights: str | None = None
  vocabulary: str | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
  flags.add(parser, decode, flags.DECODING)
  devices.add_mesh_flag(parser)


def run(options: argparse.Namespace) -> None:
  with devices.using(options):
    flags.call(decode, options, flags.DECODING)


def decode(
    *texts: str,
    target: str,
    draft: str | None = None,
    source: Source = Source(),
    output: Output = Output(),
    decoding: decoding_lib.Decoding = _GREEDY,
    min_new_tokens: int = 0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    batch_size: int = 8,
    models: Models = Models(),
) -> None:
  """Prints or writes the target's answers, faster where a draft is given.

  Args:
    *texts: inputs; without any, --file is read, or else standard input, one
      input per line, or else a prompt asks for them.
    target: the model that decides: a folder or name, as `load` takes it.
    draft: the model that proposes; without one it decodes autoregressively.
    source: of the inputs.
    output: for the answers.
    decoding: settings that all inputs share.
    min_new_tokens: tokens before EOS is allowed.
    stop: a string that ends an answer, which does not contain it; may be given
      several times.
    seed: input i draws from the stream (seed, i); in [0, 2**32).
    batch_size: inputs that are decoded together.
    models: how they are loaded.

  Raises:
    UserError: inputs, models or settings that do not fit.
  """
  check.at_least(1, max_value=check.MAX_ROWS, batch_size=batch_size)
  check.seed(seed=seed)
  stop = requests_lib.stop_strings(stop)
  numbers: dict[str, Any] = {
      'max_new_tokens': decoding.output_length,
      'min_new_tokens': min_new_tokens,
      'seed': seed,
  }
  requests_lib.check_numbers(1, **numbers)
  if draft is not None:
    decoding.check_speculative()
  _check_used(draft, source, decoding, models)
  files.check_text(source.prefix, '--prefix')
  inputs = _inputs(texts, source)
  settings = {
      'target': target,
      'draft': draft,
      'target_model': model_folder.identity(target),
      'draft_model': model_folder.identity(draft),
      **decoding.describe(speculative=draft is not None, batch_size=batch_size),
      'min_new_tokens': min_new_tokens or None,
      'stop': list(stop) or None,
      'seed': seed,
      **dataclasses.asdict(models),
  }
  del settings['batch_size']  # does not change what is decoded
  if draft is None:
    settings['draft_weights'] = None
  if inputs is None and output.out is not None:
    raise errors.UserError(
        '--out needs inputs: give texts, --file, or lines on standard input.'
    )
  with contextlib.ExitStack() as stack:
    done = 0
    if output.out is not None:
      path = answers_lib.check_writable(output.out)
      if path.is_file():  # no device or pipe
        stack.enter_context(locks.held(f'{path}.lock'))
      done = answers_lib.resume(output.out, inputs, settings)
      if done == len(inputs):
        print(f'{output.out} already has all {done} answers.', file=sys.stderr)
        return
    pair = _load(target, draft, models)
    if draft is not None:
      decoding.check_speculative(pair[1].config, draft)
    requests = requests_lib.check(pair[0], 1, **numbers, stop=stop)
    decoder = _Decoder(*pair, decoding, requests, stop)
    if inputs is None:
      _converse(decoder, source.prefix, settings if output.json else None)
    else:
      _decode_all(decoder, inputs, done, batch_size, output, settings)


def _check_used(
    draft: str | None,
    source: Source,
    decoding: decoding_lib.Decoding,
    models: Models,
) -> None:
  """Raises UserError for what is given and would not be used."""
  drafting, plain = decoding.drafting, _GREEDY.drafting
  of_drafts = {
      'block_length': drafting.length != plain.length,
      'paths': drafting.paths != plain.paths,
      'adaptive': drafting.adaptive is not None,
      'parallel': drafting.parallel,
      'verifier': decoding.verifier != _GREEDY.verifier,
      'draft_weights': models.draft_weights is not None,
  }
  given = [name for name, is_given in of_drafts.items() if is_given]
  if draft is None and given:
    raise errors.UserError(
        f'--{given[0]} is given, but there is no draft; name one with --draft,'
        ' or leave it out.'
    )
  if source.file is None and source.field != Source().field:
    raise errors.UserError(
        f'--field={source.field} is given, but no --file whose field it could'
        ' be; name a .jsonl file, or leave it out.'
    )


def _inputs(texts: Sequence[str], source: Source) -> list[str] | None:
  """The inputs, or None where a person is to be asked."""
  if texts and source.file is not None:
    raise errors.UserError(
        f'Both texts and --file={source.file} are given; give one of them.'
    )
  if source.file is not None:
    name = source.file
    inputs = list(files.texts(name, source.field))
  elif texts and list(texts) != ['-']:
    for number, text in enumerate(texts, start=1):
      files.check_text(text, f'Text {number} of the command line')
    name, inputs = 'The command line', list(texts)
  elif texts or not sys.stdin.isatty():
    name = 'standard input'
    inputs = list(files.lines(sys.stdin.buffer, name))
  else:
    return None
  if not inputs:
    raise errors.UserError(f'{name} is empty; it must have at least one line.')
  return [source.prefix + text for text in inputs]


def _load(
    target: str, draft: str | None, models: Models
) -> tuple[loading.Loaded, loading.Loaded | None]:
  loaded = loading.load(
      target,
      dtype=models.dtype,
      weights=models.target_weights,
      vocabulary=models.vocabulary,
  )
  if loaded.vocabulary is None:
    raise errors.UserError(
        f'{target} has no vocabulary, so it cannot read text; name one with'
        ' --vocabulary: a SentencePiece .model file, a tokenizer.json, or a'
        ' folder.'
    )
  if draft is None:
    return loaded, None
  proposer = loading.load(
      draft, dtype=models.dtype, weights=models.draft_weights
  )
  loading.check_pair(loaded, proposer)
  return loaded, proposer


class _Decoder(NamedTuple):
  """A pair, and how to decode with it."""

  target: loading.Loaded
  draft: loading.Loaded | None
  decoding: decoding_lib.Decoding
  requests: requests_lib.Requests
  stop: tuple[str, ...]

  def tokenize(self, text: str) -> list[int]:
    return generation.tokenize(self.target, text)

  def answer(
      self, tokens: Sequence[Sequence[int]], numbers: Sequence[int], width: int
  ) -> list[answers_lib.Answer]:
    """The answers to tokenised inputs with these numbers."""
    samples = generation.sample(
        self.target,
        self.draft,
        types.Prompt(*map(jnp.asarray, batching.pad(tokens, width))),
        numbers,
        self.decoding,
        self.requests.seed,
        self.requests.controls(numbers),
        self.requests.stop,
    )
    return [self._answer(samples, row) for row in range(len(tokens))]

  def _answer(
      self, samples: samples_lib.Samples, row: int
  ) -> answers_lib.Answer:
    tokens = samples.tokens[row, : samples.lengths[row]].tolist()
    counts = samples.statistics
    statistics: dict[str, Any] = {
        name: int(getattr(counts, name)[row])
        for name in ('blocks', 'drafted', 'accepted', 'emitted')
    }
    for name in ('reached_at', 'accepted_at'):  # of no block without a draft
      count = getattr(counts, name)[row].tolist()
      statistics[name] = [] if self.draft is None else count
    judged, blocks = sum(statistics['reached_at']), statistics['blocks']
    statistics |= {
        'acceptance_rate': statistics['accepted'] / judged if judged else None,
        'block_efficiency': statistics['emitted'] / blocks if blocks else None,
    }
    text = generation.detokenize(self.target.vocabulary, tokens)
    text = stopping.cut(text, self.stop)
    return answers_lib.Answer(text, tokens, statistics)


def _decode_all(
    decoder: _Decoder,
    inputs: Sequence[str],
    done: int,
    batch_size: int,
    output: Output,
    settings: dict[str, Any],
) -> None:
  """Writes the answers to the inputs from number `done` on."""
  tokens = [decoder.tokenize(text) for text in inputs]
  lengths = [len(row) for row in tokens]
  batches: Iterable[batching.Batch]
  batches = list(batching.plan(lengths, batch_size, done))
  if output.out is not None or not sys.stdout.isatty():
    # Otherwise the answers themselves show the progress.
    batches = progress.shown(batches, 'decoding')
  size = min(batch_size, len(inputs))
  summary = _Summary(decoder.draft is not None)
  try:
    with _open(output.out) as stream:
      answers = _answers(decoder, tokens, batches, size)
      for number, answer in _in_order(answers, done):
        summary.add(answer)
        line = answer.text
        if output.out is not None or output.json:
          line = answers_lib.line(number, inputs[number], answer, settings)
        stream.write(line + '\n')
        stream.flush()
  except BrokenPipeError:  # the reader has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return
  print(summary, file=sys.stderr)


def _open(out: str | None) -> contextlib.AbstractContextManager[TextIO]:
  if out is None:
    return contextlib.nullcontext(sys.stdout)
  return open(sources.expanded(out), 'a', encoding='utf-8', newline='\n')


def _answers(
    decoder: _Decoder,
    tokens: Sequence[Sequence[int]],
    batches: Iterable[batching.Batch],
    size: int,
) -> Iterator[tuple[int, answers_lib.Answer]]:
  """Number and answer of each input, batch by batch."""
  for batch in batches:
    # One shape is one compiled program, so the last input, which ends when it
    # ends, fills up a batch.
    fill = [batch.numbers[-1]] * (size - len(batch.numbers))
    numbers = [*batch.numbers, *fill]
    answers = decoder.answer([tokens[i] for i in numbers], numbers, batch.width)
    yield from zip(batch.numbers, answers)


def _in_order(
    answers: Iterable[tuple[int, answers_lib.Answer]], start: int
) -> Iterator[tuple[int, answers_lib.Answer]]:
  """Those from `start` on, each as soon as all before it have been given."""
  waiting: dict[int, answers_lib.Answer] = {}
  following = start
  for number, answer in answers:
    if number >= start:
      waiting[number] = answer
    while following in waiting:
      yield following, waiting.pop(following)
      following += 1


class _Summary:
  """How many, how fast, and how well speculation worked."""

  def __init__(self, is_speculative: bool):
    self._is_speculative = is_speculative
    self._start = time.monotonic()
    self._texts = self._tokens = self._blocks = 0

  def add(self, answer: answers_lib.Answer) -> None:
    self._texts += 1
    self._tokens += answer.statistics['emitted']
    self._blocks += answer.statistics['blocks']

  def __str__(self) -> str:
    seconds = time.monotonic() - self._start
    text = (
        f'{self._texts:,} text{"s" * (self._texts != 1)},'
        f' {self._tokens:,} tokens in {seconds:,.1f} s, compilation included'
        f' ({self._tokens / seconds:,.0f} tokens/s)'
    )
    if self._is_speculative:
      efficiency = self._tokens / max(self._blocks, 1)
      text += f', {efficiency:.2f} tokens per target call'
    return text


def _converse(
    decoder: _Decoder, prefix: str, settings: dict[str, Any] | None
) -> None:
  """Asks for inputs and prints answers until an empty line.

  Args:
    decoder: the pair, and how to decode.
    prefix: put before each input.
    settings: for JSON lines; None prints plain text.
  """
  print('An empty line ends.', file=sys.stderr)
  number = 0
  while True:
    try:
      text = _ask()
      files.check_text(text, 'The text')
    except EOFError:
      print(file=sys.stderr)
      return
    except errors.UserError as error:
      print(error, file=sys.stderr)
      continue
    if not text:
      return
    text = prefix + text
    tokens = decoder.tokenize(text)
    summary = _Summary(decoder.draft is not None)
    (answer,) = decoder.answer([tokens], [number], batching.width(len(tokens)))
    summary.add(answer)
    line = answer.text
    if settings is not None:
      line = answers_lib.line(number, text, answer, settings)
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
