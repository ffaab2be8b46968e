"""`distillspec plan`: what a run needs on a TPU slice, without having one.

  PlanConfig -> compiler (another process, or a file) -> estimate -> table

Where a configuration does not fit, `search` looks for the nearest that does.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib
import sys
from typing import Any

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.core import sources
from distillspec_jax.models import config as model_config
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from distillspec_jax.planning import compiler
from distillspec_jax.planning import config as config_lib
from distillspec_jax.planning import search
from distillspec_jax.planning import slice_plan
from distillspec_jax.planning import table
from distillspec_jax.planning import topologies
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import settings
from distillspec_jax.training import shared_encoder

# Sampling needs a little more than greedy decoding.
_DECODING = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0),
    drafting=decoding_lib.Drafting(length=7),
)


def plan(
    *,
    topology: str | Sequence[str],
    training: settings.Training,
    decoding: decoding_lib.Decoding = _DECODING,
    run: str | None = None,
    input_length: int = 512,
    output_length: int = 128,
    rows_per_chip: int | None = 8,
    decode_batch_size: int | None = None,
    acceptance_rates: Sequence[float | Sequence[float]] = (
        0.53,
        0.62,
        0.65,
        0.75,
    ),
    train: bool = True,
    decode: bool = True,
) -> None:
  """Compiles a run for TPU slices and prints what it needs there.

  The programs are those that `train` and the samplers run, of models with the
  same dtypes and layers: the training step with the rollouts in it, speculative
  and autoregressive sampling, the encoder. Scanned layers compile in the same
  time for any depth, see `Start.scan_layers`. No parameters, no tokenizer and
  no data are read.

  Args:
    topology: slices, as 'v5e-256' or 'v5e:16x16'; several separated by commas.
    training: as for `train`. `Start.checkpoint` and `Target.checkpoint` may
      also be names of `models.config.published`, or configurations; of a
      folder only the configuration is read. Without a target fine-tuning alone
      is planned.
    decoding: of the samplers; default: blocks of 7, at temperature 1.
    run: folder whose results.jsonl the numbers are added to.
    input_length: tokens of inputs.
    output_length: tokens of labels, of rollouts, and of what the samplers emit
      unless `decoding` says otherwise.
    rows_per_chip: rows of a step on each chip, instead of `Steps.batch_size`,
      to compare slices of several sizes; None takes that.
    decode_batch_size: sequences that the samplers decode together, over all
      chips; default: as many as the rows of a step.
    acceptance_rates: for which the speed-up is predicted; default: those of T5
      small drafting for xxl, CNN/DailyMail and En-De, sampled and greedy, see
      Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, table 2. Each is
      that of every position of a block, or a sequence, one for each position;
      those of a parallel draft fall from position to position.
    train: whether to plan the training step.
    decode: whether to plan the samplers; they may have another mesh than the
      step, which makes two plans.

  Raises:
    UserError: anything that is wrong with the arguments, before compiling.
    Failed: on some slice neither the configuration nor one near it fits.
  """
  folder = None if run is None else store.check_writable(run)
  names = topology.split(',') if isinstance(topology, str) else topology
  slices = [topologies.parse(name) for name in names]
  training.check()
  decoding = decoding.with_default_length(output_length)
  decoding.check_speculative()
  check.at_least(
      1,
      max_value=check.MAX_TOKENS,
      input_length=input_length,
      output_length=output_length,
  )
  _check_acceptance(acceptance_rates, decoding.drafting.length)
  target, draft = _models(training)
  if decoding.drafting.parallel and draft.mask_token is None:
    # Training gives it one; which token that is changes nothing here.
    draft = dataclasses.replace(draft, mask_token=0)
  if not (train or decode and target is not None):
    raise errors.UserError(
        f'train is {train}, decode is {decode} and the target'
        f' {training.target}: there is nothing to plan. Set train = True, or'
        ' decode = True and a target.'
    )
  configs = []
  for slice_ in slices:
    on_slice = _on_slice(training, slice_, rows_per_chip)
    rows = on_slice.steps.batch_size
    config = config_lib.PlanConfig(
        topology=slice_,
        target=target,
        draft=draft,
        training=on_slice,
        decoding=decoding,
        decode_batch_size=(
            rows if decode_batch_size is None else decode_batch_size
        ),
        input_length=input_length,
        output_length=output_length,
        train=train,
        decode=decode,
    )
    config.check()
    configs.append(config)
  plans = []
  for config in configs:
    _report(f'{config.topology.name} ...')
    plans += _plans(config, acceptance_rates)
  print(table.text(plans))
  if folder is not None:
    _write(folder, plans)
  replaced = [each.instead_of for each in plans]
  hopeless = [
      f'{each.config.topology.name}: {each.shortage()}; no configuration near'
      ' it fits either. Take more or larger chips, a smaller model, or'
      " Target.weights = 'int8'"
      for each in plans
      if not each.compilation.fits and each not in replaced
  ]
  if hopeless:
    raise errors.Failed('; '.join(hopeless) + '.')


def _check_acceptance(
    rates: Sequence[float | Sequence[float]], length: int
) -> None:
  for rate in rates:
    by_position = rate if isinstance(rate, Sequence) else [rate]
    for one in by_position:
      check.in_interval('[0, 1]', acceptance_rates=one)
    if by_position is rate and len(rate) != length:
      raise errors.UserError(
          f'acceptance_rates has {len(rate)} rates by position, but a block has'
          f' {length} tokens (Drafting.length); give as many, or a single'
          ' number for all positions.'
      )


def _on_slice(
    training: settings.Training,
    slice_: topologies.Topology,
    rows_per_chip: int | None,
) -> settings.Training:
  """The settings with the batch and the mesh of a slice."""
  steps, mesh = training.steps, training.mesh
  if rows_per_chip is not None:
    check.at_least(1, rows_per_chip=rows_per_chip)
    if steps.is_batch_size_given:
      raise errors.UserError(
          f'Steps.batch_size is {steps.batch_size} and rows_per_chip'
          f' {rows_per_chip}; a plan takes one of them. Set rows_per_chip ='
          ' None to plan that batch size.'
      )
    steps = dataclasses.replace(steps, batch_size=rows_per_chip * slice_.chips)
  if mesh.data == -1:
    data = max(1, slice_.chips // (mesh.fsdp * mesh.tensor))
    mesh = dataclasses.replace(mesh, data=data)
  return dataclasses.replace(training, steps=steps, mesh=mesh)


def _models(
    training: settings.Training,
) -> tuple[model_config.T5Config | None, model_config.T5Config]:
  """Target and draft.

  Raises:
    UserError: one is unknown, or the draft cannot propose for the target.
  """
  start, placed = training.start, training.target
  draft, vocabulary = _model(start.model or start.checkpoint)
  if placed is None:
    return None, draft
  target, target_vocabulary = _model(placed.checkpoint)
  target = placed.configure(target)
  if start.shared_encoder and not draft.shares_encoder:
    draft = shared_encoder.config(draft, target)
  loading.check_pair(
      *(
          loading.Loaded(
              model_lib.Model(None, transformer.Transformer(config)),
              known,
              name,
          )
          for config, known, name in (
              (target, target_vocabulary, 'target'),
              (draft, vocabulary, 'draft'),
          )
      )
  )
  return target, draft


def _model(
    model: model_config.T5Config | str,
) -> tuple[model_config.T5Config, Any]:
  """A model as it is configured, and its vocabulary, if it has one."""
  vocabulary = None
  if isinstance(model, str):
    try:
      model = model_config.published(model)
    except errors.UserError as unknown:
      try:
        folder = sources.resolve(model)
        model = loading.read(folder).config
        vocabulary = loading.find_vocabulary(folder, model.vocab_size)
      except errors.UserError as absent:
        raise errors.UserError(f'{unknown} {absent}') from absent
  return model, vocabulary


def _plans(
    config: config_lib.PlanConfig,
    acceptance_rates: Sequence[float | Sequence[float]],
) -> list[slice_plan.SlicePlan]:
  """The plan of a configuration; if it does not fit, also of one near it."""
  compilation = compiler.ask(config, config.programs)
  asked = slice_plan.SlicePlan(config, compilation, acceptance_rates)
  if compilation.fits:
    return [asked]
  _report(
      f'{config.topology.name}: {asked.shortage()}; looking for a configuration'
      ' near it that fits ...'
  )
  near = search.nearest(config)
  if near is None:
    return [asked]
  return [asked, slice_plan.SlicePlan(*near, acceptance_rates, asked)]


def _report(text: str) -> None:
  print(f'plan: {text}', file=sys.stderr, flush=True)


def _name(model: model_config.T5Config | str) -> str:
  """As results call it."""
  if isinstance(model, str):
    return model
  layers = f'{model.num_encoder_layers}+{model.num_decoder_layers}'
  return f'T5 {layers} x {model.emb_dim}'


def _write(folder: pathlib.Path, plans: Sequence[slice_plan.SlicePlan]) -> None:
  """One line of results per plan."""
  for plan in plans:
    config = plan.config
    start, target = config.training.start, config.training.target
    results.write(
        folder,
        'plan',
        target=None if target is None else _name(target.checkpoint),
        draft=_name(start.model or start.checkpoint),
        task='plan',
        split='',
        decoding={
            **config.decoding.describe(
                speculative=True, batch_size=config.batch_size
            ),
            'topology': config.topology.name,
            'mesh': config.mesh_text,
            'micro_batches': config.micro_batches,
            'remat': config.remat,
            'decode_batch_size': config.decode_batch_size,
            'input_length': config.input_length,
            'output_length': config.output_length,
        },
        metrics=plan.numbers(),
        seed=0,
    )
