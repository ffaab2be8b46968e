"""`distillspec plan`: what a run needs on a TPU slice, without having one.

  setting -> compiling (a process with the TPU compiler, or a file) -> estimate

where it does not fit, `search` looks for the nearest setting that does.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib
import sys

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.core import sources
from distillspec_jax.distributed import layouts
from distillspec_jax.models import config as config_lib
from distillspec_jax.planning import compiling
from distillspec_jax.planning import search
from distillspec_jax.planning import setting as setting_lib
from distillspec_jax.planning import summary
from distillspec_jax.planning import table
from distillspec_jax.planning import topologies
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers

_ON_POLICY = method_lib.Method(divergence='jsd', fixed_fraction=0.0)
_ADAFACTOR = optimizers.Optimizer()


def plan(
    *,
    topology: str | Sequence[str],
    draft: config_lib.T5Config | str,
    target: config_lib.T5Config | str | None = None,
    run: str | None = None,
    method: method_lib.Method = _ON_POLICY,
    optimizer: optimizers.Optimizer = _ADAFACTOR,
    batch_size: int = 0,
    rows_per_chip: int = 8,
    micro_batches: int = 1,
    decode_batch_size: int = 0,
    input_length: int = 512,
    output_length: int = 128,
    block_length: int = 7,
    temperature: float = 1.0,
    acceptance_rates: Sequence[float] = (0.53, 0.62, 0.65, 0.75),
    dtype: str = 'bfloat16',
    target_dtype: str = 'bfloat16',
    target_weights: str = 'float',
    remat: str = 'none',
    mesh_data: int = -1,
    mesh_fsdp: int = 1,
    mesh_tensor: int = 1,
    layout: str | tuple = 'split',
    target_layout: str | tuple = 'split',
    train: bool = True,
    decode: bool = True,
) -> None:
  """Compiles a run for TPU slices and prints what it needs there.

  The programs are those that `train` and the samplers run: the training step
  with the rollouts in it, speculative and autoregressive sampling, the encoder.
  Layers are scanned in all of them, so that compiling takes as long for any
  depth. No checkpoint, no tokenizer and no data are read.

  Args:
    topology: slices, as 'v5e-256' or 'v5e:16x16'; several with commas between.
    draft: the model that is trained: a configuration, a name of
      `models.config.published`, or a folder, whose configuration is read.
    target: likewise; None plans fine-tuning of the draft.
    run: folder whose results.jsonl the numbers are added to.
    method: of training; default: on-policy, Jensen-Shannon.
    optimizer: of training.
    batch_size: rows a step, over all chips; 0: `rows_per_chip` on each.
    rows_per_chip: where there is no batch size.
    micro_batches: parts the batch is split into.
    decode_batch_size: rows that the samplers decode together, over all chips;
      0: those of a step.
    input_length: tokens of inputs.
    output_length: tokens of outputs.
    block_length: drafted tokens a call of the target.
    temperature: of the samplers; sampling needs a little more than greedy.
    acceptance_rates: for which the speed-up is predicted; default: those of T5
      small drafting for xxl, CNN/DailyMail and En-De, sampled and greedy, see
      Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, table 2.
    dtype: what activations are computed in.
    target_dtype: what the target's parameters are held in, and in the samplers
      the draft's.
    target_weights: of the target, see `T5Config.weights`.
    remat: what the draft's backward pass recomputes, see `T5Config.remat`.
    mesh_data: size of the data axis, -1: all chips that are left.
    mesh_fsdp: size of the fsdp axis.
    mesh_tensor: size of the tensor axis.
    layout: how the draft lies on the mesh, as `train` takes it.
    target_layout: how the target does.
    train: whether to plan the training step.
    decode: whether to plan the samplers; they may have another mesh than the
      step, which makes two plans.

  Raises:
    UserError: anything that is wrong with the arguments, before compiling.
    Failed: on some slice neither the setting nor one near it fits.
  """
  names = topology.split(',') if isinstance(topology, str) else topology
  trained = _config(draft, dtype, remat=remat)
  decides = None
  if target is not None:
    decides = _config(target, dtype, weights=target_weights)
  elif method.needs_target:
    raise errors.UserError(
        f'The method ({method.divergence}) needs a target; set plan.target to a'
        " name, as 't5_1_1_xl', or the folder of one."
    )
  if not (train or decode and target is not None):
    raise errors.UserError(
        f'train is {train}, decode is {decode} and target is {target!r}: there'
        ' is nothing to plan. Set plan.train = True, or plan.decode = True and'
        ' a target.'
    )
  settings = []
  for slice_ in map(topologies.parse, names):
    rows = batch_size or rows_per_chip * slice_.chips
    data = mesh_data
    if data == -1:
      data = max(1, slice_.chips // (mesh_fsdp * mesh_tensor))
    setting = setting_lib.Setting(
        topology=slice_,
        target=decides,
        draft=trained,
        method=method,
        optimizer=optimizer,
        batch_size=rows,
        micro_batches=micro_batches,
        decode_batch_size=decode_batch_size or rows,
        input_length=input_length,
        output_length=output_length,
        block_length=block_length,
        temperature=temperature,
        target_dtype=target_dtype,
        data=data,
        fsdp=mesh_fsdp,
        tensor=mesh_tensor,
        layout=layouts.rules(layout),
        target_layout=layouts.rules(target_layout),
        trains=train,
        decodes=decode,
    )
    setting.check()
    settings.append(setting)
  plans = []
  for setting in settings:
    print(f'plan: {setting.topology.name} ...', file=sys.stderr, flush=True)
    plans += _plans(setting, acceptance_rates)
  print(table.text(plans))
  if run is not None:
    _write(pathlib.Path(run), plans, _name(target), _name(draft))
  replaced = [p.instead_of for p in plans]
  hopeless = [p for p in plans if not p.fits and p not in replaced]
  if hopeless:
    raise errors.Failed(
        '; '.join(
            f'{p.setting.topology.name}: {p.shortage()}; no setting near it was'
            ' found to fit. Take more or larger chips, a smaller model, or'
            " target_weights = 'int8'"
            for p in hopeless
        )
        + '.'
    )


def _config(
    model: config_lib.T5Config | str, dtype: str, **changes: str
) -> config_lib.T5Config:
  """The model's configuration, as it is planned for."""
  if isinstance(model, str):
    try:
      model = config_lib.published(model)
    except errors.UserError as unknown:
      try:
        values = loading.read(sources.resolve(model)).config
      except errors.UserError as absent:
        raise errors.UserError(f'{unknown} {absent}') from absent
      model = config_lib.T5Config.from_dict(values)
  return dataclasses.replace(model, dtype=dtype, scan_layers=True, **changes)


