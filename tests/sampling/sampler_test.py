"""What holds of generation with a draft and without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import sampler
from distillspec_jax.sampling import speculative
from tests import tiny
from tests.sampling import enumeration
from tests.sampling import pairs

B, ROWS = pairs.B, pairs.ROWS
with_and_without = pytest.mark.parametrize('with_draft', [False, True])


def test_a_draft_makes_it_speculative():
  target, draft = pairs.make(), pairs.noisy()
  arguments = target, pairs.prompt(), pairs.keys_of(), pairs.SAMPLED
  jax.tree.map(
      np.testing.assert_array_equal,
      sampler.generate(*arguments, draft=draft),
      speculative.generate(target, draft, *arguments[1:]),
  )
  jax.tree.map(
      np.testing.assert_array_equal,
      sampler.generate(*arguments),
      autoregressive.generate(*arguments),
  )


# Rows do not know of each other.


def sample(kind, with_draft, rows):
  """Sampled rows of the ragged batch: those with these numbers."""
  rows = np.asarray(rows)
  return sampler.generate(
      pairs.make(kind),
      pairs.take(pairs.prompt(), rows),
      randomness.row_keys(jax.random.key(5), jnp.asarray(rows)),
      pairs.SAMPLED,
      draft=pairs.noisy(kind) if with_draft else None,
  )


@with_and_without
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_row_is_the_same_in_every_batch(kind, with_draft):
  together = sample(kind, with_draft, range(B))
  order = np.array([3, 7, 0, 2, 6, 5, 1, 4])
  jax.tree.map(
      np.testing.assert_array_equal,
      pairs.take(together, order),
      sample(kind, with_draft, order),
  )
  alone = [sample(kind, with_draft, [row]) for row in range(B)]
  jax.tree.map(
      lambda one, *rows: np.testing.assert_array_equal(
          one, np.concatenate(rows)
      ),
      together,
      *alone,
  )
  distinct = {tuple(row) for row in np.asarray(together.tokens)}
  assert len(distinct) > B // 2  # some may emit EOS at once
  if with_draft:
    pairs.check_statistics(together, pairs.SAMPLED)
    assert 0.1 < together.statistics.acceptance_rate < 0.95


# A minimum length.

MIN_LENGTH = 2


def distribution_without_early_eos():
  """Of all outputs, where the first two tokens are not EOS."""
  target, _ = pairs.small_pair()
  outputs, logits = pairs.all_outputs(target)
  p = np.array(jax.nn.softmax(logits), np.float64)
  p[:, :MIN_LENGTH, 1] = 0.0
  p /= p.sum(-1, keepdims=True)
  rows = np.arange(len(outputs))[:, None]
  chances = p[rows, np.arange(pairs.SMALL_L)[None], outputs].prod(1)
  return dict(zip(map(tuple, outputs.tolist()), chances))


@with_and_without
def test_samples_of_a_minimum_length_have_no_early_eos(with_draft):
  target, draft = pairs.small_pair()
  decoding = pairs.small_decoding(length=2)
  samples = sampler.generate(
      target,
      pairs.small_prompt(),
      pairs.keys_of(ROWS, 11),
      decoding,
      draft=draft if with_draft else None,
      controls=controls_lib.Controls(min_new_tokens=jnp.full(ROWS, MIN_LENGTH)),
  )
  distribution = distribution_without_early_eos()
  assert sum(distribution.values()) == pytest.approx(1.0, abs=1e-5)
  p_value = pairs.p_value(samples.tokens, distribution)
  assert p_value > enumeration.FALSE_ALARM
  # The test can fail: EOS comes earlier where it may.
  early = [
      chance
      for tokens, chance in pairs.exact_distribution(decoding).items()
      if 1 in tokens[:MIN_LENGTH]
  ]
  assert sum(early) > 0.05


# One program, and nothing goes to the host before it ends.


@with_and_without
def test_generation_is_one_program_without_host_transfers(with_draft):
  models = [pairs.make('decoder_only')]
  module = autoregressive
  if with_draft:
    models.append(pairs.noisy('decoder_only'))
    module = speculative
  arguments = jax.device_put((*models, pairs.prompt(), pairs.keys_of()))
  program = module.generate.lower(*arguments, pairs.SAMPLED).compile()
  text = program.as_text()
  assert ' while(' in text
  for transfer in ('infeed', 'outfeed', 'callback', ' send(', ' recv('):
    assert transfer not in text, transfer
  jax.block_until_ready(arguments)
  with jax.transfer_guard('disallow'):
    samples = jax.block_until_ready(program(*arguments))
  assert (np.asarray(samples.lengths) > 1).any()


def test_the_transfer_guard_sees_transfers():
  disallowed = pytest.raises(Exception, match='[Dd]isallowed')
  with jax.transfer_guard('disallow'), disallowed:
    jax.jit(lambda x: x + 1)(np.ones(3))


# Equal values share a program.


@pytest.fixture(name='compilations')
def _compilations(caplog):
  """How many programs of `generate` have been compiled so far."""
  with jax.log_compiles():
    yield lambda: sum(
        'Finished XLA compilation of jit(generate)' in record.getMessage()
        for record in caplog.records
    )


@with_and_without
def test_equal_values_share_a_program(with_draft, compilations):
  target = pairs.make('decoder_only')
  prompt, keys = pairs.prompt(5), pairs.keys_of(5)

  def run(target, draft, decoding):
    samples = sampler.generate(
        target, prompt, keys, decoding, draft=draft if with_draft else None
    )
    return jax.block_until_ready(samples)

  decoding = decoding_lib.Decoding(
      sampling=decoding_lib.Sampling(temperature=0.7, top_k=9),
      drafting=decoding_lib.Drafting(length=2),
      max_new_tokens=5,
  )
  again = pairs.decoding(temperature=0.7, top_k=9, length=2, max_new_tokens=5)
  # Equal configurations; other instances, and other parameters.
  others = [
      model_lib.Model(
          tiny.random_params(target.config, seed=seed),
          transformer.Transformer(dataclasses.replace(target.config)),
      )
      for seed in (8, 9)
  ]
  draft = tiny.noisy(target, 0.3)
  one = run(target, draft, decoding)
  assert compilations() == 1
  two = run(*others, again)
  assert compilations() == 1
  assert (one.tokens != two.tokens).any()
  # What differs between programs is compiled.
  run(target, draft, decoding.replace(top_k=8))
  assert compilations() == 2
  # Drafting is nothing to a program without a draft.
  run(target, draft, decoding.replace(length=3))
  assert compilations() == 2 + with_draft
