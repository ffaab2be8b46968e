import functools
import sys
import types

import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import statistics
from distillspec_jax.data import metrics

SIGMAS = 4.9  # a two-sided false alarm of 1e-6


def task(*judged, corpus=()):
  return types.SimpleNamespace(
      metrics=metrics.resolve(judged), corpus_metrics=corpus
  )


def length(answers, labels):
  del labels
  return [len(answer) for answer in answers]


def test_exact_match():
  values = metrics.exact_match(['a b', ' c ', 'd'], ['a b', 'c', 'e'])
  np.testing.assert_array_equal(values, [1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    'label', ['so 2 + 2 = 4\n#### 1,234', 'So the answer is 1,234.']
)
def test_final_number(label):
  right = [
      'x #### 1234', '####1,234', '#### 1234.0', 'The answer is 1234.',
      'So the answer is: $1,234', 'Answer: 1234', 'the answer is 7 #### 1234',
  ]  # fmt: skip
  wrong = ['#### 12', 'nothing', '1234', '#### 1.2.34', '', '#### -1234']
  values = metrics.final_number(right + wrong, [label] * 13)
  np.testing.assert_array_equal(values, [1.0] * 7 + [0.0] * 6)


def test_an_answer_that_is_a_number_to_none_is_wrong():
  values = metrics.final_number(['none', '#### 2'], ['none', '#### 2'])
  np.testing.assert_array_equal(values, [0.0, 1.0])


def test_final_answer():
  answers = [
      'Dates differ. So the answer is (B).', '(b)', 'B', '(B) red', '(C)',
      'the answer is  Valid.\nQ: next', 'invalid', '] )', 'a b', '',
  ]  # fmt: skip
  labels = [
      '(B)', '(B)', '(B)', '(B)', '(B)',
      'valid', 'valid', '] )', 'b a', 'x',
  ]  # fmt: skip
  values = metrics.final_answer(answers, labels)
  np.testing.assert_array_equal(values, [1, 1, 1, 1, 0, 1, 0, 1, 0, 0])


def test_edit_similarity():
  answers = ['return x', 'return y', '', '']
  values = metrics.edit_similarity(answers, ['return x', 'return', 'x', ''])
  # 'return' is in common: twice 6 of 8 + 6 characters.
  np.testing.assert_allclose(values, [1.0, 12 / 14, 0.0, 1.0])


def test_rouge():
  answers, labels = ['the cat sat', 'dogs ran'], ['the cat sat down', 'a dog']
  f_measure = lambda common, answer, label: 2 * common / (answer + label)
  expected = {
      'rouge1': f_measure(3, 3, 4),
      'rouge2': f_measure(2, 2, 3),
      'rougeL': f_measure(3, 3, 4),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(
        metrics.KNOWN[name](answers, labels), [value, 0.0]  # no stemmer
    )


def texts(number=40, seed=0):
  """Answers that share some words with their labels, of several lengths."""
  rng = np.random.default_rng(seed)
  words = np.array('the cat dog sat ran on mat a red , and blue .'.split())
  labels, answers = [], []
  for _ in range(number):
    label = rng.choice(words, rng.integers(5, 20))
    changed = rng.random(len(label)) < rng.uniform(0.05, 0.4)
    answer = np.where(changed, rng.choice(words, len(label)), label)
    labels.append(' '.join(label))
    answers.append(' '.join(answer[: rng.integers(4, 21)]))
  return answers, labels


def mean_length(answers, labels):
  total = sum(len(a.split()) for a in answers)
  return {'share': total / sum(len(b.split()) for b in labels)}


def corpus_value(name, answers, labels):
  if name == 'share':
    return mean_length(answers, labels)['share']
  import sacrebleu

  return getattr(sacrebleu, f'corpus_{name}')(answers, [labels]).score


@pytest.mark.parametrize('name', ['bleu', 'chrf', 'share'])
def test_a_statistic_of_the_corpus_has_the_bootstraps_error(name):
  answers, labels = texts()
  if name == 'share':
    values = metrics.measure(task(corpus=(mean_length,)), answers, labels)
  else:
    values = metrics.measure(task(name), answers, labels)
  value, error = statistics.mean(values[name])
  assert value == pytest.approx(corpus_value(name, answers, labels), abs=1e-9)
  rng, resamples = np.random.default_rng(1), 200
  rows = rng.integers(0, len(answers), (resamples, len(answers)))
  choose = lambda side, row: [side[i] for i in row]
  spread = np.std(
      [
          corpus_value(name, choose(answers, row), choose(labels, row))
          for row in rows
      ]
  )
  # Of the bootstrap's error, and of that of twenty groups, about one in six.
  relative = 1 / np.sqrt(2 * resamples)
  relative += 0 if name != 'share' else 1 / np.sqrt(2 * 19) / 2
  assert abs(error / spread - 1) < SIGMAS * relative + 0.05


def test_paired_statistics_of_a_corpus_cancel():
  answers, labels = texts()
  values = metrics.bleu(answers, labels)
  # A word is added to the first answer; all others are the same.
  other = metrics.bleu([f'{answers[0]} mat', *answers[1:]], labels)
  difference = statistics.mean(other - values)
  assert difference.value != 0
  assert difference.standard_error < statistics.mean(values).standard_error / 5


@pytest.mark.parametrize('name', ['bleu', 'chrf', 'share'])
def test_a_corpus_of_one_text_has_no_error(name):
  judged = task(corpus=(mean_length,)) if name == 'share' else task(name)
  values = metrics.measure(judged, ['the cat sat on'], ['the cat sat on'])
  expected = 1.0 if name == 'share' else 100.0
  np.testing.assert_allclose(values[name], [expected])
  assert statistics.mean(values[name]).standard_error is None


def test_a_metric_is_a_name_or_a_function():
  resolved = metrics.resolve(('exact_match', length))
  assert resolved == (metrics.exact_match, length)
  assert metrics.resolve(resolved) == resolved
  values = metrics.measure(task(*resolved), ['ab', 'c'], ['ab', 'd'])
  assert list(values) == ['exact_match', 'length']
  assert all(value.dtype == np.float64 for value in values.values())
  np.testing.assert_array_equal(values['length'], [2.0, 1.0])


@pytest.mark.parametrize(
    'wrong, message',
    [
        ('meteor', "metric is 'meteor'; it must be one of 'exact_match', 'fin"),
        (3, '3 is not a metric'),
        (functools.partial(length), 'partial.* is not a metric.*__name__'),
        (length, 'exact_match, length, length must have different names'),
    ],
)
def test_what_is_no_metric_is_refused(wrong, message):
  with pytest.raises(errors.UserError, match=message):
    metrics.resolve(('exact_match', length, wrong))


def mean(answers, labels):
  del answers, labels
  return 0.5


def failing(answers, labels):
  return {'value': answers[0] / labels[0]}


def listed(answers, labels):
  del answers, labels
  return {'length': [1.0]}


def same_name(answers, labels):
  del answers, labels
  return {'exact_match': 1.0}


@pytest.mark.parametrize(
    'judged, message',
    [
        (task(mean), r'mean returns shape \(\) for 2 answers'),
        (task('final_number'), "no label has a number after '####' or .*'a'"),
        (task(failing), r'failing cannot judge 2 answers, .*TypeError: unsupp'),
        (task(corpus=(failing,)), 'failing cannot judge 2 answers'),
        (task(corpus=(listed,)), 'listed cannot judge 2 answers, .*TypeError'),
        (task('exact_match', corpus=(same_name,)), 'are named exact_match'),
    ],
)
def test_a_metric_that_cannot_judge_a_task_is_refused(judged, message):
  with pytest.raises(errors.UserError, match=message):
    metrics.check_task(judged, ['a', 'b'])


@pytest.mark.parametrize(
    'name, package', [('rougeL', 'rouge_score'), ('chrf', 'sacrebleu')]
)
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, name, package):
  for module in [m for m in sys.modules if m.startswith(package)]:
    monkeypatch.delitem(sys.modules, module)
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(errors.UserError, match=r"pip install -e '\.\[metrics\]"):
    metrics.check_task(task(name), ['a', 'b'])
