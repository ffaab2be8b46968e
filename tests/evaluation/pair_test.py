"""Which pairs are measured, and what a draft is called."""

import types

import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.evaluation import pair
from tests import tiny


@pytest.fixture(scope='module')
def task(tmp_path_factory):
  return tiny.task(tmp_path_factory.mktemp('task'))


def test_models_are_taken_as_they_are_and_named_after_the_folder(task):
  models = tiny.target(384), tiny.draft(384)
  assert pair.load(*models, task) == (*models, task, 'draft')
  assert pair.load(*models, task, 'distilled').draft_name == 'distilled'


def test_folders_are_loaded(task, tmp_path, monkeypatch):
  loaded = []
  monkeypatch.setattr(
      loading, 'load', lambda path: loaded.append(path) or tiny.target(384)
  )
  pair.load(tmp_path, str(tmp_path / 'draft'), task)
  assert loaded == [tmp_path, str(tmp_path / 'draft')]


def test_a_folder_without_a_model_is_an_error(task, tmp_path):
  with pytest.raises(errors.UserError, match='holds no model'):
    pair.load(tmp_path, tiny.draft(384), task)


def test_models_of_other_vocabularies_are_an_error(task):
  with pytest.raises(errors.UserError, match='has 384 tokens and the draft'):
    pair.load(tiny.target(384), tiny.draft(640), task)


def test_a_task_of_another_vocabulary_is_an_error(task):
  other = types.SimpleNamespace(pieces=['<pad>', '</s>', 'other'])
  models = [
      tiny.with_vocabulary(model(384), other)
      for model in (tiny.target, tiny.draft)
  ]
  with pytest.raises(errors.UserError, match="and the task 'tiny' differ"):
    pair.load(*models, task)
