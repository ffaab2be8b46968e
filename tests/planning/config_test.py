"""What one run on one slice is, and what cannot be planned."""

import pytest

from distillspec_jax.core import errors
from tests import tiny as models
from tests.planning import tiny


@pytest.mark.parametrize(
    'config, words',
    [
        (
            lambda: tiny.config(sizes=(3, 1, 1)),
            r'data 3 x fsdp 1 x tensor 1 = 3 devices.*v5e-4 has 4',
        ),
        (lambda: tiny.config(batch_size=6), 'batch size 6'),
        (lambda: tiny.config(micro_batches=4), 'batch size 2'),
        (lambda: tiny.config({'decode_batch_size': 5}), 'batch size 5'),
        (lambda: tiny.config({'decode_batch_size': 0}), 'decode_batch_size'),
        (
            lambda: tiny.config({'draft': models.config(num_encoder_layers=0)}),
            'decoder-only',
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(config, words):
  with pytest.raises(errors.UserError, match=words):
    config().check()


def test_groups_change_together():
  config = tiny.config(batch_size=16)
  changed = config.with_training(
      start={'remat': 'full'}, mesh={'data': 2, 'fsdp': 2}
  )
  assert (config.remat, changed.remat) == ('none', 'full')
  assert changed.draft_network.config.remat == 'full'
  assert changed.mesh_text == '2 x 2 x 1'
  assert (changed.batch_size, changed.rows) == (16, 4)


def test_fine_tuning_has_no_samplers():
  assert tiny.config().programs == (
      'step', 'speculative', 'autoregressive', 'encoder',
  )  # fmt: skip
  assert tiny.config(target=None).programs == ('step',)
  assert tiny.config({'train': False}).programs[0] == 'speculative'
