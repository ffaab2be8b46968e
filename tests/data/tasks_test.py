import dataclasses
import json
import sys

import gin
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import batches
from distillspec_jax.data import metrics
from distillspec_jax.data import standard_library
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.data import vocabulary_kinds
from tests.data import tiny_tokenizers


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
  assert task.texts('train') == [('> ab', 'c')]
  (example,) = task.examples('train')
  assert example.inputs.dtype == example.labels.dtype == np.int32
  assert example.inputs.tolist() == [*task.vocabulary.encode('> ab'), 1]
  assert example.labels.tolist() == [*task.vocabulary.encode('c'), 1]


def test_a_language_model_has_no_inputs_and_no_eos_in_them(tmp_path):
  task = json_task(tmp_path, [row('ab', 'c')], inputs=None, prefix='> ')
  (example,) = task.examples('train')
  assert len(example.inputs) == 0
  assert task.is_decoder_only
  assert task.input_length == 0


def test_what_is_cut_and_left_out_is_counted(tmp_path):
  rows = [row('a', 'b'), row('a' * 20, 'b' * 20), row('x', ''), 'not json']
  task = json_task(tmp_path, rows, on_bad_line='skip')
  statistics = batches.statistics(task, 'train')
  assert statistics.examples == 2
  assert statistics.empty == 1
  assert statistics.truncated_inputs == 1
  assert statistics.truncated_labels == 1
  assert statistics.max_input_tokens == 21
  assert statistics.skipped_lines == 1
  text = statistics.describe()
  for part in ('2 examples', '1 inputs cut', '1 left out', '1 lines skipped'):
    assert part in text


def test_skipped_lines_are_counted_once_whoever_reads(tmp_path):
  task = json_task(tmp_path, [row('a', 'b'), '?'], on_bad_line='skip')
  task.texts('train')
  task.examples('train')
  task.texts('validation')
  assert task.skipped_lines('train') == 1


def test_no_more_lines_are_read_than_examples_are_wanted(tmp_path):
  task = json_task(tmp_path, [row('a', 'b'), row('c', 'd'), '?'])
  task = dataclasses.replace(task, max_examples=2)
  assert task.texts('train') == [('a', 'b'), ('c', 'd')]
  assert task.skipped_lines('train') == 0


@pytest.mark.parametrize(
    'rows, changes, message',
    [
        ([], {}, "'train' of task 'json_lines' is empty"),
        ([row('a', '')], {}, 'labels are all empty'),
        (['?'], {}, 'train.jsonl, line 1 is not JSON'),
        ([row('a', 'b')], {'labels': 'answer'}, "no field 'answer'"),
        ([row('a', 'b')], {'label_length': 1}, 'json_lines.label_length is 1'),
        ([row('a', 'b')], {'input_length': -1}, 'input_length is -1'),
        ([row('a', 'b')], {'input_length': 10**12}, 'must be at most 131072'),
        ([row('a', 'b')], {'label_length': 10**12}, 'must be at most 131072'),
        ([row('a', 'b')], {'on_bad_line': 'x'}, "on_bad_line is 'x'"),
        ([row('a', 'b')], {'vocabulary': 'x'}, "vocabulary 'x'"),
        ([row('a', 'b')], {'metrics': ('blue',)}, "metric is 'blue'"),
        ([row('a', 'b')], {'vocabulary': None}, 'has no vocabulary yet'),
    ],
)
def test_bad_input_is_refused(tmp_path, rows, changes, message):
  with pytest.raises(errors.UserError, match=message):
    task = json_task(tmp_path, rows, **changes)
    batches.statistics(task, 'train')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'inputs': ['x']}, r"inputs is \['x'\]; it must be a text"),
        ({'labels': None}, 'labels is None; it must be a text'),
        ({'max_examples': 0}, 'json_lines.max_examples is 0; it must be at'),
        ({'max_examples': 2.5}, 'max_examples is 2.5; it must be a whole'),
        ({'prefix': 5}, 'prefix is 5; it must be a text'),
        ({'metrics': 'exact_match'}, "metrics is 'exact_match'; give a tuple"),
        ({'metrics': None}, 'metrics is None; give a tuple'),
        ({'train': None}, 'no split .train.|path is None'),
        (
            {'vocabulary': 'sentencepiece', 'vocabulary_size': 10**12},
            'vocabulary_size is 10+; it must be at most',
        ),
    ],
)
def test_arguments_of_other_kinds_are_refused(tmp_path, changes, message):
  with pytest.raises(errors.UserError, match=message):
    json_task(tmp_path, [row('a', 'b')], **changes).texts('train')


