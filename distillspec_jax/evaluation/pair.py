"""The pair that is measured: a target and a draft that fit each other."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import jax

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.models import pretrained
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative


class Pair(NamedTuple):
  """Both models, and what the draft is called in results."""

  target: pretrained.Model
  draft: pretrained.Model
  draft_name: str


def load(
    target: str | os.PathLike[str] | pretrained.Model,
    draft: str | os.PathLike[str] | pretrained.Model,
    task: tasks.Task,
    draft_name: str | None = None,
) -> Pair:
  """The pair, after checking that models and task speak of the same tokens.

  Args:
    target: a model, or the folder of one.
    draft: likewise.
    task: whose tokens they are to read.
    draft_name: default: the name of the draft's folder.

  Raises:
    UserError: a folder without a model, or vocabularies that differ.
  """
  target, draft = _model(target), _model(draft)
  pretrained.check_pair(target, draft)
  task.adopt(target.vocabulary or draft.vocabulary, target.name)
  for model in (target, draft):
    if model.vocabulary is not None and not vocabularies.same(
        model.vocabulary, task.vocabulary
    ):
      raise errors.UserError(
          f'The vocabularies of the model {model.name} and the task'
          f' {task.name!r} differ: the same number stands for different text.'
          " Leave the task's vocabulary out, or set it to the folder of the"
          ' model.'
      )
  return Pair(target, draft, draft_name or pathlib.Path(draft.name).name)


def answer(
    target: pretrained.Model,
    draft: pretrained.Model,
    batch: types.Batch,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
) -> samples_lib.Samples:
  """The pair's speculative answers to a batch's inputs, with key[B]."""
  return speculative.generate(
      target.transformer,
      target.params,
      draft.transformer,
      draft.params,
      batch.inputs,
      batch.input_segments,
      keys,
      decoding,
  )


def _model(
    model: str | os.PathLike[str] | pretrained.Model,
) -> pretrained.Model:
  if isinstance(model, (str, os.PathLike)):
    return pretrained.load(model)
  return model
