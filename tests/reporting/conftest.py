"""Fabricated results with the schema of real ones; nothing was measured."""

import json
import math
import random

import pytest

from distillspec_jax.reporting import report

# Acceptance rate of each draft: (greedy, sampled).
RATES = {
    'fine-tuned': (0.62, 0.55),
    'fine-tuned longer': (0.63, 0.57),
    'distilled': (0.74, 0.68),
}
COST, VERIFY = 0.2, 1.3


def metric(value, error=None, count=128, unit='1'):
  return {
      'value': value,
      'standard_error': error,
      'count': count,
      'unit': unit,
  }


def line(kind, metrics, *, draft=None, decoding=None, seed=0, **more):
  return {
      'kind': kind,
      'run': 'made_up',
      'target': 'runs/made_up/target',
      'draft': draft,
      'task': 'made_up_task',
      'split': 'validation',
      'decoding': decoding,
      'metrics': metrics,
      'provenance': {
          'git': 'abcdef',
          'config_hash': '0123',
          'seed': seed,
          'device': '1 x made-up device',
          'jax': '0.0',
          'time_utc': '2000-01-01T00:00:00Z',
      },
      **more,
  }


def decoding(temperature, block_length, batch_size=8, **more):
  verifier = None if block_length is None else more.get('verifier', 'token')
  return {
      'temperature': temperature,
      'top_k': 0,
      'top_p': 1.0,
      'block_length': block_length,
      'paths': None if block_length is None else 1,
      'adaptive': None,
      'parallel': None,
      'verifier': verifier,
      'lossless': None if verifier is None else verifier in ('token', 'block'),
      'batch_size': batch_size,
      'max_new_tokens': 64,
      **more,
  }


def efficiency(rate, length):
  return sum(rate**i for i in range(length + 1))


def acceptance(seeds, drafts, lengths=(1, 2, 3, 5, 8)):
  """Acceptance of every draft, greedy and sampled."""
  noise = random.Random(0)
  for seed in seeds:
    for draft in drafts:
      for i, temperature in enumerate((0.0, 1.0)):
        rate = RATES[draft][i] + noise.gauss(0, 0.006)
        for length in lengths:
          measured = efficiency(rate, length) * (1 - 0.012 * length)
          metrics = {
              'expected_acceptance': metric(rate, 0.006),
              'block_efficiency': metric(measured, 0.04, unit='tokens/block'),
              'predicted_block_efficiency': metric(
                  efficiency(rate, length), unit='tokens/block'
              ),
          }
          for place in range(1, length + 1):
            metrics[f'acceptance_at_{place}'] = metric(
                rate - 0.03 + 0.008 * place, 0.008 * math.sqrt(place)
            )
          yield line(
              'acceptance', metrics, draft=draft, seed=seed,
              decoding=decoding(temperature, length),
          )  # fmt: skip


def latency(drafts, speed=1.0):
  """Wall clock; `speed` scales the measured speed-ups."""
  for draft in drafts:
    for batch in (1, 8):
      for length in (2, 5):
        plain = 900.0 * batch**0.8
        yield line(
            'latency',
            {
                'tokens_per_second': metric(plain + length, 9.0, 5, 'tokens/s'),
                'compile_s': metric(4.0, None, 1, 's'),
            },
            decoding=decoding(0.0, None, batch),
        )
        tau = efficiency(RATES[draft][0], length)
        measured = speed * tau / (COST * length + VERIFY + 0.04 * batch)
        yield line(
            'latency',
            {
                'tokens_per_second': metric(
                    measured * plain, 20.0, 5, 'tokens/s'
                ),
                'compile_s': metric(7.0, None, 1, 's'),
                'cost_ratio': metric(COST),
                'verify_ratio': metric(VERIFY),
                'block_efficiency': metric(tau, None, 5, 'tokens/block'),
                'predicted_speedup': metric(tau / (COST * length + 1)),
                'predicted_speedup_with_verify': metric(
                    tau / (COST * length + VERIFY)
                ),
                'measured_speedup': metric(measured, 0.02, 5),
            },
            draft=draft,
            decoding=decoding(0.0, length, batch),
        )


def training(seeds):
  """Training of the target and the drafts."""
  noise = random.Random(1)

  def one(run, seed, step, split, target=None, **values):
    metrics = {'step': metric(float(step), None, 1, 'step')}
    metrics |= {name: metric(value) for name, value in values.items()}
    return line(
        'training', metrics, seed=seed, run=run, draft=run, split=split,
        target=target,
    )  # fmt: skip

  runs = [('target', 0, 3.0)]
  runs += [('fine-tuned', seed, 3.6) for seed in seeds]
  runs += [('fine-tuned_longer', seed, 3.5) for seed in seeds]
  for run, seed, floor in runs:
    for step in range(0, 501, 10):
      loss = floor + 3.5 * math.exp(-step / 90) + noise.gauss(0, 0.04)
      yield one(run, seed, step, 'train', loss=loss, cross_entropy=loss)
      if step % 100 == 0:
        yield one(run, seed, step, 'validation', cross_entropy=loss + 0.1)
  for seed in seeds:
    for step in range(0, 401, 10):
      done = 1 - math.exp(-step / 150)
      yield one(
          'distilled', seed, step, 'train', 'runs/made_up/target',
          loss=0.8 - 0.3 * done + noise.gauss(0, 0.01),
          expected_acceptance=0.55 + 0.13 * done + noise.gauss(0, 0.004),
      )  # fmt: skip
      if step % 100 == 0:
        yield one(
            'distilled', seed, step, 'validation', 'runs/made_up/target',
            block_efficiency=2.2 + 0.6 * done,
        )  # fmt: skip


