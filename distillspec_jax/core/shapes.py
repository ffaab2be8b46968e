"""Shape checks at public entrances, whose errors speak of axes by name."""

from __future__ import annotations

from typing import Any


def bind_shapes(**arrays: tuple[Any, str]) -> dict[str, int]:
  """Sizes of the named axes, after checking that all arrays agree on them.

  Example: `bind_shapes(values=(values, 'B T'), mask=(mask, 'B T'))` returns
  {'B': 8, 'T': 128}. A leading '...' matches any number of axes.

  Args:
    **arrays: array name -> (array, axis names separated by blanks).

  Raises:
    ValueError: an array has another rank, or an axis has two sizes.
  """
  sizes: dict[str, int] = {}
  owners: dict[str, str] = {}
  for name, (array, axes_text) in arrays.items():
    axes = axes_text.split()
    shape = tuple(array.shape)
    if axes and axes[0] == '...':
      axes = axes[1:]
      shape = shape[max(0, len(shape) - len(axes)) :]
    if len(shape) != len(axes):
      raise ValueError(
          f'`{name}` has shape {tuple(array.shape)}, but'
          f' [{", ".join(axes)}] needs {len(axes)} axes.'
      )
    for axis, size in zip(axes, shape):
      owner = owners.setdefault(axis, name)
      if size != sizes.setdefault(axis, size):
        raise ValueError(
            f'Axis {axis} is {sizes[axis]} in `{owner}` but {size} in `{name}`,'
            f' which has shape {tuple(array.shape)} for [{", ".join(axes)}].'
        )
  return sizes
