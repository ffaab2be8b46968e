"""How a model was made is read from its run's lines."""

import pytest

from distillspec_jax.reporting import curves
from distillspec_jax.reporting import figures
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import runs
from distillspec_jax.reporting import tables

SETTINGS = {
    'method.divergence': "'forward_kl'",
    'method.fixed_fraction': '0.0',
    'method.draft_fraction': '1.0',
    'method.temperature': '0.5',
    'steps.num_steps': '400',
    'steps.batch_size': '32',
    'optimizer': 'distillspec_jax.training.optimizers.Optimizer',
    'optimizer.name': "'adamw'",
    'optimizer.learning_rate': '0.003',
    'start.checkpoint': "'runs/made_up/seed_0/fine-tuned'",
}


def made(made_up, name='distilled', seed=0, **settings):
  """The line of a run, with some settings changed."""
  settings = {key.replace('__', '.'): x for key, x in settings.items()}
  metrics = {
      'parameters': made_up['metric'](77_123_456, unit='parameters'),
      'target_parameters': made_up['metric'](2.9e9, unit='parameters'),
  }
  return made_up['line'](
      'run', metrics, run=name, draft=name, split='', seed=seed,
      decoding={**SETTINGS, **settings},
  )  # fmt: skip


def table(lines):
  (study,) = measurements.studies(lines)
  (one,) = [one for one in tables.tables(study) if one.title.startswith('How')]
  return [dict(zip(one.header, row, strict=True)) for row in one.body]


def test_a_table_tells_how_each_model_was_made(made_up):
  lines = [made(made_up), *made_up['training']((0,))]
  for line in lines:
    line['provenance']['seconds'] = 2.0
  rows = {row['run']: row for row in table(lines)}
  assert rows['distilled'] == {
      'run': 'distilled',
      'divergence': 'forward KL',
      'text': 'draft, T = 0.5',
      'parameters': '77.1 M',
      'starts from': 'fine-tuned',
      'steps': '400',
      'batch': '32',
      'optimizer': 'adamw',
      'learning rate': '0.003',
      'in all, s': '94',  # 47 lines
      'seeds': '1',
  }
  assert rows['target']['divergence'] == '–'  # not recorded


@pytest.mark.parametrize(
    'changes, expected',
    [
        ({'method__fixed_fraction': '1.0'}, 'dataset'),
        ({'method__draft_fraction': '0.0'}, 'target, T = 0.5'),
        ({'method__fixed_fraction': '0.5'}, '50% dataset; 50% draft, T = 0.5'),
        ({}, 'draft, T = 0.5'),
    ],
)
def test_the_text_that_it_learned_from(made_up, changes, expected):
  (run,) = runs.runs([made(made_up, **changes)])
  assert run.text == expected


@pytest.mark.parametrize(
    'divergence, expected',
    [
        ("'jsd'", 'JSD'),
        ("'reverse_kl'", 'reverse KL'),
        ("'cross_entropy'", 'cross-entropy'),
        ('my_losses.alpha_divergence', 'alpha divergence'),
    ],
)
def test_the_divergence_in_words(made_up, divergence, expected):
  (run,) = runs.runs([made(made_up, method__divergence=divergence)])
  assert run.divergence == expected


def test_seeds_that_were_made_in_different_ways_are_different_runs(made_up):
  def lines(*divergences):
    for seed, divergence in enumerate(divergences):
      folder = f'seed_{seed}/distilled'
      start = f"'runs/seed_{seed}/fine-tuned'"
      one = made(
          made_up, seed=seed, method__divergence=divergence,
          start__checkpoint=start, start__content=f"'{seed}a5f{seed}9'",
      )  # fmt: skip
      for line in (one, *made_up['training']((seed,))):
        if line['run'] == 'distilled':
          yield {**line, 'folder': folder}

  def names(*divergences):
    found = curves.curves(list(lines(*divergences)), 'loss')
    return [curve.run for curve in found]

  assert names("'jsd'", "'jsd'") == ['distilled']
  assert names("'jsd'", "'forward_kl'") == ['seed 0', 'seed 1']


def test_a_curve_of_a_distillation_names_the_divergence(made_up):
  (study,) = measurements.studies([made(made_up), *made_up['training']((0,))])
  (section,) = figures.sections(study)
  labels = {one.label for panel in section.panels for one in panel.series}
  assert 'distilled (forward KL)' in labels
  assert 'distilled' not in labels and 'fine-tuned' in labels


def test_runs_with_a_target_are_distillations(made_up):
  found = runs.runs(list(made_up['training']((0,))))
  assert [run.name for run in found if run.is_distillation] == ['distilled']


@pytest.mark.parametrize(
    'value, text',
    [(950, '950'), (1234, '1.23 k'), (77.1e6, '77.1 M'), (2.85e9, '2.85 B')],
)
def test_numbers_of_parameters(value, text):
  assert runs.number(value) == text
