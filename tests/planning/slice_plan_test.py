"""The numbers of a plan, on handmade programs."""

import pytest

from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import hlo
from distillspec_jax.planning import slice_plan
from distillspec_jax.sampling import adaptive_length
from tests.planning import tiny


def test_gathered_logits_are_told_from_output_layers():
  # The models are 16 wide and have 256 tokens.
  logits = lambda shape: tiny.plan(tiny.gather(shape, 4096)).gathered_logits()
  assert logits('f32[4,1,256]') == 8
  assert logits('f32[4,256]') == 8
  assert logits('bf16[16,256]') == 0
  assert logits('bf16[4,16]') == 0


def test_work_is_listed_by_its_share():
  first, second = tiny.plan().most_work()
  # 8 x 800 of 9000 cycles, and 900.
  assert first == '71.1 %  f32[4]  jit(generate)/mul'
  assert second == '10.0 %  f32[8]  jit(step)/add'


def test_units_follow_from_names():
  numbers = tiny.plan().numbers()
  assert numbers['target_bytes'] == (2**30, None, 1, 'bytes')
  assert numbers['step_s'].unit == 's'
  assert numbers['step_flops'].unit == 'flop'
  assert numbers['mfu'].unit == numbers['fits'].unit == '1'


def samplers(**drafting):
  """A token takes 1 ms, a block of 4 tokens 2 ms."""
  token = hlo.Block('', None, cycles=1_500_000)
  draft = hlo.Block('body/draft_loop/while', 3, cycles=500_000)
  block = hlo.Block('', None, cycles=1_500_000, inner=[draft])
  programs = {
      name: compiled_program.CompiledProgram(
          1.0, block=hlo.Block('', 1, inner=[loop]), places=tiny.PLACES
      )
      for name, loop in (('autoregressive', token), ('speculative', block))
  }
  config = tiny.config({'decoding': tiny.DECODING.replace(**drafting)})
  compilation = compiled_program.Compilation({}, programs)
  return slice_plan.SlicePlan(config, compilation, (0.5,)).numbers()


def test_the_speed_up_is_of_tokens_over_the_time_of_a_block():
  numbers = samplers()
  assert numbers['block_s'].value == pytest.approx(2e-3)
  tokens = 1 + 0.5 + 0.25 + 0.125 + 0.0625
  assert numbers['speedup_at_0.5'].value == pytest.approx(tokens / 2)


@pytest.mark.parametrize(
    'drafting', [{'paths': 2}, {'adaptive': adaptive_length.Confidence(0.4)}]
)
def test_no_speed_up_is_promised_where_acceptance_does_not_give_it(drafting):
  numbers = samplers(**drafting)
  assert 'block_s' in numbers
  assert not any(name.startswith('speedup') for name in numbers)


def test_a_shortage_is_given_in_bytes():
  short = tiny.too_large()
  assert not short.compilation.fits
  assert short.shortage() == (
      'step needs 20.00 GiB per chip, of 15.75: 4.25 GiB too many'
  )
