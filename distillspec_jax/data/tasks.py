"""Tasks: named splits of (input, label) texts, tokenised by seqio.

The functions here make tasks and are what gin files bind. A decoder-only
language model's task has empty inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.data import files
from distillspec_jax.data import standard_library
from distillspec_jax.data import vocabularies

Pairs = Callable[[], Iterator[files.Pair]]


class Example(NamedTuple):
  """A tokenised example, not yet cut to length."""

  inputs: np.ndarray  # int32[n]
  labels: np.ndarray  # int32[m], ends with EOS
  input_text: str
  label_text: str


class Task:
  """A task whose splits are tokenised once and kept in memory.

  Attributes:
    name: for results.
    input_length: tokens of an input at most, S; the rest is cut off.
    label_length: tokens of a label at most, T, EOS included.
    metrics: names of `data.metrics` that judge its answers.
    vocabulary: seqio's: the one that was chosen, else that of the model at hand
      (see `adopt`), else one that is trained on the training split.
  """

  def __init__(
      self,
      name: str,
      splits: dict[str, Pairs],
      *,
      input_length: int,
      label_length: int,
      vocabulary: str | None = None,
      vocabulary_size: int = 1024,
      metrics: tuple[str, ...] = (),
      decoder_only: bool = False,
      max_examples: int | None = None,
  ):
    if input_length < 0 or label_length < 2:
      raise errors.UserError(
          f'Task {name!r} has input_length {input_length} and label_length'
          f' {label_length}; they must be at least 0 and 2.'
      )
    self.name = name
    self.input_length = input_length
    self.label_length = label_length
    self.metrics = metrics
    self.decoder_only = decoder_only
    self.skipped = files.Skipped()
    self._splits = splits
    self._max_examples = max_examples
    self._vocabulary_spec = vocabulary
    self._vocabulary_size = vocabulary_size
    self._vocabulary: Any = None
    self._examples: dict[str, list[Example]] = {}
    self._skipped_lines: dict[str, int] = {}

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self._splits)

  @property
  def vocabulary(self) -> Any:
    if self._vocabulary is None:
      if self._vocabulary_spec in (None, 'sentencepiece'):
        texts = itertools.chain.from_iterable(self.texts('train'))
        self._vocabulary = vocabularies.train_sentencepiece(
            texts, self._vocabulary_size
        )
      else:
        self._vocabulary = vocabularies.load(self._vocabulary_spec)
    return self._vocabulary

  def adopt(self, vocabulary: Any | None, model: str) -> None:
    """Reads with a model's vocabulary, unless one was chosen for the task.

    Args:
      vocabulary: the model's, None where it has none.
      model: its name, for the message.

    Raises:
      UserError: neither the task nor the model has one.
    """
    if self._vocabulary_spec is not None:
      return
    if vocabulary is None:
      raise errors.UserError(
          f'The model {model} comes without a vocabulary, and none was chosen'
          f' for task {self.name!r}. Set its `vocabulary` to the SentencePiece'
          ' .model file (or folder) that the model was trained with.'
      )
    if self._vocabulary is not vocabulary:
      self._vocabulary, self._examples = vocabulary, {}

  def texts(self, split: str) -> list[files.Pair]:
    """(input, label) of a split.

    Raises:
      UserError: there is no such split, or nothing is in it.
    """
    if split not in self._splits:
      raise errors.UserError(
          f'Task {self.name!r} has no split {split!r}; it has'
          f' {", ".join(self._splits)}.'
      )
    before = self.skipped.lines
    pairs = list(itertools.islice(self._splits[split](), self._max_examples))
    self._skipped_lines[split] = self.skipped.lines - before
    if not pairs:
      raise errors.UserError(
          f'Split {split!r} of task {self.name!r} is empty; there is nothing to'
          ' work on. Check its files.'
      )
    return pairs

  def skipped_lines(self, split: str) -> int:
    """Lines of a split that could not be read and were left out."""
    self.examples(split)
    return self._skipped_lines[split]

  def examples(self, split: str) -> list[Example]:
    """The tokenised examples of a split that have at least one label token.

    Raises:
      UserError: no example is left.
    """
    if split not in self._examples:
      self._examples[split] = list(self._tokenise(split))
    return self._examples[split]

  def _tokenise(self, split: str) -> Iterator[Example]:
    pairs = self.texts(split)
    seqio = vocabularies.import_seqio()
    tf = vocabularies.import_tensorflow()

    def source(split, shuffle_files=False, seed=None):
      del split, shuffle_files, seed
      inputs, targets = zip(*pairs)
      return tf.data.Dataset.from_tensor_slices(
          {'inputs': list(inputs), 'targets': list(targets)}
      )

    features = {
        'inputs': seqio.Feature(self.vocabulary, add_eos=not self.decoder_only),
        'targets': seqio.Feature(self.vocabulary, add_eos=True),
    }
    task = seqio.Task(
        'distillspec_' + ''.join(c if c.isalnum() else '_' for c in self.name),
        source=seqio.FunctionDataSource(source, splits=[split]),
        preprocessors=[
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features=features,
    )
    with vocabularies.quiet():
      dataset = task.get_dataset(None, split, shuffle=False)
      found = list(dataset.as_numpy_iterator())
    for row in found:
      yield Example(
          row['inputs'].astype(np.int32),
          row['targets'].astype(np.int32),
          row['inputs_pretokenized'].decode(),
          row['targets_pretokenized'].decode(),
      )


def standard_library_code(
    *,
    input_length: int = 64,
    label_length: int = 48,
    vocabulary: str | None = None,
    vocabulary_size: int = 1024,
    max_examples: int | None = 40_000,
    form: str = 'continuation',
) -> Task:
  """The embedded task: the standard library's source, which is always there.

  Args:
    input_length: tokens of the text before.
    label_length: tokens of the text that follows, EOS included.
    vocabulary: 'sentencepiece' (trained on the task), 'bytes', a .model file or
      a model folder; None: the model's, 'sentencepiece' for a new model.
    vocabulary_size: of 'sentencepiece'.
    max_examples: of each split.
    form: 'continuation' (lines before -> next lines), 'docstrings' (signature
      -> first paragraph) or 'language_model' (text alone, decoder-only).

  Raises:
    UserError: unknown form.
  """
  per_token = 1.0 if vocabulary == 'bytes' else 2.5
  inputs = int(input_length * per_token)
  labels = int(label_length * per_token)
  forms: dict[str, Callable[[str], Iterator[files.Pair]]] = {
      'continuation': lambda split: standard_library.continuations(
          split, inputs, labels
      ),
      'docstrings': standard_library.docstrings,
      'language_model': lambda split: (
          ('', label)
          for _, label in standard_library.continuations(split, 0, labels)
      ),
  }
  if form not in forms:
    raise errors.UserError(
        f'form is {form!r}; it must be one of {", ".join(forms)}.'
    )
  language_model = form == 'language_model'
  return Task(
      f'python_{form}',
      {
          split: lambda split=split: forms[form](split)
          for split in standard_library.SPLITS
      },
      input_length=0 if language_model else input_length,
      label_length=label_length,
      vocabulary=vocabulary,
      vocabulary_size=vocabulary_size,
      max_examples=max_examples,
      decoder_only=language_model,
  )


def json_lines(
    *,
    train: str,
    validation: str,
    test: str | None = None,
    inputs: str | None = 'inputs',
    labels: str = 'labels',
    prefix: str = '',
    name: str = 'json_lines',
    input_length: int = 256,
    label_length: int = 128,
    vocabulary: str | None = None,
    vocabulary_size: int = 4096,
    on_bad_line: str = 'error',
    max_examples: int | None = None,
    metrics: tuple[str, ...] = (),
) -> Task:
  """A task of the user's own JSON-lines files, one object a line.

  Args:
    train: path of the training file.
    validation: path of the held-out file.
    test: path of the test file, if there is one.
    inputs: field of the input; None makes a language-modelling task.
    labels: field of what is to be said.
    prefix: put before each input, e.g. 'summarize: '.
    name: for results.
    input_length: tokens at most.
    label_length: tokens at most, EOS included.
    vocabulary: 'sentencepiece' (trained on the task), 'bytes', a .model file or
      a model folder; None: the model's, 'sentencepiece' for a new model.
    vocabulary_size: of 'sentencepiece'.
    on_bad_line: 'error', or 'skip' to leave it out and count it.
    max_examples: of each split.
    metrics: names of `data.metrics`.
  """
  skip = _skips(on_bad_line)
  task: Task

  def reader(path):
    return lambda: _prefixed(
        prefix, files.json_lines(path, inputs, labels, skip, task.skipped)
    )

  task = Task(
      name,
      _readers(reader, train=train, validation=validation, test=test),
      input_length=0 if inputs is None else input_length,
      label_length=label_length,
      vocabulary=vocabulary,
      vocabulary_size=vocabulary_size,
      max_examples=max_examples,
      metrics=metrics,
      decoder_only=inputs is None,
  )
  return task


def tab_separated(
    *,
    train: str,
    validation: str,
    test: str | None = None,
    prefix: str = '',
    name: str = 'tab_separated',
    input_length: int = 256,
    label_length: int = 128,
    vocabulary: str | None = None,
    vocabulary_size: int = 4096,
    on_bad_line: str = 'error',
    max_examples: int | None = None,
    metrics: tuple[str, ...] = (),
) -> Task:
  """A task of two-column TSV files; arguments as in `json_lines`."""
  skip = _skips(on_bad_line)
  task: Task

  def reader(path):
    return lambda: _prefixed(
        prefix, files.tab_separated(path, skip, task.skipped)
    )

  task = Task(
      name,
      _readers(reader, train=train, validation=validation, test=test),
      input_length=input_length,
      label_length=label_length,
      vocabulary=vocabulary,
      vocabulary_size=vocabulary_size,
      max_examples=max_examples,
      metrics=metrics,
  )
  return task


def parallel_text(
    *,
    train: tuple[str, str],
    validation: tuple[str, str],
    test: tuple[str, str] | None = None,
    prefix: str = '',
    name: str = 'parallel_text',
    input_length: int = 64,
    label_length: int = 64,
    vocabulary: str | None = None,
    vocabulary_size: int = 4096,
    max_examples: int | None = None,
    metrics: tuple[str, ...] = (),
) -> Task:
  """A task of parallel files, (source, translation), a sentence a line."""

  def reader(paths):
    return lambda: _prefixed(prefix, files.parallel(*paths))

  return Task(
      name,
      _readers(reader, train=train, validation=validation, test=test),
      input_length=input_length,
      label_length=label_length,
      vocabulary=vocabulary,
      vocabulary_size=vocabulary_size,
      max_examples=max_examples,
      metrics=metrics,
  )


def gsm8k(
    folder: str,
    *,
    input_length: int = 128,
    label_length: int = 128,
    vocabulary: str | None = None,
    vocabulary_size: int = 2048,
    validation_examples: int = 500,
) -> Task:
  """Grade-school mathematics: question -> reasoning that ends in '#### N'.

  Cobbe et al. 2021, https://arxiv.org/abs/2110.14168. The folder holds
  train.jsonl and test.jsonl as released; the last `validation_examples` of
  train.jsonl are held out.
  """
  root = pathlib.Path(folder)
  nothing = files.Skipped()

  def read(name):
    pairs = files.json_lines(root / name, 'question', 'answer', False, nothing)
    return list(_prefixed('question: ', pairs))

  return Task(
      'gsm8k',
      {
          'train': lambda: iter(read('train.jsonl')[:-validation_examples]),
          'validation': lambda: iter(
              read('train.jsonl')[-validation_examples:]
          ),
          'test': lambda: iter(read('test.jsonl')),
      },
      input_length=input_length,
      label_length=label_length,
      vocabulary=vocabulary,
      vocabulary_size=vocabulary_size,
      metrics=('final_number',),
  )


def english_german(
    folder: str,
    *,
    input_length: int = 40,
    label_length: int = 40,
    vocabulary: str | None = None,
    vocabulary_size: int = 2048,
) -> Task:
  """English image captions -> German, from Multi30k's parallel files.

  Elliott et al. 2016, https://arxiv.org/abs/1605.00459. The folder holds
  train, val and test_2016_flickr, each as .en and .de.
  """
  root = pathlib.Path(folder)
  pair = lambda name: (str(root / f'{name}.en'), str(root / f'{name}.de'))
  return parallel_text(
      train=pair('train'),
      validation=pair('val'),
      test=pair('test_2016_flickr'),
      prefix='translate English to German: ',
      name='english_german',
      input_length=input_length,
      label_length=label_length,
      vocabulary=vocabulary,
      vocabulary_size=vocabulary_size,
      metrics=('exact_match',),
  )


def registered(
    name: str,
    *,
    input_length: int,
    label_length: int,
    vocabulary: str,
    module: str | None = None,
    max_examples: int | None = None,
) -> Task:
  """A task of seqio's registry, e.g. one that reads TFDS.

  Its texts before tokenisation ('inputs', 'targets') are taken and tokenised
  with `vocabulary`.

  Args:
    name: in seqio's TaskRegistry.
    input_length: tokens at most.
    label_length: tokens at most, EOS included.
    vocabulary: 'bytes', a .model file or a model folder.
    module: imported first; registers the task.
    max_examples: of each split, which is held in memory.

  Raises:
    UserError: there is no such task.
  """
  import importlib

  seqio = vocabularies.import_seqio()
  if module is not None:
    importlib.import_module(module)
  if name not in seqio.TaskRegistry.names():
    raise errors.UserError(
        f'seqio has no task {name!r}; it has'
        f' {", ".join(sorted(seqio.TaskRegistry.names())) or "none"}. Name the'
        ' module that registers it.'
    )
  task = seqio.TaskRegistry.get(name)

  def reader(split):
    def read():
      dataset = task.get_dataset(None, split, shuffle=False)
      for row in dataset.as_numpy_iterator():
        yield tuple(
            row[f'{field}_pretokenized'].decode()
            for field in ('inputs', 'targets')
        )

    return read

  return Task(
      name,
      {split: reader(split) for split in task.splits},
      input_length=input_length,
      label_length=label_length,
      vocabulary=vocabulary,
      max_examples=max_examples,
  )


def _readers(reader: Callable[[Any], Pairs], **paths: Any) -> dict[str, Pairs]:
  return {
      split: reader(path) for split, path in paths.items() if path is not None
  }


def _prefixed(prefix: str, pairs: Iterable[files.Pair]) -> Iterator[files.Pair]:
  return ((prefix + inputs, labels) for inputs, labels in pairs)


def _skips(on_bad_line: str) -> bool:
  if on_bad_line not in ('error', 'skip'):
    raise errors.UserError(
        f"on_bad_line is {on_bad_line!r}; it must be 'error' or 'skip'."
    )
  return on_bad_line == 'skip'
