"""The gin files of the paper's tasks, on mock data and on files like theirs."""

import json

import gin
import numpy as np
import pytest

from distillspec_jax.commands import gin_files
from distillspec_jax.data import batches
from distillspec_jax.data import vocabularies

FOLDER = gin_files.folder()
# File -> prefix of inputs, lengths, metrics; of TFDS.
TFDS = {
    'xsum': ('summarize: ', (1024, 64), ['rouge2', 'rouge1', 'rougeL']),
    'cnn_dailymail': (
        'summarize: ', (2048, 128), ['rouge2', 'rouge1', 'rougeL'],
    ),
    'wmt14_en_de': (
        'translate English to German: ', (80, 80), ['bleu', 'chrf'],
    ),
    'wmt14_en_fr': (
        'translate English to French: ', (80, 80), ['bleu', 'chrf'],
    ),
    'gsm8k_tfds': ('Q: ', (512, 320), ['final_number']),
    'lm1b': ('', (0, 128), []),
}  # fmt: skip


def task_of(name, **macros):
  gin.clear_config()
  gin.add_config_file_search_path(str(FOLDER))
  values = [f'{name} = {value!r}' for name, value in macros.items()]
  gin.parse_config_files_and_bindings([f'tasks/{name}.gin'], values)
  with gin.config_scope('TASK'):
    task = gin.get_bindings('gin.macro')['value']
  gin.clear_config()
  return task.with_vocabulary(vocabularies.load('bytes'), 'model')


def check(
    task, prefix, lengths, metrics, splits=('train', 'validation', 'test')
):
  assert (task.input_length, task.label_length) == lengths
  assert [metric.__name__ for metric in task.metrics] == metrics
  for split in splits:
    assert split in task.splits
    inputs, label = task.texts(split)[0]
    assert inputs.startswith(prefix) and len(label) > 0
    batch = next(batches.batches(task, split, 2, seed=0))
    assert batch.labels.shape == (2, lengths[1])
    assert np.all(batch.labels[:, 0] > 0)


@pytest.mark.parametrize('name', TFDS)
@pytest.mark.usefixtures('fresh_configuration')
def test_from_tfds(name):
  tfds = pytest.importorskip('tensorflow_datasets')
  with tfds.testing.mock_data(num_examples=3):
    check(task_of(name), *TFDS[name])


def parquet(folder, split, row):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet as files

  table = pyarrow.Table.from_pylist([row] * 2)
  files.write_table(table, folder / f'{split}-00000-of-00001.parquet')


@pytest.mark.parametrize(
    'name, row',
    [
        ('xsum', {'document': 'A story.', 'summary': 'It.', 'id': '1'}),
        (
            'cnn_dailymail',
            {'article': 'A', 'highlights': 'B .\nC .', 'id': '1'},
        ),
    ],
)
@pytest.mark.usefixtures('fresh_configuration')
def test_summaries_from_files(name, row, tmp_path):
  for split in ('train', 'validation', 'test'):
    parquet(tmp_path, split, row)
  task = task_of(f'{name}_files', DATA=str(tmp_path))
  check(task, *TFDS[name])
  assert task.name == name


@pytest.mark.parametrize('name', ['gsm8k_cot', 'gsm8k_flan'])
@pytest.mark.usefixtures('fresh_configuration')
def test_gsm8k_from_files(name, tmp_path):
  row = {'question': 'What is 2+2?', 'answer': '2+2=<<2+2=4>>4.\n#### 4'}
  for split, count in (('train', 502), ('test', 2)):
    lines = [json.dumps(row)] * count
    (tmp_path / f'{split}.jsonl').write_text('\n'.join(lines))
  task = task_of(name, DATA=str(tmp_path))
  check(task, 'Q: What is 2+2?\nA:', (512, 320), ['final_number'])
  inputs, label = task.texts('test')[0]
  step_by_step = " Let's think step by step."
  assert inputs.endswith(step_by_step) == (name == 'gsm8k_flan')
  assert label == '2+2=4. The answer is 4.'


@pytest.mark.usefixtures('fresh_configuration')
def test_translations_and_plain_text_from_files(tmp_path):
  path = tmp_path / 'text'
  path.write_text('a b\nc d\n')
  names = ('TRAIN', 'VALIDATION', 'TEST')
  pairs = dict.fromkeys(names, (str(path), str(path)))
  task = task_of('parallel_text', **pairs)
  check(task, 'a b', (80, 80), ['bleu', 'chrf'])
  texts = dict.fromkeys(names, str(path))
  check(task_of('lm1b_files', **texts), '', (0, 128), [])
  task = task_of('wikitext', **texts)
  (example,) = task.examples('train')
  text = task.vocabulary.decode(example.labels[:-1].tolist())
  assert text == 'a b\nc d\n'


@pytest.mark.usefixtures('fresh_configuration')
def test_big_bench_hard(tmp_path):
  from distillspec_jax.data import prompted_tasks

  example = {'input': 'Is it?', 'target': 'Yes'}
  for name in prompted_tasks.BIG_BENCH_HARD:
    (tmp_path / f'{name}.json').write_text(json.dumps({'examples': [example]}))
  task = task_of('big_bench_hard', DATA=str(tmp_path))
  check(task, 'Q: Is it?', (512, 320), ['final_answer'], ['test'])
  assert len(task.texts('test')) == 27


@pytest.mark.usefixtures('fresh_configuration')
def test_wikitext_of_the_released_files(shared):
  folder = shared / 'data' / 'wikitext2'
  texts = {'TRAIN': f'{folder}/valid.txt', 'VALIDATION': f'{folder}/test.txt'}
  task = task_of('wikitext', TEST=texts['VALIDATION'], **texts)
  batch = next(batches.batches(task, 'train', 4, seed=0))
  assert np.all(batch.segments == 1)  # pieces of a file fill their rows
