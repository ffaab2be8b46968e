"""What several files train on."""

import pytest

from tests import tiny


@pytest.fixture(scope='module')
def task(tmp_path_factory):
  return tiny.task(tmp_path_factory.mktemp('task'), validation=8)
