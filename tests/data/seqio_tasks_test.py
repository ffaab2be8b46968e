"""The kinds of seqio's tasks: each gives seqio's own tokens, and is judged."""

import functools
import itertools
import pathlib
import sys

import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import batches
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from tests.data import tiny_tokenizers

WORDS = {
    'train': ['one', 'two', 'three', 'four', 'five', 'six'],
    'validation': ['seven', 'eight'],
    'test': ['nine', 'ten'],
}
LENGTHS = {'inputs': 12, 'targets': 8}


def upper(text, is_target=False, **kwargs):
  assert 'example' in kwargs and is_target in (True, False)
  return text.upper()


def accuracy(targets, predictions):
  assert all(text == text.upper() for text in [*targets, *predictions])
  return {'accuracy': np.mean([t == p for t, p in zip(targets, predictions)])}


def score_of(targets, scores):
  raise AssertionError('needs scores')


class Registry:
  """Adds tasks to seqio's registries, for one test module."""

  def __init__(self, seqio):
    self.seqio = seqio

  def task(
      self, name, splits=tuple(WORDS), mark='', vocabulary=None, **changes
  ):
    import tensorflow

    seqio = self.seqio

    def source(split, shuffle_files=False, seed=None):
      texts = [mark + word for word in WORDS[split]]
      return tensorflow.data.Dataset.from_tensor_slices(
          {'inputs': texts, 'targets': [text[::-1] for text in texts]}
      )

    vocabulary = vocabulary or seqio.ByteVocabulary()
    features = {
        'inputs': seqio.Feature(vocabulary),
        'targets': seqio.Feature(vocabulary),
    }
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        **{
            'source': seqio.FunctionDataSource(source, splits=splits),
            'preprocessors': [
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos_after_trim,
            ],
            'output_features': features,
            'postprocess_fn': upper,
            'metric_fns': [accuracy, score_of],
            **changes,
        },
    )

  def target_only(self, name):
    seqio = self.seqio
    tokenize = functools.partial(
        seqio.preprocessors.tokenize, copy_pretokenized=False
    )
    return self.task(
        name,
        output_features={'targets': seqio.Feature(seqio.ByteVocabulary())},
        preprocessors=[tokenize, seqio.preprocessors.append_eos_after_trim],
    )

  def mixture(self, name, rates):
    self.seqio.MixtureRegistry.remove(name)
    return self.seqio.MixtureRegistry.add(name, rates)


@pytest.fixture(scope='module')
def registry():
  seqio = pytest.importorskip('seqio', reason=tiny_tokenizers.NEEDS_SEQIO)
  registry = Registry(seqio)
  registry.task('plain')
  registry.task(
      'not_copied',
      preprocessors=[
          functools.partial(
              seqio.preprocessors.tokenize, copy_pretokenized=False
          ),
          seqio.preprocessors.append_eos_after_trim,
      ],
  )
  registry.target_only('target_only')
  registry.task('no_validation', splits=('train', 'test'))
  registry.task('marked', mark='#', splits=('train', 'validation'))
  registry.mixture('mixed', [('plain', 3.0), ('marked', 1.0)])
  return registry


def registered(name, **changes):
  return tasks.registered(name, task_feature_lengths=LENGTHS, **changes)


def labels(task, split='train'):
  decode = task.vocabulary.decode
  return [decode(e.labels.tolist()) for e in task.examples(split)]


@pytest.mark.parametrize(
    'name', ['plain', 'not_copied', 'target_only', 'no_validation']
)
def test_the_tokens_are_seqios_own(registry, name):
  lengths = {'inputs': 4, 'targets': 4}  # shorter than some
  task = tasks.registered(name, task_feature_lengths=lengths)
  assert task.is_decoder_only == (name == 'target_only')
  provider = registry.seqio.TaskRegistry.get(name)
  lengths = {key: 4 for key in provider.output_features}
  rows = provider.get_dataset(lengths, 'train', shuffle=False)
  examples = task.examples('train')
  for example, row in itertools.zip_longest(examples, rows.as_numpy_iterator()):
    np.testing.assert_array_equal(example.labels, row['targets'])
    if name != 'target_only':
      np.testing.assert_array_equal(example.inputs, row['inputs'])
  assert examples[2].labels[-1] == 1  # cut before EOS, as the task says
  batch = next(batches.batches(task, 'train', 4, seed=0))
  assert batch.labels.shape == (4, 4)
  assert batch.inputs.shape == (4, 0 if name == 'target_only' else 4)
  assert task.texts('test') and task.vocabulary == vocabularies.load('bytes')


@pytest.mark.parametrize(
    'name', ['plain', 'not_copied', 'target_only', 'no_validation', 'mixed']
)
def test_a_task_is_judged_by_its_own_metrics(registry, name):
  (metric,) = registered(name).corpus_metrics
  assert metric(['Ab', 'c'], ['aB', 'd']) == {'accuracy': 0.5}


