"""`plan` from arguments to printed numbers, with the real compiler."""

import dataclasses

import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.models import config as config_lib
from distillspec_jax.planning import compiling
from distillspec_jax.planning import plan as plan_lib
from distillspec_jax.planning import summary
from distillspec_jax.training import method as method_lib
from tests.planning import tiny

SMALL = config_lib.published('test', vocab_size=256)
LENGTHS = dict(input_length=16, output_length=8, block_length=4)
# A table of embeddings of 16 GiB in bfloat16.
LARGE = dataclasses.replace(SMALL, vocab_size=2**20, emb_dim=2**13)


@pytest.fixture(name='compiler')
def _compiler(monkeypatch, tmp_path):
  """The TPU compiler, and nothing that it was asked before."""
  try:
    compiling.library()
  except errors.UserError as error:
    pytest.skip(str(error))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.mark.usefixtures('compiler')
def test_a_small_pair(tmp_path, capsys, monkeypatch):
  arguments = dict(
      topology='v5e:2x2',
      target=SMALL,
      draft=SMALL,
      batch_size=8,
      mesh_fsdp=2,
      **LENGTHS,
  )
  plan_lib.plan(**arguments, run=str(tmp_path))
  printed = capsys.readouterr().out
  assert 'mesh: data x fsdp x tensor' in printed and '2 x 2 x 1' in printed

  # The same numbers again, from disk: no process is started.
  with monkeypatch.context() as patch:
    patch.setattr(compiling.subprocess, 'run', None)
    plan_lib.plan(**arguments, run=str(tmp_path))
  assert capsys.readouterr().out == printed

  first, second = results.read(tmp_path / 'results.jsonl')
  assert first['metrics'] == second['metrics']
  assert first['decoding']['topology'] == 'v5e-4'
  value = {name: each['value'] for name, each in first['metrics'].items()}
  assert value['fits'] == 1.0
  assert 0 < value['rollout_s'] < value['step_s'] < 0.1
  assert 0 < value['draft_step_s'] < value['block_s']
  # Parameters are split over fsdp and gathered.
  assert value['all_gather_bytes'] > 0

  # Of matrix products the compiler's program has those of the formula.
  setting = tiny.setting(data=2, fsdp=2)
  asked = compiling.ask(setting, compiling.programs(setting))
  step = summary.Plan(setting, asked, ()).step
  learned = step.whole.flops - step.rollout.flops
  assert 1.0 <= learned / step.model_flops < 1.1


@pytest.mark.usefixtures('compiler')
def test_what_cannot_fit_says_by_how_much():
  with pytest.raises(
      errors.Failed, match=r'v5e-1: .* of 15\.75: .* GiB too many.*int8'
  ):
    plan_lib.plan(
        topology='v5e-1',
        target=LARGE,
        draft=SMALL,
        rows_per_chip=1,
        **LENGTHS,
    )


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(topology='v5e-4,v9-8'), "no TPU slice 'v9-8'; known are v4-8,"),
        (dict(mesh_fsdp=3), r'mesh is data 1 x fsdp 3 .* v5e-4 has 4'),
        (dict(batch_size=6), 'batch of 6 rows'),
        (dict(target=None), 'needs a target; set plan.target'),
        (dict(draft='t6'), 'no model called .t6.; known .* no folder t6'),
        (dict(remat='some'), "remat is 'some'"),
        (dict(train=False, decode=False), 'there is nothing to plan'),
    ],
)
def test_bad_arguments_are_refused_before_compiling(changes, words):
  arguments = dict(topology='v5e-4', target=SMALL, draft=SMALL)
  with pytest.raises(errors.UserError, match=words):
    plan_lib.plan(**arguments | changes)


def test_fine_tuning_needs_no_target():
  setting = tiny.setting(target=None, method=method_lib.Method())
  assert compiling.programs(setting) == ('step',)
