"""Plans as text: a column per slice, and below it what is largest."""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import textwrap

from distillspec_jax.core import results
from distillspec_jax.planning import estimate
from distillspec_jax.planning import slice_plan

_LISTED = 5

# Name of a number -> its label; None begins a section.
_LABELS: dict[str, str | None] = {
    'Memory per chip, GiB': None,
    'hbm_bytes': 'available',
    'target_bytes': 'parameters of the target',
    'draft_bytes': 'parameters of the draft',
    'optimizer_bytes': 'optimizer',
    'replicated_bytes': 'of these, replicated though the mesh could shard them',
    'activations_bytes': 'activations kept for the backward pass',
    'rollout_caches_bytes': 'caches of rollouts',
    'step_temporary_bytes': 'temporaries of a step',
    'step_memory_bytes': 'a step needs',
    'sampler_caches_bytes': 'caches of the sampler',
    'speculative_memory_bytes': 'the speculative sampler needs',
    'autoregressive_memory_bytes': 'the autoregressive sampler needs',
    'memory_share': 'largest need, %',
    'A training step': None,
    'step_s': 'predicted, ms',
    'rollout_s': 'of which rollouts, ms',
    'waiting_s': 'of which waiting for other chips, ms',
    'step_flops': 'TFLOP',
    'step_hbm_traffic_bytes': 'read from and written to memory, GiB',
    'all_gather_bytes': 'all-gather, GiB sent',
    'all_reduce_bytes': 'all-reduce, GiB sent',
    'reduce_scatter_bytes': 'reduce-scatter, GiB sent',
    'all_to_all_bytes': 'all-to-all, GiB sent',
    'collective_permute_bytes': 'collective-permute, GiB sent',
    'step_roofline': 'roofline, %',
    'mfu': 'model FLOP utilisation without rollouts, %',
    'mfu_with_rollouts': 'model FLOP utilisation with rollouts, %',
    'All programs': None,
    'gathered_logits': 'all-gathers of logits',
    'host_transfers': 'transfers to and from the host',
    'Samplers': None,
    'encoder_s': "the target's encoder, ms",
    **{
        f'{name}_{what}': label
        for name, of in (
            ('token', 'a token of the target alone'),
            ('draft_step', 'a token of the draft'),
            ('block', 'a block'),
        )
        for what, label in (
            ('s', f'{of}, ms'),
            ('memory_floor', '  its memory floor, %'),
            ('utilisation', '  of peak FLOPs, %'),
        )
    },
    'cost_ratio': 'c, draft over target',
    'verify_ratio': 'v, reading a block over a token',
    'block_exchanges': 'exchanges in a block',
    'draft_loop_exchanges': 'exchanges in a token of the draft',
}


def text(plans: Sequence[slice_plan.SlicePlan]) -> str:
  """The table, and what is largest in each plan."""
  numbers = [plan.numbers() for plan in plans]
  configs = [plan.config for plan in plans]
  rows = [
      ('', [plan.config.topology.name for plan in plans]),
      ('chips', [str(plan.config.topology.chips) for plan in plans]),
      ('mesh: data x fsdp x tensor', [plan.config.mesh_text for plan in plans]),
      ('batch size', [str(plan.config.batch_size) for plan in plans]),
      ('micro-batches', [str(plan.config.micro_batches) for plan in plans]),
      ('remat', [plan.config.remat for plan in plans]),
      ('target', [c.model_text(c.target) for c in configs]),
      ('draft', [c.model_text(c.draft_network.config) for c in configs]),
      ('decode batch size', [str(c.decode_batch_size) for c in configs]),
      ('decoding', [c.decoding.label() for c in configs]),
      ('fits', [_fits(plan) for plan in plans]),
  ]
  labels = dict(_LABELS)
  for name in dict.fromkeys(name for each in numbers for name in each):
    if name.startswith('speedup_at_'):
      rate = name.removeprefix('speedup_at_')
      if ',' not in rate and any(c.decoding.drafting.parallel for c in configs):
        rate += ' at every position'  # which a parallel draft hardly has
      labels[name] = f'predicted speed-up at acceptance {rate}'
  for name, label in labels.items():
    if label is None:
      rows.append((name, [''] * len(plans)))
    elif any(name in each for each in numbers):
      cells = [_cell(label, n[name]) if name in n else '–' for n in numbers]
      rows.append((f'  {label}', cells))
  # A heading with no rows below it is left out.
  rows = [
      row
      for row, below in itertools.pairwise([*rows, ('', [])])
      if any(row[1]) or any(below[1])
  ]
  first = max(len(label) for label, _ in rows)
  widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(plans))]
  lines = [
      f'{label:<{first}}'
      + ''.join(f'  {cell:>{width}}' for cell, width in zip(cells, widths))
      for label, cells in rows
  ]
  return '\n'.join(line.rstrip() for line in lines + _notes(plans))


def _fits(plan: slice_plan.SlicePlan) -> str:
  if plan.instead_of:
    return 'yes, instead'
  return 'yes' if plan.compilation.fits else 'no'


def _cell(label: str, number: results.Metric) -> str:
  value = number.value
  match number.unit:
    case 'bytes':
      return slice_plan.gib(value)
    case 's':
      return f'{1e3 * value:.4g}'
    case 'flop':
      return f'{value / 1e12:.4g}'
  if label.endswith('%'):
    return f'{100 * value:.1f}'
  return str(value) if isinstance(value, int) else f'{value:.2f}'


def _notes(plans: Sequence[slice_plan.SlicePlan]) -> list[str]:
  """What does not fit, and what is largest."""
  lines = []
  for plan in plans:
    lines += ['', f'{plan.config.topology.name}, {plan.config.mesh_text}:']
    if not plan.compilation.fits:
      lines += textwrap.wrap(f'does not fit: {plan.shortage()}.', 78)
      continue
    lines += [f'  impossible: {text}' for text in plan.corrections()]
    lines.append('  largest exchanges')
    listed = plan.exchanges()[:_LISTED]
    lines += [f'    {_exchange(each)}' for each in listed] or ['    none']
    step = plan.program('step')
    if step is None:
      continue
    lines.append('  most work of a step, its share')
    lines += [f'    {each}' for each in plan.most_work()[:_LISTED]]
    lines.append('  largest temporaries of a step')
    lines += [
        f'    {slice_plan.gib(size)} GiB  {shape}  {op_name[-60:]}'
        for shape, size, op_name in step.largest[:_LISTED]
    ]
  return lines


def _exchange(each: estimate.Exchanges) -> str:
  shape = each.shape if len(each.shape) < 60 else f'{each.shape[:57]}...'
  how = 'overlapped' if each.hidden else 'waited for'
  return (
      f'{slice_plan.gib(each.bytes)} GiB  {each.count} x {each.kind} {shape}'
      f' between {each.chips} chips, {how}, in {each.where}'
  )
