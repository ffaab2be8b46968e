"""Folders of made-up studies, in the schemas of real ones."""

import json

import numpy as np

from distillspec_jax.core import statistics

EXAMPLES = 40
_DIVERGENCES = {
    'forward_kl': 0.30, 'reverse_kl': 0.22, 'jsd': 0.33, 'total_variation': 0.1,
}  # fmt: skip
_DATA = {'labels': 0.0, 'draft': 0.35, 'target': 0.3, 'mixed': 0.33}


def decoding(temperature, **more):
  return {
      'temperature': temperature, 'top_k': 0, 'top_p': 1.0, 'block_length': 5,
      'paths': 1, 'adaptive': None, 'parallel': None, 'verifier': 'token',
      'lossless': True, 'batch_size': 8, 'max_new_tokens': 64, **more,
  }  # fmt: skip


def plain(temperature, **more):
  absent = dict.fromkeys(('block_length', 'paths', 'verifier', 'lossless'))
  return decoding(temperature, **absent, **more)


def metric(value, error=None, count=EXAMPLES, unit='1'):
  return {
      'value': float(value), 'standard_error': error, 'count': count,
      'unit': unit,
  }  # fmt: skip


def line(kind, metrics, *, draft, settings, seed, task='made_up', **more):
  return {
      'kind': kind, 'run': 'run', 'target': f'runs/target_{seed}',
      'draft': draft, 'draft_folder': f'/made_up/{draft}/{seed}', 'task': task,
      'split': 'test', 'decoding': settings, 'metrics': metrics,
      'provenance': {
          'git': 'abcdef', 'config_hash': '0123', 'seed': seed,
          'device': 'made-up device', 'jax': '0.0',
          'time_utc': '2000-01-01T00:00:00Z', 'seconds': 2.0,
          'command': 'distillspec study',
      },
      **more,
  }  # fmt: skip


def acceptance(emitted, blocks, *, inputs='i', **how):
  """A line of what was counted in each example."""
  value, error = statistics.ratio(emitted, blocks)
  rate = min(0.95, 1 - 1 / value)
  metrics = {
      'block_efficiency': metric(value, error, len(emitted), 'tokens/block'),
      'expected_acceptance': metric(rate, 0.01),
      'predicted_block_efficiency': metric(
          sum(rate**i for i in range(6)), 0.02, unit='tokens/block'
      ),
  }
  columns = [np.asarray(each).tolist() for each in (emitted, blocks)]
  examples = {'inputs': inputs, 'metrics': {'block_efficiency': columns}}
  return line('acceptance', metrics, examples=examples, **how)


def quality(values, *, inputs='i', settings, **how):
  value, error = statistics.mean(values)
  values = np.asarray(values).tolist()
  return line(
      'task_quality', {'rouge2': metric(value, error, len(values))},
      settings=settings,
      examples={'inputs': inputs, 'metrics': {'rouge2': [values]}}, **how,
  )  # fmt: skip


def counts(noise, efficiency, hardness):
  """(emitted, blocks) of examples, whose hardness all drafts share."""
  emitted = np.full(len(hardness), 60.0)
  blocks = emitted / (efficiency * hardness)
  return emitted, np.round(blocks * noise.normal(1, 0.05, len(hardness)))


def training(name, seed, divergence, fixed, steps=40):
  settings = {
      'method.divergence': repr(divergence),
      'method.fixed_fraction': repr(fixed),
      'method.draft_fraction': '1.0', 'method.temperature': '1.0',
      'steps.batch_size': '16', 'optimizer.name': "'adamw'",
      'optimizer.learning_rate': '0.002',
  }  # fmt: skip
  target = None if divergence == 'cross_entropy' else 'runs/target'
  how = {'draft': name, 'seed': seed, 'run': name}
  sizes = {'parameters': metric(1.2e6), 'target_parameters': metric(9e6)}
  yield line('run', sizes, settings=settings, **how) | {'target': target}
  for step in range(0, steps + 1, 10):
    values = {
        'step': metric(step), 'loss': metric(2 - step / 50),
        'tokens_per_second': metric(100.0, count=1000),
    }  # fmt: skip
    one = line('training', values, settings=None, **how)
    yield one | {'target': target, 'split': 'train'}