@pytest.mark.parametrize('pair', [('a',), ('a', None), 5, ('a', '\ud800')])
def test_examples_are_pairs_of_texts(pair):
  task = tasks.in_memory(
      pairs={'train': [('a', 'b'), pair]}, vocabulary='bytes'
  )
  with pytest.raises(errors.UserError, match="Example 1 of split 'train' is"):
    task.texts('train')
  with pytest.raises(errors.UserError, match=r'pairs is \[\]; give a diction'):
    tasks.in_memory(pairs=[])


def test_parallel_text_is_two_files():
  task = tasks.parallel_text(train='ab', validation='a', vocabulary='bytes')
  with pytest.raises(errors.UserError, match="train is 'ab'; give two files"):
    task.texts('train')


def test_an_unknown_split_is_refused(tmp_path):
  task = json_task(tmp_path, [row('a', 'b')])
  with pytest.raises(errors.UserError, match="no split 'test'; it has train"):
    task.texts('test')
  assert task.splits == ('train', 'validation')


def test_a_task_gets_the_vocabulary_of_a_model(tmp_path):
  task = json_task(tmp_path, [row('a', 'b')], vocabulary=None)
  words = vocabulary_kinds.Bytes(['a'])
  read = task.with_vocabulary(words, 'model')
  assert read.vocabulary is words
  assert task.vocabulary is None  # it can be given another one
  assert read.examples('train')[0].inputs.tolist() == [259, 1]
  assert read.with_vocabulary(None, 'other') is read
  assert read.with_vocabulary(vocabulary_kinds.Bytes(), 'other') is read
  with pytest.raises(
      errors.UserError,
      match="model comes without a vocabulary.*for task 'json_lines'.*Set its",
  ):
    task.with_vocabulary(None, 'model')


def test_a_vocabulary_is_trained_where_none_is_given(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  settings = dict(vocabulary_size=600, max_examples=500)
  chosen = tasks.standard_library_code(vocabulary='sentencepiece', **settings)
  assert chosen.vocabulary.vocab_size == 600
  open_ = tasks.standard_library_code(**settings)
  assert open_.vocabulary is None
  trained = open_.with_trained_vocabulary()
  assert trained.vocabulary == chosen.vocabulary
  assert trained.with_trained_vocabulary() is trained
  assert chosen.with_vocabulary(vocabulary_kinds.Bytes(), 'x') is chosen


@pytest.mark.parametrize(
    'form', ['continuation', 'docstrings', 'language_model']
)
def test_forms_of_the_embedded_task(form):
  task = tasks.standard_library_code(
      form=form, vocabulary='bytes', max_examples=20
  )
  pairs = task.texts('validation')
  assert task.name == f'python_{form}'
  assert len(pairs) == 20
  assert all(label.strip() for _, label in pairs)
  assert all(bool(text) != task.is_decoder_only for text, _ in pairs)


def test_an_unknown_form_is_refused():
  with pytest.raises(errors.UserError, match="form is 'poem'"):
    tasks.standard_library_code(form='poem')


def test_gsm8k(shared):
  task = tasks.gsm8k(str(shared / 'data' / 'gsm8k'), vocabulary='bytes')
  assert [len(task.texts(s)) for s in task.splits] == [6973, 500, 1319]
  question, answer = task.texts('validation')[0]
  assert question.startswith('question: ')
  assert '####' in answer
  assert task.metrics == (metrics.final_number,)


def test_english_german(shared):
  task = tasks.english_german(
      str(shared / 'data' / 'multi30k'), vocabulary='bytes'
  )
  assert [len(task.texts(s)) for s in task.splits] == [29000, 1014, 1000]


def test_held_out_questions_are_the_last_ones(tmp_path):
  rows = [json.dumps({'question': c, 'answer': c}) for c in 'abcde']
  for name in ('train', 'test'):
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(rows))
  task = tasks.gsm8k(str(tmp_path), validation_examples=2)
  letters = [''.join(c for _, c in task.texts(s)) for s in task.splits]
  assert letters == ['abc', 'de', 'abcde']
  with pytest.raises(errors.UserError, match='validation_examples is 0'):
    tasks.gsm8k(str(tmp_path), validation_examples=0)