def _plans(
    setting: setting_lib.Setting, acceptance_rates: Sequence[float]
) -> list[summary.Plan]:
  """The plan of a setting; if it does not fit, also of one near it."""
  answer = compiling.ask(setting, compiling.programs(setting))
  asked = summary.Plan(setting, answer, acceptance_rates)
  if asked.fits:
    return [asked]
  print(
      f'plan: {setting.topology.name}: {asked.shortage()}; looking for a'
      ' setting near it that fits ...',
      file=sys.stderr,
      flush=True,
  )
  found = search.nearest(setting)
  if found is None:
    return [asked]
  return [asked, summary.Plan(*found, acceptance_rates, instead_of=asked)]


def _name(model: config_lib.T5Config | str | None) -> str | None:
  """As results call it."""
  if model is None or isinstance(model, str):
    return model
  return (
      f'T5 {model.num_encoder_layers}+{model.num_decoder_layers} x'
      f' {model.emb_dim}'
  )


def _write(
    folder: pathlib.Path,
    plans: Sequence[summary.Plan],
    target: str | None,
    draft: str | None,
) -> None:
  """One line of results a plan."""
  for plan in plans:
    setting = plan.setting
    results.write(
        folder,
        'plan',
        target=target,
        draft=draft,
        task='plan',
        split='',
        decoding={
            'topology': setting.topology.name,
            'mesh': setting.mesh,
            'batch_size': setting.batch_size,
            'micro_batches': setting.micro_batches,
            'remat': setting.draft.remat,
            'input_length': setting.input_length,
            'output_length': setting.output_length,
            'block_length': setting.block_length,
            'temperature': setting.temperature,
        },
        metrics={
            name: results.Metric(number.value, None, 1, number.unit)
            for name, number in plan.numbers().items()
        },
        seed=0,
    )
