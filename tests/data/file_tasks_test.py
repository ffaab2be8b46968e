"""Where texts come from: patterns of files, plain text, parquet, TFDS."""

import gzip
import json

import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import batches
from distillspec_jax.data import tasks
from tests.data import tiny_tokenizers


def bytes_of(task, example):
  return [task.vocabulary.decode(side.tolist()) for side in example]


# Files.


def write_shards(folder):
  for number, rows in enumerate((['a', 'b'], ['c'])):
    lines = [json.dumps({'inputs': x, 'labels': x * 2}) for x in rows]
    path = folder / f'train-{number}-of-2.jsonl.gz'
    path.write_bytes(gzip.compress('\n'.join(lines).encode()))


@pytest.mark.parametrize('as_tuple', [False, True])
def test_a_split_may_be_several_files(tmp_path, as_tuple):
  write_shards(tmp_path)
  names = f'{tmp_path}/train-*.jsonl.gz'
  if as_tuple:
    names = tuple(f'{tmp_path}/train-{i}-of-2.jsonl.gz' for i in (1, 0))
  task = tasks.json_lines(train=names, validation=names, vocabulary='bytes')
  texts = [source for source, _ in task.texts('train')]
  assert texts == (['c', 'a', 'b'] if as_tuple else ['a', 'b', 'c'])


def test_a_pattern_without_files_is_an_error(tmp_path):
  task = tasks.tab_separated(
      train=f'{tmp_path}/x-*', validation='y', vocabulary='bytes'
  )
  with pytest.raises(errors.UserError, match=r'No file matches .*/x-\*'):
    task.texts('train')


def test_parallel_patterns_name_as_many_files(tmp_path):
  for name in ('a-0.en', 'a-1.en', 'a-0.de', 'a-1.de'):
    (tmp_path / name).write_text(f'{name}\n')
  pair = (f'{tmp_path}/a-*.en', f'{tmp_path}/a-*.de')
  task = tasks.parallel_text(train=pair, validation=pair, vocabulary='bytes')
  assert task.texts('train') == [('a-0.en', 'a-0.de'), ('a-1.en', 'a-1.de')]
  (tmp_path / 'a-1.de').unlink()
  with pytest.raises(errors.UserError, match='names 2 files and .* 1;'):
    task.texts('train')


# Plain text.


def plain(tmp_path, text, **changes):
  (tmp_path / 'x.txt').write_text(text)
  return tasks.plain_text(
      **{
          'train': f'{tmp_path}/x.txt',
          'validation': f'{tmp_path}/x.txt',
          'vocabulary': 'bytes',
          'label_length': 4,
          **changes,
      }
  )


def test_each_line_of_plain_text_is_an_example(tmp_path):
  task = plain(tmp_path, 'ab\n\nabcdef\n')
  examples = task.examples('train')
  assert [bytes_of(task, e) for e in examples] == [['', 'ab'], ['', 'abcdef']]
  assert task.is_decoder_only
  assert batches.statistics(task, 'train').truncated_labels == 1


def test_a_file_of_plain_text_is_cut_into_examples(tmp_path):
  task = plain(tmp_path, 'ab\n\ncdefg\n', document='file')
  labels = [example.labels.tolist() for example in task.examples('train')]
  tokens = task.vocabulary.encode('ab\n\ncdefg\n')
  assert labels == [tokens[:4], tokens[4:8], [*tokens[8:], 1]]
  assert all(len(e.inputs) == 0 for e in task.examples('train'))
  task = plain(tmp_path, 'abcdefg\n', document='file')  # EOS has no room
  assert [len(e.labels) for e in task.examples('train')] == [4, 4]
  task = plain(tmp_path, 'abcdefg\n', document='file', max_examples=1)
  assert len(task.examples('train')) == 1


def test_plain_text_refuses_what_it_cannot_read(tmp_path):
  with pytest.raises(errors.UserError, match="document is 'page'"):
    plain(tmp_path, 'a\n', document='page')
  with pytest.raises(errors.UserError, match="'train' of .* is empty"):
    plain(tmp_path, '', document='file').examples('train')


