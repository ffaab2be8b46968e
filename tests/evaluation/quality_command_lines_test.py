"""Task quality next to what the packages' own command lines print."""

import csv
import re
import subprocess
import sys

import numpy as np
import pytest

from distillspec_jax.data import tasks
from distillspec_jax.evaluation import quality

METRICS = ('bleu', 'chrf', 'rouge1', 'rouge2', 'rougeL')
SENTENCES = [
    'Ein Mann, der eine rote Jacke trägt, fährt Ski.',
    'Zwei Hunde spielen im Schnee; einer bellt "laut".',
    'Das kostet 1.234,50 € (etwa).',
    'Die Kinder laufen zum Strand.',
    'Eine Frau liest ein Buch – im Zug.',
    'Drei Männer reparieren ein Dach in der Sonne.',
]


def texts():
  """Answers in which some words are others, or lost; one is empty."""
  rng = np.random.default_rng(0)
  words = ' '.join(SENTENCES).split()
  answers = []
  for sentence in SENTENCES * 4:
    draws = rng.random(len(sentence.split()))
    kept = [
        rng.choice(words) if draw < 0.2 else word
        for word, draw in zip(sentence.split(), draws)
        if draw < 0.9
    ]
    answers.append(' '.join(kept))
  return ['', *answers[1:]], SENTENCES * 4


@pytest.fixture(scope='module', name='scored')
def _scored(tmp_path_factory):
  """Folder of the texts' files, and our values of the emitted tokens."""
  answers, labels = texts()
  task = tasks.in_memory(
      pairs={'test': [('', label) for label in labels]},
      vocabulary='bytes',
      metrics=METRICS,
  )
  outputs = [np.array([*task.vocabulary.encode(x), 1]) for x in answers]
  folder = tmp_path_factory.mktemp('texts')
  for name, side in (('answers', answers), ('labels', labels)):
    (folder / name).write_text(''.join(f'{text}\n' for text in side))
  return folder, quality.score(task, outputs, labels)


def run(folder, *arguments):
  return subprocess.run(
      [sys.executable, '-m', *arguments],
      cwd=folder,
      capture_output=True,
      text=True,
      check=True,
  ).stdout


@pytest.mark.parametrize('digits', [1, 10])
def test_bleu_and_chrf_are_sacrebleus(scored, digits):
  folder, values = scored
  printed = run(
      folder, 'sacrebleu', 'labels', '--input', 'answers',
      '--metrics', 'bleu', 'chrf', '--score-only', '--width', str(digits),
  )  # fmt: skip
  metrics = quality.means(values)
  ours = [f'{metrics[name].value:.{digits}f}' for name in ('bleu', 'chrf')]
  assert re.findall(r'[\d.]+', printed) == ours


def test_rouge_is_rouge_scores(scored):
  folder, values = scored
  run(
      folder, 'rouge_score.rouge', '--target_filepattern=labels',
      '--prediction_filepattern=answers', '--output_filename=scores.csv',
      '--noaggregate',
  )  # fmt: skip
  with (folder / 'scores.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(SENTENCES) * 4
  for name in ('rouge1', 'rouge2', 'rougeL'):
    printed = [row[f'{name}-F'] for row in rows]
    assert [f'{value:.6f}' for value in values[name]] == printed
    mean = quality.means(values)[name].value
    assert 0.1 < mean < 0.95
    assert mean == pytest.approx(np.mean([float(x) for x in printed]), abs=1e-6)
