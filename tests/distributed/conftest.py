"""A configuration as in a process of its own."""

from tests.commands.conftest import fresh_configuration

__all__ = ['fresh_configuration']
