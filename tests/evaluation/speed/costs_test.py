"""The steps that are timed are those of decoding, and how costs add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from tests import tiny

L = 8


def settings(temperature=0.0, **changes):
  return decoding_lib.Decoding(
      **{
          'temperature': temperature,
          'max_new_tokens': L,
          'block_length': 3,
          'eos_ids': (),
          **changes,
      }
  )


def inputs(rows=2):
  batch = tiny.batch(rows)
  tokens = jnp.asarray(batch.inputs)
  return costs.Inputs(tokens, jnp.asarray(batch.input_segments))


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_steps_are_those_of_autoregressive_decoding(loops, temperature):
  decoding, read = settings(temperature), inputs()
  costs.step(tiny.target(), read, decoding, tiny.V, speculative=False)
  model = tiny.target()
  expected = autoregressive.generate(
      model.transformer,
      model.params,
      read.tokens,
      read.segments,
      costs.row_keys(2),
      decoding,
  )
  (run,) = loops
  for steps in (1, 2, L):
    _, tokens = run(steps)
    np.testing.assert_array_equal(tokens[:, 0], expected.tokens[:, steps - 1])


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_block_is_read_and_judged_anew_in_every_step(loops, temperature):
  costs.verify(tiny.target(), inputs(), settings(temperature), tiny.V)
  (run,) = loops
  first, second = run(1), run(2)
  assert first[1].shape == (2, 4)  # the last token and three that are drafted
  assert not np.array_equal(first[1], second[1])
  if temperature:
    assert first[2].shape == (2, 3, tiny.V)
    assert not np.array_equal(first[2], second[2])
  state = second[0]
  assert jax.tree.leaves(state.cache)[0].shape[2] == 1 + L + 3 + 1
  np.testing.assert_array_equal(state.length, [2, 2])


def test_a_first_step_reads_two_tokens(loops):
  costs.step(tiny.draft(), inputs(), settings(), tiny.V, tokens=2)
  (run,) = loops
  assert run(1)[1].shape == (2, 2)


def test_a_draft_of_some_tokens_proposes_those(loops):
  draft = tiny.trimmed_draft()
  costs.step(draft, inputs(), settings(), tiny.V)
  (run,) = loops
  _, tokens = run(1)
  assert set(np.asarray(tokens).flat) <= set(draft.config.output_tokens)


def test_costs_add_up():
  found = costs.Costs(10.0, 4.0, 5.0, 1.5, 1.0, {1: 5.0, 3: 6.0})
  assert found.draft_ratio == 0.25
  assert found.verify_ratio(3) == 1.5
  assert found.block(1) == 1.5 + 5.0
  assert found.block(3) == 1.5 + 2 * 1.0 + 6.0


def test_every_cost_of_a_pair_is_measured():
  decodings = [settings(1.0, block_length=size) for size in (1, 2)]
  found = costs.measure(tiny.target(), tiny.draft(), inputs(), decodings)
  *single, verify = found
  assert all(seconds > 0 for seconds in single)
  assert set(verify) == {1, 2}
  assert all(seconds > 0 for seconds in verify.values())


def test_rows_have_keys_of_their_own():
  keys = costs.row_keys(3)
  expected = randomness.row_keys(jax.random.key(0), 3)
  assert (jax.random.key_data(keys) == jax.random.key_data(expected)).all()