def quality(drafts):
  """Task quality, the target's once for every draft."""
  for draft in drafts:
    for model, value in (('target', 0.41), (draft, RATES[draft][0] / 3)):
      yield line(
          'task_quality', {'exact_match': metric(value, 0.03)}, draft=draft,
          decoding={**decoding(0.0, None), 'model': model},
      )  # fmt: skip


def lossy(draft='distilled'):
  """Quality and acceptance of the pair with lossy verifiers, greedy."""
  for verifier, tokens, value in (
      ('lenient(linear, 0.3)', 3.2, 0.4),
      ('lenient(linear, 0.5)', 3.5, 0.37),
      ('lenient(linear, 0.8)', 4.0, 0.3),
      ('typical(0.09, 0.3)', 3.4, 0.36),
      ('typical(0.3, 0.5)', 3.7, 0.31),
  ):
    settings = decoding(0.0, 5, verifier=verifier)
    yield line(
        'task_quality', {'exact_match': metric(value, 0.02)}, draft=draft,
        decoding={**settings, 'model': 'pair'},
    )  # fmt: skip
    metrics = {
        'expected_acceptance': metric(0.74, 0.006),
        'block_efficiency': metric(tokens, 0.05),
    }
    yield line('acceptance', metrics, draft=draft, decoding=settings)


@pytest.fixture
def made_up():
  """Functions that make lines, by name."""
  return {
      'line': line,
      'metric': metric,
      'decoding': decoding,
      'acceptance': acceptance,
      'latency': latency,
      'training': training,
      'quality': quality,
      'plans': plans,
      'lossy': lossy,
  }


def plans():
  """Plans for two slices, and a setting of the second that does not fit."""
  lines = []
  for topology, mesh, fits in (
      ('v5e-16', '16 x 1 x 1', True),
      ('v5e-256', '256 x 1 x 1', True),
      ('v5e-256', '64 x 1 x 4', False),
  ):
    metrics = {
        'step_memory_bytes': metric(8 * 2**30, unit='bytes'),
        'memory_share': metric(0.5 if fits else 1.1),
    }
    if fits:
      metrics |= {
          'step_s': metric(0.5, unit='s'),
          'rollout_s': metric(0.3, unit='s'),
          'learning_s': metric(0.2, unit='s'),
          'mfu': metric(0.45),
          'token_s': metric(0.02, unit='s'),
          'speedup_at_0.6': metric(1.7),
      }
    settings = {'topology': topology, 'mesh': mesh, 'batch_size': 128}
    lines.append(line('plan', metrics, draft='small', decoding=settings))
  return lines


def make_all_lines():
  """Lines of all kinds of measurements, with three seeds and three drafts."""
  pair = ('fine-tuned', 'distilled')
  return [
      *training((0, 1, 2)),
      *acceptance((0, 1, 2), RATES),
      *latency(pair),
      *quality(pair),
      *lossy(),
  ]


def two_samples():
  """Sample texts of two drafts for one input, with characters of HTML."""

  def one(draft, pieces, blocks):
    return {
        'input': 'def first(values: list[int]) -> int | None:\n',
        'draft': draft,
        'decoding': decoding(0.0, 5),
        'pieces': [{'text': t, 'source': s} for t, s in pieces],
        'blocks': blocks,
        'emitted': 24,
    }

  return [
      one(
          'fine-tuned',
          [
              ('  """The ', 'accepted'),
              ('first', 'corrected'),
              (' of ', 'accepted'),
              ('values."""\n', 'corrected'),
              ('  if values & ', 'accepted'),
              ('(0 < 1):', 'corrected'),
              ('\n    return values[0]', 'bonus'),
              ('\n  return None', 'accepted'),
          ],
          9,
      ),
      one(
          'distilled',
          [
              ('  """The first of ', 'accepted'),
              ('values."""\n', 'bonus'),
              ('  if values & (0 < 1):\n    return ', 'accepted'),
              ('values', 'corrected'),
              ('[0]\n  return None', 'accepted'),
          ],
          5,
      ),
  ]


def fill(folder):
  """Writes results below the folder, as a run does, and samples into it."""
  lines = make_all_lines()
  for name in ('training', 'measured'):
    (folder / name).mkdir()
    text = ''.join(
        json.dumps(one) + '\n'
        for one in lines
        if (one['kind'] == 'training') == (name == 'training')
    )
    (folder / name / 'results.jsonl').write_text(text)
  (folder / 'samples.json').write_text(json.dumps(two_samples()))
  return folder


@pytest.fixture
def lines():
  return make_all_lines()


@pytest.fixture(scope='session')
def all_lines():
  """The same, for tests that do not change them."""
  return make_all_lines()


@pytest.fixture
def samples():
  return two_samples()


@pytest.fixture
def folder(tmp_path):
  """A run's folder without a report."""
  return fill(tmp_path)


@pytest.fixture(scope='session')
def reported(tmp_path_factory):
  """A run's folder with its report; tests do not change it."""
  folder = fill(tmp_path_factory.mktemp('reported'))
  assert report.report(run=str(folder)) == folder / 'report.html'
  return folder
