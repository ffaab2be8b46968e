"""What says whether a command line is complete, as for README.md."""

from tests.repository.conftest import clean_gin
from tests.repository.conftest import configure

__all__ = ['clean_gin', 'configure']