def test_a_metric_may_be_an_object(registry):
  metrics = registry.seqio.metrics
  made = metrics.PassthroughLegacyMetric.from_metric_fn(accuracy, upper)
  registry.task('object', metric_fns=None, metric_objs=[made])
  (metric,) = registered('object').corpus_metrics
  assert metric(['x'], ['X']) == {'accuracy': 1.0}


def test_a_metric_that_needs_more_than_texts_is_named(registry):
  def needs_inputs(text, example=None, is_target=False):
    return example['inputs_pretokenized']

  registry.task('more', postprocess_fn=needs_inputs)
  (metric,) = registered('more').corpus_metrics
  with pytest.raises(errors.UserError, match="metric of task 'more' cannot"):
    metric(['x'], ['y'])


def test_tasks_judged_by_different_metrics_are_not_judged_together(registry):
  registry.task('unjudged', metric_fns=None)
  registry.mixture('odd', [('plain', 1), ('unjudged', 1)])
  assert registered('odd').corpus_metrics == ()


# Splits.


def test_a_missing_validation_split_is_named_and_can_be_set(registry):
  task = registered('no_validation')
  with pytest.raises(
      errors.UserError,
      match="no split 'validation'; it has train, test.*validation_split=test",
  ):
    batches.statistics(task, 'validation')
  task = registered('no_validation', validation_split='test')
  assert task.splits == ('train', 'validation', 'test')
  assert labels(task, 'validation') == labels(task, 'test') == ['enin', 'net']
  with pytest.raises(errors.UserError, match="is 'dev', but .* test, train"):
    registered('no_validation', validation_split='dev')


# Mixtures.


def test_a_mixture_has_its_tasks_by_their_rates(registry):
  task = registered('mixed')
  seen = labels(task)
  marked = [text for text in seen if '#' in text]
  assert len(marked) * 3 == len(seen) - len(marked)
  # All examples of both tasks, and in each stretch of the order the rates.
  assert len(set(seen)) == 12
  assert sum('#' in text for text in seen[:8]) == 2
  examples = task.examples('train')
  lengths = [(len(e.inputs), len(e.labels)) for e in examples]
  assert examples.lengths(slice(None)).tolist() == [list(x) for x in lengths]


def test_a_task_of_a_mixture_without_the_split_is_left_out(registry):
  task = registered('mixed')
  assert set(task.splits) == {'train', 'validation', 'test'}
  assert labels(task, 'test') == ['enin', 'net']
  assert ('nine', 'enin') in task.texts('test')


def test_a_mixture_of_different_vocabularies_is_refused(registry, tmp_path):
  path = tmp_path / 'x.model'
  path.write_bytes(tiny_tokenizers.unigram(False))
  other = registry.seqio.SentencePieceVocabulary(str(path))
  registry.task('other', vocabulary=other)
  registry.mixture('babel', [('plain', 1), ('other', 1)])
  with pytest.raises(
      errors.UserError, match="'babel' has different vocabularies: .* of plain"
  ):
    registered('babel')


# Settings.


def test_texts_take_a_prefix_where_there_are_texts(registry):
  task = registered('plain', prefix='> ')
  assert task.texts('train')[0] == ('> one', 'eno')
  first = task.examples('train')[0]
  assert task.vocabulary.decode(first.inputs.tolist()) == '> one'
  with pytest.raises(errors.UserError, match='no text inputs_pretokenized'):
    registered('not_copied', prefix='> ').examples('train')


@pytest.mark.parametrize(
    'lengths, message',
    [
        ({'input': 3}, "task_feature_lengths has 'input'"),
        ({'targets': 1}, 'label_length is 1'),
    ],
)
def test_other_lengths_are_refused(registry, lengths, message):
  with pytest.raises(errors.UserError, match=message):
    tasks.registered('plain', task_feature_lengths=lengths)


def test_a_source_that_fails_is_named(registry):
  def fail(dataset):
    return dataset.map(lambda row: row['missing'])

  registry.task('failing', preprocessors=[fail])
  with pytest.raises(
      errors.UserError, match="seqio cannot read split 'train' of task 'fail"
  ):
    registered('failing').examples('train')


def test_a_module_in_the_working_folder_registers_tasks(
    registry, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  name = 'module_of_a_team'
  pathlib.Path(f'{name}.py').write_text(
      'import seqio\n'
      "seqio.MixtureRegistry.add('of_a_team', [('plain', 1)])\n"
  )
  monkeypatch.setattr(sys, 'path', list(sys.path))
  try:
    assert len(labels(registered('of_a_team', module=name))) == 6
  finally:
    registry.seqio.MixtureRegistry.remove('of_a_team')
  with pytest.raises(errors.UserError, match='no module no_such_module'):
    registered('plain', module='no_such_module')
