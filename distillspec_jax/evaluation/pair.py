"""The pair that is measured: a target and a draft that fit each other."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import jax

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative


class Pair(NamedTuple):
  """Both models, the draft's name in results, and the task they read."""

  target: loading.Model
  draft: loading.Model
  draft_name: str
  task: tasks.Task


def load(
    target: str | os.PathLike[str] | loading.Model,
    draft: str | os.PathLike[str] | loading.Model,
    task: tasks.Task,
    draft_name: str | None = None,
) -> Pair:
  """The pair, after checking that models and task speak of the same tokens.

  Args:
    target: a model, or the folder of one.
    draft: likewise.
    task: gets their vocabulary, unless it has one.
    draft_name: default: the name of the draft's folder.

  Raises:
    UserError: a folder without a model, or vocabularies that differ.
  """
  target, draft = _model(target), _model(draft)
  loading.check_pair(target, draft)
  task = task.with_vocabulary(
      target.vocabulary or draft.vocabulary, target.name
  )
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
  name = draft_name or pathlib.Path(draft.name).name
  return Pair(target, draft, name, task)


def answer(
    target: loading.Model,
    draft: loading.Model,
    inputs: jax.Array,
    segments: jax.Array,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
    controls: controls_lib.Controls = controls_lib.NO_CONTROLS,
) -> samples_lib.Samples:
  """The pair's speculative answers to int32[B, S] each, with key[B]."""
  return speculative.generate(
      target.transformer,
      target.params,
      draft.transformer,
      draft.params,
      inputs,
      segments,
      keys,
      decoding,
      controls,
  )


def _model(
    model: str | os.PathLike[str] | loading.Model,
) -> loading.Model:
  if isinstance(model, (str, os.PathLike)):
    return loading.load(model)
  return model
