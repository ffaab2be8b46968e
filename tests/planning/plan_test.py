"""`plan` from arguments to printed numbers, with the real compiler."""

import dataclasses
import pathlib
import re

import gin
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.models import config as model_config
from distillspec_jax.planning import compiler
from distillspec_jax.planning import plan as plan_lib
from distillspec_jax.planning import slice_plan
from distillspec_jax.training import method
from distillspec_jax.training import settings
from tests import tiny as models
from tests.planning import tiny

GIN = pathlib.Path(__file__).parents[2] / 'gin_configs'
# A table of embeddings of 16 GiB in bfloat16.
LARGE = dataclasses.replace(tiny.MODEL, vocab_size=2**20, emb_dim=2**13)


@pytest.fixture(name='compiler_without_cache')
def _compiler_without_cache(monkeypatch, tmp_path):
  """The TPU compiler, and nothing that it was asked before."""
  try:
    compiler.library()
  except errors.UserError as error:
    pytest.skip(str(error))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.mark.usefixtures('compiler_without_cache')
def test_a_small_pair(tmp_path, capsys, monkeypatch):
  arguments = dict(
      topology='v5e:2x2',
      training=tiny.training(sizes=(-1, 2, 1)),
      decoding=tiny.DECODING,
      input_length=16,
      output_length=8,
      rows_per_chip=None,
      run=str(tmp_path),
  )
  plan_lib.plan(**arguments)
  printed = capsys.readouterr().out
  assert 'mesh: data x fsdp x tensor' in printed and '2 x 2 x 1' in printed

  # The same numbers again, from disk: no process is started.
  with monkeypatch.context() as patch:
    patch.setattr(compiler.subprocess, 'run', None)
    plan_lib.plan(**arguments)
  assert capsys.readouterr().out == printed

  first, second = results.read(tmp_path / 'results.jsonl')
  assert first['metrics'] == second['metrics']
  assert first['decoding']['topology'] == 'v5e-4'
  value = {name: each['value'] for name, each in first['metrics'].items()}
  assert value['fits'] == 1.0
  assert 0 < value['rollout_s'] < value['step_s'] < 0.1
  # A block drafts four times and verifies.
  assert 4 * value['draft_step_s'] < value['block_s']
  # Parameters are sharded over fsdp and gathered.
  assert value['all_gather_bytes'] > 0

  # Of matrix products the compiler's program has those of the formula.
  config = tiny.config(sizes=(2, 2, 1))
  compilation = compiler.ask(config, config.programs)
  step = slice_plan.SlicePlan(config, compilation, ()).step
  learning = step.total.flops - step.rollout.flops
  assert 1.0 <= learning / step.model_flops < 1.1
  # The loop over the three tokens after the first is known to the compiler.
  loops = [
      loop
      for block in compilation.programs['speculative'].block.inner
      for loop in block.inner
      if loop.op_name.endswith('draft_loop/while')
  ]
  assert [loop.trips for loop in loops] == [3]


@pytest.mark.usefixtures('compiler_without_cache')
def test_what_cannot_fit_says_by_how_much():
  with pytest.raises(
      errors.Failed, match=r'v5e-1: .* of 15\.75: .* GiB too many.*int8'
  ):
    plan_lib.plan(
        topology='v5e-1',
        training=tiny.training(
            batch_size=None,
            sizes=(-1, 1, 1),
            target=LARGE,
            start=settings.Start(
                model=dataclasses.replace(tiny.MODEL, vocab_size=2**20)
            ),
        ),
        decoding=tiny.DECODING,
        input_length=16,
        output_length=8,
        rows_per_chip=1,
    )


def test_a_draft_that_is_yet_to_be_trained_may_be_planned_in_parallel(
    monkeypatch,
):
  seen = []

  def stop(config, acceptance_rates):
    seen.append(config)
    raise KeyboardInterrupt

  monkeypatch.setattr(plan_lib, '_plans', stop)
  for parallel in (False, True):
    with pytest.raises(KeyboardInterrupt):
      plan_lib.plan(
          topology='v5e-4',
          training=tiny.training(),
          decoding=tiny.DECODING.replace(parallel=parallel),
          input_length=16,
          output_length=8,
          rows_per_chip=None,
      )
  one, other = (config.draft.mask_token for config in seen)
  assert one is None and other is not None


def start(**changes):
  return {'start': settings.Start(**changes)}


@pytest.mark.parametrize(
    'arguments, of_training, words',
    [
        ({'topology': 'v5e-4,v9-8'}, {}, "no TPU slice 'v9-8'; known are v4-8"),
        ({}, {'sizes': (-1, 3, 1)}, r'mesh is data 1 x fsdp 3 .* v5e-4 has 4'),
        ({'rows_per_chip': 0}, {}, 'rows_per_chip is 0'),
        ({'rows_per_chip': None}, {'batch_size': 6}, 'batch size 6'),
        ({'rows_per_chip': 8}, {'batch_size': 16}, 'batch_size is 16 and rows'),
        ({'rows_per_chip': 8}, {'batch_size': 32}, 'batch_size is 32 and rows'),
        ({'output_length': 0}, {}, 'output_length is 0'),
        ({'acceptance_rates': (1.5,)}, {}, 'acceptance_rates is 1.5'),
        (
            {'acceptance_rates': (0.5, (0.5, 0.4))},
            {},
            'has 2 rates by position, but a block has 4 tokens',
        ),
        ({'train': False, 'decode': False}, {}, 'there is nothing to plan'),
        ({'train': False}, {'target': None, 'method': method.Method()}, 'plan'),
        ({}, {'target': None}, 'needs a target; set Target.checkpoint'),
        ({}, start(checkpoint='t6'), 'no model called .t6.; .* no folder t6'),
        ({}, start(model=tiny.MODEL, remat='some'), "remat is 'some'"),
        ({}, {'target': models.config(512)}, 'token by token'),
        (
            {'decoding': tiny.DECODING.replace(length=9)},
            {},
            'block_length is 9',
        ),
    ],
)
def test_bad_arguments_are_refused_before_compiling(
    arguments, of_training, words, monkeypatch
):
  monkeypatch.setattr(compiler, 'ask', no_compiler)
  arguments = {'topology': 'v5e-4', 'decoding': tiny.DECODING, **arguments}
  of_training = {'batch_size': None, **of_training}
  with pytest.raises(errors.UserError, match=words):
    plan_lib.plan(training=tiny.training(**of_training), **arguments)


