"""The nearest setting that fits, where the one that was asked for does not.

Near are few changes, and small ones. What a candidate needs is first added up
from what is known without compiling: parameters and what the optimizer holds of
them by their layout, caches, what is kept for the backward pass, and a share
for the rest. Candidates that should fit are then compiled, nearest first.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import math

import jax

from distillspec_jax.core import errors
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.planning import compiling
from distillspec_jax.planning import programs
from distillspec_jax.planning import setting as setting_lib

_REMAT = ('none', 'dots', 'full')
_COMPILED = 3  # candidates at most: each takes a minute or two
_MARGIN = 0.95  # of the memory: what is added up is a little wrong
_CHUNK = 8  # positions of which logits are held
_COPIES = 6  # of them, float32, in a divergence and its gradient


def nearest(
    setting: setting_lib.Setting,
) -> tuple[setting_lib.Setting, compiling.Answer] | None:
  """A setting that fits, near one that does not; None where none was found."""
  limit = _MARGIN * setting.topology.chip.hbm_bytes
  a_row: dict[str, float] = {}
  compiled = 0
  for candidate in candidates(setting):
    remat = candidate.draft.remat
    if estimated_bytes(candidate, 0.0) > limit:
      continue  # whatever is recomputed
    if not setting.trains:
      a_row[remat] = 0.0
    elif remat not in a_row:
      counted = compiling.ask(setting.with_remat(remat)).bytes['activations']
      rows = setting.batch_size // setting.micro_batches // setting.ways
      a_row[remat] = counted / rows
    if estimated_bytes(candidate, a_row[remat]) > limit:
      continue
    try:
      answer = compiling.ask(candidate, compiling.programs(candidate))
    except errors.UserError:  # the mesh has no place on the slice
      continue
    if not any(made.exceeds for made in answer.compiled.values()):
      return candidate, answer
    compiled += 1
    if compiled == _COMPILED:
      break
  return None


def candidates(
    setting: setting_lib.Setting,
) -> Iterator[setting_lib.Setting]:
  """All other meshes, remat policies and micro-batches, nearest first."""
  chips = setting.topology.chips
  remats, doubled = _REMAT[_REMAT.index(setting.draft.remat) :], range(7)
  if not setting.trains:
    remats, doubled = remats[:1], range(1)
  found = []
  for fsdp in _divisors(chips):
    for tensor in _divisors(chips // fsdp):
      for remat in remats:
        for doublings in doubled:
          candidate = dataclasses.replace(
              setting.with_remat(remat),
              data=chips // fsdp // tensor,
              fsdp=fsdp,
              tensor=tensor,
              micro_batches=setting.micro_batches * 2**doublings,
          )
          if candidate == setting or not _divides(candidate):
            continue
          found.append((_distance(setting, candidate), candidate))
  for _, candidate in sorted(found, key=lambda pair: pair[0]):
    yield candidate


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def _divides(candidate: setting_lib.Setting) -> bool:
  try:
    candidate.check()
  except errors.UserError:
    return False
  # Heads that cannot be split are replicated, which spares nothing.
  models = filter(None, (candidate.target, candidate.draft))
  return all(m.num_heads % candidate.tensor == 0 for m in models)


def _distance(
    setting: setting_lib.Setting, other: setting_lib.Setting
) -> tuple[int, float]:
  """How many things are changed, and by how many steps."""
  steps = (
      abs(_REMAT.index(other.draft.remat) - _REMAT.index(setting.draft.remat)),
      math.log2(other.micro_batches / setting.micro_batches),
      # Splitting parameters over rows' chips costs less than splitting layers.
      abs(math.log2(other.fsdp / setting.fsdp))
      + 2 * abs(math.log2(other.tensor / setting.tensor)),
  )
  return sum(step > 0 for step in steps), sum(steps)


def estimated_bytes(
    setting: setting_lib.Setting, activations_a_row: float
) -> float:
  """Bytes a chip, of the step or the samplers, whichever needs more.

  Args:
    setting: of the run.
    activations_a_row: bytes that a row keeps for the backward pass.
  """
  sizes = setting.data, setting.fsdp, setting.tensor
  mesh = jax.sharding.AbstractMesh(sizes, mesh_lib.AXES)
  run = programs.Run(setting, mesh)
  held, caches = run.held_bytes(), run.cache_bytes()
  rows = setting.batch_size // setting.micro_batches // setting.ways
  logits = rows * _CHUNK * setting.draft.num_logits * 4 * _COPIES
  if setting.fsdp > 1:  # a whole table of embeddings is gathered
    widest = setting.target or setting.draft
    logits += 2 * 2 * widest.vocab_size * widest.emb_dim
  samplers = held['target'] + held['draft']
  if setting.fsdp > 1:  # gathered for as long as they decode
    samplers += setting.fsdp * samplers
  samplers += caches['sampler']
  if setting.target is None or not setting.decodes:
    samplers = 0
  if not setting.trains:
    return samplers
  step = sum(held.values()) + held['draft']  # and its gradient
  step += rows * activations_a_row + logits + caches['rollout']
  return max(step, samplers)
