"""Layouts: over which mesh axes the named axes of arrays are sharded.

A parameter or activation names its axes (embed, mlp, heads, ...), as in t5x; a
layout maps each name to mesh axes. Models have layouts of their own: a large
target may be sharded while its small draft is replicated on every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distillspec_jax.core import errors
from distillspec_jax.distributed import mesh as mesh_lib

# (logical axis, mesh axes or None for replicated), ...
Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

SHARDED: Rules = (
    ('batch', mesh_lib.ROWS),
    ('length', None),
    ('embed_activation', None),
    ('embed', 'fsdp'),
    ('encoded', None),
    ('vocab', 'tensor'),
    ('mlp', 'tensor'),
    ('heads', 'tensor'),
    ('joined_kv', 'tensor'),
    ('kv', None),
    ('relpos_buckets', None),
    ('layers', None),
)


def _only(kept: str | None) -> Rules:
  """Parameters sharded over one mesh axis or none, rows over all."""
  layout = {name: axis if axis == kept else None for name, axis in SHARDED}
  return tuple((layout | {'batch': mesh_lib.AXES}).items())


_LAYOUTS: dict[str, Rules] = {
    'sharded': SHARDED,
    'fsdp': _only('fsdp'),
    'replicated': _only(None),
}


def rules(layout: str | Sequence[tuple[str, Any]]) -> Rules:
  """The rules of a layout.

  Args:
    layout: 'sharded' over the mesh axes fsdp and tensor; 'fsdp', over that axis
      alone; 'replicated' on every device (the latter two spread rows over all
      mesh axes). Or pairs of a logical axis and its mesh axes (a name, several,
      or None) that differ from 'sharded'.

  Raises:
    UserError: an unknown layout, logical axis or mesh axis.
  """
  if isinstance(layout, str):
    if layout not in _LAYOUTS:
      raise errors.UserError(
          f"Unknown layout {layout!r}; use 'sharded', 'fsdp', 'replicated',"
          " or pairs such as (('embed', None),)."
      )
    return _LAYOUTS[layout]
  if not isinstance(layout, Sequence):
    raise errors.UserError(
        f"layout is {layout!r}; give 'sharded', 'fsdp', 'replicated', or pairs"
        " such as (('embed', None),)."
    )
  changed: dict[str, Any] = dict(SHARDED)
  for pair in layout:
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    if not is_pair or pair[0] not in changed:
      raise errors.UserError(
          f'A layout has {pair!r}; it must be a logical axis'
          f' ({", ".join(changed)}) and the mesh axes to shard it over.'
      )
    name, axes = pair
    for axis in _several(axes):
      if axis not in mesh_lib.AXES:
        raise errors.UserError(
            f'A layout shards {name!r} over the mesh axis {axis!r}; there are'
            f' {", ".join(mesh_lib.AXES)}.'
        )
    changed[name] = tuple(axes) if isinstance(axes, list) else axes
  return tuple(changed.items())


def gathered(layout: Rules) -> Rules:
  """The layout with nothing but rows sharded over the axis fsdp."""

  def without(axes):
    kept = tuple(axis for axis in _several(axes) if axis != 'fsdp')
    return kept or None

  return tuple(
      (name, axes if name == 'batch' else without(axes))
      for name, axes in layout
  )


def lies_on(layout: Rules, axis: str) -> bool:
  """Whether a layout shards more than rows over an axis of the current mesh."""
  sizes = mesh_lib.automatic()
  return sizes.get(axis, 1) > 1 and any(
      axis in _several(axes) for name, axes in layout if name != 'batch'
  )


def spec(
    sizes: Mapping[str, int],
    shape: Sequence[int],
    names: Sequence[str | None],
    layout: Rules,
) -> PartitionSpec:
  """The mesh axes of each axis of an array.

  An axis whose size the mesh axes do not divide is sharded over fewer of them
  or none, and so is the second axis that asks for the same mesh axis.

  Args:
    sizes: mesh axis -> size; other mesh axes are left alone.
    shape: of the array.
    names: its logical axes; missing ones are replicated.
    layout: from `rules`.
  """
  table, used, parts = dict(layout), set(), []
  for size, name in zip(shape, (*names, *[None] * len(shape))):
    axes = mesh_lib.dividing(
        size,
        sizes,
        [
            axis
            for axis in _several(table.get(name))
            if axis in sizes and axis not in used
        ],
    )
    used.update(axes)
    parts.append(axes[0] if len(axes) == 1 else axes or None)
  return PartitionSpec(*parts)


def over_rows(
    shape: Sequence[int], names: Sequence[str | None], layout: Rules
) -> PartitionSpec:
  """`spec` for the axes of the current mesh that rows are spread over."""
  sizes = mesh_lib.automatic()
  sizes = {
      axis: sizes[axis] for axis in mesh_lib.ROWS if sizes.get(axis, 1) > 1
  }
  return spec(sizes, shape, names, layout)


def constrain(
    array: jax.Array, names: Sequence[str | None], layout: Rules
) -> jax.Array:
  """The array, laid out on the current mesh; unchanged without one.

  Args:
    array: traced.
    names: its logical axes.
    layout: from `rules`; () changes nothing.
  """
  sizes = mesh_lib.automatic()
  if math.prod(sizes.values()) == 1 or not layout:
    return array
  return jax.lax.with_sharding_constraint(
      array, spec(sizes, array.shape, names, layout)
  )


def shardings(
    mesh: Mesh, abstract: Any, logical_axes: Any, layout: Rules = SHARDED
) -> Any:
  """A sharding for every leaf.

  Args:
    mesh: from `make_mesh`.
    abstract: tree of arrays or `ShapeDtypeStruct`.
    logical_axes: tree of `PartitionSpec` of logical names, same structure.
    layout: from `rules`.

  Returns:
    A tree of `NamedSharding`; see `spec`.
  """
  return jax.tree.map(
      lambda array, names: NamedSharding(
          mesh, spec(mesh.shape, array.shape, tuple(names), layout)
      ),
      abstract,
      logical_axes,
  )


def _several(axes: str | Sequence[str] | None) -> tuple[str, ...]:
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)