def write(folder, lines):
  folder.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(one) + '\n' for one in lines)
  (folder / 'results.jsonl').write_text(text)


def row(name, labels, seed, **more):
  slug = name.replace(' ', '_')
  return {
      'name': name, 'labels': labels, 'seed': seed, 'target_seed': seed,
      'folder': f'seed_{seed}/{slug}',
      'results': [f'seed_{seed}/evaluation_{slug}'], 'lines': {},
      'control': None, 'seconds': 50.0 + seed, 'failed': None, **more,
  }  # fmt: skip


def finish(folder, kind, axes, rows, **more):
  study = {
      'kind': kind, 'title': f'Made-up {kind}', 'averages': [],
      'command': f'distillspec study --run={folder.name}', 'axes': axes,
      'stages': {'total': 1, 'done': 1, 'failed': 0}, 'rows': rows, **more,
  }  # fmt: skip
  (folder / 'study.json').write_text(json.dumps(study))
  return folder


def grid(folder, seeds=(0, 1, 2)):
  """Divergences by data; one row lacks a seed, and one failed entirely."""
  noise, rows = np.random.default_rng(0), []
  hardness = noise.uniform(0.8, 1.25, EXAMPLES)
  for seed in seeds:
    of_seed = 2 + noise.normal(0, 0.03)
    made = [('fine-tuned', {}, 0.0), ('fine-tuned longer', {}, 0.05)]
    for data, more in _DATA.items():
      made += [
          (f'{divergence}, {data}', {'divergence': divergence, 'data': data},
           gain + more)
          for divergence, gain in _DIVERGENCES.items()
      ]  # fmt: skip
    for name, labels, more in made:
      one = row(
          name, labels, seed, control='fine-tuned longer' if labels else None
      )
      rows.append(one)
      if name == 'total_variation, mixed' or (
          name == 'reverse_kl, target' and seed == seeds[-1]
      ):
        text = f'{one["folder"]}: the loss of step 12 is not finite'
        one |= {'failed': text, 'results': [], 'seconds': None}
        continue
      write(
          folder / one['results'][0],
          [
              acceptance(
                  *counts(noise, (of_seed + more) * (1 - 0.1 * t), hardness),
                  draft=name, settings=decoding(t), seed=seed,
              )
              for t in (0.0, 1.0)
          ],
      )  # fmt: skip
      how = labels or {'divergence': 'cross_entropy', 'data': 'labels'}
      fixed = {'labels': 1.0, 'mixed': 0.5}.get(how['data'], 0.0)
      write(
          folder / one['folder'],
          training(name, seed, how['divergence'], fixed),
      )
    write(
        folder / f'target_{seed}',
        training(f'target_{seed}', seed, 'cross_entropy', 1.0),
    )
  return finish(folder, 'grid', ['divergence', 'data'], rows)


