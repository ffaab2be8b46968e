"""`distillspec convert`: prints what `conversion.convert` found."""

from __future__ import annotations

import functools
from typing import Any

from etils import epath

from distillspec_jax.checkpoints import conversion


@functools.wraps(conversion.convert)  # whose arguments are the flags
def convert(*args: Any, **options: Any) -> epath.Path:
  converted = conversion.convert(*args, **options)
  print(conversion.report(converted))
  return converted.folder
