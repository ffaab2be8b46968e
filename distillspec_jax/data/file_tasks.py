"""Tasks of the user's own files: JSON lines, TSV, parallel and plain text.

Files are local or remote, compressed where their name ends in .gz, and may be
several, given as a tuple or a pattern such as 'train-*.jsonl.gz'.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from typing import Any

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.data import examples as examples_lib
from distillspec_jax.data import files
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import task
from distillspec_jax.data import vocabulary_kinds

settings = task.settings
Paths = str | tuple[str, ...]


@settings
class FileTask(task.Task):
  """A task whose splits are files.

  Attributes:
    on_bad_line: 'error', or 'skip' to leave the line out and count it.
  """

  on_bad_line: str = 'error'

  def __post_init__(self):
    check.one_of(('error', 'skip'), on_bad_line=self.on_bad_line)
    super().__post_init__()

  @property
  def splits(self) -> tuple[str, ...]:
    # Splits that the user names have a field, which is None for no file.
    return tuple(s for s in task.Task.splits if getattr(self, s, s) is not None)

  @property
  def _skip(self) -> bool:
    return self.on_bad_line == 'skip'

  def files(self, split: str) -> list[str]:
    """The files that a split's setting names."""
    return files.matching(getattr(self, split))


@settings
class json_lines(FileTask):
  """A task of the user's own JSON-lines files, one object per line.

  Attributes:
    train: the training file or files.
    validation: the held-out ones.
    test: the test ones, if there are any.
    inputs: field of the input; None makes a language-modelling task.
    labels: field of the text that the model learns to emit.
  """

  train: Paths
  validation: Paths
  test: Paths | None = None
  inputs: str | None = 'inputs'
  labels: str = 'labels'
  name: str = 'json_lines'

  @property
  def is_decoder_only(self) -> bool:
    return self.inputs is None

  def __post_init__(self):
    check.text(labels=self.labels)
    if self.inputs is not None:
      check.text(inputs=self.inputs)
    super().__post_init__()

  def read(self, split: str) -> Iterator[files.Pair | None]:
    for path in self.files(split):
      yield from files.json_lines(
          path, self.inputs, self.labels, self._skip, 'tasks.json_lines'
      )


@settings
class tab_separated(FileTask):
  """A task of two-column TSV files, input and label."""

  train: Paths
  validation: Paths
  test: Paths | None = None
  name: str = 'tab_separated'

  def read(self, split: str) -> Iterator[files.Pair | None]:
    for path in self.files(split):
      yield from files.tab_separated(path, self._skip)


@settings
class parallel_text(FileTask):
  """A task of pairs of files (source, translation), one sentence per line.

  Either of a pair may be a pattern that names several files; those of the
  translation are then as many, in the same order.
  """

  train: tuple[str, str]
  validation: tuple[str, str]
  test: tuple[str, str] | None = None
  name: str = 'parallel_text'
  input_length: int = 64
  label_length: int = 64

  def _sides(self, split: str) -> tuple[list[str], list[str]]:
    paths = getattr(self, split)
    if not isinstance(paths, tuple | list) or len(paths) != 2:
      raise errors.UserError(
          f'{self.name}.{split} is {paths!r}; give two files, as in'
          " ('train.en', 'train.de')."
      )
    sources, translations = map(files.matching, paths)
    if len(sources) != len(translations):
      raise errors.UserError(
          f'{paths[0]} names {len(sources)} files and {paths[1]}'
          f' {len(translations)}; there must be one for each.'
      )
    return sources, translations

  def files(self, split: str) -> list[str]:
    return [path for side in self._sides(split) for path in side]

  def read(self, split: str) -> Iterator[files.Pair | None]:
    for pair in zip(*self._sides(split)):
      yield from files.parallel(*pair, self._skip)


