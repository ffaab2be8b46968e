"""Task quality of outputs that are known."""

import types

import numpy as np
import pytest

from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.evaluation import examples
from distillspec_jax.evaluation import quality
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples
from tests import tiny
from tests.data import tiny_tokenizers

DECODING = decoding_lib.Decoding(max_new_tokens=12)


@pytest.fixture
def task(tmp_path):
  return tiny.task(tmp_path, metrics=('exact_match',))


def measure(task, batches):
  model = tiny.with_vocabulary(tiny.target(384), vocabularies.load('bytes'))
  outputs = quality.decode(model, batches, DECODING, seed=0)
  references = quality.references(task, 'validation', batches)
  return quality.means(quality.score(task, outputs, references))


def test_right_outputs_are_counted_over_real_rows(task, monkeypatch):
  batches = examples.first(task, 'validation', 5, 3)
  calls = iter(batches)

  def generate(model, prompt, keys, decoding):
    """The labels, but for the first row of each batch."""
    batch = next(calls)
    np.testing.assert_array_equal(prompt.tokens, batch.inputs)
    tokens = np.array(batch.labels)
    tokens[0, 0] += 1
    lengths = np.maximum((tokens != 0).sum(1), 1)
    return samples.Samples(tokens, lengths, None, None, None, None)

  monkeypatch.setattr(autoregressive, 'generate', generate)
  metrics = measure(task, batches)
  assert set(metrics) == {'exact_match'}
  value, error, count, unit = metrics['exact_match']
  assert (value, count, unit) == (3 / 5, 5, '1')
  assert error == pytest.approx(np.sqrt(0.24 / 4))


def test_a_random_model_is_always_wrong(task):
  metrics = measure(task, examples.first(task, 'validation', 3, 4))
  assert metrics['exact_match'] == (0.0, 0.0, 3, '1')


def test_tokens_are_scored_as_text(task):
  outputs = [
      np.array([*task.vocabulary.encode(text), 1]) for text in ['ab', 'c', 'é']
  ]
  values = quality.score(task, outputs, ['ab', 'cd', 'é'])
  assert values['exact_match'].tolist() == [1, 0, 1]


def test_references_are_the_labels_as_they_were_written(tmp_path, capsys):
  """Not cut to length, and with characters that the vocabulary lacks."""
  labels = ['', 'the draft ' * 9, '', 'the {draft}', 'a target']
  vocabulary = str(tiny_tokenizers.t5(tmp_path / 't5'))
  task = tasks.in_memory(
      pairs={'test': [('the', label) for label in labels]},
      vocabulary=vocabulary,
      label_length=8,
  )
  batches = examples.first(task, 'test', 2, 1)
  assert quality.references(task, 'test', batches) == [labels[1], labels[3]]
  assert capsys.readouterr().err == ''
  without = types.SimpleNamespace(
      name='mixed', vocabulary=task.vocabulary, label_length=8
  )
  others = types.SimpleNamespace(
      **vars(without), stream=lambda split: [('', labels[3])] * 2
  )
  for one in (without, others):
    decoded = quality.references(one, 'test', batches)
    assert decoded[0] == ' '.join(['the draft'] * 4)
    assert decoded[1] != labels[3]
    assert "'mixed' has no texts of its examples" in capsys.readouterr().err