# Hugging Face's folders.


def write_parquet(folder, values):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  for split, rows in values.items():
    for number in range(2):
      table = pyarrow.Table.from_pylist(rows[number::2])
      path = folder / f'{split}-0000{number}-of-00002.parquet'
      parquet.write_table(table, path)


def translation(text):
  return {'translation': {'en': text, 'de': text.upper()}, 'id': 3}


def test_parquet_files_are_read(tmp_path):
  rows = [translation(text) for text in ('a', 'b', 'c')]
  write_parquet(tmp_path, {'train': rows, 'test': rows[:2]})
  task = tasks.hugging_face_dataset(
      folder=str(tmp_path),
      inputs='translation.en',
      labels='translation.de',
      vocabulary='bytes',
  )
  assert task.splits == ('train', 'test')
  assert task.texts('train') == [('a', 'A'), ('c', 'C'), ('b', 'B')]
  with pytest.raises(
      errors.UserError,
      match="no split 'validation'; it has train, test.*set `validation`",
  ):
    task.texts('validation')


def test_what_save_to_disk_writes_is_read(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  table = pyarrow.Table.from_pylist([{'q': 'x', 'a': 'y'}] * 3)
  (tmp_path / 'train').mkdir()
  for name in ('data-00000-of-00001.arrow', 'cache-1.arrow'):
    with pyarrow.OSFile(str(tmp_path / 'train' / name), 'wb') as file:
      with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
  task = tasks.hugging_face_dataset(
      folder=str(tmp_path), inputs='q', labels='a', vocabulary='bytes'
  )
  assert task.texts('train') == [('x', 'y')] * 3


@pytest.mark.parametrize(
    'labels, message',
    [
        ('translation.fr', "'fr' is looked for in .'de', 'en'."),
        ('id', "field 'id' .* is 3, which is no text"),
    ],
)
def test_a_field_that_is_not_there_is_named(tmp_path, labels, message):
  write_parquet(tmp_path, {'train': [translation('a')] * 2})
  task = tasks.hugging_face_dataset(
      folder=str(tmp_path),
      inputs='translation.en',
      labels=labels,
      vocabulary='bytes',
  )
  with pytest.raises(errors.UserError, match=message):
    task.texts('train')


# TFDS.


@pytest.fixture(scope='module')
def tfds():
  return pytest.importorskip(
      'tensorflow_datasets', reason=tiny_tokenizers.NEEDS_SEQIO
  )


def summaries(**changes):
  return tasks.tfds(
      **{
          'name': 'cnn_dailymail:3.4.0',
          'inputs': 'article',
          'labels': 'highlights',
          'vocabulary': 'bytes',
          **changes,
      }
  )


def test_a_data_set_of_tfds_is_read(tfds):
  with tfds.testing.mock_data(num_examples=3):
    task = summaries(prefix='summarize: ')
    texts = task.texts('train')
    assert len(texts) == 3 and all(
        x.startswith('summarize: ') for x, _ in texts
    )
    batch = next(batches.batches(task, 'test', 2, seed=0))
    assert np.all(batch.labels[:, 0] > 0)


def test_a_data_set_that_is_not_prepared_says_how_to(tfds, tmp_path):
  task = summaries(data_dir=str(tmp_path))
  with pytest.raises(
      errors.UserError,
      match=f'tfds build cnn_dailymail/3.4.0 --data_dir={tmp_path}',
  ):
    task.texts('train')


def test_a_field_or_data_set_that_tfds_does_not_have(tfds):
  with tfds.testing.mock_data(num_examples=1):
    with pytest.raises(errors.UserError, match="'summary' is looked for in"):
      summaries(labels='summary').texts('train')
  with pytest.raises(errors.UserError, match="no data set 'cnn_daily'"):
    summaries(name='cnn_daily').texts('train')
