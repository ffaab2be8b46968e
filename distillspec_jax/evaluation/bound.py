"""The bound of acceptance by the draft's own text, and how tight it is.

Training on the draft's text makes e(x) = E_{y ~ q}[mean_t TVD] small, and the
acceptance a(x) on the target's text is what counts. DistillSpec's theorem 4.1
(Zhou et al. 2023, https://arxiv.org/abs/2310.08461) connects them; for one
input, outputs of at most T tokens, and L(x) the target's expected length,

  a(x) = 1 - E_{y ~ p}[sum_t TVD] / L(x) >= 1 - T^2 e(x) / L(x),

because the two distributions of whole outputs are at most T e(x) apart, and a
sum of T terms differs between them by at most T times that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.core import check
from distillspec_jax.core import progress
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.data import tasks
from distillspec_jax.distributed import locks
from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation import examples as examples_lib
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib


def evaluate_bound(
    *,
    run: str,
    target: str | loading.Loaded,
    draft: str | loading.Loaded,
    task: tasks.Task,
    split: str | None = None,
    examples: int = 128,
    batch_size: int = 32,
    temperatures: Sequence[float] = (1.0,),
    seed: int = 0,
    draft_name: str | None = None,
    show: Any = None,
) -> list[dict[str, Any]]:
  """Appends a line of kind `bound` for each temperature; returns the lines.

  Metrics: `expected_acceptance` on text of the target and
  `draft_text_acceptance` on that of the draft, ratios of sums; `draft_text_tvd`
  e(x) and `acceptance_bound`, means over examples, with one text of each model
  for an example.

  Args:
    run: folder for the results.
    target: folder of a model or of a run, or a model.
    draft: likewise.
    task: whose inputs.
    split: of the task; default: 'test', or 'validation' if there is none.
    examples: from the start of the split; all there are if it has fewer.
    batch_size: sequences at a time; has no influence on the numbers.
    temperatures: of sampling; 0 is greedy.
    seed: of sampling.
    draft_name: in results; default: the folder's.
    show: not used; other measurements show tables.

  Raises:
    UserError: folders without models, models that do not fit each other or the
      task, settings out of range, a folder that cannot be written to.
  """
  del show
  decodings = decoding_lib.for_task(
      [
          decoding_lib.Decoding().replace(temperature=temperature, length=1)
          for temperature in temperatures
      ],
      task,
  )
  check.seed(seed=seed)
  folder = store.check_writable(run)
  locks.check_free(folder)
  target, draft, task, name = pair_lib.load(target, draft, task, draft_name)
  split = examples_lib.final_split(task, split)
  batches = examples_lib.first(task, split, examples, batch_size)
  inputs, lines = examples_lib.fingerprint(batches), []
  for decoding in decodings:
    label = f'{name}, bound, T = {decoding.sampling.temperature:g}'
    counts = count(
        target, draft, progress.shown(batches, label), decoding, seed
    )
    metrics, columns = _metrics(counts, decoding.output_length)
    lines.append(
        results.write(
            folder,
            'bound',
            target=target.name,
            draft=name,
            draft_folder=draft.name,
            task=task.name,
            split=split,
            decoding=decoding.describe(
                speculative=False, batch_size=batch_size
            ),
            metrics=metrics,
            seed=seed,
            examples=results.Examples(inputs, columns),
        )
    )
  return lines


def count(
    target: loading.Loaded,
    draft: loading.Loaded,
    batches,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> dict[str, np.ndarray]:
  """Accepted tokens and lengths of each example's texts, each float64[n].

  Args:
    target: model.
    draft: model.
    batches: whose inputs; empty rows do not count.
    decoding: how both models emit their texts, token by token.
    seed: of sampling; row i of all batches draws from stream (seed, i).

  Returns:
    'accepted_target', 'length_target', 'accepted_draft' and 'length_draft':
    sum_t (1 - TVD) and the number of tokens of either model's text.
  """
  plain = decoding.without_draft()
  size = model_lib.common_vocabulary(target.model, draft.model)
  parts = []
  for batch, keys in examples_lib.with_keys(batches, seed):
    prompt = model_lib.with_shared_encoding(
        batch.prompt, target.model, draft.model
    )
    real, counted = examples_lib.real_rows(batch), {}
    for who, one in (('target', target), ('draft', draft)):
      samples = autoregressive.generate(
          one.model, prompt, keys, plain, vocabulary_size=size
      )
      accepted = acceptance.expected_acceptance(
          target.model, draft.model, prompt, samples, decoding.sampling
      )
      counted[f'accepted_{who}'] = accepted
      counted[f'length_{who}'] = samples.lengths
    counted = jax.device_get(counted)
    parts.append(
        {
            key: np.asarray(value, np.float64)[real]
            for key, value in counted.items()
        }
    )
  return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}


def _metrics(counts: dict[str, np.ndarray], max_length: int):
  """Metrics, and what each example contributes to them."""
  of_target = counts['accepted_target'], counts['length_target']
  of_draft = counts['accepted_draft'], counts['length_draft']
  tvd = 1.0 - of_draft[0] / np.maximum(of_draft[1], 1)
  bound = 1.0 - max_length**2 * tvd / np.maximum(of_target[1], 1)
  number = len(tvd)
  columns = {
      'expected_acceptance': of_target,
      'draft_text_acceptance': of_draft,
      'draft_text_tvd': (tvd,),
      'acceptance_bound': (bound,),
  }
  metrics = {
      name: results.Metric(
          *(
              statistics.ratio(*column)
              if len(column) == 2
              else statistics.mean(*column)
          ),
          number,
          '1',
      )
      for name, column in columns.items()
  }
  return metrics, columns
