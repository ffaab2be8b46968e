import json

import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import batches
from distillspec_jax.data import standard_library
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies


def json_task(folder, rows, **changes):
  for split in ('train', 'validation'):
    (folder / f'{split}.jsonl').write_text(''.join(row + '\n' for row in rows))
  return tasks.json_lines(
      **{
          'train': str(folder / 'train.jsonl'),
          'validation': str(folder / 'validation.jsonl'),
          'vocabulary': 'bytes',
          'input_length': 8,
          'label_length': 6,
          **changes,
      }
  )


def row(inputs, labels):
  return json.dumps({'inputs': inputs, 'labels': labels})


def test_examples_are_tokenised_with_eos(tmp_path):
  task = json_task(tmp_path, [row('ab', 'c')], prefix='> ')
  (example,) = task.examples('train')
  assert example.input_text == '> ab'
  assert example.label_text == 'c'
  assert task.vocabulary.decode(example.inputs.tolist()) == '> ab'
  assert example.inputs[-1] == 1
  assert example.labels.tolist() == [*task.vocabulary.encode('c'), 1]


def test_a_language_model_has_no_inputs_and_no_eos_in_them(tmp_path):
  task = json_task(tmp_path, [row('ab', 'c')], inputs=None)
  (example,) = task.examples('train')
  assert len(example.inputs) == 0
  assert task.decoder_only
  assert task.input_length == 0


def test_what_is_cut_and_left_out_is_counted(tmp_path):
  rows = [row('a', 'b'), row('a' * 20, 'b' * 20), row('x', ''), 'not json']
  task = json_task(tmp_path, rows, on_bad_line='skip')
  found = batches.statistics(task, 'train')
  assert found.examples == 2
  assert found.empty == 1
  assert found.truncated_inputs == 1
  assert found.truncated_labels == 1
  assert found.max_input_tokens == 21
  assert found.skipped_lines == 1
  text = found.describe()
  for part in ('2 examples', '1 inputs cut', '1 left out', '1 lines skipped'):
    assert part in text


def test_lines_skipped_are_counted_once_whoever_reads(tmp_path):
  task = json_task(tmp_path, [row('a', 'b'), '?'], on_bad_line='skip')
  task.texts('train')
  task.texts('train')
  assert batches.statistics(task, 'train').skipped_lines == 1


@pytest.mark.parametrize(
    'rows, changes, message',
    [
        ([], {}, "'train' of task 'json_lines' is empty"),
        ([row('a', '')], {}, 'labels are all empty'),
        (['?'], {}, 'train.jsonl, line 1 is not JSON'),
        ([row('a', 'b')], {'labels': 'answer'}, "no field 'answer'"),
        ([row('a', 'b')], {'label_length': 1}, 'label_length 1'),
        ([row('a', 'b')], {'on_bad_line': 'x'}, "on_bad_line is 'x'"),
        ([row('a', 'b')], {'vocabulary': 'x'}, "vocabulary 'x'"),
    ],
)
def test_bad_input_is_refused(tmp_path, rows, changes, message):
  with pytest.raises(errors.UserError, match=message):
    task = json_task(tmp_path, rows, **changes)
    batches.statistics(task, 'train')


def test_an_unknown_split_is_refused(tmp_path):
  task = json_task(tmp_path, [row('a', 'b')])
  with pytest.raises(errors.UserError, match="no split 'test'; it has train"):
    task.texts('test')


def test_the_standard_library_is_divided_by_module():
  splits = {
      s: set(standard_library.modules(s)) for s in ('train', 'validation')
  }
  assert splits['train'] and splits['validation']
  assert not splits['train'] & splits['validation']


@pytest.mark.parametrize(
    'form', ['continuation', 'docstrings', 'language_model']
)
def test_forms_of_the_embedded_task(form):
  task = tasks.standard_library_code(
      form=form, vocabulary='bytes', max_examples=20
  )
  pairs = task.texts('validation')
  assert len(pairs) == 20
  assert all(label.strip() for _, label in pairs)
  assert all(bool(text) != task.decoder_only for text, _ in pairs)


def test_a_continuation_follows_its_input():
  path = standard_library.modules('validation')[0]
  text = '\n'.join(line.rstrip() for line in path.read_text().split('\n'))
  pairs = list(standard_library.continuations('validation', 80, 80))[:5]
  for before, after in pairs:
    assert f'{before}\n{after}' in text


def test_an_unknown_form_is_refused():
  with pytest.raises(errors.UserError, match="form is 'poem'"):
    tasks.standard_library_code(form='poem')


def test_gsm8k(shared):
  task = tasks.gsm8k(str(shared / 'data' / 'gsm8k'), vocabulary='bytes')
  assert [len(task.texts(s)) for s in ('train', 'validation', 'test')] == [
      6973,
      500,
      1319,
  ]
  question, answer = task.texts('validation')[0]
  assert question.startswith('question: ')
  assert '####' in answer


def test_english_german(shared):
  task = tasks.english_german(
      str(shared / 'data' / 'multi30k'), vocabulary='bytes'
  )
  assert [len(task.texts(s)) for s in ('train', 'validation', 'test')] == [
      29000,
      1014,
      1000,
  ]


def test_a_task_of_seqios_registry():
  seqio = vocabularies.import_seqio()
  tensorflow = vocabularies.import_tensorflow()
  vocabulary = vocabularies.load('bytes')

  def source(split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    return tensorflow.data.Dataset.from_tensor_slices(
        {'inputs': ['one', 'two'], 'targets': ['eins', 'zwei']}
    )

  seqio.TaskRegistry.remove('counting')
  seqio.TaskRegistry.add(
      'counting',
      source=seqio.FunctionDataSource(source, splits=['train']),
      preprocessors=[
          seqio.preprocessors.tokenize,
          seqio.preprocessors.append_eos,
      ],
      output_features={
          name: seqio.Feature(vocabulary) for name in ('inputs', 'targets')
      },
  )
  task = tasks.registered(
      'counting', input_length=8, label_length=8, vocabulary='bytes'
  )
  assert task.texts('train') == [('one', 'eins'), ('two', 'zwei')]
  assert len(task.examples('train')) == 2
  with pytest.raises(errors.UserError, match="no task 'missing'"):
    tasks.registered(
        'missing', input_length=8, label_length=8, vocabulary='bytes'
    )
