"""What says whether a command line is complete."""

from tests.commands.conftest import configure
from tests.commands.conftest import fresh_configuration

__all__ = ['configure', 'fresh_configuration']
