"""What the compiler tells about the programs of a run, as plain data."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from distillspec_jax.planning import hlo


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
  """A program that was compiled for a slice, or could not be.

  Attributes:
    compile_s: seconds that compiling took.
    exceeds: '' where it fits into a chip's memory, else the compiler's message.
    needed_bytes: per chip, at the program's peak; where it does not fit, as far
      as the compiler got.
    temporary_bytes: per chip, of all that comes and goes.
    block: the work, as a tree of loops; None where it does not fit.
    places: coordinates of the chips, in the order of the mesh.
    largest: temporaries in HBM, the largest first.
  """

  compile_s: float
  exceeds: str = ''
  needed_bytes: int = 0
  temporary_bytes: int = 0
  block: hlo.Block | None = None
  places: tuple[tuple[int, ...], ...] = ()
  largest: tuple[hlo.Buffer, ...] = ()


class Compilation(NamedTuple):
  """What the compiler knows of a configuration.

  Attributes:
    bytes: per chip, by what they are for, see `lowering.Run`.
    programs: by name.
  """

  bytes: dict[str, int]
  programs: dict[str, CompiledProgram]

  @property
  def fits(self) -> bool:
    return not any(program.exceeds for program in self.programs.values())
