"""What gin's errors mean: one line, where it is wrong, and what is near."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import tokenize
from typing import Any

from distillspec_jax.commands import gin_files
from distillspec_jax.commands import unread_names

# What gin raises for a wrong file or binding, besides errors of ours.
KINDS = (
    AttributeError, ImportError, KeyError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError, tokenize.TokenError,
)  # fmt: skip


def explain(gin: Any, error: Exception, file: str) -> str:
  """One line on what is wrong with the configuration, where, and near names."""
  text, _, place = str(error).partition('\n  In ')
  text = ' '.join(text.split())
  if isinstance(error, SyntaxError):
    text = f'{error.msg.rstrip(".")} in {(error.text or "").strip()!r}.'
    if error.filename:
      text = f'{error.filename}:{error.lineno}: {text}'
  if isinstance(error, tokenize.TokenError):
    text = f'line {error.args[1][0]}: {error.args[0]}.'
  if isinstance(error, ModuleNotFoundError):
    text += (
        f'. Modules are searched in the working folder {os.getcwd()} and among'
        ' the installed packages.'
    )
  if isinstance(error, OSError) and 'Unable to open file' in text:
    text = text.split(' Searched')[0]
    text += (
        ' It is searched here, in --gin_search_paths and in'
        f' {gin_files.folder()}; --list lists the files there.'
    )
  where = re.match(r'file "(.+)", line (\d+)', place)
  if where:
    text = f'{where.group(1)}:{where.group(2)}: {text}'
  elif place:
    text += f' Given as {place.splitlines()[1].strip()!r}.'
  elif file and file not in text:
    text = f'{file}: {text}'
  return f'configuration: {text}{_hint(gin, text, place)}'


def _hint(gin: Any, text: str, place: str) -> str:
  """A question for the name or file that is meant in an error of gin."""
  file = re.search(r'Unable to open file: (.+?)\. It is', text)
  if file:
    return unread_names.question(gin_files.like(gin, file.group(1)))
  attribute = re.search(r"<module '([\w.]+)'.*> has no attribute (\w+)", text)
  if attribute:
    module = importlib.import_module(attribute.group(1))
    near = difflib.get_close_matches(attribute.group(2), dir(module))
    return unread_names.question(near)
  reference = re.search(r"matching reference '@([\w./]+)", text)
  bound = re.search(r'^ *([\w./]+) *=', place, re.M)
  functions = {
      gin_files.short(selector): configurable.wrapped
      for selector, configurable in gin.config._REGISTRY.items()
      if not selector.startswith('gin.')
  }
  if reference:
    return unread_names.hint(reference.group(1), functions)
  if bound and ('No configurable' in text or 'have a parameter' in text):
    known = [
        f'{name}.{parameter}'
        for name, function in functions.items()
        for parameter in inspect.signature(function).parameters
    ]
    name = bound.group(1)
    own = [
        each
        for each in known
        if each.split('.')[-2:-1] == name.split('.')[-2:-1]
    ]
    return unread_names.hint(name, own) or unread_names.hint(name, known)
  return ''
