"""Plans as text: a column a slice, and below it what is largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import textwrap

from distillspec_jax.planning import estimate
from distillspec_jax.planning import summary

_LISTED = 5

# Name of a number -> what it is called; None begins a section.
_LABELS: dict[str, str | None] = {
    'Memory of a chip, GiB': None,
    'hbm_bytes': 'there is',
    'target_bytes': 'parameters of the target',
    'draft_bytes': 'parameters of the draft',
    'optimizer_bytes': 'optimizer',
    'replicated_bytes': 'of these, whole on every chip of a split mesh',
    'activations_bytes': 'activations kept for the backward pass',
    'rollout_caches_bytes': 'caches of rollouts',
    'step_temporary_bytes': 'temporaries of a step',
    'step_memory_bytes': 'a step needs',
    'sampler_caches_bytes': 'caches of the sampler',
    'speculative_memory_bytes': 'the speculative sampler needs',
    'autoregressive_memory_bytes': 'the autoregressive sampler needs',
    'memory_share': 'most of what is needed, %',
    'A training step': None,
    'step_s': 'predicted, ms',
    'rollout_s': 'of it rollouts, ms',
    'waiting_s': 'of it waiting for other chips, ms',
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
    'Samplers': None,
    'encoder_s': "the target's encoder, ms",
    'token_s': 'a token of the target alone, ms',
    'draft_step_s': 'a token of the draft, ms',
    'block_s': 'a block, ms',
    'cost_ratio': 'c, draft over target',
    'verify_ratio': 'v, reading a block over a token',
    'block_exchanges': 'exchanges in a block',
    'draft_loop_exchanges': 'exchanges in a token of the draft',
    'All programs': None,
    'gathered_logits': 'all-gathers of logits',
    'host_transfers': 'transfers from and to the host',
}


def text(plans: Sequence[summary.Plan]) -> str:
  """The table, and what is largest in each plan."""
  numbers = [plan.numbers() for plan in plans]
  rows = [
      ('', [plan.setting.topology.name for plan in plans]),
      ('chips', [str(plan.setting.topology.chips) for plan in plans]),
      ('mesh: data x fsdp x tensor', [plan.setting.mesh for plan in plans]),
      ('batch size', [str(plan.setting.batch_size) for plan in plans]),
      ('micro-batches', [str(plan.setting.micro_batches) for plan in plans]),
      ('remat', [plan.setting.draft.remat for plan in plans]),
      ('fits', [_fits(plan) for plan in plans]),
  ]
  labels = dict(_LABELS)
  for name in dict.fromkeys(name for each in numbers for name in each):
    if name.startswith('speedup_at_'):
      rate = name.removeprefix('speedup_at_')
      labels[name] = f'predicted speed-up at acceptance {rate}'
  for name, label in labels.items():
    if label is None:
      rows.append((name, ['' for _ in plans]))
    elif any(name in each for each in numbers):
      shown = _formatter(label)
      rows.append(
          (
              f'  {label}',
              [shown(n[name].value) if name in n else '–' for n in numbers],
          )
      )
  first = max(len(label) for label, _ in rows)
  widths = [max(len(row[1][i]) for row in rows) for i in range(len(plans))]
  lines = [
      f'{label:<{first}}'
      + ''.join(f'  {cell:>{width}}' for cell, width in zip(cells, widths))
      for label, cells in rows
  ]
  return '\n'.join(line.rstrip() for line in lines + _notes(plans))


def _fits(plan: summary.Plan) -> str:
  if plan.instead_of:
    return 'yes, instead'
  return 'yes' if plan.fits else 'no'


def _formatter(label: str) -> Callable[[float], str]:
  """How numbers of a row are shown, by the unit in its label."""
  if label.endswith('%'):
    return lambda value: f'{100 * value:.1f}'
  if label.endswith(', ms'):
    return lambda value: f'{1e3 * value:.4g}'
  if label == 'TFLOP':
    return lambda value: f'{value / 1e12:.4g}'
  if label.startswith(('exchanges', 'all-gathers of', 'transfers')):
    return lambda value: f'{value:.0f}'
  if label.startswith(('c,', 'v,', 'predicted speed')):
    return lambda value: f'{value:.2f}'
  return summary.gib


def _notes(plans: Sequence[summary.Plan]) -> list[str]:
  """What does not fit, and what is largest."""
  lines = []
  for plan in plans:
    lines += ['', f'{plan.setting.topology.name}, {plan.setting.mesh}:']
    if not plan.fits:
      lines += textwrap.wrap(f'does not fit: {plan.shortage()}.', 78)
      continue
    lines.append('  largest exchanges')
    listed = plan.exchanges()[:_LISTED]
    lines += [f'    {_exchange(each)}' for each in listed] or ['    none']
    if not plan.setting.trains:
      continue
    lines.append('  most work of a step, its share')
    lines += [f'    {each}' for each in plan.most_work()[:_LISTED]]
    lines.append('  largest temporaries of a step')
    for buffer in plan.answer.compiled['step'].largest[:_LISTED]:
      lines.append(
          f'    {summary.gib(buffer.bytes)} GiB  {buffer.shape}'
          f'  {buffer.op_name[-60:]}'
      )
  return lines


def _exchange(each: estimate.Exchanges) -> str:
  shape = each.shape if len(each.shape) < 60 else f'{each.shape[:57]}...'
  how = 'beside work' if each.hidden else 'waited for'
  return (
      f'{summary.gib(each.bytes)} GiB  {each.count} x {each.kind} {shape}'
      f' between {each.chips} chips, {how}, in {each.where}'
  )
