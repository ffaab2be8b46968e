"""What a task is: named splits of (input, label) texts, and their tokens.

`Task` has the settings that all tasks share, and says what a task of your own
needs. `data.tasks` lists those that come with the package.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import itertools
import os
from typing import Any

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.data import examples as examples_lib
from distillspec_jax.data import files
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import prepared
from distillspec_jax.data import vocabularies
from distillspec_jax.data import vocabulary_kinds

# Equal settings do not make equal tasks: the files may have changed.
settings = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)


@settings
class Task:
  """The settings of a task, and its texts.

  The simplest task of your own is a subclass that defines `splits` and `read`:

    @dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
    class backwards(tasks.Task):
      words: tuple[str, ...]
      name: str = 'backwards'
      splits = ('train', 'validation')

      def read(self, split):
        return ((word, word[::-1]) for word in self.words)

  Any object will do that has what training and evaluation use: `name`,
  `input_length`, `label_length`, `metrics` (functions), `vocabulary`,
  `examples(split)` (a sequence of `Example`), `skipped_lines(split)`,
  `with_vocabulary(vocabulary, model)` and `with_trained_vocabulary()`.

  Attributes:
    name: for results.
    input_length: maximum tokens of an input, S; the rest is cut off.
    label_length: maximum tokens of a label, T, EOS included.
    vocabulary: given as 'sentencepiece' (trained on the task), 'bytes', a
      .model file, a model folder, or a vocabulary; None: the model's (see
      `with_vocabulary`), or for a new model 'sentencepiece'. As an attribute
      the vocabulary itself, or None as long as there is no model.
    vocabulary_size: of 'sentencepiece'.
    max_examples: of each split.
    metrics: names of `data.metrics`, or functions (answers, labels) ->
      float64[n]. As an attribute always functions.
    prefix: put before each input, e.g. 'summarize: '.
    max_tokens_in_memory: a split with more is tokenised once, into files, see
      `data.prepared`.
    cache: folder of these files, local or gs://; default: that of the flag
      --data_cache, or one in ~/.cache.
    splits: names of the splits.
  """

  name: str
  input_length: int = 256
  label_length: int = 128
  vocabulary: vocabulary_kinds.Vocabulary | str | None = None
  vocabulary_size: int = 4096
  max_examples: int | None = None
  metrics: tuple[metrics_lib.Metric | str, ...] = ()
  prefix: str = ''
  max_tokens_in_memory: int = 2**24
  cache: str | None = None
  # Split -> examples, filled when first asked for.
  _examples: dict = dataclasses.field(
      default_factory=dict, init=False, repr=False
  )

  splits = ('train', 'validation', 'test')
  is_decoder_only = False

  def __post_init__(self):
    max_value = check.MAX_TOKENS
    check.at_least(
        0, owner=self.name, max_value=max_value, input_length=self.input_length
    )
    check.at_least(
        2,
        owner=self.name,
        hint='one of them is EOS',
        max_value=max_value,
        label_length=self.label_length,
    )
    if self.max_examples is not None:
      check.at_least(1, owner=self.name, max_examples=self.max_examples)
    check.at_least(
        0, owner=self.name, max_tokens_in_memory=self.max_tokens_in_memory
    )
    check.text(name=self.name, prefix=self.prefix)
    if self.is_decoder_only:
      self._set(input_length=0)
    self._set(metrics=metrics_lib.resolve(self.metrics))
    is_name = isinstance(self.vocabulary, str)
    if is_name and self.vocabulary == 'sentencepiece':
      self._set(vocabulary=self._train_vocabulary())
    elif self.vocabulary is not None:
      self._set(vocabulary=vocabularies.load(self.vocabulary))

  def _set(self, **fields: Any) -> None:
    """Sets fields while the frozen task is made."""
    for name, value in fields.items():
      object.__setattr__(self, name, value)

  def read(self, split: str) -> Iterator[files.Pair | None]:
    """(input, label) of each example, None for a line that is skipped."""
    raise NotImplementedError

  def texts(self, split: str) -> list[files.Pair]:
    """(input, label) of the examples of a split.

    Raises:
      UserError: there is no such split, or nothing is in it.
    """
    return [pair for pair in self.stream(split) if pair is not None]

  def stream(self, split: str) -> Iterator[files.Pair | None]:
    """As `texts`, one at a time, with None for a line that is skipped."""
    self.check_split(split)
    found = skipped = 0
    for pair in self.read(split):
      if pair is None:
        skipped += 1
        yield None
        continue
      _check_texts(pair, f'Example {found + skipped} of split {split!r}')
      found += 1
      yield '' if self.is_decoder_only else self.prefix + pair[0], pair[1]
      if found == self.max_examples:
        break
    if not found:
      self._refuse_empty(split, skipped)

  def raw(self, split: str) -> Iterator[Any]:
    """What `tokenise` takes, one example at a time; None for skipped lines."""
    if self.vocabulary is None:
      raise errors.UserError(
          f'Task {self.name!r} has no vocabulary yet; set its `vocabulary`,'
          ' or call with_vocabulary or with_trained_vocabulary.'
      )
    return self.stream(split)

  def tokenise(self, raw: list[Any]) -> list[examples_lib.Example | None]:
    """The tokens of some examples of `raw`."""
    inputs, labels = (
        iter(
            self.vocabulary.encode_all([x[side] for x in raw if x is not None])
        )
        for side in (0, 1)
    )
    eos = [vocabulary_kinds.EOS]
    input_end = [] if self.is_decoder_only else eos
    return [
        None
        if each is None
        else examples_lib.Example(
            np.array([*next(inputs), *input_end], np.int32),
            np.array([*next(labels), *eos], np.int32),
        )
        for each in raw
    ]

  def tokenised(self, split: str) -> Iterator[examples_lib.Example | None]:
    """The tokens of all examples, one at a time; None for skipped lines."""
    raw = self.raw(split)
    while chunk := list(itertools.islice(raw, prepared.CHUNK)):
      yield from self.tokenise(chunk)

  def examples(self, split: str) -> examples_lib.Examples:
    """The tokenised examples of a split that have a label, by number.

    Raises:
      UserError: as `texts`, or the task has no vocabulary yet.
    """
    if split not in self._examples:
      self._examples[split] = prepared.examples(self, split)
    return self._examples[split]

  def files(self, split: str) -> list[str]:
    """The files that a split is read from, as far as they are known.

    With their sizes and dates they tell whether what was prepared is still
    right; default: those that settings name.
    """
    del split
    values = [getattr(self, field.name) for field in dataclasses.fields(self)]
    names = itertools.chain.from_iterable(
        value if isinstance(value, tuple) else (value,) for value in values
    )
    return [x for x in names if isinstance(x, str) and os.path.isfile(x)]

  def code(self) -> list[Any]:
    """Functions and classes that the examples depend on, likewise."""
    return [type(self)]

  def skipped_lines(self, split: str) -> int:
    """Number of lines of a split that could not be read and were left out."""
    return self.examples(split).skipped_lines

  def with_vocabulary(self, vocabulary: Any | None, model: str) -> Task:
    """The task with a model's vocabulary, unless one was chosen for it.

    Args:
      vocabulary: the model's, None where it has none.
      model: its name, for the message.

    Raises:
      UserError: neither the task nor the model has one.
    """
    if self.vocabulary is not None:
      return self
    if vocabulary is None:
      raise errors.UserError(
          f'The model {model} comes without a vocabulary, and none was chosen'
          f' for task {self.name!r}. Set its `vocabulary` to the SentencePiece'
          ' .model file (or folder) that the model was trained with.'
      )
    return dataclasses.replace(self, vocabulary=vocabulary)

  def with_trained_vocabulary(self) -> Task:
    """The task with a SentencePiece vocabulary of its training split.

    One that was chosen stays.
    """
    if self.vocabulary is not None:
      return self
    return dataclasses.replace(self, vocabulary=self._train_vocabulary())

  def _train_vocabulary(self) -> vocabulary_kinds.Vocabulary:
    pairs = (pair for pair in self.stream('train') if pair is not None)
    texts = itertools.chain.from_iterable(pairs)
    return vocabularies.train_sentencepiece(texts, self.vocabulary_size)

  def check_split(self, split: str) -> None:
    """Raises UserError for a split that the task does not have."""
    if split not in self.splits:
      raise errors.UserError(
          f'Task {self.name!r} has no split {split!r}; it has'
          f' {", ".join(self.splits)}.{self._other_split(split)}'
      )

  def _other_split(self, split: str) -> str:
    """What to set where a split is missing, for the message."""
    del split
    return ''

  def _refuse_empty(self, split: str, skipped: int) -> None:
    lines = f'{skipped} unreadable line{"s" * (skipped != 1)}'
    why = f' but for {lines}' if skipped else ''
    raise errors.UserError(
        f'Split {split!r} of task {self.name!r} is empty{why}; there is'
        ' nothing to work on. Check its files.'
    )


def _check_texts(pair: Any, name: str) -> None:
  """Raises UserError unless it is an input and a label."""
  is_pair = isinstance(pair, tuple | list) and len(pair) == 2
  if not is_pair or not all(isinstance(text, str) for text in pair):
    raise errors.UserError(
        f'{name} is {check.shown(pair)}; give two texts, input and label.'
    )
  for text in pair:
    files.check_text(text, name)
