"""The parameters of a model by path, as every format presents them.

A path is t5x's name, 'decoder/layers_0/mlp/wo/kernel'. Which paths a model has,
and their shapes, the network itself says: no format keeps a list of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer

# Layers in one tensor: ours (scan_layers), and those of t5x's scalable_t5.
_STACKED = re.compile(r'(encoder|decoder)/(?:layers|\1)/(.+)')
_OF_LAYER = re.compile(r'(encoder|decoder)/layers_(\d+)/(.+)')


class Checkpoint(NamedTuple):
  """What every format is read as.

  Attributes:
    config: of the model.
    tensors: by path.
    ignored: names of what else the checkpoint holds.
    step: of training, 0 where the format does not say.
    checksums: path -> checksum of its tensor, where the format has some.
  """

  config: config_lib.T5Config
  tensors: dict[str, Tensor]
  ignored: tuple[str, ...] = ()
  step: int = 0
  checksums: Mapping[str, int] = {}

  def unscanned(self) -> Checkpoint:
    """The same model with one tensor per layer, as all other formats have."""
    if not self.config.scan_layers:
      return self
    config = dataclasses.replace(self.config, scan_layers=False)
    tensors = unstacked(self.tensors, 0)
    return Checkpoint(config, tensors, self.ignored, self.step)


def parse_config(values: Mapping[str, Any], where: Any) -> config_lib.T5Config:
  """The configuration with these fields; `where` is named in errors."""
  try:
    return config_lib.T5Config.from_dict(dict(values))
  except errors.UserError as error:
    raise errors.UserError(f'{where}: {error}') from error


@functools.lru_cache(16)
def shapes(config: config_lib.T5Config) -> Mapping[str, tuple[int, ...]]:
  """Path -> shape of every parameter of the network."""
  # Tracing takes a time that grows with the depth, unless layers are stacked.
  stacked = dataclasses.replace(config, scan_layers=True)
  leaves = tensors_lib.flatten(transformer.Transformer(stacked).abstract())
  # Of these tensors there is nothing to read.
  tensors = {path: tensors_lib.from_array(x) for path, x in leaves.items()}
  if not config.scan_layers:
    tensors = unstacked(tensors, 0)
  return {path: tensor.shape for path, tensor in tensors.items()}


def mismatches(
    tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]
) -> str:
  """How tensors differ from the expected shapes, by path; '' if they do not."""
  missing, left_over = set(expected) - set(tensors), set(tensors) - set(
      expected
  )
  differences = [f'{path} is missing' for path in sorted(missing)]
  differences += [f'{path} is left over' for path in sorted(left_over)]
  for path in sorted(set(tensors) & set(expected)):
    shape = tuple(tensors[path].shape)
    if shape != expected[path]:
      differences.append(f'{path} is {shape} but should be {expected[path]}')
  return tensors_lib.listed(differences, '; ')


def is_stacked(path: str) -> bool:
  """Whether the tensor at this path holds a parameter of all layers."""
  return _STACKED.fullmatch(path) is not None


def unstacked(tensors: Mapping[str, Tensor], axis: int) -> dict[str, Tensor]:
  """One tensor per layer, of tensors whose layers are stacked along `axis`."""
  result = {}
  for path, tensor in tensors.items():
    match = _STACKED.fullmatch(path)
    if match is None or len(tensor.shape) <= axis:
      result[path] = tensor
      continue
    side, name = match.groups()
    for i in range(tensor.shape[axis]):
      result[f'{side}/layers_{i}/{name}'] = tensor.at(axis, i)
  return result


def with_layers(
    params: dict[str, jax.Array],
    scan: bool,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> dict[str, jax.Array]:
  """Parameters by path with stacked layers, to scan, or one array per layer.

  Args:
    params: laid out either way; emptied meanwhile, so that devices hold one
      parameter twice and not all of them.
    scan: whether to stack layers.
    shardings: path -> sharding of the result; None: as XLA chooses.
  """
  groups: dict[str, list[str]] = {}  # path of a stack -> paths of its layers
  for path in params:
    if scan and (match := _OF_LAYER.fullmatch(path)):
      side, _, name = match.groups()
      groups.setdefault(f'{side}/layers/{name}', []).append(path)
    elif not scan and (match := _STACKED.fullmatch(path)):
      groups[path] = [
          f'{match[1]}/layers_{i}/{match[2]}' for i in range(len(params[path]))
      ]
  for stack, layers in groups.items():
    layers.sort(key=lambda path: int(_OF_LAYER.fullmatch(path)[2]))
    old, new = (layers, [stack]) if scan else ([stack], layers)
    layout = shardings and tuple(shardings[path] for path in new)
    params |= zip(new, _restack(scan, layout)(*map(params.pop, old)))
  return params


@functools.lru_cache(64)  # each new function would compile anew
def _restack(scan: bool, layout: tuple[jax.sharding.Sharding, ...] | None):
  change = lambda *x: (jnp.stack(x),) if scan else tuple(x[0])
  return jax.jit(change, out_shardings=layout)
