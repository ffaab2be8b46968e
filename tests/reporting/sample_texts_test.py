"""Sample texts are grouped by input, and damage is named."""

import json

import pytest

from distillspec_jax.core import errors
from distillspec_jax.reporting import sample_texts


def read(tmp_path, samples):
  path = tmp_path / 'samples.json'
  path.write_text(json.dumps(samples))
  return sample_texts.read(path)


def test_an_absent_file_has_no_samples(tmp_path):
  assert sample_texts.read(tmp_path / 'samples.json') == []


def test_texts_for_one_input_are_grouped(tmp_path, samples):
  (sample,) = read(tmp_path, samples)
  assert [text.draft for text in sample.texts] == [
      'fine-tuned', 'distilled',
  ]  # fmt: skip
  first = sample.texts[0]
  assert first.decoding == 'greedy, block length 5'
  assert first.counts == '24 tokens in 9 target calls, 2.67 per call'
  assert first.pieces[3].lines == ['values."""', '']


def test_greedy_texts_are_compared(tmp_path, samples):
  assert 'same text' in read(tmp_path, samples)[0].note
  samples[0]['pieces'][0]['text'] = 'else'
  assert 'differ' in read(tmp_path, samples)[0].note
  for name, value in (('temperature', 1.0), ('lossless', False)):
    changed = {
        **samples[0],
        'decoding': {**samples[0]['decoding'], name: value},
    }
    assert read(tmp_path, [changed, samples[1]])[0].note == ''
  assert read(tmp_path, samples[:1])[0].note == ''


@pytest.mark.parametrize(
    'content, message',
    [
        ('{', 'does not hold sample texts .JSONDecodeError'),
        ('[1]', 'does not hold sample texts'),
        ('[{"input": "a"}]', "KeyError: 'pieces'"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
  path = tmp_path / 'samples.json'
  path.write_text(content)
  with pytest.raises(errors.UserError, match=message):
    sample_texts.read(path)


def test_an_unknown_source_is_named(tmp_path, samples):
  samples[0]['pieces'][0]['source'] = 'guessed'
  with pytest.raises(errors.UserError, match="source 'guessed'"):
    read(tmp_path, samples)
