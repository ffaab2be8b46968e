"""What is grouped, what is averaged, and what is kept apart."""

import math

import pytest

from distillspec_jax.reporting import measurements


def acceptance(made_up, value, seed=0, **more):
  decoding = more.pop('decoding', made_up['decoding'](0.0, 5))
  return made_up['line'](
      'acceptance',
      {'expected_acceptance': made_up['metric'](value, 0.01)},
      draft='distilled',
      decoding=decoding,
      seed=seed,
      **more,
  )


def at(line, time):
  line['provenance']['time_utc'] = time
  return line


def test_one_seed_keeps_its_measured_error(made_up):
  (one,) = measurements.measurements([acceptance(made_up, 0.5)], 'acceptance')
  assert one.metrics['expected_acceptance'] == (0.5, 0.01, 1, 128)


def test_several_seeds_are_averaged_with_the_error_over_both(made_up):
  lines = [acceptance(made_up, v, s) for s, v in enumerate((0.4, 0.5, 0.6))]
  (one,) = measurements.measurements(lines, 'acceptance')
  value = one.metrics['expected_acceptance']
  assert value.value == pytest.approx(0.5)
  # Over seeds, and over the examples that they share.
  assert value.error == pytest.approx(math.hypot(0.1 / math.sqrt(3), 0.01))
  assert value.seeds == 3
  assert [one.by_seed[s]['expected_acceptance'].value for s in range(3)] == [
      0.4, 0.5, 0.6,
  ]  # fmt: skip


def test_a_measurement_repeated_with_one_seed_is_not_a_second_seed(made_up):
  lines = [
      at(acceptance(made_up, 0.6), '2000-01-02T00:00:00Z'),
      at(acceptance(made_up, 0.4), '2000-01-01T00:00:00Z'),
  ]
  (one,) = measurements.measurements(lines, 'acceptance')
  assert one.metrics['expected_acceptance'] == (0.6, 0.01, 1, 128)  # the newest


def test_repeated_times_are_averaged_and_the_first_compilation_counts(made_up):
  lines = [
      made_up['line'](
          'latency',
          {
              'tokens_per_second': made_up['metric'](rate, 1.0, 5),
              'compile_s': made_up['metric'](compile_s),
          },
          decoding=made_up['decoding'](0.0, None),
      )
      for rate, compile_s in ((100.0, 3.0), (120.0, 0.0))
  ]
  (one,) = measurements.measurements(lines, 'latency')
  value = one.metrics['tokens_per_second']
  assert (value.value, value.seeds, value.count) == (110.0, 1, 10)
  assert value.error == pytest.approx(10.0)
  assert one.metrics['compile_s'].value == 3.0


def test_each_decoding_is_a_measurement(made_up):
  lines = [
      acceptance(made_up, 0.5, decoding=made_up['decoding'](t, g))
      for t in (0.0, 1.0)
      for g in (2, 5)
  ]
  measured = measurements.measurements(lines, 'acceptance')
  assert len(measured) == 4
  assert measurements.values_of(measured, 'block_length') == [2, 5]
  assert (
      len(measurements.select(measured, temperature=1.0, draft='distilled'))
      == 2
  )


def test_the_target_has_one_quality_whatever_the_draft(made_up):
  lines = made_up['quality'](('fine-tuned', 'distilled'))
  measured = measurements.measurements(lines, 'task_quality')
  assert [one.draft for one in measured] == [
      'fine-tuned',
      'fine-tuned',
      'distilled',
  ]
  models = [one.decoding['model'] for one in measured]
  assert models == ['target', 'fine-tuned', 'distilled']


def test_studies_are_separated_by_task_split_and_target(made_up):
  lines = [
      acceptance(made_up, 0.5),
      acceptance(made_up, 0.5, task='other'),
      acceptance(made_up, 0.5, split='test'),
      acceptance(made_up, 0.5, target='runs/large'),
  ]
  studies = measurements.studies(lines)
  assert [(s.task, s.split, s.target) for s in studies] == [
      ('made_up_task', 'validation', 'runs/made_up/target'),
      ('other', 'validation', 'runs/made_up/target'),
      ('made_up_task', 'test', 'runs/made_up/target'),
      ('made_up_task', 'validation', 'runs/large'),
  ]


def test_targets_in_folders_of_seeds_are_one_study(made_up):
  lines = [
      acceptance(made_up, 0.5, seed, target=f'runs/seed_{seed}/target')
      for seed in range(3)
  ]
  (study,) = measurements.studies(lines)
  (one,) = study.measurements('acceptance')
  assert one.metrics['expected_acceptance'].seeds == 3


def test_training_belongs_to_its_task_or_to_its_target(made_up):
  training = list(made_up['training']((0,)))
  measured = [acceptance(made_up, 0.5)]
  (study,) = measurements.studies([*training, *measured])
  assert study.training == training
  both = measurements.studies(
      [
          *training,
          *measured,
          acceptance(made_up, 0.5, target='runs/large'),
      ]
  )
  # Lines do not tell which of the two targets the fine-tuned draft was for.
  assert {line['run'] for line in both[0].training} == {'distilled'}
  assert both[1].training == []


def test_training_alone_is_a_study(made_up):
  (study,) = measurements.studies(list(made_up['training']((0,))))
  assert (study.task, study.split, study.target) == ('made_up_task', '', None)


def test_figures_show_the_most_common_setting(made_up):
  rare = {**made_up['decoding'](0.0, 5), 'top_k': 40}
  lines = [
      acceptance(made_up, 0.9, decoding=rare),
      acceptance(made_up, 0.5),
      acceptance(made_up, 0.5, decoding=made_up['decoding'](1.0, 5)),
  ]
  measured = measurements.measurements(lines, 'acceptance')
  shown = measurements.comparable(measured, ('temperature', 'block_length'))
  assert [one.decoding['top_k'] for one in shown] == [0, 0]
  assert measurements.comparable([], ()) == []


