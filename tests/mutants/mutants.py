"""Faults that the tests must find: small patches of the package, by name.

`make mutants` applies each to a copy of the package and runs the tests named
here, which must fail without reference data; and, where a fault biases what is
sampled, the certificate's check of a tiny pair, which must fail at its default
sensitivity. `mutants_test.py` sees to it that the patches still fit.
"""

from __future__ import annotations

from typing import NamedTuple

TOKEN = 'sampling/verification/token.py'
VERIFIER = 'sampling/verification/verifier.py'
BLOCK = 'sampling/verification/block.py'
PATHS = 'sampling/verification/multi_path.py'
SPECULATIVE = 'sampling/speculative.py'
DIVERGENCES = 'losses/divergences.py'
OBJECTIVE = 'losses/objective.py'
ROLLOUTS = 'training/rollouts.py'
STEP = 'training/step.py'
LOOP = 'training/loop.py'


class Mutant(NamedTuple):
  """A fault.

  Attributes:
    name: what is wrong.
    file: in the package.
    old: text that occurs once in it.
    new: what it becomes.
    tests: pytest's arguments; some of them must fail.
    rule: of `certificate.RULES`, whose certificate must fail; None: what is
      sampled keeps its distribution, or is not meant to have the target's.
    is_warped: it does where something is warped.
  """

  name: str
  file: str
  old: str
  new: str
  tests: str
  rule: str | None = None
  is_warped: bool = False


SAMPLING = [
    Mutant(
        'the residual keeps 3 % of q',
        VERIFIER,
        'rest = jnp.maximum(p - q, 0.0)',
        'rest = jnp.maximum(p - 0.97 * q, 0.0)',
        'tests/sampling/verification/verifier_test.py',
        'token verification',
    ),
    Mutant(
        'tokens are accepted with 1.02 p / q',
        TOKEN,
        'passes = u * rows.pick(q, drafted) <',
        'passes = u * rows.pick(q, drafted) < 1.02 *',
        'tests/sampling/verification/token_test.py',
        'token verification',
    ),
    Mutant(
        'the block rule corrects without the weight',
        BLOCK,
        'weight * verifier.at(p, num_accepted)',
        'verifier.at(p, num_accepted)',
        'tests/sampling/verification/block_test.py',
        'block verification',
    ),
    Mutant(
        'a token of a block passes after one that did not',
        VERIFIER,
        'jnp.cumprod(passes.astype(jnp.int32), axis=1)',
        'passes.astype(jnp.int32)',
        'tests/sampling/verification/verifier_test.py',
        'token verification',
    ),
    Mutant(
        "the target's cache is rolled back one token too far",
        SPECULATIVE,
        'target.rollback(state.target.restored(), state.total - 1)',
        'target.rollback(state.target.restored(), '
        'jnp.maximum(state.total - 2, 0))',
        'tests/sampling/speculative_test.py -k greedy_tokens_are_the_targets',
        'token verification',
    ),
    Mutant(
        'the bonus token is drawn from the draft',
        TOKEN,
        'p_at = verifier.at(p, num_accepted)',
        'p_at = verifier.at(p.at[:, -1].set(q[:, -1]), num_accepted)',
        'tests/sampling/verification/token_test.py',
        'token verification',
    ),
    Mutant(
        'a block that ended early has a q after its end',
        VERIFIER,
        'is_drafted = position < (size if lengths is None else lengths)',
        'is_drafted = position < size',
        'tests/sampling/verification/verifier_test.py',
        'length by confidence',
    ),
    Mutant(
        "rejection uses the draft's probabilities at temperature 1",
        'sampling/drafting.py',
        'return _Proposal(vocabulary.to_tokens(index), warped,',
        'return _Proposal(vocabulary.to_tokens(index),'
        ' logits.astype(jnp.float32),',
        'tests/sampling/drafting_test.py',
        'token verification',
        True,
    ),
    Mutant(
        "a parallel draft never reads a full block's first token",
        'sampling/drafting.py',
        'start = jnp.maximum(total - (size + 1), 0)',
        'start = jnp.maximum(total - size, 0)',
        'tests/sampling/drafting_parallel_test.py -k each_block',
    ),
    Mutant(
        'the tokens of a parallel block are drawn with one key',
        'sampling/drafting.py',
        'in_axes=(0, 1), out_axes=1)(depth, logits)',
        'in_axes=(0, 1), out_axes=1)(0 * depth, logits)',
        'tests/sampling/drafting_parallel_test.py -k independent',
        'parallel draft',
    ),
    Mutant(
        'top_p applies to the draft alone',
        SPECULATIVE,
        'warping.warp(p_logits, decoding.sampling,',
        'warping.warp(p_logits, decoding.replace(top_p=1.0).sampling,',
        'tests/sampling/speculative_test.py -k "have_the_targets and top_p"',
        'token verification',
        True,
    ),
    Mutant(
        'the next token is drawn with the key of acceptance',
        VERIFIER,
        "randomness.streams(keys, 'next')",
        "randomness.streams(keys, 'accept')",
        'tests/sampling/verification/token_test.py -k frequencies',
        'token verification',
    ),
    Mutant(
        'all blocks use one key',
        SPECULATIVE,
        'block_keys = randomness.events(keys, state.step)',
        'block_keys = randomness.events(keys, 0)',
        'tests/sampling/speculative_test.py -k "have_the_targets and plain"',
        'token verification',
    ),
    Mutant(
        'a second path is tried with the first one rejected in vain',
        PATHS,
        'p = jnp.where((tried & ~passes)[:, None], left, p)',
        'p = jnp.where((tried & ~passes)[:, None], p, p)',
        'tests/sampling/verification/multi_path_test.py -k enumerated',
        'two paths',
    ),
    Mutant(
        'paths live on that disagree with what was accepted',
        PATHS,
        'return alive & (drafted == token[:, None]) & passed[:, None]',
        'return alive & passed[:, None]',
        'tests/sampling/verification/multi_path_test.py -k enumerated',
        'two paths',
    ),
    Mutant(
        'top_k keeps one token less',
        'sampling/warping.py',
        'jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]',
        'jax.lax.top_k(logits, sampling.top_k)[0][..., -2:-1]',
        'tests/sampling/warping_test.py',
    ),
    Mutant(
        'the lenient factor is inverted',
        'sampling/verification/lenient.py',
        'return p / self.epsilon**power',
        'return p * self.epsilon**power',
        'tests/sampling/verification/lenient_test.py',
    ),
]