class Asked(Exception):
  """The compiler was asked for `config`."""

  def __init__(self, config):
    super().__init__()
    self.config = config


def no_compiler(config, programs):
  raise Asked(config)


def asked(monkeypatch, **arguments):
  """The configuration that the compiler is asked for."""
  monkeypatch.setattr(compiler, 'ask', no_compiler)
  with pytest.raises(Asked) as error:
    plan_lib.plan(**{'topology': 'v5e-4', **arguments})
  return error.value.config


def test_defaults_of_a_plan(monkeypatch):
  training = settings.Training(
      start=settings.Start(checkpoint='t5_1_1_small'),
      target=settings.Target(checkpoint='t5_1_1_base'),
      steps=settings.Steps(num_steps=1),
  )
  config = asked(monkeypatch, training=training)
  assert config.batch_size == config.decode_batch_size == 4 * 8
  assert config.mesh_text == '4 x 1 x 1'
  assert config.decoding.drafting.length == 7
  assert config.decoding.output_length == config.output_length == 128
  for name, network in (
      ('t5_1_1_base', config.target_network),
      ('t5_1_1_small', config.draft_network),
  ):
    # As `train` would run them.
    assert network.config == model_config.published(name)


@pytest.mark.parametrize('scan', [True, False])
def test_models_are_planned_as_they_are_trained(monkeypatch, tmp_path, scan):
  model = models.model(256, scan_layers=not scan, remat='full')
  folder = str(models.save(tmp_path / 'model', model))
  changes = {
      'checkpoint': folder, 'dtype': 'bfloat16', 'scan_layers': scan,
      'attention': 'xla',
  }  # fmt: skip
  training = tiny.training(batch_size=None, start=settings.Start(**changes))
  training = dataclasses.replace(training, target=settings.Target(**changes))
  config = asked(monkeypatch, training=training)
  expected = dataclasses.replace(
      model.config, dtype='bfloat16', scan_layers=scan, attention='xla'
  )
  assert config.target == config.draft_network.config == expected
  words = 'scanned' if scan else 'unrolled'
  assert config.model_text(config.target) == f'bfloat16, {words}'


def test_a_draft_of_a_folder_that_shares_the_encoder(monkeypatch, tmp_path):
  folder = str(models.save(tmp_path / 'draft', models.model(256)))
  config = asked(
      monkeypatch,
      training=tiny.training(
          batch_size=None,
          start=settings.Start(
              checkpoint=folder, shared_encoder=True, dtype='float32'
          ),
      ),
      decode_batch_size=4,
  )
  assert config.draft.shares_encoder
  assert config.draft_network.config.dtype == 'float32'
  assert config.decode_batch_size == 4


def test_another_that_fits_is_planned_instead(monkeypatch, capsys):
  short = tiny.too_large().compilation
  near = tiny.config(micro_batches=2), tiny.plan().compilation
  monkeypatch.setattr(compiler, 'ask', lambda *_: short)
  monkeypatch.setattr(plan_lib.search, 'nearest', lambda config: near)
  plan_lib.plan(
      topology='v5e-4',
      training=tiny.training(batch_size=None),
      decoding=tiny.DECODING,
  )
  (row,) = [
      line
      for line in capsys.readouterr().out.splitlines()
      if line.startswith('fits')
  ]
  assert re.split(' {2,}', row)[1:] == ['no', 'yes, instead']


@pytest.fixture(name='clean_gin')
def _clean_gin(monkeypatch):
  monkeypatch.setattr(gin.config, '_FILE_READERS', gin.config._FILE_READERS[:1])
  gin.clear_config()
  gin.enter_interactive_mode()
  yield
  gin.exit_interactive_mode()
  gin.clear_config()


@pytest.mark.usefixtures('clean_gin')
def test_the_gin_file_plans_a_pair_of_names(monkeypatch):
  monkeypatch.setattr(compiler, 'ask', no_compiler)
  gin.add_config_file_search_path(str(GIN))
  gin.parse_config_files_and_bindings(
      ['runs/plan.gin'],
      [
          "TARGET = 't5_1_1_xl'",
          "DRAFT = 't5_1_1_small'",
          'mesh.MeshSizes.fsdp = 4',
          'decoding.Drafting.paths = 2',
          "plan.plan.topology = 'v5e-16'",
      ],
      finalize_config=False,
  )
  with pytest.raises(Asked) as error:
    gin.get_configurable('planning.plan.plan')()
  config = error.value.config
  assert config.mesh_text == '4 x 4 x 1' and config.batch_size == 128
  assert config.target.emb_dim == 2048 and config.draft.emb_dim == 512
  drafting = config.decoding.drafting
  assert (drafting.length, drafting.paths) == (7, 2)
  assert config.training.method.divergence == 'jsd'
  assert config.target.dtype == config.draft_network.config.dtype == 'bfloat16'
  # As the compiler's process unpickles it, which knows nothing of gin.
  assert type(config.training) is settings.Training
