"""A pair that is loaded onto a mesh is measured as on one device."""

import jax
import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.evaluation import acceptance
from distillspec_jax.sampling import decoding as decoding_lib
from tests import tiny

DECODING = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0),
    drafting=decoding_lib.Drafting(length=3),
    max_new_tokens=12,
)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pair')
  for name, model in (('target', tiny.target()), ('draft', tiny.draft())):
    tiny.save(folder / name, model.model)
  return folder / 'target', folder / 'draft'


def measured(folders):
  target, draft = map(loading.load, folders)
  batches = [tiny.batch(8, 0)]
  return target, acceptance.measure(target, draft, batches, DECODING, 3)


@pytest.mark.parametrize('sizes', ['-1,1,1', '2,2,2'])
def test_numbers_are_those_of_one_device(folders, sizes):
  target, expected = measured(folders)
  assert len(jax.tree.leaves(target.model.params)[0].devices()) == 1
  with mesh_lib.using(sizes):
    target, metrics = measured(folders)
  kernel = target.model.params['token_embedder']['embedding']
  assert len(kernel.devices()) == 8
  assert kernel.is_fully_replicated == (sizes == '-1,1,1')
  for name, metric in expected.items():
    assert metrics[name].value == pytest.approx(metric.value, rel=1e-5)