LOSSES = [
    Mutant(
        'label smoothing counts the label among the others',
        DIVERGENCES,
        'keep, share = 1.0 - label_smoothing, label_smoothing / others',
        'keep, share = 1.0 - label_smoothing, label_smoothing / (others + 1)',
        'tests/losses/divergences_test.py -k cross_entropy',
    ),
    Mutant(
        'the forward KL is the reverse one',
        DIVERGENCES,
        'return _kl(*_log_probs(p_logits, q_logits))',
        'return _kl(*_log_probs(q_logits, p_logits))',
        'tests/losses/divergences_test.py -k "float64 or closed_forms"',
    ),
    Mutant(
        'jsd weighs p as q and q as p',
        DIVERGENCES,
        'return beta * _kl(log_p, log_m) + (1.0 - beta) * _kl(log_q, log_m)',
        'return (1.0 - beta) * _kl(log_p, log_m) + beta * _kl(log_q, log_m)',
        'tests/losses/divergences_test.py -k "float64 or closed_forms or jsd"',
    ),
    Mutant(
        'padding counts in the loss',
        OBJECTIVE,
        'total = jnp.sum(values, axis, where=mask, dtype=jnp.float32)',
        'total = jnp.sum(values, axis, dtype=jnp.float32)',
        'tests/losses/objective_test.py -k "masked_sum or supervised_means"',
    ),
    Mutant(
        'padding counts in the number of tokens',
        OBJECTIVE,
        'count=jnp.sum(mask, axis, dtype=jnp.float32)',
        'count=jnp.sum(mask | True, axis, dtype=jnp.float32)',
        'tests/losses/objective_test.py -k "masked_sum or supervised_means"',
    ),
    Mutant(
        'positions that two chunks share count twice',
        OBJECTIVE,
        'parts[-1][:, size - last :]',
        'parts[-1]',
        'tests/losses/objective_test.py -k "plain_value or supervised_means"',
    ),
    Mutant(
        'the target is not stopped from gradients',
        OBJECTIVE,
        'jax.lax.stop_gradient(_logits(p_logits_fn, p_hidden, mask))',
        '_logits(p_logits_fn, p_hidden, mask)',
        'tests/losses/objective_test.py -k never_to_the_target',
    ),
]

