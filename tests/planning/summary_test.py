"""What a plan says of exchanges, on programs made for it."""

from distillspec_jax.planning import compiled as compiled_lib
from distillspec_jax.planning import compiling
from distillspec_jax.planning import hlo
from distillspec_jax.planning import summary
from distillspec_jax.planning import table
from tests.planning import tiny

PLACES = ((0, 0), (1, 0), (0, 1), (1, 1))


def gather(shape, size):
  return hlo.Collective('all-gather', shape, size, (0, 1), False, 'op')


def plan(*collectives):
  """One whose rollout exchanges something for each of 8 tokens."""
  loop = hlo.Block('jit(generate)', None, 1000, collectives=list(collectives))
  step = hlo.Block('', 1, 1000, hbm_bytes=10, inner=[loop])
  step.work = [hlo.Work(900, 'f32[8]', 'jit(step)/add')]
  step.inner[0].work = [hlo.Work(800, 'f32[4]', 'jit(generate)/mul')]
  made = compiled_lib.Compiled(1.0, block=step, places=PLACES)
  answer = compiling.Answer({'target': 2**30}, {'step': made})
  return summary.Plan(tiny.setting(), answer, (0.5,))


def test_gathered_logits_are_told_from_output_layers():
  # The models are 16 wide and have 256 tokens.
  assert plan(gather('f32[4,1,256]', 4096)).gathered_logits() == 8
  assert plan(gather('f32[4,256]', 4096)).gathered_logits() == 8
  assert plan(gather('bf16[16,256]', 8192)).gathered_logits() == 0
  assert plan(gather('bf16[4,16]', 128)).gathered_logits() == 0


def test_work_is_listed_by_its_share():
  first, second = plan().most_work()
  # 8 x 800 of 9000 cycles, and 900.
  assert first == '71.1 %  f32[4]  jit(generate)/mul'
  assert second == '10.0 %  f32[8]  jit(step)/add'


def test_the_table_has_a_column_a_plan():
  made = plan(gather('f32[4,1,256]', 4096))
  text = table.text([made, made])
  (row,) = [x for x in text.splitlines() if 'parameters of the target' in x]
  assert row.split()[-2:] == ['1.00', '1.00']
  assert '8 x all-gather f32[4,1,256] between 2 chips, waited for' in text


def test_a_shortage_is_said_in_bytes():
  short = compiled_lib.Compiled(
      1.0, exceeds='RESOURCE_EXHAUSTED', needed_bytes=20 * 2**30
  )
  made = summary.Plan(tiny.setting(), compiling.Answer({}, {'step': short}), ())
  assert not made.fits
  assert made.shortage() == (
      'step needs 20.00 GiB a chip, of 15.75: 4.25 GiB too many'
  )
  assert '4.25 GiB too many' in table.text([made])
