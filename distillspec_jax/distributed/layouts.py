"""Where arrays with named axes lie on the mesh.

A parameter or activation names its axes (embed, mlp, heads, ...), as in t5x;
rules say on which mesh axis each of them lies. Models have rules of their own:
a large target may be split where its small draft is whole on every device.
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

SPLIT: Rules = (
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
  """Parameters on one axis or on none, rows on all."""
  layout = {name: axis if axis == kept else None for name, axis in SPLIT}
  return tuple((layout | {'batch': mesh_lib.AXES}).items())


_LAYOUTS: dict[str, Rules] = {
    'split': SPLIT,
    'fsdp': _only('fsdp'),
    'whole': _only(None),
}


def rules(layout: str | Sequence[tuple[str, Any]]) -> Rules:
  """The rules of a layout.

  Args:
    layout: 'split', where parameters lie over the axes fsdp and tensor; 'fsdp',
      where they lie over that one alone; 'whole', where every device has all of
      them; these two spread rows over all axes. Or pairs of a logical axis and
      mesh axes (a name, several, or None) that differ from 'split'.

  Raises:
    UserError: an unknown layout, logical axis or mesh axis.
  """
  if isinstance(layout, str):
    if layout not in _LAYOUTS:
      raise errors.UserError(
          f"Unknown layout {layout!r}; use 'split', 'fsdp', 'whole', or pairs"
          " such as (('embed', None),)."
      )
    return _LAYOUTS[layout]
  changed: dict[str, Any] = dict(SPLIT)
  for pair in layout:
    if len(pair) != 2 or pair[0] not in changed:
      raise errors.UserError(
          f'A layout has {pair!r}; it must be a logical axis'
          f' ({", ".join(changed)}) and the mesh axes that it lies on.'
      )
    name, axes = pair
    for axis in _several(axes):
      if axis not in mesh_lib.AXES:
        raise errors.UserError(
            f'A layout puts {name!r} on the mesh axis {axis!r}; there are'
            f' {", ".join(mesh_lib.AXES)}.'
        )
    changed[name] = tuple(axes) if isinstance(axes, list) else axes
  return tuple(changed.items())


def gathered(layout: Rules) -> Rules:
  """The rules with nothing but rows on the axis fsdp."""

  def without(axes):
    kept = tuple(axis for axis in _several(axes) if axis != 'fsdp')
    return kept or None

  return tuple(
      (name, axes if name == 'batch' else without(axes))
      for name, axes in layout
  )


def lies_on(layout: Rules, axis: str) -> bool:
  """Whether a layout splits more than rows on the axis of the mesh in use."""
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
  """Where the axes of an array lie.

  An axis whose size the mesh does not divide lies on fewer mesh axes or on
  none, and so does the second axis that asks for the same one.

  Args:
    sizes: of the mesh's axes; what lies on others is replicated.
    shape: of the array.
    names: its logical axes, from the first on.
    layout: the rules.
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


def constrain(
    array: jax.Array, names: Sequence[str | None], layout: Rules
) -> jax.Array:
  """The array, laid out on the mesh that is set; without one, as it is.

  Args:
    array: traced.
    names: its logical axes.
    layout: the rules; without any the array stays as it is, too.
  """
  sizes = mesh_lib.automatic()
  if math.prod(sizes.values()) == 1 or not layout:
    return array
  return jax.lax.with_sharding_constraint(
      array, spec(sizes, array.shape, names, layout)
  )


def shardings(
    mesh: Mesh, abstract: Any, logical_axes: Any, layout: Rules = SPLIT
) -> Any:
  """A sharding for every leaf.

  Args:
    mesh: from `make_mesh`.
    abstract: tree of arrays or `ShapeDtypeStruct`.
    logical_axes: tree of `PartitionSpec` of logical names, same structure.
    layout: the rules.

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