TRAINING = [
    Mutant(
        "rollouts ignore the method's temperature",
        ROLLOUTS,
        'temperature=method.temperature',
        'temperature=1.0',
        'tests/training/rollouts_test.py -k temperature',
    ),
    Mutant(
        'the fraction of fixed labels is ignored',
        ROLLOUTS,
        'jnp.where(first < method.fixed_fraction, DATASET, sampled)',
        'jnp.where(first < 0.5, DATASET, sampled)',
        'tests/training/rollouts_test.py -k fractions',
    ),
    Mutant(
        'the fraction of labels by the draft is ignored',
        ROLLOUTS,
        'jnp.where(second < method.draft_fraction, DRAFT, TARGET)',
        'jnp.where(second < 0.5, DRAFT, TARGET)',
        'tests/training/rollouts_test.py -k fractions',
    ),
    Mutant(
        'the EOS of a sampled label does not count',
        ROLLOUTS,
        'position < samples.lengths[:, None]',
        'position < samples.lengths[:, None] - 1',
        'tests/training/rollouts_test.py -k "masked or temperature"',
    ),
    Mutant(
        'every step samples with the same key',
        STEP,
        'key = jax.random.fold_in(state.key, state.step)',
        'key = jax.random.fold_in(state.key, 0)',
        'tests/training/step_test.py -k keys',
    ),
    Mutant(
        'micro-batches are summed and not averaged',
        STEP,
        "count = jnp.maximum(metrics['loss'].count, 1.0)",
        "count = jnp.maximum(metrics['loss'].count, 1.0) / micro_batches",
        'tests/training/step_test.py -k whole_batch',
    ),
    Mutant(
        'sequences weigh by their tokens where they should alike',
        STEP,
        'types.Mean(mean.value(), jnp.minimum(mean.count, 1.0))',
        'types.Mean(mean.total, mean.count)',
        'tests/training/step_test.py -k weigh_alike',
    ),
    Mutant(
        'masks weigh alike, however rarely they are drawn',
        'training/parallel.py',
        'weights = reach * jnp.maximum(cuts / sizes[None], 1.0)',
        'weights = reach',
        'tests/training/parallel_test.py -k estimates',
    ),
    Mutant(
        "masks see other chains' masks",
        'models/mask_chains.py',
        'masks = own & (depths <= depths[:, None])',
        'masks = depths <= depths[:, None]',
        'tests/models/mask_chains_test.py -k own_prefix',
    ),
    Mutant(
        'a draft is distilled with its dropout',
        'training/method.py',
        'rate = 0.0 if self.needs_target else config.dropout_rate',
        'rate = config.dropout_rate',
        'tests/training/method_test.py -k dropout',
    ),
    Mutant(
        'a tie keeps the earlier step',
        'training/validation.py',
        'gain >= -(error or 0.0)',
        'gain > 0.0',
        'tests/training/validation_test.py -k clearly_worse',
    ),
    Mutant(
        'the warm-up is one step late',
        'training/optimizers.py',
        'self.learning_rate / max(self.warmup_steps, 1),',
        '0.0,',
        'tests/training/optimizers_test.py -k "warms_up or warm_up"',
    ),
    Mutant(
        "t5x's schedules are one step early",
        'training/schedules.py',
        'step = jnp.maximum(0, jnp.asarray(step) - self.step_offset)',
        'step = jnp.maximum(0, jnp.asarray(step) + 1 - self.step_offset)',
        'tests/training/schedules_test.py',
    ),
    Mutant(
        'labels are not shifted',
        'models/model.py',
        'earlier = jnp.pad(labels, ((0, 0), (1, 0)))[:, :-1]',
        'earlier = labels',
        'tests/models/model_test.py -k shift_right',
    ),
    Mutant(
        'the order of the data ignores the epoch',
        'data/reading.py',
        'np.random.default_rng((seed, epoch))',
        'np.random.default_rng((seed, 0))',
        'tests/data/batches_test.py -k "order or continues"',
    ),
    Mutant(
        'a restart begins an epoch anew',
        'data/reading.py',
        'for number in range(start, len(batches))',
        'for number in range(0 * start, len(batches))',
        'tests/data/batches_test.py -k continues',
    ),
    Mutant(
        'the state of the optimizer is not restored',
        LOOP,
        'done, state, extra = found',
        'old = state.optimizer; done, state, extra = found;'
        ' state = state.replace(optimizer=old)',
        'tests/training/loop_test.py -k "as_if_it_had_not and fine"',
    ),
    Mutant(
        'a restarted run begins with the first batch',
        LOOP,
        '        start=first,\n',
        '        start=0,\n',
        'tests/training/loop_test.py -k "as_if_it_had_not and fine"',
    ),
    Mutant(
        'the validation counts rows that fill up a batch',
        'training/validation.py',
        '(jnp.any(batch.segments > 0, axis=1), mean',
        '(jnp.any(batch.segments >= 0, axis=1), mean',
        'tests/training/validation_test.py -k real_rows',
    ),
]

ALL = {mutant.name: mutant for mutant in (*SAMPLING, *LOSSES, *TRAINING)}
