"""The pair that is measured: a target and a draft that fit each other."""

from __future__ import annotations

from collections.abc import Sequence
import os
import pathlib
from typing import NamedTuple

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.sampling import decoding as decoding_lib


class Pair(NamedTuple):
  """Both models, their task, and the draft's name in results."""

  target: loading.Loaded
  draft: loading.Loaded
  task: tasks.Task
  draft_name: str


def load(
    target: str | os.PathLike[str] | loading.Loaded,
    draft: str | os.PathLike[str] | loading.Loaded,
    task: tasks.Task,
    draft_name: str | None = None,
    decodings: Sequence[decoding_lib.Decoding] = (),
) -> Pair:
  """The pair, after checking that models and task use the same tokens.

  Args:
    target: a model, or the folder of one.
    draft: likewise.
    task: gets their vocabulary, unless it has one.
    draft_name: default: the name of the draft's folder.
    decodings: that the draft must be able to propose for.

  Returns:
    The pair; its task has the models' vocabulary.

  Raises:
    UserError: a folder without a model, vocabularies that differ, or a decoding
      that the draft was not trained for.
  """
  if draft_name is not None:
    check.text(draft_name=draft_name)
  target, draft = _loaded(target), _loaded(draft)
  loading.check_pair(target, draft)
  for decoding in decodings:
    decoding.check_speculative(draft.config, draft.name)
  task = task.with_vocabulary(
      target.vocabulary or draft.vocabulary, target.name
  )
  for model in (target, draft):
    if model.vocabulary is not None and not vocabularies.same(
        model.vocabulary, task.vocabulary
    ):
      raise errors.UserError(
          f'The vocabularies of the model {model.name} and the task'
          f' {task.name!r} differ: the same token id stands for different text.'
          " Leave the task's vocabulary out, or set it to the folder of the"
          ' model.'
      )
  return Pair(target, draft, task, draft_name or pathlib.Path(draft.name).name)


def _loaded(
    model: str | os.PathLike[str] | loading.Loaded,
) -> loading.Loaded:
  return model if isinstance(model, loading.Loaded) else loading.load(model)
