"""Curves are averaged over seeds and skip numbers that are not finite."""

import math

import pytest

from distillspec_jax.reporting import curves


def line(made_up, step, value, seed=0, run='fine-tuned_longer', **more):
  metric = made_up['metric']
  return made_up['line'](
      'training',
      {'step': metric(step), 'loss': metric(value)},
      seed=seed,
      run=run,
      split='train',
      **more,
  )


def test_a_curve_is_averaged_over_seeds_and_sorted(made_up):
  lines = [
      line(made_up, step, value, seed)
      for step, value, seed in (
          (20, 2.0, 0), (10, 4.0, 0), (10, 5.0, 1), (20, 3.0, 1), (30, 1.0, 1),
      )
  ]  # fmt: skip
  (curve,) = curves.curves(lines, 'loss')
  assert curve.run == 'fine-tuned longer'
  points = [(step, *value[:3]) for step, value in curve.points.items()]
  assert points == [
      (10, 4.5, pytest.approx(0.5), 2),
      (20, 2.5, pytest.approx(0.5), 2),
      (30, 1.0, None, 1),
  ]


def test_steps_without_a_finite_number_are_skipped(made_up):
  lines = [line(made_up, s, v) for s, v in ((1, 1.0), (2, math.nan), (3, 2.0))]
  (curve,) = curves.curves(lines, 'loss')
  assert list(curve.points) == [1, 3]


def test_one_point_is_not_a_curve(made_up):
  assert curves.curves([line(made_up, 1, 1.0)], 'loss') == []


def test_splits_and_metrics_are_separate(made_up):
  lines = [line(made_up, step, 1.0) for step in (1, 2)]
  assert curves.curves(lines, 'loss', 'validation') == []
  assert curves.curves(lines, 'accuracy') == []


def test_runs_in_different_folders_are_different_curves(made_up):
  lines = [
      line(
          made_up, step, value, seed, run='draft', target='runs/target',
          folder=f'{method}_{seed}/draft',
      )
      for (method, seed), value in {
          ('kd', 0): 1.0, ('kd', 1): 2.0, ('jsd', 0): 5.0, ('jsd', 1): 7.0,
      }.items()
      for step in (1, 2)
  ]  # fmt: skip
  found = curves.curves(lines, 'loss')
  assert [(c.run, c.points[1].value, c.points[1].seeds) for c in found] == [
      ('kd', 1.5, 2), ('jsd', 6.0, 2),
  ]  # fmt: skip
