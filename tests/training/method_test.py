import math

import pytest

from distillspec_jax.core import errors
from distillspec_jax.losses import divergences
from distillspec_jax.training import method
from tests import tiny


@pytest.mark.parametrize(
    'changes, needs, from_draft, from_target',
    [
        ({}, False, False, False),  # fine-tuning
        ({'fixed_fraction': 0.0, 'draft_fraction': 0.0}, True, False, True),
        ({'divergence': 'forward_kl'}, True, False, False),
        (
            {'divergence': 'forward_kl', 'fixed_fraction': 0.5},
            True,
            True,
            False,
        ),
        (
            {
                'divergence': 'total_variation',
                'fixed_fraction': 0.0,
                'draft_fraction': 0.5,
            },
            True,
            True,
            True,
        ),
        ({'divergence': 'jsd', 'fixed_fraction': 0.0}, True, True, False),
    ],
)
def test_what_a_method_needs(changes, needs, from_draft, from_target):
  described = method.Method(**changes)
  assert described.needs_target == needs
  assert described.samples_from_draft == from_draft
  assert described.samples_from_target == from_target


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'fixed_fraction': 1.5}, 'fixed_fraction is 1.5'),
        ({'draft_fraction': -0.1}, 'draft_fraction is -0.1'),
        ({'temperature': -1.0}, 'Method.temperature is -1.0'),
        ({'temperature': math.inf}, 'Method.temperature is inf'),
        ({'dropout_rate': 1.0}, 'Method.dropout_rate is 1.0'),
        ({'dropout_rate': 'x'}, "Method.dropout_rate is 'x'"),
        ({'z_loss': math.inf}, 'Method.z_loss is inf'),
        ({'label_smoothing': 1.0}, 'Method.label_smoothing is 1.0'),
        ({'reduction': 'max'}, "Method.reduction is 'max'"),
        ({'divergence': 'kl'}, "'kl'"),
        ({'divergence': 'jsd', 'beta': 1.0}, '1.0'),
        ({'divergence': 'forward_kl', 'z_loss': 0.1}, 'z_loss'),
        (
            {'divergence': divergences.total_variation, 'beta': 0.5},
            'beta is 0.5, but the divergence is a function, total_variation',
        ),
        (
            {'divergence': divergences.forward_kl, 'label_smoothing': 0.1},
            'with forward_kl they must be 0',
        ),
    ],
)
def test_bad_methods_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    method.Method(**changes)


SEQKD = {'fixed_fraction': 0.0, 'draft_fraction': 0.0}


@pytest.mark.parametrize(
    'changes, rate',
    [
        ({}, 0.1),  # fine-tuning: as configured
        ({'dropout_rate': 0.0}, 0.0),
        ({'dropout_rate': 0.3}, 0.3),
        ({'divergence': 'forward_kl'}, 0.0),
        (SEQKD, 0.0),
        ({**SEQKD, 'dropout_rate': 0.3}, 0.3),
    ],
)
def test_distillation_is_without_dropout_unless_it_is_set(changes, rate):
  config = tiny.config(dropout_rate=0.1)
  trained = method.Method(**changes).configure(config)
  assert trained == tiny.config(dropout_rate=rate)


def test_a_divergence_may_be_a_function():
  def my_divergence(p_logits, q_logits):
    return divergences.forward_kl(p_logits, q_logits)

  own = method.Method(divergence=my_divergence, fixed_fraction=0.0)
  assert own.needs_target
  # The functions of this package are made finite where q is 0; one's own not.
  for covered in (False, True):
    assert own.divergence_function(covered) is my_divergence
  assert own.describe().startswith('my_divergence, fixed_fraction 0.0')


def test_a_divergence_is_a_name_or_a_function():
  with pytest.raises(errors.UserError, match=r'Unknown divergence \[1\]'):
    method.Method(divergence=[1])
