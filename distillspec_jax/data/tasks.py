"""Tasks: named splits of (input, label) texts, tokenised once.

Python code and gin files call these classes like functions, so they are named
like functions (as PEP 8 has it):

  task = tasks.json_lines(train='train.jsonl', validation='validation.jsonl')

`Task` has the settings that all of them share, and says what a task of your own
needs. The task of a decoder-only language model has empty inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import importlib
import itertools
from typing import Any, NamedTuple

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.data import files
from distillspec_jax.data import lazy_imports
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import standard_library
from distillspec_jax.data import vocabularies
from distillspec_jax.data import vocabulary_kinds

# Equal settings do not make equal tasks: the files may have changed.
_settings = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)


class Example(NamedTuple):
  """A tokenised example, not yet cut to length."""

  inputs: np.ndarray  # int32[n], ends with EOS unless decoder-only
  labels: np.ndarray  # int32[m], ends with EOS


@_settings
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
  `examples(split)`, `skipped_lines(split)`, `with_vocabulary(vocabulary,
  model)` and `with_trained_vocabulary()`.

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
  # Split -> examples and skipped lines, filled when first asked for.
  _tokenised: dict = dataclasses.field(
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
    return self._texts(split)[0]

  def examples(self, split: str) -> list[Example]:
    """The tokenised examples of a split.

    Raises:
      UserError: as `texts`, or the task has no vocabulary yet.
    """
    return self._tokenise(split)[0]

  def skipped_lines(self, split: str) -> int:
    """Number of lines of a split that could not be read and were left out."""
    return self._tokenise(split)[1]

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
    texts = itertools.chain.from_iterable(self.texts('train'))
    return vocabularies.train_sentencepiece(texts, self.vocabulary_size)

  def _texts(self, split: str) -> tuple[list[files.Pair], int]:
    """The texts of a split, and the number of skipped lines."""
    if split not in self.splits:
      raise errors.UserError(
          f'Task {self.name!r} has no split {split!r}; it has'
          f' {", ".join(self.splits)}.'
      )
    pairs, skipped = [], 0
    for pair in self.read(split):
      if pair is None:
        skipped += 1
        continue
      _check_texts(pair, f'Example {len(pairs) + skipped} of split {split!r}')
      inputs = '' if self.is_decoder_only else self.prefix + pair[0]
      pairs.append((inputs, pair[1]))
      if len(pairs) == self.max_examples:
        break
    if not pairs:
      lines = f'{skipped} unreadable line{"s" * (skipped != 1)}'
      why = f' but for {lines}' if skipped else ''
      raise errors.UserError(
          f'Split {split!r} of task {self.name!r} is empty{why}; there is'
          ' nothing to work on. Check its files.'
      )
    return pairs, skipped

  def _tokenise(self, split: str) -> tuple[list[Example], int]:
    if split not in self._tokenised:
      if self.vocabulary is None:
        raise errors.UserError(
            f'Task {self.name!r} has no vocabulary yet; set its `vocabulary`,'
            ' or call with_vocabulary or with_trained_vocabulary.'
        )
      pairs, skipped = self._texts(split)
      encode, eos = self.vocabulary.encode, [vocabulary_kinds.EOS]
      input_end = [] if self.is_decoder_only else eos
      examples = [
          Example(
              np.array([*encode(inputs), *input_end], np.int32),
              np.array([*encode(label), *eos], np.int32),
          )
          for inputs, label in pairs
      ]
      self._tokenised[split] = examples, skipped
    return self._tokenised[split]


def _check_texts(pair: Any, name: str) -> None:
  """Raises UserError unless it is an input and a label."""
  is_pair = isinstance(pair, tuple | list) and len(pair) == 2
  if not is_pair or not all(isinstance(text, str) for text in pair):
    raise errors.UserError(
        f'{name} is {check.shown(pair)}; give two texts, input and label.'
    )
  for text in pair:
    files.check_text(text, name)


@_settings
class in_memory(Task):
  """A task of texts that the program has already.

  Attributes:
    pairs: split -> its (input, label) texts.
  """

  pairs: Mapping[str, Sequence[files.Pair]]
  name: str = 'in_memory'

  def __post_init__(self):
    if not isinstance(self.pairs, Mapping):
      raise errors.UserError(
          f'pairs is {check.shown(self.pairs)}; give a dictionary, split ->'
          ' pairs of texts.'
      )
    super().__post_init__()

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.pairs)

  def read(self, split: str) -> Iterator[files.Pair]:
    return iter(self.pairs[split])


@_settings
class standard_library_code(Task):
  """The embedded task: the standard library's source, which is always there.

  Attributes:
    form: 'continuation' (lines -> the next lines), 'docstrings' (signature ->
      first paragraph) or 'language_model' (text alone, decoder-only).
  """

  form: str = 'continuation'
  name: str = ''  # python_FORM
  input_length: int = 64
  label_length: int = 48
  vocabulary_size: int = 1024
  metrics: tuple[metrics_lib.Metric | str, ...] = ('edit_similarity',)
  max_examples: int | None = 40_000

  splits = standard_library.SPLITS

  def __post_init__(self):
    forms = ('continuation', 'docstrings', 'language_model')
    check.one_of(forms, form=self.form)
    self._set(name=self.name or f'python_{self.form}')
    super().__post_init__()

  @property
  def is_decoder_only(self) -> bool:
    return self.form == 'language_model'

  def read(self, split: str) -> Iterator[files.Pair]:
    if self.form == 'docstrings':
      return standard_library.docstrings(split)
    is_bytes = isinstance(self.vocabulary, vocabulary_kinds.Bytes)
    characters = 1.0 if is_bytes else 2.5  # per token, roughly
    return standard_library.continuations(
        split,
        int(self.input_length * characters),
        int(self.label_length * characters),
    )

  def source_file(self, split: str, text: str) -> str | None:
    """The module that an input comes from, as far as that can be found."""
    return standard_library.file_of(split, text)


@_settings
class _FileTask(Task):
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
    return tuple(s for s in Task.splits if getattr(self, s, s) is not None)

  @property
  def _skip(self) -> bool:
    return self.on_bad_line == 'skip'


@_settings
class json_lines(_FileTask):
  """A task of the user's own JSON-lines files, one object per line.

  Attributes:
    train: path of the training file.
    validation: path of the held-out file.
    test: path of the test file, if there is one.
    inputs: field of the input; None makes a language-modelling task.
    labels: field of the text that the model learns to emit.
  """

  train: str
  validation: str
  test: str | None = None
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
    path = getattr(self, split)
    return files.json_lines(
        path, self.inputs, self.labels, self._skip, 'tasks.json_lines'
    )


@_settings
class tab_separated(_FileTask):
  """A task of two-column TSV files, input and label."""

  train: str
  validation: str
  test: str | None = None
  name: str = 'tab_separated'

  def read(self, split: str) -> Iterator[files.Pair | None]:
    return files.tab_separated(getattr(self, split), self._skip)


@_settings
class parallel_text(_FileTask):
  """A task of pairs of files (source, translation), one sentence per line."""

  train: tuple[str, str]
  validation: tuple[str, str]
  test: tuple[str, str] | None = None
  name: str = 'parallel_text'
  input_length: int = 64
  label_length: int = 64

  def read(self, split: str) -> Iterator[files.Pair | None]:
    paths = getattr(self, split)
    if not isinstance(paths, tuple | list) or len(paths) != 2:
      raise errors.UserError(
          f'{self.name}.{split} is {paths!r}; give two files, as in'
          " ('train.en', 'train.de')."
      )
    return files.parallel(*paths, self._skip)


@_settings
class gsm8k(_FileTask):
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

  def read(self, split: str) -> Iterator[files.Pair | None]:
    name = 'test' if split == 'test' else 'train'
    path = f'{self.folder}/{name}.jsonl'
    pairs = list(files.json_lines(path, 'question', 'answer', self._skip))
    held_out = -self.validation_examples
    parts = {'train': slice(held_out), 'validation': slice(held_out, None)}
    return iter(pairs[parts.get(split, slice(None))])


@_settings
class english_german(_FileTask):
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
  metrics: tuple[metrics_lib.Metric | str, ...] = ('exact_match',)
  prefix: str = 'translate English to German: '

  def read(self, split: str) -> Iterator[files.Pair | None]:
    names = {'validation': 'val', 'test': 'test_2016_flickr'}
    path = f'{self.folder}/{names.get(split, split)}'
    return files.parallel(f'{path}.en', f'{path}.de', self._skip)


@_settings
class registered(Task):
  """A task of seqio's registry, e.g. one that reads TFDS.

  Its texts before tokenisation ('inputs', 'targets') are read, and tokenised
  with `vocabulary`; None is that of the registered task.

  Attributes:
    name: in seqio's TaskRegistry.
    module: imported first; registers the task.
  """

  name: str = dataclasses.field(kw_only=False)
  module: str | None = None

  def __post_init__(self):
    seqio = lazy_imports.import_seqio()
    if self.module is not None:
      importlib.import_module(self.module)
    names = sorted(seqio.TaskRegistry.names())
    if self.name not in names:
      raise errors.UserError(
          f'seqio has no task {self.name!r}; it has'
          f' {", ".join(names) or "none"}. Name the module that registers it.'
      )
    if self.vocabulary is None:
      feature = self._seqio_task.output_features['targets']
      self._set(vocabulary=feature.vocabulary)
    super().__post_init__()

  @property
  def _seqio_task(self) -> Any:
    return lazy_imports.import_seqio().TaskRegistry.get(self.name)

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self._seqio_task.splits)

  def read(self, split: str) -> Iterator[files.Pair]:
    dataset = self._seqio_task.get_dataset(None, split, shuffle=False)
    text = lambda row, field: row[f'{field}_pretokenized'].decode()
    for row in dataset.as_numpy_iterator():
      yield text(row, 'inputs'), text(row, 'targets')
