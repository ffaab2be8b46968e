"""Settings near one that does not fit, and what they are thought to need."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import transformer
from distillspec_jax.planning import programs
from distillspec_jax.planning import search
from tests.planning import tiny


@pytest.fixture(name='asked')
def _asked():
  return tiny.setting(batch_size=32, decode_batch_size=32)


def test_near_ones_come_first(asked):
  found = list(search.candidates(asked))
  changed = [search._distance(asked, each) for each in found]
  assert changed == sorted(changed)
  # One doubling, one step of the remat policy, one of the mesh.
  assert [each.micro_batches for each in found[:3]].count(2) == 1
  assert {each.draft.remat for each in found[:3]} == {'none', 'dots'}
  assert asked not in found


def test_all_of_them_divide(asked):
  for each in search.candidates(asked):
    each.check()
    assert each.draft.num_heads % each.tensor == 0


def run(setting):
  sizes = setting.data, setting.fsdp, setting.tensor
  return programs.Run(setting, jax.sharding.AbstractMesh(sizes, mesh_lib.AXES))


def test_split_parameters_need_less(asked):
  whole = run(asked).held_bytes()
  split = run(dataclasses.replace(asked, data=1, fsdp=4)).held_bytes()
  assert split['target'] < whole['target'] / 3
  params = transformer.Transformer(asked.draft).abstract()
  assert whole['draft'] == sum(4 * x.size for x in jax.tree.leaves(params))
  assert whole['target'] == whole['draft'] / 2  # in bfloat16
  assert run(asked).replicated_bytes() == 0  # there is nothing to split over


def test_caches_are_counted_as_the_sampler_makes_them(asked):
  model = transformer.Transformer(asked.target)
  inputs = jax.ShapeDtypeStruct((32, asked.input_length), jnp.int32)
  state, _ = jax.eval_shape(
      lambda params, inputs: model.prefill(
          params, inputs, inputs, asked.output_length
      ),
      model.abstract(),
      inputs,
  )
  made = sum(
      x.size * x.dtype.itemsize
      for x in jax.tree.leaves((state.cache, state.cross))
  )
  # On four chips; the start token takes no slot of those that are asked for.
  slots = asked.output_length
  assert run(asked)._cache(model, 32, slots + 1) == made // 4


def test_caches_lie_as_their_models_do(asked):
  # Two heads are not split over four chips; the rows of a whole draft are.
  split = dataclasses.replace(asked, data=1, tensor=4)
  whole = dataclasses.replace(split, layout=layouts.rules('whole'))
  of_draft = run(split).cache_bytes()['rollout']
  assert run(whole).cache_bytes()['rollout'] == of_draft / 4
  halves = dataclasses.replace(asked, data=2, tensor=2)
  assert run(halves).cache_bytes()['rollout'] == of_draft / 4


def test_recomputing_layers_keeps_less(asked):
  kept = run(asked).activation_bytes()
  recomputed = run(asked.with_remat('full')).activation_bytes()
  assert 0 < recomputed < kept / 2
  halves = dataclasses.replace(asked, micro_batches=2)
  assert run(halves).activation_bytes() == kept // 2


def test_smaller_micro_batches_are_thought_to_need_less(asked):
  halves = dataclasses.replace(asked, micro_batches=2)
  a_row = 1e6
  spared = search.estimated_bytes(asked, a_row) - search.estimated_bytes(
      halves, a_row
  )
  rows = 32 // 4 // 2
  logits = rows * 8 * 256 * 4 * 6
  assert spared == rows * a_row + logits


def test_samplers_alone_have_other_meshes_and_nothing_else(asked):
  asked = dataclasses.replace(asked, trains=False)
  found = list(search.candidates(asked))
  assert found
  for candidate in found:
    assert candidate.micro_batches == asked.micro_batches
    assert candidate.draft == asked.draft
  # Parameters that lie on fsdp are gathered for as long as they decode.
  chips = asked.topology.chips
  sizes = {'data': 1, 'fsdp': 1, 'tensor': 1}
  whole, gathered = (
      search.estimated_bytes(
          dataclasses.replace(asked, **{**sizes, axis: chips}), 0.0
      )
      for axis in ('data', 'fsdp')
  )
  assert whole < gathered
