"""Tasks and mixtures of seqio's registry, as t5x trains and judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import copy
import dataclasses
from typing import Any

import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import objects
from distillspec_jax.data import examples as examples_lib
from distillspec_jax.data import files
from distillspec_jax.data import lazy_imports
from distillspec_jax.data import seqio_metrics
from distillspec_jax.data import task
from distillspec_jax.data import vocabulary_kinds

settings = task.settings
_LENGTHS = {'inputs': 'input_length', 'targets': 'label_length'}


@settings
class registered(task.Task):
  """A task or a mixture of seqio's registry, e.g. one that reads TFDS.

  Its preprocessors run, and its features 'inputs' and 'targets' are taken as
  they come: with its own vocabulary and ends of sequence, cut as seqio cuts
  them. A task without 'inputs' is one of a decoder-only language model. Where
  another `vocabulary` or a `prefix` is set, its texts before tokenisation
  ('inputs_pretokenized', 'targets_pretokenized') are tokenised here instead.

  A mixture's examples are mixed by its rates; each of its tasks is read to the
  end. Its tasks have one vocabulary.

  Attributes:
    name: in seqio's TaskRegistry or MixtureRegistry.
    module: imported first; registers the task. It may lie in the working
      folder.
    task_feature_lengths: t5x's name for {'inputs': input_length, 'targets':
      label_length}; either may be missing.
    validation_split: what is taken for the split 'validation', e.g. 'test', of
      a task that has none.
    use_cached: reads the task's cache of seqio, as t5x's USE_CACHED_TASKS.
    corpus_metrics: functions (answers, labels) -> {name: value}, which are the
      metric functions of the task with its postprocessing.
  """

  name: str = dataclasses.field(kw_only=False)
  module: str | None = None
  task_feature_lengths: Mapping[str, int] | None = None
  validation_split: str | None = None
  use_cached: bool = False
  # Of seqio; a part of a mixture is a task of its own.
  _provider: Any = dataclasses.field(default=None, init=False, repr=False)
  _own_vocabulary: Any = dataclasses.field(default=None, init=False, repr=False)

  def __post_init__(self):
    if self.module is not None:
      lazy_imports.import_seqio()
      objects.import_module(self.module, f'task {self.name}')
    self._set(_provider=_provider(self.name))
    for feature, length in (self.task_feature_lengths or {}).items():
      if feature not in _LENGTHS:
        raise errors.UserError(
            f'task_feature_lengths has {feature!r}; it may have'
            f' {" and ".join(map(repr, _LENGTHS))}.'
        )
      self._set(**{_LENGTHS[feature]: length})
    own = _vocabulary(self._provider)
    if self.vocabulary is None:
      self._set(vocabulary=own)
    super().__post_init__()
    self._set(_own_vocabulary=own)
    if self.validation_split is not None:
      given = self.validation_split
      if given not in self._provider.splits:
        raise errors.UserError(
            f'validation_split is {given!r}, but {self.name} has the splits'
            f' {", ".join(sorted(self._provider.splits))}.'
        )

  @property
  def is_decoder_only(self) -> bool:
    return 'inputs' not in self._provider.output_features

  @property
  def splits(self) -> tuple[str, ...]:
    has = list(self._provider.splits)
    if self.validation_split is not None:
      has.append('validation')
    first = [split for split in task.Task.splits if split in has]
    return tuple(dict.fromkeys([*first, *sorted(has)]))

  def _other_split(self, split: str) -> str:
    if split != 'validation':
      return ''
    return (
        ' To validate on one of them, set `validation_split`, as in'
        f' --gin.tasks.registered.validation_split={self.splits[-1]}.'
    )

  @property
  def corpus_metrics(self) -> tuple[Callable[..., dict[str, float]], ...]:
    return seqio_metrics.corpus_metrics(_tasks_of(self._provider))

  # Examples.

  def examples(self, split: str) -> examples_lib.Examples:
    parts = self._parts(split)
    if len(parts) == 1 and not _is_mixture(self._provider):
      return super().examples(split)
    if split not in self._examples:
      rates = [self._provider.get_rate(part._provider) for part in parts]
      self._examples[split] = examples_lib.Mixed(
          [examples_lib.of(part, split) for part in parts], rates
      )
    return self._examples[split]

  def _parts(self, split: str) -> list[registered]:
    """The tasks of a mixture that have the split, or the task itself."""
    self.check_split(split)
    if not _is_mixture(self._provider):
      return [self]
    parts = []
    for provider in _tasks_of(self._provider):
      part = copy.copy(self)
      part._set(name=provider.name, _provider=provider, _examples={})
      if self._source(split) in provider.splits:
        parts.append(part)
    return parts

  def _source(self, split: str) -> str:
    if split == 'validation' and self.validation_split is not None:
      return self.validation_split
    return split

  def _rows(self, split: str) -> Iterator[Mapping[str, Any]]:
    """What seqio makes of the examples, one at a time."""
    lengths = {
        feature: getattr(self, _LENGTHS[feature])
        for feature in self._provider.output_features
        if feature in _LENGTHS
    }
    try:
      dataset = self._provider.get_dataset(
          lengths,
          self._source(split),
          use_cached=self.use_cached,
          shuffle=False,
          seed=0,
          num_epochs=1,
          try_in_mem_cache=False,
      )
      yield from dataset.as_numpy_iterator()
    except errors.UserError:
      raise
    except Exception as error:  # of many kinds, from sources and preprocessors
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
      raise errors.UserError(
          f'seqio cannot read split {split!r} of task {self.name!r}: {reason}'
      ) from error

  @property
  def _reads_texts(self) -> bool:
    return bool(self.prefix) or self.vocabulary != self._own_vocabulary

  def raw(self, split: str) -> Iterator[Any]:
    return super().raw(split) if self._reads_texts else self._features(split)

  def tokenise(self, raw: list[Any]) -> list[examples_lib.Example | None]:
    return super().tokenise(raw) if self._reads_texts else raw

  def _features(self, split: str) -> Iterator[examples_lib.Example]:
    """The features as seqio has tokenised them."""
    count, nothing = 0, np.zeros(0, np.int32)
    self.check_split(split)
    for row in self._rows(split):
      inputs = nothing if self.is_decoder_only else self._tokens(row, 'inputs')
      yield examples_lib.Example(inputs, self._tokens(row, 'targets'))
      count += 1
      if count == self.max_examples:
        return
    if not count:
      self._refuse_empty(split, 0)

  def code(self) -> list[Any]:
    return [*self._provider.preprocessors, type(self._provider.source)]

  def _tokens(self, row: Mapping[str, Any], feature: str) -> np.ndarray:
    tokens = np.asarray(row[feature])
    if tokens.ndim != 1 or tokens.dtype.kind not in 'iu':
      raise errors.UserError(
          f'The feature {feature!r} of task {self.name!r} has shape'
          f' {tokens.shape} and type {tokens.dtype}; it must be a sequence of'
          ' token ids.'
      )
    return tokens.astype(np.int32)

  def read(self, split: str) -> Iterator[files.Pair]:
    for part in self._parts(split):
      for row in part._rows(split):
        inputs = '' if self.is_decoder_only else part._text(row, 'inputs')
        yield inputs, part._text(row, 'targets')

  def _text(self, row: Mapping[str, Any], feature: str) -> str:
    text = row.get(f'{feature}_pretokenized')
    if isinstance(text, bytes):
      return text.decode(errors='replace')
    if self._reads_texts:
      raise errors.UserError(
          f'Task {self.name!r} has no text {feature}_pretokenized to put a'
          ' prefix before, or to tokenise with another vocabulary than its own;'
          ' leave out `prefix` and `vocabulary`.'
      )
    return self.vocabulary.decode(self._tokens(row, feature).tolist())


def _provider(name: str) -> Any:
  """The task or mixture of a name."""
  seqio = lazy_imports.import_seqio()
  registries = seqio.MixtureRegistry, seqio.TaskRegistry
  for registry in registries:
    if name in registry.names():
      return registry.get(name)
  names = sorted(n for registry in registries for n in registry.names())
  raise errors.UserError(
      f'seqio has no task or mixture {name!r}; it has'
      f' {", ".join(names) or "none"}. Name the module that registers it.'
  )


def _is_mixture(provider: Any) -> bool:
  return isinstance(provider, lazy_imports.import_seqio().Mixture)


def _tasks_of(provider: Any) -> Sequence[Any]:
  return lazy_imports.import_seqio().get_subtasks(provider)


def _vocabulary(provider: Any) -> vocabulary_kinds.Vocabulary:
  """The one vocabulary of all features of all tasks.

  Raises:
    UserError: there are several, or there are no targets.
  """
  found: list[tuple[str, Any, vocabulary_kinds.Vocabulary]] = []
  for each in _tasks_of(provider):
    features = each.output_features
    if 'targets' not in features:
      raise errors.UserError(
          f"Task {each.name!r} has no feature 'targets'; it has"
          f' {", ".join(features)}.'
      )
    for name in ('inputs', 'targets'):
      if name in features:
        theirs = features[name].vocabulary
        same = [ours for _, other, ours in found if other == theirs]
        ours = same[0] if same else vocabulary_kinds.from_seqio(theirs)
        found.append((f'{name} of {each.name}', theirs, ours))
  first, _, vocabulary = found[0]
  for name, _, other in found[1:]:
    if other != vocabulary:
      raise errors.UserError(
          f'{provider.name!r} has different vocabularies: that of {name} is'
          f' another than that of {first}. A model reads and writes one; give'
          ' all features the same.'
      )
  return vocabulary
