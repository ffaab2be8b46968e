"""The scripts of benchmarks/ are modules here, as they are for each other."""

import pathlib
import sys

from tests.commands.conftest import configure
from tests.commands.conftest import fresh_configuration

__all__ = ['configure', 'fresh_configuration']

sys.path.append(str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
