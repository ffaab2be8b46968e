"""A gin file of the kind that t5x ships, up to a distilled draft."""

import pathlib
import sys

import pytest

from distillspec_jax.checkpoints import model_folder
from distillspec_jax.commands import main
from tests import tiny
from tests.data import tiny_tokenizers

pytestmark = pytest.mark.usefixtures('fresh_configuration')

# What a team has in its own module: two tasks and a mixture of them.
MODULE = """
import seqio
import tensorflow as tf

WORDS = ['ab', 'cd', 'ef', 'gh'] * 4


def add(name, prefix):
  def source(split, shuffle_files=False, seed=None):
    inputs = [prefix + word for word in WORDS]
    return tf.data.Dataset.from_tensor_slices(
        {'inputs': inputs, 'targets': [2 * word for word in WORDS]})

  seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(source, splits=['train', 'validation']),
      preprocessors=[
          seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
      output_features={
          'inputs': seqio.Feature(seqio.ByteVocabulary()),
          'targets': seqio.Feature(seqio.ByteVocabulary())})


add('team_a', 'a')
add('team_b', 'b')
seqio.MixtureRegistry.add('team', [('team_a', 2), ('team_b', 1)])
"""
GIN = """
MIXTURE_OR_TASK_NAME = 'team'
MIXTURE_OR_TASK_MODULE = 'tasks_of_a_team'
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 8}
INITIAL_CHECKPOINT_PATH = 'draft'
TARGET = 'target'
TRAIN_STEPS = 2
BATCH_SIZE = 8
MODEL_DIR = 'run'
"""
FLAGS = (
    '--gin_file=methods/supervised_kd.gin', '--gin_file=runs/t5x_names.gin',
    '--gin_file=mine.gin', '--gin.settings.Validation.measure=loss',
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  pathlib.Path('tasks_of_a_team.py').write_text(MODULE)
  pathlib.Path('mine.gin').write_text(GIN)
  return tmp_path


def test_a_draft_is_distilled_from_a_gin_file_with_t5x_names(folder, capsys):
  seqio = pytest.importorskip('seqio', reason=tiny_tokenizers.NEEDS_SEQIO)
  for seed, name in enumerate(('target', 'draft')):
    tiny.save(name, tiny.model(tiny.BYTES, seed=seed), 'bytes')
  try:
    assert main.main(['train', *FLAGS]) == 0, capsys.readouterr().err
  finally:
    seqio.MixtureRegistry.remove('team')
    for name in ('team_a', 'team_b'):
      seqio.TaskRegistry.remove(name)
    sys.modules.pop('tasks_of_a_team', None)
  assert model_folder.read(folder / 'run' / 'best').step in (0, 2)
  assert 'run: train: 48 examples' in capsys.readouterr().err


def test_without_the_file_that_explains_them_the_names_are_refused(
    folder, capsys
):
  flags = [flag.replace('t5x_names', 'distil') for flag in FLAGS]
  assert main.main(['train', '--run=run', *flags]) == 2
  assert 'MIXTURE_OR_TASK_NAME' in capsys.readouterr().err