# The same ids as by seqio.


TEXTS = [
    '',
    ' ',
    'the draft is verified',
    '  two  blanks\tand\ntabs \r\n',
    '\n\nnew\n\nlines\n',
    'caf\u00e9 e\u0301 😀👩‍👩‍👧 ½ ﬁ',
    'שלום עולם \u200d \u202e \u2028',
    '\x01\x1b\x7f nul \0 inside',
    'a </s> b <pad> <unk>',
    'a <extra_id_0> b<extra_id_1> <extra_id_777>',
    '▁ and \ufffd and \ufeff',
    'x' * 300,
]


@pytest.fixture(scope='module')
def seqio():
  return pytest.importorskip('seqio', reason=tiny_tokenizers.NEEDS_SEQIO)


def register(seqio, name, vocabulary, pairs, decoder_only=False):
  """A task of seqio's registry, which is removed before it is added again."""
  import tensorflow

  def source(split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    inputs, targets = zip(*pairs)
    return tensorflow.data.Dataset.from_tensor_slices(
        {'inputs': list(inputs), 'targets': list(targets)}
    )

  seqio.TaskRegistry.remove(name)
  return seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(source, splits=['train']),
      preprocessors=[
          seqio.preprocessors.tokenize,
          seqio.preprocessors.append_eos,
      ],
      output_features={
          'inputs': seqio.Feature(vocabulary, add_eos=not decoder_only),
          'targets': seqio.Feature(vocabulary),
      },
  )


def vocabulary_pair(seqio, kind, folder):
  """(ours, seqio's) of a kind."""
  if kind == 'bytes':
    return vocabularies.load('bytes'), seqio.ByteVocabulary()
  path = folder / 'my.model'
  extra_ids = 0
  if kind == 'trained':
    code = standard_library.continuations('validation', 0, 100)
    texts = (label for _, label in code)
    trained = vocabularies.train_sentencepiece(texts, 600)
    path.write_bytes(trained.model)
  else:
    path.write_bytes(tiny_tokenizers.unigram(kind == 'byte_fallback'))
    extra_ids = 100
  theirs = seqio.SentencePieceVocabulary(str(path), extra_ids=extra_ids)
  ours = vocabulary_kinds.SentencePiece(path.read_bytes(), 'x', extra_ids)
  return ours, theirs