def test_a_number_that_is_not_finite_has_no_value(made_up):
  (one,) = measurements.measurements(
      [acceptance(made_up, math.nan)], 'acceptance'
  )
  assert one.value('expected_acceptance') is None
  assert one.value('absent') is None


def test_text_of_a_value():
  assert measurements.Value(0.1234, 0.01, 1, 5).text() == '0.123 ± 0.010'
  assert measurements.Value(12345.6, None, 1, 5).text(0) == '12,346'


def test_of_equally_common_settings_the_default_is_shown(made_up):
  lines = [
      acceptance(
          made_up, 0.5, decoding=made_up['decoding'](0.0, 5, verifier=verifier)
      )
      for verifier in ('lenient(linear, 0.5)', 'token', 'block')
  ]
  (one,) = measurements.comparable(
      measurements.measurements(lines, 'acceptance'), ()
  )
  assert one.decoding['verifier'] == 'token'


def trade_off(lines):
  (study,) = measurements.studies(list(lines))
  return measurements.trade_off(study)


def test_the_trade_off_joins_quality_and_acceptance(made_up):
  lines = list(made_up['lossy']())
  # Neither the batch size nor the order of the lines matters.
  lines[-1]['decoding'] = {**lines[-1]['decoding'], 'batch_size': 1}
  joined = trade_off(lines[::-1])
  assert len(joined) == 5
  (lenient,) = measurements.select(joined, verifier='lenient(linear, 0.5)')
  assert lenient.metrics['block_efficiency'].value == 3.5
  assert lenient.metrics['exact_match'].value == 0.37
  assert measurements.qualities(joined) == ['exact_match']


def test_lossless_greedy_decoding_has_the_quality_of_the_target(made_up):
  lines = [*made_up['lossy'](), *made_up['quality'](['distilled'])]
  lines += made_up['acceptance']((0,), ['distilled', 'fine-tuned'])
  joined = trade_off(lines)
  # Other block lengths, drafts and temperatures have nothing to compare with.
  assert len(joined) == 6
  (token,) = measurements.select(joined, verifier='token')
  assert token.draft == 'distilled' and token.decoding['block_length'] == 5
  assert token.metrics['exact_match'].value == 0.41


def test_without_a_lossy_verifier_there_is_no_trade_off(made_up):
  lines = [*made_up['quality'](['distilled'])]
  lines += made_up['acceptance']((0,), ['distilled'])
  assert trade_off(lines) == []


def test_settings_in_words(made_up):
  decoding = made_up['decoding']
  assert measurements.describe(decoding(0.0, 5)) == (
      'batch 8, greedy, block length 5'
  )
  settings = decoding(
      0.7, 5, batch_size=None, verifier='block', paths=2,
      adaptive='confidence(0.4)', top_k=40,
  )  # fmt: skip
  assert measurements.describe(settings) == (
      'T = 0.7, block length 5, top-k 40, verifier block, paths 2, adaptive'
      ' confidence(0.4)'
  )
  assert measurements.describe(decoding(1.0, None, None)) == 'T = 1'


@pytest.mark.parametrize('lossless', [None, True, False])
def test_what_is_lossy_says_so(lossless):
  assert measurements.is_lossy({'lossless': lossless}) == (lossless is False)


def test_drafts_of_one_name_in_different_folders_are_kept_apart(made_up):
  values = {('kd', 0): 0.5, ('kd', 1): 0.6, ('jsd', 0): 0.8, ('jsd', 1): 0.9}
  lines = [
      acceptance(
          made_up, value, seed, draft_folder=f'study/{method}_{seed}/distilled'
      )
      for (method, seed), value in values.items()
  ]
  quality = list(made_up['quality'](['distilled']))
  for line in quality:
    line['draft_folder'] = 'study/jsd_0/distilled'
  (study,) = measurements.studies([*lines, *quality])
  measured = study.measurements('acceptance')
  assert [one.draft for one in measured] == ['kd', 'jsd']
  rates = [one.metrics['expected_acceptance'] for one in measured]
  assert [rate.value for rate in rates] == pytest.approx([0.55, 0.85])
  assert [rate.seeds for rate in rates] == [2, 2]
  _, draft = study.measurements('task_quality')
  assert (draft.draft, draft.decoding['model']) == ('jsd', 'jsd')


def test_drafts_of_one_name_and_seed_are_not_repetitions(made_up):
  lines = [
      acceptance(made_up, value, draft_folder=f'runs/{name}/draft')
      for name, value in (('a', 0.5), ('b', 0.7))
  ]
  (study,) = measurements.studies(lines)
  measured = study.measurements('acceptance')
  assert [one.draft for one in measured] == ['a', 'b']


def test_a_name_tells_how_an_adapted_draft_drafts(made_up):
  lines = []
  for draft in ('distilled', 'parallel'):
    for parallel in (True, None):
      for line in made_up['latency'](['distilled']):
        line['decoding']['parallel'] = parallel
        if line['draft']:
          line |= {'draft': draft, 'draft_folder': f'runs/{draft}'}
        lines.append(line)
  (study,) = measurements.studies(lines)
  measured = study.measurements('latency')
  assert measurements.draft_names(measured) == [
      'distilled', 'parallel', 'distilled (parallel)',
      'parallel (token by token)',
  ]  # fmt: skip
  assert all('parallel' not in one.decoding for one in measured)
