"""What says whether a command line is complete, as for README.md."""

from tests.repository.conftest import clean_gin, configure

__all__ = ['clean_gin', 'configure']
