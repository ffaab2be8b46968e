"""Meshes of the tests' eight devices, and what programs exchange on them."""

import re

import jax
import pytest

from distillspec_jax.distributed import mesh as mesh_lib

SHAPES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
every = pytest.mark.parametrize(
    'shape', SHAPES, ids=['x'.join(map(str, shape)) for shape in SHAPES]
)

_EXCHANGE = re.compile(
    r'= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all'
    r'|collective-permute)(?:-start)?\('
)


def make(shape):
  """The mesh data x fsdp x tensor, of as many of the devices as it needs."""
  count = shape[0] * shape[1] * shape[2]
  return mesh_lib.make_mesh(*shape, devices=jax.devices()[:count])


def put(mesh, rows):
  """Arrays [B, ...], spread over the mesh by their rows."""
  return jax.device_put(rows, mesh_lib.rows(mesh))


def exchanges(compiled):
  """(kind, shapes as text) of all that devices exchange in a program."""
  return [
      (found[2], found[1]) for found in _EXCHANGE.finditer(compiled.as_text())
  ]
