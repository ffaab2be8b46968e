"""The nearest configuration that fits, where the one asked for does not.

Near means few changes, and small ones. What a candidate needs is first added up
from what is known without compiling: parameters and optimizer state by their
layout, caches, what is kept for the backward pass, and a share for the rest.
Candidates that should fit are then compiled, nearest first.
"""

from __future__ import annotations

from collections.abc import Iterator
import math

from distillspec_jax.core import errors
from distillspec_jax.losses import objective
from distillspec_jax.models import config as model_config
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import compiler
from distillspec_jax.planning import config as config_lib
from distillspec_jax.planning import lowering

_DOUBLINGS = 6  # of the micro-batches, at most
_COMPILED = 3  # candidates at most: each takes a minute or two
_MARGIN = 0.95  # of the memory: what is added up is a little wrong
_COPIES = 6  # of a chunk's logits, float32, in a divergence and its gradient


def nearest(
    config: config_lib.PlanConfig,
) -> tuple[config_lib.PlanConfig, compiled_program.Compilation] | None:
  """A configuration near one that does not fit; None if none fits."""
  limit = _MARGIN * config.topology.chip.hbm_bytes
  per_row: dict[str, float] = {}  # bytes of activations, by remat
  compiled = 0
  for candidate in candidates(config):
    remat = candidate.remat
    if estimated_bytes(candidate, 0.0) > limit:
      continue  # whatever is recomputed
    if not config.train:
      per_row[remat] = 0.0
    elif remat not in per_row:
      with_remat = config.with_training(start={'remat': remat})
      kept = compiler.ask(with_remat, ()).bytes['activations']
      per_row[remat] = kept / config.rows
    if estimated_bytes(candidate, per_row[remat]) > limit:
      continue
    try:
      compilation = compiler.ask(candidate, candidate.programs)
    except errors.UserError:  # the mesh has no place on the slice
      continue
    if compilation.fits:
      return candidate, compilation
    compiled += 1
    if compiled == _COMPILED:
      break
  return None


def candidates(
    config: config_lib.PlanConfig,
) -> Iterator[config_lib.PlanConfig]:
  """All other meshes, remat policies and micro-batches, nearest first."""
  chips, remat = config.topology.chips, config.remat
  remats, doublings = (remat,), range(1)
  if config.train:
    remats = model_config.REMAT[model_config.REMAT.index(remat) :]
    doublings = range(_DOUBLINGS + 1)
  changed = [
      _changed(config, remat, fsdp, tensor, config.micro_batches * 2**doubling)
      for fsdp in _divisors(chips)
      for tensor in _divisors(chips // fsdp)
      for remat in remats
      for doubling in doublings
  ]
  possible = [each for each in changed if each not in (None, config)]
  yield from sorted(possible, key=lambda each: _distance(config, each))


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def _changed(
    config: config_lib.PlanConfig,
    remat: str,
    fsdp: int,
    tensor: int,
    micro_batches: int,
) -> config_lib.PlanConfig | None:
  """With these values; None where they do not divide what they should."""
  data = config.topology.chips // fsdp // tensor
  try:
    candidate = config.with_training(
        start={'remat': remat},
        mesh={'data': data, 'fsdp': fsdp, 'tensor': tensor},
        steps={'micro_batches': micro_batches},
    )
    candidate.check()
  except errors.UserError:
    return None
  # Heads that cannot be sharded are replicated, which saves nothing.
  models = filter(None, (config.target, config.draft))
  return None if any(m.num_heads % tensor for m in models) else candidate


def _distance(
    config: config_lib.PlanConfig, other: config_lib.PlanConfig
) -> tuple[int, float]:
  """How many things are changed, and by how many steps."""
  mine, its = config.training.mesh, other.training.mesh
  steps = (
      abs(
          model_config.REMAT.index(other.remat)
          - model_config.REMAT.index(config.remat)
      ),
      math.log2(other.micro_batches / config.micro_batches),
      # Sharding over the chips of other rows costs less than sharding layers.
      abs(math.log2(its.fsdp / mine.fsdp))
      + 2 * abs(math.log2(its.tensor / mine.tensor)),
  )
  return sum(step > 0 for step in steps), sum(steps)


def estimated_bytes(
    config: config_lib.PlanConfig, activations_per_row: float
) -> float:
  """Bytes per chip, of the step or the samplers, whichever needs more.

  Args:
    config: of the run.
    activations_per_row: bytes that a row keeps for the backward pass.
  """
  run = lowering.Run(config, config.mesh)
  held, caches = run.held_bytes(), run.cache_bytes()
  fsdp, samplers = config.training.mesh.fsdp, 0.0
  if config.target is not None and config.decode:
    samplers = held['target'] + held['draft']
    if fsdp > 1:  # gathered for as long as they decode
      samplers += fsdp * samplers
    samplers += caches['sampler']
  if not config.train:
    return samplers
  mesh, vocab_size = config.training.mesh, config.draft.num_logits
  ways = 1 if vocab_size % mesh.tensor else mesh.tensor
  chunk = objective.chunk_length(
      config.output_length, config.rows, vocab_size, ways
  )
  logits = config.rows * chunk * vocab_size // ways * 4 * _COPIES
  if fsdp > 1:  # the embeddings are gathered in full
    widest = config.target or config.draft
    logits += 2 * 2 * widest.vocab_size * widest.emb_dim
  step = sum(held.values()) + held['draft']  # and its gradient
  step += config.rows * activations_per_row + logits + caches['rollout']
  return max(step, samplers)
