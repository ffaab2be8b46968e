"""Slices are named by flags, once or several times."""

import gin
import pytest

from distillspec_jax.core import errors

PAIR = ('--gin.TARGET=t5_1_1_xl', '--gin.DRAFT=t5_1_1_small')


def test_flags_name_slices(configure):
  configure('plan', '--topology=v5e-16,v5e-256', '--topology=v5e:2x2', *PAIR)
  assert gin.query_parameter('plan.plan.topology') == ('v5e-16,v5e-256,v5e:2x2')


def test_a_gin_file_may_name_them(configure, tmp_path):
  configure('plan', '--gin.plan.plan.topology=v5e-16', *PAIR)
  with pytest.raises(errors.UserError, match='is missing: give --topology'):
    gin.clear_config()
    configure('plan', *PAIR)
