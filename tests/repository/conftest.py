"""gin as if just started, and a command up to the call of its function."""

import gin
import pytest

from distillspec_jax.commands import main
from distillspec_jax.core import configuration


@pytest.fixture
def clean_gin():
  """gin, and the configuration of the process, as if just started."""
  before = configuration.current()
  gin.clear_config()
  gin.enter_interactive_mode()
  yield
  gin.exit_interactive_mode()
  gin.clear_config()
  configuration.set_current(before.text)


@pytest.fixture
def configure(clean_gin, monkeypatch, tmp_path):
  """A function: raises UserError where `distillspec ARGUMENTS` would."""
  del clean_gin  # only its doing is needed
  monkeypatch.setattr(main, '_use_compilation_cache', lambda: None)
  monkeypatch.chdir(tmp_path)

  def run(*arguments: str) -> None:
    name, options, bindings = main._parse(arguments)
    if main.COMMANDS[name].uses_gin:
      main._configured(main.COMMANDS[name], options, bindings)

  return run
