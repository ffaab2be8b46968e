"""A file of answers is resumed, and refused where it holds other ones."""

import json

import pytest

from distillspec_jax.commands import answers
from distillspec_jax.core import errors

INPUTS = ['a', 'é ✓', '']
SETTINGS = {'target': 'runs/target', 'seed': 3, 'stop': None}
ANSWER = answers.Answer('to é', [5, 6], {'blocks': 2})


def write(file, count, **changes):
  lines = [
      answers.line(number, text, ANSWER, {**SETTINGS, **changes})
      for number, text in enumerate(INPUTS[:count])
  ]
  file.write_text(''.join(line + '\n' for line in lines), encoding='utf-8')


def test_a_line_holds_the_answer_and_how_it_came_about():
  text = answers.line(1, 'é ✓', ANSWER, SETTINGS)
  assert 'é ✓' in text  # readable, not escaped
  assert json.loads(text) == {
      'index': 1,
      'input': 'é ✓',
      'text': 'to é',
      'tokens': [5, 6],
      'statistics': {'blocks': 2},
      'settings': SETTINGS,
  }


@pytest.mark.parametrize('count', [0, 2, 3])
def test_answers_are_counted_and_a_truncated_line_is_removed(tmp_path, count):
  file = tmp_path / 'new' / 'out'
  file.parent.mkdir()
  write(file, count)
  before = file.read_bytes()
  file.write_bytes(before + b'{"index": 9, "inp')
  assert answers.resume(str(file), INPUTS, SETTINGS) == count
  assert file.read_bytes() == before


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert answers.resume('~/out/x.jsonl', ['a'], SETTINGS) == 0
  assert (tmp_path / 'out' / 'x.jsonl').is_file()


def test_an_absent_file_is_created(tmp_path):
  file = tmp_path / 'new' / 'out'
  assert answers.resume(str(file), INPUTS, SETTINGS) == 0
  assert file.read_bytes() == b''


def test_a_setting_that_an_older_file_does_not_have_is_none(tmp_path):
  write(tmp_path / 'out', 1)
  settings = {**SETTINGS, 'vocabulary': None}
  assert answers.resume(str(tmp_path / 'out'), INPUTS, settings) == 1
  settings = {**SETTINGS, 'vocabulary': 'bytes'}
  with pytest.raises(errors.UserError, match='with another vocabulary;'):
    answers.resume(str(tmp_path / 'out'), INPUTS, settings)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'index': 1}, 'line 1 is an answer to another input; remove the file'),
        ({'input': 'b'}, 'line 1 is an answer to another input'),
        ({'settings': 3}, 'line 1 is not an answer'),
        ({'settings': None}, 'line 1 is not an answer'),
        ({'settings': []}, 'line 1 was decoded with another target'),
        (
            {'settings': {**SETTINGS, 'seed': 4, 'stop': ['x']}},
            'with another seed and stop;',
        ),
    ],
)
def test_a_line_that_is_another_answer_is_named(tmp_path, changes, message):
  file = tmp_path / 'out'
  write(file, 1)
  file.write_text(
      json.dumps({**json.loads(file.read_text()), **changes}) + '\n'
  )
  before = file.read_bytes()
  with pytest.raises(errors.UserError, match=message):
    answers.resume(str(file), INPUTS, SETTINGS)
  assert file.read_bytes() == before


@pytest.mark.parametrize('text', ['[1]\n', 'x\n', '{}\n'])
def test_what_is_no_answer_is_refused(tmp_path, text):
  (tmp_path / 'out').write_text(text)
  with pytest.raises(errors.UserError, match='line 1 is not an answer'):
    answers.resume(str(tmp_path / 'out'), INPUTS, SETTINGS)


def test_more_answers_than_inputs_are_refused(tmp_path):
  write(tmp_path / 'out', 3)
  with pytest.raises(errors.UserError, match='line 3 is an answer to another'):
    answers.resume(str(tmp_path / 'out'), INPUTS[:2], SETTINGS)


@pytest.mark.parametrize(
    'file, message',
    [
        ('gs://bucket/x', 'lines can be added to local files only'),
        ('/proc/none/x', '/proc/none/x cannot be written to'),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(file, message):
  with pytest.raises(errors.UserError, match=message):
    answers.resume(file, INPUTS, SETTINGS)
