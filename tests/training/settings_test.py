"""The groups of a training run check themselves, and each other."""

import types

import pytest

from distillspec_jax.core import errors
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import parallel
from distillspec_jax.training import settings
from tests import tiny

ON_POLICY = method_lib.Method(divergence='forward_kl', fixed_fraction=0.0)
NEW = settings.Start(model='test')


def training(start=NEW, **changes):
  steps = settings.Steps(num_steps=1)
  return settings.Training(**{'start': start, 'steps': steps, **changes})


@pytest.mark.parametrize(
    'group, changes, message',
    [
        (settings.Start, {'layout': 'whole'}, "Unknown layout 'whole'"),
        (settings.Target, {'layout': 'split'}, "Unknown layout 'split'"),
        (settings.Target, {'weights': 'int4'}, "Target.weights is 'int4'"),
        (settings.Steps, {'num_steps': 0}, 'num_steps is 0; it must be at'),
        (settings.Steps, {'keep_checkpoints': 0}, 'keep_checkpoints is 0'),
        (settings.Steps, {'checkpoint_every': -1}, 'checkpoint_every is -1'),
        (
            settings.Steps,
            {'batch_size': 8, 'micro_batches': 3},
            'micro_batches is 3; it must divide the batch size 8',
        ),
        (settings.Validation, {'every': 0}, 'Validation.every is 0'),
        (settings.Validation, {'examples': 0}, 'Validation.examples is 0'),
        (settings.Validation, {'measure': 'x'}, "Validation.measure is 'x'"),
        (settings.Validation, {'keep': 'first'}, "Validation.keep is 'first'"),
        (settings.Steps, {'batch_size': 10**12}, 'batch_size is 1000000000000'),
        (settings.Steps, {'batch_size': 2.5}, 'batch_size is 2.5; it must be'),
        (settings.Steps, {'num_steps': 2**31}, 'num_steps is 2147483648'),
    ],
)
def test_values_out_of_range_are_refused(group, changes, message):
  required = {
      settings.Target: {'checkpoint': 'folder'},
      settings.Steps: {'num_steps': 1},
  }
  with pytest.raises(errors.UserError, match=message):
    group(**{**required.get(group, {}), **changes})


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'start': settings.Start()},
            'Start.model is None and Start.checkpoint None; give one of them',
        ),
        (
            {'start': settings.Start(model='test', checkpoint='folder')},
            "Start.checkpoint 'folder'; give one of them",
        ),
        (
            {'method': ON_POLICY},
            r'forward_kl, fixed_fraction 0.0, .* needs a target; set'
            r' Target.checkpoint',
        ),
        (
            {'start': settings.Start(model='test', shared_encoder=True)},
            'shared_encoder is True, but there is no target',
        ),
        (
            {
                'method': ON_POLICY,
                'target': 'folder',
                'steps': settings.Steps(num_steps=1, pack=True),
            },
            'Steps.pack is True, but the method samples tokens'
            r' \(fixed_fraction is 0.0\)',
        ),
        (
            {'optimizer': types.SimpleNamespace(build=len)},
            'has no function schedule; give an Optimizer',
        ),
        ({'optimizer': 'adamw'}, "'adamw' has no function build"),
        (
            {'validation': settings.Validation(measure='greedy')},
            "measure is 'greedy', a block efficiency, but there is no target",
        ),
        (
            {
                'method': method_lib.Method(reduction='sequence_mean'),
                'steps': settings.Steps(num_steps=1, pack=True),
            },
            "Method.reduction is 'sequence_mean', which needs one sequence",
        ),
    ],
)
def test_groups_that_do_not_fit_together_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    training(**changes).check()


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'method': ON_POLICY, 'target': 'folder'},
        {'steps': settings.Steps(num_steps=1, pack=True)},
        {'optimizer': types.SimpleNamespace(build=len, schedule=len)},
    ],
)
def test_groups_that_fit_together_are_accepted(changes):
  training(**changes).check()


def test_a_target_may_be_given_as_its_folder():
  assert training(target='folder').target == settings.Target(
      checkpoint='folder'
  )


def test_only_what_is_set_changes_the_configuration():
  config = tiny.config(dtype='bfloat16', remat='dots')
  assert NEW.configure(config) == config
  start = settings.Start(model='test', dtype='float32')
  changed = start.configure(config)
  assert (changed.dtype, changed.remat) == ('float32', 'dots')


@pytest.mark.parametrize('label_length, length', [(3, 3), (12, 5)])
def test_drafts_are_judged_greedily_in_blocks_of_up_to_five(
    label_length, length
):
  decoding = settings.Validation().decoding_for(label_length)
  assert decoding == decoding_lib.Decoding(
      drafting=decoding_lib.Drafting(length=length),
      max_new_tokens=label_length,
  )


def test_parallel_drafts_are_judged_in_one_call():
  method = parallel.Parallel(block_length=7)
  decoding = settings.Validation().decoding_for(12, method)
  assert decoding.drafting == decoding_lib.Drafting(length=7, parallel=True)
  own = settings.Validation(decoding=decoding.replace(parallel=False, length=2))
  assert own.decoding_for(12, method).drafting == decoding_lib.Drafting(
      length=2
  )


@pytest.mark.parametrize(
    'measure, temperature', [('greedy', 0.0), ('sampled', 1.0), (None, 0.5)]
)
def test_the_measure_sets_the_temperature(measure, temperature):
  decoding = decoding_lib.Decoding(
      sampling=decoding_lib.Sampling(temperature=0.5)
  )
  judged = settings.Validation(measure=measure, decoding=decoding)
  assert judged.decoding_for(12) == decoding.replace(
      temperature=temperature, max_new_tokens=12
  )


def test_drafts_are_judged_with_the_decoding_that_is_given():
  sampled = decoding_lib.Decoding(
      sampling=decoding_lib.Sampling(temperature=1.0)
  )
  validation = settings.Validation(decoding=sampled)
  # Outputs are as long as labels, unless the decoding has a length of its own.
  assert validation.decoding_for(12) == sampled.replace(max_new_tokens=12)
  short = settings.Validation(decoding=sampled.replace(max_new_tokens=6))
  assert short.decoding_for(12) == sampled.replace(max_new_tokens=6)
  with pytest.raises(errors.UserError, match='block_length is 5; it must lie'):
    validation.decoding_for(4)


def test_a_batch_size_that_is_given_is_told_from_the_default():
  assert settings.Steps(num_steps=1).batch_size == 32
  assert not settings.Steps(num_steps=1).is_batch_size_given
  assert settings.Steps(num_steps=1, batch_size=32).is_batch_size_given
