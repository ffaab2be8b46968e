from jax.sharding import PartitionSpec as P
import pytest

from distillspec_jax.core import errors
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib

SIZES = {'data': 2, 'fsdp': 2, 'tensor': 4}


@pytest.mark.parametrize(
    'shape, names, layout, expected',
    [
        ((8, 16), ('embed', 'mlp'), 'split', P('fsdp', 'tensor')),
        ((8, 16), ('embed', 'mlp'), 'fsdp', P('fsdp', None)),
        ((8, 16), ('embed', 'mlp'), 'whole', P(None, None)),
        ((8, 6), ('embed', 'heads'), 'split', P('fsdp', None)),  # 6 / 4
        ((8, 8), ('heads', 'mlp'), 'split', P('tensor', None)),  # once only
        ((8, 3), ('batch', 'length'), 'whole', P(('data', 'fsdp'), None)),
        ((16, 3), ('batch', 'length'), 'fsdp', P(mesh_lib.AXES, None)),
        ((6, 3), ('batch', 'length'), 'split', P('data', None)),  # 6 / 2
        ((3, 3), ('batch', 'length'), 'split', P(None, None)),
        ((8, 8, 8), ('batch',), 'split', P(('data', 'fsdp'), None, None)),
        ((8, 16), ('embed', 'mlp'), (('embed', 'data'),), P('data', 'tensor')),
        (
            (16, 2),
            ('mlp', 'kv'),
            [['mlp', ['fsdp', 'tensor']]],
            P(('fsdp', 'tensor'), None),
        ),
    ],
)
def test_axes_lie_where_the_rules_say(shape, names, layout, expected):
  rules = layouts.rules(layout)
  hash(rules)  # models are static arguments
  assert layouts.spec(SIZES, shape, names, rules) == expected


def test_decoding_gathers_what_lies_on_fsdp():
  rules = layouts.gathered(layouts.rules((('mlp', ('fsdp', 'tensor')),)))
  spec = layouts.spec(SIZES, (16, 16), ('embed', 'mlp'), rules)
  assert spec == P(None, 'tensor')
  rows = layouts.spec(SIZES, (16,), ('batch',), rules)
  assert rows == P(('data', 'fsdp'))


@pytest.mark.parametrize(
    'layout, message',
    [
        ('sharded', "Unknown layout 'sharded'; use 'split', 'fsdp', 'whole'"),
        ((('embedding', None),), "has \\('embedding', None\\)"),
        ((('embed', 'model'),), "'embed' on the mesh axis 'model'"),
    ],
)
def test_unknown_layouts(layout, message):
  with pytest.raises(errors.UserError, match=message):
    layouts.rules(layout)
