"""What every test runs under: CPU, eight devices, no silent broadcasting."""

import gc
import os
import pathlib
import tempfile
import time

# Before jax is imported anywhere: the platform is fixed when it first starts.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# Compiling is most of what tests do. Programs are kept outside the checkout;
# workers, runs and the processes that tests start share them, because the
# settings are in the environment. An entry's key is a hash of the program
# without names of files and lines, of jaxlib, the devices and XLA's flags.
_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR',
    str(_CACHE.expanduser() / 'distillspec_jax' / 'tests'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import hypothesis  # noqa: E402
import jax  # noqa: E402
from jax._src import lru_cache  # noqa: E402
import pytest  # noqa: E402

_CACHE_DAYS = 30


def _put(self: lru_cache.LRUCache, key: str, value: bytes) -> None:
  """Writes an entry of the compilation cache, complete or not at all.

  JAX writes in place, where another process may read half an entry: it warns
  and compiles the program. It also never writes an entry again, so that one
  cut short by the end of a process would be a warning for ever.
  """
  file = tempfile.NamedTemporaryFile(dir=self.path, delete=False)
  try:
    with file:
      file.write(value)
    os.replace(file.name, self.path / f'{key}-cache')
  except BaseException:
    pathlib.Path(file.name).unlink(missing_ok=True)
    raise


lru_cache.LRUCache.put = _put


def pytest_configure(config):
  """Drops programs that are old; those still in use are compiled again."""
  if hasattr(config, 'workerinput'):
    return  # one process does it
  oldest = time.time() - _CACHE_DAYS * 24 * 3600
  cache = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
  for file in cache.glob('*') if cache.is_dir() else []:
    try:
      if file.stat().st_mtime < oldest:
        file.unlink()
    except FileNotFoundError:
      pass  # by another run


# The first example of a test may compile a program.
hypothesis.settings.register_profile('compiling', deadline=None)
hypothesis.settings.load_profile('compiling')

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_num_cpu_devices', 8)


# Linux lets a process have 65,530 mappings; a compiled program has dozens.
_MAPPINGS = 30_000


@pytest.fixture(autouse=True)
def few_mappings():
  """Frees compiled programs before a worker dies for having too many."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > _MAPPINGS:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder of reference data, which is not part of the repository."""
  beside = pathlib.Path(__file__).parents[2] / 'shared'
  folder = pathlib.Path(os.environ.get('DISTILLSPEC_SHARED', beside))
  if not folder.is_dir():
    pytest.skip(
        f'no reference data at {folder}, which is not part of the repository;'
        ' set DISTILLSPEC_SHARED to the folder that has it'
    )
  return folder
