"""TPU slices by name, and what their chips can do.

Peak speed and memory are those of Google's documentation
(https://cloud.google.com/tpu/docs/v5e, and so on); the speed of a link between
chips, one way, is that of "How to Scale Your Model", part 2
(https://jax-ml.github.io/scaling-book/tpus). The clock, which turns the
compiler's cycles into seconds, is the one at which the matrix units reach the
peak: four of 128 x 128 on v5e, eight on v4 and v5p. The documents do not say
enough about those of v6e; it has the clock of v5p, at which the compiler
expects the same share of the peak of HBM as on v5e, 81 %.

  v5e:4x8    v5e-32     the last number counts chips
  v4:2x2x4   v4-32      v4 and v5p: it counts cores, two per chip
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

from distillspec_jax.core import errors

HOP_S = 1e-6


class Chip(NamedTuple):
  """One kind of chip.

  Attributes:
    name: 'v5e'.
    flops: peak per second, in bfloat16.
    hbm_bytes: of memory, as far as the compiler lets a program have it.
    hbm_bandwidth: bytes per second.
    link_bandwidth: bytes per second to a neighbour, one way.
    clock: cycles per second.
    cores: that the last number of a name counts a chip as.
    dimensions: of the torus.
  """

  name: str
  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  link_bandwidth: float
  clock: float
  cores: int
  dimensions: int


_GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', 275e12, 30.75 * _GIB, 1228e9, 45e9, 1.05e9, 2, 3),
        Chip('v5e', 197e12, 15.75 * _GIB, 819e9, 45e9, 1.5e9, 1, 2),
        Chip('v5p', 459e12, 95.74 * _GIB, 2765e9, 90e9, 1.75e9, 2, 3),
        Chip('v6e', 918e12, 31.25 * _GIB, 1640e9, 90e9, 1.75e9, 1, 2),
    )
}
# Dimensions of the torus -> shapes of the slices that have names.
_SHAPES = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: (
        (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8),
        (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice.

  Attributes:
    chip: its kind.
    shape: chips along each axis.
  """

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    """'v5e-256'."""
    return f'{self.chip.name}-{self.chips * self.chip.cores}'

  @property
  def layout(self) -> str:
    """'v5e:16x16', which the compiler understands."""
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def chips(self) -> int:
    return math.prod(self.shape)

  def options(self) -> dict[str, Any]:
    """What the compiler needs to know besides the layout."""
    options = {}
    if self.chip.name == 'v4':  # a chip's two cores are one device
      options['chip_config_name'] = 'megacore'
    if self.chips == 1:
      options['chips_per_host_bounds'] = (1, 1, 1)
    return options

  def wraps(self, axis: int) -> bool:
    """Whether the last chip of an axis is a neighbour of the first."""
    if self.chip.dimensions == 2:
      return self.shape[axis] == 16
    return all(size % 4 == 0 for size in self.shape)

  def exchange_s(
      self,
      kind: str,
      size: int,
      places: Sequence[Sequence[int]],
      hop_s: float = HOP_S,
  ) -> float:
    """The least time in which chips can exchange data, in seconds.

    Args:
      kind: one of `hlo.COLLECTIVES`.
      size: bytes of one chip, gathered or not yet reduced.
      places: coordinates of the chips of one group.
      hop_s: seconds from a chip to its neighbour.
    """
    moved = moved_bytes(kind, size, len(places))
    links, hops = 0, 0
    for axis in range(len(self.shape)):
      along = {place[axis] for place in places}
      if len(along) == 1:
        continue
      # All chips of an axis that wraps are a ring, others are a line.
      is_ring = self.wraps(axis) and len(along) == self.shape[axis]
      links += 2 if is_ring else 1
      hops += len(along) // 2 if is_ring else len(along) - 1
    if not links:
      return 0.0
    rounds = 2 if kind == 'all-reduce' else 1
    return moved / (links * self.chip.link_bandwidth) + rounds * hops * hop_s


def moved_bytes(kind: str, size: int, chips: int) -> float:
  """Bytes that a chip sends, of `size`, in an exchange between `chips`."""
  if kind == 'collective-permute':
    return size
  share = size * (chips - 1) / chips
  return 2 * share if kind == 'all-reduce' else share


def known() -> list[str]:
  """The names of all slices."""
  return [
      Topology(chip, shape).name
      for chip in CHIPS.values()
      for shape in _SHAPES[chip.dimensions]
  ]


def parse(text: str) -> Topology:
  """The slice 'v5e:16x16' or 'v5e-256'.

  Raises:
    UserError: there is none of that name; the known ones are listed.
  """
  text = text.strip()
  match = re.fullmatch(r'(\w+)(?::(\d+(?:x\d+)*)|-\d+)', text)
  chip = CHIPS.get(match.group(1)) if match else None
  if chip is not None:
    for shape in _SHAPES[chip.dimensions]:
      topology = Topology(chip, shape)
      if text in (topology.name, topology.layout):
        return topology
    shape = tuple(map(int, re.findall(r'\d+', match.group(2) or '')))
    # There are other shapes, too; a host has 2 x 2 chips, or one is used.
    is_of_hosts = math.prod(shape) == 1 or not any(n % 2 for n in shape[:2])
    if len(shape) == chip.dimensions and is_of_hosts:
      return Topology(chip, shape)
  raise errors.UserError(
      f'There is no TPU slice {text!r}; known are {", ".join(known())}, or'
      ' a shape in chips, as in v5e:4x8 and v4:2x2x4.'
  )
