import pytest

from distillspec_jax.core import errors
from distillspec_jax.training import method


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
  found = method.Method(**changes)
  assert found.needs_target == needs
  assert found.samples_from_draft == from_draft
  assert found.samples_from_target == from_target


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'fixed_fraction': 1.5}, 'fixed_fraction is 1.5'),
        ({'draft_fraction': -0.1}, 'draft_fraction is -0.1'),
        ({'divergence': 'kl'}, "'kl'"),
        ({'divergence': 'jsd', 'beta': 1.0}, '1.0'),
        ({'divergence': 'forward_kl', 'z_loss': 0.1}, 'z_loss'),
    ],
)
def test_bad_methods_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    method.Method(**changes)
