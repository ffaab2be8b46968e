"""What every test runs under: CPU, eight devices, no silent broadcasting."""

import gc
import os
import pathlib

# Before jax is imported anywhere: the platform is fixed when it first starts.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# Compiling is most of what tests do. Programs are kept outside the checkout;
# workers, runs and the processes that tests start share them, because the
# settings are in the environment. An entry is keyed by the program, the
# compiler and its flags; one that is half written is compiled again.
_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR',
    str(_CACHE.expanduser() / 'distillspec_jax' / 'tests'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

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
