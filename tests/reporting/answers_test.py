"""Sample texts: grouped by input, and damage is named."""

import json

import pytest

from distillspec_jax.core import errors
from distillspec_jax.reporting import answers


def read(tmp_path, samples):
  path = tmp_path / 'samples.json'
  path.write_text(json.dumps(samples))
  return answers.read(path)


def test_an_absent_file_has_no_samples(tmp_path):
  assert answers.read(tmp_path / 'samples.json') == []


def test_answers_to_one_input_stand_together(tmp_path, samples):
  (sample,) = read(tmp_path, samples)
  assert [answer.draft for answer in sample.answers] == [
      'fine-tuned', 'distilled',
  ]  # fmt: skip
  first = sample.answers[0]
  assert first.decoding == 'greedy, block length 5'
  assert first.counts == '24 tokens in 9 target calls, 2.67 per call'
  assert first.pieces[3].lines == ['values."""', '']


def test_that_the_text_is_the_same_is_said_where_it_is(tmp_path, samples):
  assert 'same text' in read(tmp_path, samples)[0].note
  samples[0]['pieces'][0]['text'] = 'else'
  assert 'differ' in read(tmp_path, samples)[0].note
  samples[0]['decoding']['temperature'] = 1.0
  assert read(tmp_path, samples)[0].note == ''
  assert read(tmp_path, samples[:1])[0].note == ''


@pytest.mark.parametrize(
    'content, message',
    [
        ('{', 'is not JSON'),
        ('[1]', 'does not hold sample texts'),
        ('[{"input": "a"}]', "KeyError: 'pieces'"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
  path = tmp_path / 'samples.json'
  path.write_text(content)
  with pytest.raises(errors.UserError, match=message):
    answers.read(path)


def test_an_unknown_source_is_named(tmp_path, samples):
  samples[0]['pieces'][0]['source'] = 'guessed'
  with pytest.raises(errors.UserError, match="source 'guessed'"):
    read(tmp_path, samples)
