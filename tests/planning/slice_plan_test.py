"""The numbers of a plan, on handmade programs."""

import pytest

from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import hlo
from distillspec_jax.planning import slice_plan
from distillspec_jax.planning import table
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


def planned(verify_cycles=1_000_000, token_bytes=0, **drafting):
  """A token takes 1 ms, one of the draft 1/3 ms, a block of 4 tokens 2 ms."""
  token = hlo.Block('', None, cycles=1_500_000, hbm_bytes=token_bytes)
  token.flops = 19.7e9  # a tenth of a millisecond
  draft = hlo.Block('body/draft_loop/while', 3, cycles=500_000)
  cycles = 500_000 + verify_cycles
  block = hlo.Block('', None, cycles=cycles, inner=[draft])
  programs = {
      name: compiled_program.CompiledProgram(
          1.0, block=hlo.Block('', 1, inner=[loop]), places=tiny.PLACES
      )
      for name, loop in (('autoregressive', token), ('speculative', block))
  }
  config = tiny.config({'decoding': tiny.DECODING.replace(**drafting)})
  read = {'token_read': 409_500_000, 'draft_step_read': 40_950_000}
  compilation = compiled_program.Compilation(read, programs)
  rates = (0.5, (0.5, 0.25, 0.125, 0.0))
  return slice_plan.SlicePlan(config, compilation, rates)


def samplers(**changes):
  return {name: x.value for name, x in planned(**changes).numbers().items()}


TOKENS = 1 + 0.5 + 0.25 + 0.125 + 0.0625


def test_the_speed_up_is_of_tokens_over_the_time_of_a_block():
  numbers = samplers(verify_cycles=2_500_000)
  assert numbers['block_s'] == pytest.approx(3e-3)
  assert numbers['verify_ratio'] == pytest.approx(5 / 3)
  assert numbers['speedup_at_0.5'] == pytest.approx(TOKENS / 3)
  # 1 + a + a b + a b c + a b c d
  tokens = 1 + 0.5 + 0.125 + 0.015625
  by_position = numbers['speedup_at_0.5, 0.25, 0.125, 0']
  assert by_position == pytest.approx(tokens / 3)
  assert numbers['corrections'] == 0


def test_a_block_is_no_less_work_than_its_drafts_and_a_token():
  plan = planned(verify_cycles=750_000)  # half a token's
  (line,) = plan.corrections()
  assert line.startswith('reading 5 tokens in 0.50 of the time of one')
  numbers = samplers(verify_cycles=750_000)
  assert numbers['verify_ratio'] == 1.0
  assert numbers['block_s'] == pytest.approx(1e-3 + 4e-3 / 3)
  assert numbers['speedup_at_0.5'] == pytest.approx(TOKENS / (1 + 4 / 3))
  assert numbers['corrections'] == 1


def test_less_time_than_memory_takes_is_corrected():
  plan = planned(token_bytes=1_638_000_000)  # 2 ms
  line, reading = plan.corrections()
  assert line.startswith('a token in 1 ms, less than') and '2 ms' in line
  assert reading.startswith('reading 5 tokens')
  assert f'impossible: {line}' in table.text([plan])


def test_shares_of_the_memory_floor_and_of_the_peak():
  numbers = samplers(verify_cycles=2_500_000)
  # 409.5 MB take half a millisecond, a draft's 40.95 MB a twentieth.
  assert numbers['token_memory_floor'] == pytest.approx(0.5)
  assert numbers['draft_step_memory_floor'] == pytest.approx(0.15)
  assert numbers['block_memory_floor'] == pytest.approx(0.7 / 3)
  assert numbers['token_utilisation'] == pytest.approx(0.1)


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
