"""Chain-of-thought prompts, and the files of BIG-Bench Hard."""

import json

import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import metrics
from distillspec_jax.data import tasks

GSM8K = {
    'train': [
        ('How many?', 'It is 6*7=<<6*7=42>>42.\n#### 42'),
        ('And now?', 'One more: 42+1=<<42+1=43>>43.\n#### 43'),
    ],
    'test': [('What is 2+2?', '2+2=<<2+2=4>>4.\n#### 4')],
}


def gsm8k():
  return tasks.in_memory(
      pairs=GSM8K, name='gsm8k', prefix='question: ', metrics=('final_number',)
  )


def prompted(**changes):
  return tasks.prompted(task=gsm8k(), vocabulary='bytes', **changes)


def test_the_question_is_asked_and_the_label_reasons():
  task = prompted()
  assert (task.name, task.splits) == ('gsm8k', ('train', 'test'))
  assert task.metrics == (metrics.final_number,)
  ((question, label),) = task.texts('test')
  assert question == 'Q: What is 2+2?\nA:'
  assert label == '2+2=4. The answer is 4.'
  assert metrics.final_number([label], ['#### 4']) == [1.0]


def test_worked_examples_come_first():
  ((question, _),) = prompted(shots=2).texts('test')
  assert question == (
      'Q: How many?\nA: It is 6*7=42. The answer is 42.\n\n'
      'Q: And now?\nA: One more: 42+1=43. The answer is 43.\n\n'
      'Q: What is 2+2?\nA:'
  )


def test_the_label_may_stay_as_it_is():
  ((_, label),) = prompted(answer=None, calculator=True).texts('test')
  assert label == GSM8K['test'][0][1]


def test_prepared_prompts_depend_on_the_other_tasks_files(tmp_path):
  for name in ('train', 'test'):
    rows = [{'question': q, 'answer': a} for q, a in GSM8K['train']]
    text = '\n'.join(map(json.dumps, rows))
    (tmp_path / f'{name}.jsonl').write_text(text)
  of = tasks.gsm8k(str(tmp_path), validation_examples=1)
  files = tasks.prompted(task=of).files('test')
  assert files == [f'{tmp_path}/test.jsonl']
  files = tasks.prompted(task=of, shots=1).files('test')
  assert files == [f'{tmp_path}/test.jsonl', f'{tmp_path}/train.jsonl']


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'task': 'gsm8k'}, "prompted.task is 'gsm8k'; give a task"),
        ({'shots': -1}, 'prompted.shots is -1; it must be at least 0'),
        ({'answer': 'N'}, "prompted.answer is 'N'; write {} for '#### N'"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    tasks.prompted(**{'task': gsm8k(), **changes})


@pytest.fixture
def folder(tmp_path):
  for name in tasks.prompted_tasks.BIG_BENCH_HARD:
    example = {'input': f'{name}?\nOptions:\n(A) a\n(B) b', 'target': '(B)'}
    content = {'canary': 'BIG-BENCH', 'examples': [example]}
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  return tmp_path


def test_a_task_of_big_bench_hard(folder):
  task = tasks.big_bench_hard(str(folder), subsets='navigate')
  assert (task.name, task.splits) == ('navigate', ('test',))
  ((question, answer),) = task.texts('test')
  assert question == (
      "Q: navigate?\nOptions:\n(A) a\n(B) b\nA: Let's think step by step."
  )
  answers = ['a is wrong. So the answer is (B).', 'The answer is (A).']
  values = metrics.measure(task, answers, [answer] * 2)
  assert values['final_answer'].tolist() == [1.0, 0.0]


def test_all_of_big_bench_hard(folder):
  together = tasks.big_bench_hard(str(folder))
  assert len(together.texts('test')) == len(together.files('test')) == 27
  assert together.name == 'big_bench_hard'
  suite = tasks.big_bench_hard_suite(folder=str(folder), label_length=9)
  assert tuple(suite) == tasks.prompted_tasks.BIG_BENCH_HARD
  assert all(name == task.name for name, task in suite.items())
  assert suite['snarks'].label_length == 9


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'navigate.json cannot be read: No such file'),
        ('[]', "navigate.json is no file of BIG-Bench Hard, .*'examples'"),
        ('{"examples": [{"input": 1, "target": "a"}]}', 'is no file of BIG-B'),
        ('{"examples": ', 'is no file of BIG-Bench Hard'),
    ],
)
def test_what_is_no_file_of_big_bench_hard_is_named(tmp_path, content, message):
  if content is not None:
    (tmp_path / 'navigate.json').write_text(content)
  task = tasks.big_bench_hard(str(tmp_path), subsets='navigate')
  with pytest.raises(errors.UserError, match=message):
    task.texts('test')


def test_an_unknown_subset_is_refused():
  with pytest.raises(errors.UserError, match="subsets is 'chess'; it must be"):
    tasks.big_bench_hard('folder', subsets='chess')