def lossy(folder, seeds=(0, 1, 2)):
  """Three lenience functions with both residuals, beside truncated sampling."""
  noise, rows = np.random.default_rng(1), []
  hardness = noise.uniform(0.8, 1.25, EXAMPLES)
  of_all = {'draft': 'distilled', 'temperature': 1.0}
  labels = {'function': 'lossless', **of_all}
  points = [('lossless', labels, decoding(1.0), 2.2, 0.40)]
  for top_p in (0.95, 0.8):
    labels = {'function': 'truncated sampling', **of_all, 'top_p': top_p}
    settings = decoding(1.0, top_p=top_p)
    points.append((f'top_p {top_p}', labels, settings, 3.2 - top_p, 0.41))
  for function, worse in (('linear', 0.2), ('square', 0.3), ('exp', 0.02)):
    for residual in ('target', 'relaxed'):
      for epsilon in (0.2, 0.5, 0.8):
        settings = decoding(
            1.0, verifier=f'lenient({function}, {epsilon}, {residual})',
            lossless=False,
        )  # fmt: skip
        lost = worse * (1 - epsilon) * (1 + 0.2 * (residual == 'relaxed'))
        own = {'function': function, 'residual': residual, 'epsilon': epsilon}
        points.append(
            (', '.join(map(str, own.values())), {**own, **of_all}, settings,
             2.2 + 2 * (1 - epsilon), 0.40 - lost)
        )  # fmt: skip
  for seed in seeds:
    where = f'seed_{seed}/evaluation_distilled'
    how = {'draft': 'distilled', 'seed': seed}
    lines = []
    for name, labels, settings, efficiency, rouge in points:
      counted = counts(noise, efficiency, hardness)
      lines.append(acceptance(*counted, settings=settings, **how))
      of_pair = {**settings, 'model': 'pair'}
      values = noise.normal(rouge, 0.05, EXAMPLES)
      lines.append(quality(values, settings=of_pair, **how))
      own = {key: settings[key] for key in ('top_p', 'verifier')}
      rows.append(
          row(
              name, labels, seed, folder=f'seed_{seed}/distilled',
              results=[where],
              control='lossless' if 'epsilon' in labels else None,
              lines={'efficiency': own, 'quality': {**own, 'model': 'pair'}},
          )
      )  # fmt: skip
    write(folder / where, lines)
  return finish(folder, 'lossy', ['function', 'residual', 'epsilon'], rows)


def garden(folder, seeds=(0, 1, 2)):
  """Three sizes; standard and speculative decoding, raw and distilled."""
  noise, rows = np.random.default_rng(2), []
  for seed in seeds:
    for size, speed, rouge in (
        ('small', 900.0, 0.30), ('base', 400.0, 0.36), ('large', 150.0, 0.40),
    ):  # fmt: skip
      for curve, faster, better in (
          ('standard', 1.0, 0.0), ('speculative', 1.5, 0.0),
          ('distilled target', 1.0, 0.03), ('DistillSpec', 2.0, 0.03),
      ):  # fmt: skip
        name = f'{curve}, {size}'
        control = None if curve == 'standard' else f'standard, {size}'
        labels = {'curve': curve, 'target': size}
        one = row(name, labels, seed, control=control)
        rows.append(one)
        draft = name if faster > 1 else None
        settings = (decoding if draft else plain)(0.0, batch_size=1)
        speed_here = speed * faster * noise.normal(1, 0.02)
        write(
            folder / one['results'][0],
            [
                line(
                    'latency',
                    {'tokens_per_second': metric(speed_here, 5.0, 10)},
                    draft=draft, settings=settings, seed=seed,
                ),
                quality(
                    noise.normal(rouge + better * (size != 'large'), 0.05, 40),
                    draft=draft or 'target', seed=seed,
                    settings=plain(0.0, model='target'),
                ),
            ],
        )  # fmt: skip
  return finish(folder, 'garden', ['curve', 'target'], rows)


def transfer(folder, seeds=(0, 1, 2)):
  """A draft of one task, on that task and on two others."""
  noise, rows = np.random.default_rng(3), []
  hardness = noise.uniform(0.8, 1.25, EXAMPLES)
  for seed in seeds:
    for task, gain in (('en_de', 0.5), ('en_fr', 0.25), ('en_cs', 0.02)):
      for name, more in (('fine-tuned longer', 0.0), ('distilled', gain)):
        control = 'fine-tuned longer' if more else None
        results = [f'seed_{seed}/evaluation_{name.replace(" ", "_")}_{task}']
        rows.append(
            row(
                f'{name} on {task}',
                {'draft': name, 'measured_on': task},
                seed,
                results=results,
                control=control and f'{control} on {task}',
            )
        )
        write(
            folder / results[0],
            [
                acceptance(
                    *counts(noise, 2 + more, hardness), draft=name, seed=seed,
                    settings=decoding(t), task=task, inputs=task,
                )
                for t in (0.0, 1.0)
            ],
        )  # fmt: skip
  return finish(folder, 'transfer', ['draft', 'measured_on'], rows)
