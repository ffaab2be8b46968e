"""What a plan says of XL: from cut models to the whole one."""

import plan_xl
import pytest


def test_a_step_is_extrapolated_to_all_layers():
  numbers = {'step_s': 0.1, 'rollout_s': 0.05, 'model_flops': 197e10}
  more = {'step_s': 0.14, 'rollout_s': 0.05, 'model_flops': 197e10 * 2}
  lines = [
      {'program': 'step', 'layers': layers, 'numbers': values}
      for layers, values in zip(plan_xl.CUT, (numbers, more))
  ]
  step = plan_xl.step({'lines': lines})
  # Four layers more take 0.04 s and as many FLOPs as the first two and the
  # draft; 22 more are 5.5 times that.
  assert step['step_s'] == pytest.approx(0.32)
  assert step['rollout_s'] == pytest.approx(0.05)
  assert step['mfu_with_rollouts'] == pytest.approx(0.01 * 6.5 / 0.32)
  assert step['mfu'] == pytest.approx(0.01 * 6.5 / 0.27)
  assert plan_xl.step({'lines': lines[:1]}) == {}


def test_the_pair_can_be_planned():
  config = plan_xl.planned(1, plan_xl.LAYERS)
  config.check()
  assert config.draft_network.config.num_decoder_layers == 8
  assert config.target.emb_dim == 2048