@pytest.mark.parametrize(
    'kind', ['bytes', 'unigram', 'byte_fallback', 'trained']
)
@pytest.mark.parametrize('decoder_only', [False, True])
def test_ids_are_those_of_seqio(
    seqio, kind, decoder_only, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  ours, theirs = vocabulary_pair(seqio, kind, tmp_path)
  pairs = list(zip(TEXTS, reversed(TEXTS)))
  if decoder_only:
    pairs = [('', text) for text in TEXTS]
  dataset = register(seqio, 'texts', theirs, pairs, decoder_only).get_dataset(
      None, 'train', shuffle=False
  )

  class task_of_pairs(tasks.in_memory):
    is_decoder_only = decoder_only

  task = task_of_pairs(pairs={'train': pairs}, vocabulary=ours)
  examples = list(task.tokenised('train'))
  rows = list(dataset.as_numpy_iterator())
  assert len(examples) == len(rows) == len(TEXTS)
  for example, seqio_row in zip(examples, rows):
    np.testing.assert_array_equal(example.inputs, seqio_row['inputs'])
    np.testing.assert_array_equal(example.labels, seqio_row['targets'])


def test_a_task_of_seqios_registry(seqio):
  pairs = [('one', 'eins'), ('two', 'zwei')]
  register(seqio, 'counting', seqio.ByteVocabulary(), pairs)
  task = tasks.registered(
      'counting', input_length=8, label_length=8, prefix='count: '
  )
  assert task.splits == ('train',)
  assert task.texts('train') == [('count: one', 'eins'), ('count: two', 'zwei')]
  assert task.vocabulary == vocabularies.load('bytes')  # the registered task's
  assert len(task.examples('train')) == 2
  words = vocabulary_kinds.Bytes(['one'])
  assert tasks.registered('counting', vocabulary=words).vocabulary is words
  with pytest.raises(errors.UserError, match="no task or mixture 'missing'"):
    tasks.registered('missing', vocabulary='bytes')


# Tasks and metrics of the user's own module.


MODULE = """
import dataclasses
import types

import numpy as np

from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies


def length(answers, labels):
  return np.array([float(len(answer)) for answer in answers])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class backwards(tasks.Task):
  words: tuple[str, ...]
  name: str = 'backwards'
  splits = ('train', 'validation')

  def read(self, split):
    return ((word, word[::-1]) for word in self.words)


class Counting:
  '''No subclass: only what training and evaluation use.'''

  name, input_length, label_length, metrics = 'counting', 4, 5, ()
  vocabulary = vocabularies.load('bytes')

  def __init__(self, count):
    self._count = count

  def examples(self, split):
    example = tasks.Example(np.array([5, 1]), np.array([6, 7, 1]))
    return [example] * self._count

  def skipped_lines(self, split):
    return 0

  def with_vocabulary(self, vocabulary, model):
    return self

  def with_trained_vocabulary(self):
    return self


def use(task):
  return task
"""


@pytest.fixture
def my_tasks(tmp_path, monkeypatch):
  (tmp_path / 'my_tasks.py').write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  import my_tasks

  yield my_tasks
  del sys.modules['my_tasks']


@pytest.fixture
def from_gin(my_tasks):
  """Text of a gin file -> the task that it binds to my_tasks.use."""

  def configured(text):
    imports = (
        'from __gin__ import dynamic_registration\n'
        'from distillspec_jax.data import tasks\nimport my_tasks\n'
    )
    gin.parse_config(f'{imports}{text}')
    return gin.get_configurable(my_tasks.use)()

  gin.clear_config()
  yield configured
  gin.clear_config()


def check_own_metric(task):
  answers = ['abc', 'd']
  values = metrics.measure(task, answers, ['abc', 'e'])
  assert list(values) == ['exact_match', 'length']
  assert values['length'].tolist() == [3.0, 1.0]


def check_backwards(task):
  statistics = batches.statistics(task, 'validation')
  assert (task.name, statistics.examples) == ('backwards', 2)
  assert task.texts('train') == [('ab', 'ba'), ('cd', 'dc')]


def test_python_takes_metrics_and_tasks_of_ones_own(tmp_path, my_tasks):
  names = ('exact_match', my_tasks.length)
  check_own_metric(json_task(tmp_path, [row('a', 'b')], metrics=names))
  task = my_tasks.backwards(words=('ab', 'cd'))
  check_backwards(task.with_vocabulary(vocabularies.load('bytes'), 'model'))
  (batch,) = batches.batches(
      my_tasks.Counting(2), 'train', 2, seed=0, num_epochs=1
  )
  assert batch.labels.tolist() == [[6, 7, 1, 0, 0]] * 2


def test_gin_takes_metrics_and_tasks_of_ones_own(tmp_path, from_gin):
  task = json_task(tmp_path, [row('a', 'b')])
  bound = from_gin(f"""
my_tasks.use.task = @tasks.json_lines()
tasks.json_lines.train = {task.train!r}
tasks.json_lines.validation = {task.validation!r}
tasks.json_lines.vocabulary = 'bytes'
tasks.json_lines.input_length = 8
tasks.json_lines.metrics = ('exact_match', @my_tasks.length)
""")
  assert isinstance(bound, tasks.json_lines)
  check_own_metric(bound)
  assert dataclasses.replace(bound, name='x').input_length == 8
  bound = from_gin("""
my_tasks.use.task = @my_tasks.backwards()
my_tasks.backwards.words = ('ab', 'cd')
my_tasks.backwards.vocabulary = 'bytes'
""")
  check_backwards(bound)
  bound = from_gin("""
my_tasks.use.task = @my_tasks.Counting()
my_tasks.Counting.count = 3
""")
  assert batches.statistics(bound, 'train').examples == 3


def test_gin_refuses_a_setting_that_a_task_does_not_have(from_gin):
  with pytest.raises(ValueError, match="parameter named 'lables'"):
    from_gin("tasks.json_lines.lables = 'x'")