@settings
class plain_text(FileTask):
  """A language-modelling task of text files; there are no inputs.

  Attributes:
    train: the training file or files.
    validation: the held-out ones.
    test: the test ones, if there are any.
    document: 'line': each line is an example, and what is longer than
      `label_length` is cut off; or 'file': each file is cut into consecutive
      examples of `label_length` tokens, of which the last ends with EOS.
  """

  train: Paths
  validation: Paths
  test: Paths | None = None
  document: str = 'line'
  name: str = 'plain_text'
  is_decoder_only = True

  def __post_init__(self):
    check.one_of(('line', 'file'), document=self.document)
    super().__post_init__()

  def read(self, split: str) -> Iterator[files.Pair | None]:
    for path in self.files(split):
      yield from self._read_file(path)

  def _read_file(self, path: str) -> Iterator[files.Pair | None]:
    is_file = self.document == 'file'
    for line in files.plain_text(path, self._skip, keep_blank=is_file):
      yield None if line is None else ('', line + '\n' * is_file)

  def raw(self, split: str) -> Iterator[Any]:
    texts = super().raw(split)  # refuses a missing vocabulary
    return texts if self.document == 'line' else self._chunks(split)

  def tokenise(self, raw: list[Any]) -> list[examples_lib.Example | None]:
    return super().tokenise(raw) if self.document == 'line' else raw

  def _chunks(self, split: str) -> Iterator[examples_lib.Example | None]:
    """The tokens of each file, `label_length` at a time, and EOS."""
    self.check_split(split)
    count = 0
    for path in self.files(split):
      for tokens in self._cut(path):
        yield tokens and examples_lib.Example(
            np.zeros(0, np.int32), np.array(tokens, np.int32)
        )
        count += tokens is not None
        if count == self.max_examples:
          return
    if not count:
      self._refuse_empty(split, 0)

  def _cut(self, path: str) -> Iterator[list[int] | None]:
    size, tokens = self.label_length, []
    for pair in self._read_file(path):
      if pair is None:
        yield None
        continue
      tokens += self.vocabulary.encode(pair[1])
      while len(tokens) > size:
        yield tokens[:size]
        del tokens[:size]
    if tokens:
      ended = [*tokens, vocabulary_kinds.EOS]
      yield ended[:size]  # without EOS where there is no room for it


@settings
class gsm8k(FileTask):
  """Grade-school mathematics: question -> reasoning that ends in '#### N'.

  Cobbe et al. 2021, https://arxiv.org/abs/2110.14168.

  Attributes:
    folder: with train.jsonl and test.jsonl as released.
    validation_examples: the last ones of train.jsonl, which are held out.
  """

  folder: str = dataclasses.field(kw_only=False)
  validation_examples: int = 500
  name: str = 'gsm8k'
  input_length: int = 128
  vocabulary_size: int = 2048
  metrics: tuple[metrics_lib.Metric | str, ...] = ('final_number',)
  prefix: str = 'question: '

  def __post_init__(self):
    check.at_least(1, validation_examples=self.validation_examples)
    super().__post_init__()

  def files(self, split: str) -> list[str]:
    name = 'test' if split == 'test' else 'train'
    return [f'{self.folder}/{name}.jsonl']

  def read(self, split: str) -> Iterator[files.Pair | None]:
    (path,) = self.files(split)
    pairs = list(files.json_lines(path, 'question', 'answer', self._skip))
    held_out = -self.validation_examples
    parts = {'train': slice(held_out), 'validation': slice(held_out, None)}
    return iter(pairs[parts.get(split, slice(None))])


@settings
class english_german(FileTask):
  """English image captions -> German, from Multi30k's parallel files.

  Elliott et al. 2016, https://arxiv.org/abs/1605.00459.

  Attributes:
    folder: with train, val and test_2016_flickr, each as .en and .de.
  """

  folder: str = dataclasses.field(kw_only=False)
  name: str = 'english_german'
  input_length: int = 40
  label_length: int = 40
  vocabulary_size: int = 2048
  metrics: tuple[metrics_lib.Metric | str, ...] = ('bleu', 'chrf')
  prefix: str = 'translate English to German: '

  def files(self, split: str) -> list[str]:
    names = {'validation': 'val', 'test': 'test_2016_flickr'}
    path = f'{self.folder}/{names.get(split, split)}'
    return [f'{path}.en', f'{path}.de']

  def read(self, split: str) -> Iterator[files.Pair | None]:
    return files.parallel(*self.files(split), self._skip)
