"""Layouts: which mesh axes the named axes of arrays are sharded over."""

import jax
from jax.sharding import PartitionSpec as P
import pytest

from distillspec_jax.core import errors
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib

SIZES = {'data': 2, 'fsdp': 2, 'tensor': 4}


@pytest.mark.parametrize(
    'shape, names, layout, expected',
    [
        ((8, 16), ('embed', 'mlp'), 'sharded', P('fsdp', 'tensor')),
        ((8, 16), ('embed', 'mlp'), 'fsdp', P('fsdp', None)),
        ((8, 16), ('embed', 'mlp'), 'replicated', P(None, None)),
        ((8, 6), ('embed', 'heads'), 'sharded', P('fsdp', None)),  # 6 / 4
        ((8, 8), ('heads', 'mlp'), 'sharded', P('tensor', None)),  # once only
        ((8, 3), ('batch', 'length'), 'replicated', P(('data', 'fsdp'), None)),
        ((16, 3), ('batch', 'length'), 'fsdp', P(mesh_lib.AXES, None)),
        ((6, 3), ('batch', 'length'), 'sharded', P('data', None)),  # 6 / 2
        ((3, 3), ('batch', 'length'), 'sharded', P(None, None)),
        ((8, 8, 8), ('batch',), 'sharded', P(('data', 'fsdp'), None, None)),
        ((8, 16), ('embed', 'mlp'), (('embed', 'data'),), P('data', 'tensor')),
        (
            (16, 2),
            ('mlp', 'kv'),
            [['mlp', ['fsdp', 'tensor']]],
            P(('fsdp', 'tensor'), None),
        ),
    ],
)
def test_axes_are_sharded_as_the_layout_says(shape, names, layout, expected):
  rules = layouts.rules(layout)
  hash(rules)  # networks are static
  assert layouts.spec(SIZES, shape, names, rules) == expected


def test_decoding_gathers_what_is_sharded_over_fsdp():
  rules = layouts.gathered(layouts.rules((('mlp', ('fsdp', 'tensor')),)))
  spec = layouts.spec(SIZES, (16, 16), ('embed', 'mlp'), rules)
  assert spec == P(None, 'tensor')
  rows = layouts.spec(SIZES, (16,), ('batch',), rules)
  assert rows == P(('data', 'fsdp'))


@pytest.mark.parametrize(
    'layout, message',
    [
        ('split', "Unknown layout 'split'; use 'sharded', 'fsdp', 'replicat"),
        ((('embedding', None),), "has \\('embedding', None\\)"),
        ((('embed', 'model'),), "'embed' over the mesh axis 'model'"),
    ],
)
def test_unknown_layouts(layout, message):
  with pytest.raises(errors.UserError, match=message):
    layouts.rules(layout)


@pytest.mark.parametrize('layout', ['sharded', 'fsdp', 'replicated'])
@pytest.mark.parametrize('axis', ['fsdp', 'tensor'])
def test_a_layout_lies_on_an_axis_that_it_shards_parameters_over(layout, axis):
  rules = layouts.rules(layout)
  assert not layouts.lies_on(rules, axis)  # without a mesh
  with jax.set_mesh(mesh_lib.make_mesh(fsdp=2, tensor=2)):
    assert layouts.lies_on(rules, axis) == (layout in ('sharded', axis))
  with jax.set_mesh(mesh_lib.make_mesh()):
    assert not layouts.lies_on(rules, axis)  # it has size 1
