"""Acceptance and block efficiency against the sampler's own counts."""

import jax
import numpy as np
import pytest

from distillspec_jax.core import cost_model
from distillspec_jax.core import errors
from distillspec_jax.core import example_records
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.data import vocabularies
from distillspec_jax.distributed import locks
from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation import examples
from distillspec_jax.evaluation import quality
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from tests import tiny

L = 20  # not a multiple of the positions that are worked on together
ROWS = 256
SEED = 3
SIGMAS = 4.9  # a two-sided false alarm of 1e-6
SAMPLED = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0),
    drafting=decoding_lib.Drafting(length=3),
    max_new_tokens=L,
)
# Blocks as long as the output: every token is judged.
LONG = SAMPLED.replace(length=L)
GREEDY = LONG.replace(temperature=0.0)
DECODER_ONLY = {'num_encoder_layers': 0}


def keys_of(rows, seed=SEED):
  return randomness.row_keys(jax.random.key(seed), rows)


def counts_of(decoding, draft=None, empty=0, **changes):
  """The sampler's counts of what `measure` samples."""
  draft = tiny.draft(**changes) if draft is None else draft
  samples = speculative.generate(
      tiny.target(**changes).model,
      draft.model,
      tiny.batch(ROWS, empty).prompt,
      keys_of(ROWS),
      decoding,
  )
  return jax.device_get(samples.statistics)


def measure(decoding, draft=None, batches=None, seed=SEED, **changes):
  return acceptance.measure(
      tiny.target(**changes),
      tiny.draft(**changes) if draft is None else draft,
      [tiny.batch(ROWS)] if batches is None else batches,
      decoding,
      seed,
  )


def distance(changes, judged, **warping):
  """How far acceptance is from accepted / judged tokens, and what is allowed.

  With blocks as long as the output both are averages over the same tokens.
  Their difference is a martingale, whose variance is at most
  rate (1 - rate) / tokens.
  """
  decoding = LONG.replace(**warping)
  counts = counts_of(decoding, **changes)
  tokens = counts.emitted.sum()
  assert counts.reached_at.sum() == tokens
  counted = counts.accepted.sum() / tokens
  metrics = measure(decoding, judged, **changes)
  allowed = SIGMAS * np.sqrt(counted * (1 - counted) / tokens)
  return abs(metrics['expected_acceptance'].value - counted), allowed


@pytest.mark.parametrize(
    'changes, warping',
    [({}, {}), (DECODER_ONLY, {'temperature': 0.7, 'top_k': 5})],
)
def test_expected_acceptance_is_what_is_accepted(changes, warping):
  difference, allowed = distance(changes, tiny.draft(**changes), **warping)
  assert difference < allowed


def test_acceptance_of_a_slightly_better_draft_is_caught():
  difference, allowed = distance({}, tiny.draft(scale=0.2))
  assert difference > allowed


@pytest.mark.parametrize('decoding', [GREEDY, LONG], ids=['greedy', 'sampled'])
def test_acceptance_of_a_trimmed_vocabulary_is_what_is_accepted(decoding):
  draft = tiny.trimmed_draft()
  counts = counts_of(decoding, draft)
  reached, passed = counts.reached_at.sum(), counts.accepted.sum()
  rate = passed / reached
  assert 0.05 < rate < 0.9
  expected = measure(decoding, draft)['expected_acceptance'].value
  if decoding.is_greedy:
    assert expected == pytest.approx(rate)
  else:
    assert abs(expected - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / reached)


def test_greedy_acceptance_is_exactly_what_is_accepted():
  counts = counts_of(GREEDY)
  counted = counts.accepted.sum() / counts.emitted.sum()
  assert 0.05 < counted < 0.95
  assert measure(GREEDY)['expected_acceptance'].value == pytest.approx(counted)


def test_counts_are_the_samplers():
  counts, metrics = counts_of(SAMPLED), measure(SAMPLED)
  assert set(metrics) == {
      'expected_acceptance',
      'block_efficiency',
      'predicted_block_efficiency',
      'uncut_block_efficiency',
      'tokens',
      'acceptance_at_1',
      'acceptance_at_2',
      'acceptance_at_3',
  }
  assert all(metric.count == ROWS for metric in metrics.values())
  assert all(metric.standard_error > 0 for metric in metrics.values())
  assert metrics['tokens'].value == counts.emitted.mean()
  assert metrics['block_efficiency'].value == pytest.approx(
      counts.emitted.sum() / counts.blocks.sum()
  )
  for position in range(3):
    accepted, reached = counts.accepted_at.sum(0), counts.reached_at.sum(0)
    assert metrics[f'acceptance_at_{position + 1}'].value == pytest.approx(
        accepted[position] / reached[position]
    )
  rate = metrics['expected_acceptance'].value
  predicted = cost_model.predicted_block_efficiency(rate, 3, counts.emitted)
  assert metrics['predicted_block_efficiency'].value == predicted
  rates = counts.accepted_at.sum(0) / counts.reached_at.sum(0)
  uncut = metrics['uncut_block_efficiency'].value
  assert uncut == pytest.approx(1 + np.cumprod(rates).sum())
  assert uncut > metrics['block_efficiency'].value


@pytest.mark.parametrize('decoding', [GREEDY, SAMPLED], ids=['greedy', 'T1'])
def test_a_draft_that_is_the_target_is_always_accepted(decoding):
  metrics = measure(decoding, tiny.target(), seed=0)
  assert metrics['expected_acceptance'].value == pytest.approx(1.0, abs=1e-5)
  assert metrics['expected_acceptance'].value <= 1.0
  # The sampler's two ways to a distribution differ by rounding.
  assert metrics['acceptance_at_1'].value == pytest.approx(1.0, abs=1e-2)
  # Less than block length + 1, because the end of the text cuts a block.
  assert metrics['predicted_block_efficiency'].value == pytest.approx(
      metrics['block_efficiency'].value, abs=1e-2
  )
  if not decoding.is_greedy:
    assert metrics['uncut_block_efficiency'].value == pytest.approx(4, abs=1e-2)


def test_padding_rows_do_not_count():
  real = ROWS - 100
  counts = counts_of(SAMPLED, empty=100)
  assert counts.emitted[real:].any()  # they are decoded all the same
  metrics = measure(SAMPLED, batches=[tiny.batch(ROWS, empty=100)])
  assert all(metric.count == real for metric in metrics.values())
  assert metrics['tokens'].value == counts.emitted[:real].mean()
  assert metrics['block_efficiency'].value == pytest.approx(
      counts.emitted[:real].sum() / counts.blocks[:real].sum()
  )


def test_the_batch_size_changes_nothing():
  whole = tiny.batch(ROWS, empty=100)
  halves = [
      jax.tree.map(lambda x, at=at: x[at], whole)
      for at in (slice(0, ROWS // 2), slice(ROWS // 2, ROWS))
  ]
  actual, expected = (
      measure(SAMPLED, batches=batches) for batches in (halves, [whole])
  )
  assert actual.keys() == expected.keys()
  for name, metric in actual.items():
    assert metric.count == expected[name].count
    assert metric.value == pytest.approx(expected[name].value, rel=1e-5)


def test_one_example_has_no_standard_error():
  metrics = measure(SAMPLED, batches=[tiny.batch(ROWS, empty=ROWS - 1)], seed=0)
  assert all(metric.standard_error is None for metric in metrics.values())


@pytest.mark.parametrize('batches', [[], [tiny.batch(ROWS, empty=ROWS)]])
def test_no_example_is_an_error(batches):
  with pytest.raises(errors.UserError, match='no example to measure'):
    measure(SAMPLED, batches=batches)


@pytest.mark.parametrize(
    'changes',
    [
        {'verifier': verification.Lenient('linear', 0.5)},
        {'paths': 2},
        {'adaptive': adaptive_length.Confidence(0.4)},
        {'parallel': True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_formula_is_not_applied_to_other_ways_to_speculate(changes):
  zeros = np.zeros((4, 3))
  counts = dict.fromkeys(('reached_at', 'accepted_at'), zeros)
  counts |= dict.fromkeys(('expected', 'emitted', 'blocks'), np.ones(4))
  assert 'predicted_block_efficiency' in acceptance._metrics(counts, SAMPLED)
  other = SAMPLED.replace(**changes)
  assert 'predicted_block_efficiency' not in acceptance._metrics(counts, other)


def test_acceptance_of_a_parallel_draft_is_counted_by_position():
  decoding, draft = SAMPLED.replace(parallel=True), tiny.parallel_draft()
  counts, metrics = counts_of(decoding, draft), measure(decoding, draft)
  rates = counts.accepted_at.sum(0) / counts.reached_at.sum(0)
  for position, rate in enumerate(rates, start=1):
    value = metrics[f'acceptance_at_{position}'].value
    assert value == pytest.approx(rate)
  assert rates[0] > rates[1]  # masks mean nothing to this draft
  uncut = metrics['uncut_block_efficiency'].value
  assert uncut == pytest.approx(1 + np.cumprod(rates).sum())


def test_error_of_uncut_block_efficiency_is_the_bootstraps():
  rng = np.random.default_rng(0)
  examples_, resamples = 400, 2000
  reached = np.zeros((examples_, 2), int)
  reached[:, 0] = rng.integers(3, 9, examples_)
  chance = rng.beta(4, 2, examples_)
  accepted = np.zeros_like(reached)
  accepted[:, 0] = rng.binomial(reached[:, 0], chance)
  reached[:, 1] = accepted[:, 0]
  accepted[:, 1] = rng.binomial(reached[:, 1], chance)

  def value(rows):
    rates = accepted[rows].sum(-2) / reached[rows].sum(-2)
    return 1 + np.cumprod(rates, axis=-1).sum(-1)

  counts = {'reached_at': reached, 'accepted_at': accepted}
  metric = acceptance._uncut(counts)['uncut_block_efficiency']
  assert metric.value == pytest.approx(value(np.arange(examples_)))
  spread = np.std(value(rng.integers(0, examples_, (resamples, examples_))))
  # The error of a standard deviation, and 1 % for second order.
  allowed = SIGMAS / np.sqrt(2 * resamples) + 0.01
  assert abs(metric.standard_error / spread - 1) < allowed


# `evaluate`: its lines.

SHORT = SAMPLED.replace(length=2, max_new_tokens=None)  # the task's labels: 8


def byte_pair(scale=0.3):
  vocabulary = vocabularies.load('bytes')
  return [
      tiny.with_vocabulary(model, vocabulary)
      for model in (tiny.target(tiny.BYTES), tiny.draft(tiny.BYTES, scale))
  ]


def evaluate(tmp_path, metrics=(), scale=0.3, **changes):
  target, draft = byte_pair(scale)
  task = tiny.task(tmp_path / 'task', label_length=8, metrics=metrics)
  arguments = {
      'run': str(tmp_path / 'measured'),
      'target': target,
      'draft': draft,
      'task': task,
      'batch_size': 6,
      **changes,
  }
  return acceptance.evaluate(**arguments)


def test_evaluate_writes_acceptance_and_quality(tmp_path):
  lines = evaluate(
      tmp_path,
      ('exact_match',),
      examples=5,
      batch_size=4,
      decodings=[SHORT],
      seed=7,
  )
  assert results.read(tmp_path / 'measured' / 'results.jsonl') == lines
  first, *of_quality = lines
  assert first['kind'] == 'acceptance'
  assert first['decoding']['temperature'] == 1.0
  assert first['decoding']['block_length'] == 2
  assert first['decoding']['max_new_tokens'] == 8
  assert first['metrics']['expected_acceptance']['count'] == 5
  for line, who, temperature in zip(
      of_quality, ('pair', 'target', 'draft'), (1.0, 0.0, 0.0), strict=True
  ):
    assert line['kind'] == 'task_quality'
    assert line['decoding']['model'] == who
    assert line['decoding']['temperature'] == temperature
    assert line['metrics']['exact_match']['count'] == 5
  for line in lines:
    assert (line['run'], line['draft']) == ('measured', 'draft')
    assert (line['task'], line['split']) == ('tiny', 'validation')
    assert line['provenance']['seed'] == 7


def fake_counts(target, draft, batches, decoding, seed):
  assert sum(len(batch.inputs) for batch in batches) == 6
  ones = np.ones((6, decoding.drafting.length), int)
  names = ('expected', 'emitted', 'blocks', 'reached_at', 'accepted_at')
  return {n: ones if n.endswith('at') else ones[:, 0] for n in names}


def test_evaluate_measures_every_decoding(tmp_path, monkeypatch):
  monkeypatch.setattr(acceptance, 'count', fake_counts)
  shown = []
  decodings = decoding_lib.grid(
      temperatures=(0.0, 1.0), block_lengths=(3, 5), top_k=9, top_p=0.5
  )
  lines = evaluate(
      tmp_path,
      batch_size=2,
      decodings=decodings,
      draft_name='distilled',
      show=lambda *arguments: shown.append(arguments),
  )
  settings = [
      (line['decoding']['temperature'], line['decoding']['block_length'])
      for line in lines
  ]
  assert settings == [(0.0, 3), (0.0, 5), (1.0, 3), (1.0, 5)]
  for line in lines:
    assert (line['kind'], line['draft']) == ('acceptance', 'distilled')
    assert line['decoding']['top_k'] == 9
    assert line['decoding']['top_p'] == 0.5
  ((title, measured),) = shown
  assert title == 'distilled, tiny validation'
  assert [one.decoding for one in measured] == [
      decoding.replace(max_new_tokens=8) for decoding in decodings
  ]
  for one, line in zip(measured, lines, strict=True):
    assert one.quality == {}  # the task has no metrics
    rate = line['metrics']['expected_acceptance']['value']
    assert one.acceptance['expected_acceptance'].value == rate


def test_by_default_greedy_and_sampled_blocks_of_five_are_measured(
    tmp_path, monkeypatch
):
  monkeypatch.setattr(acceptance, 'count', fake_counts)
  lines = evaluate(tmp_path)
  settings = [
      (line['decoding']['temperature'], line['decoding']['block_length'])
      for line in lines
  ]
  assert settings == [(0.0, 5), (1.0, 5)]


GAINED = {  # have a gain, over the first decoding of the same sampling
    'block': {'verifier': verification.Block()},
    'paths': {'paths': 2},
    'lenient': {'verifier': verification.Lenient('linear', 0.5)},
    'typical': {'verifier': verification.Typical()},
    'as token': {'verifier': verification.Lenient('linear', 1.0)},
    'greedy lenient': {
        'temperature': 0.0,
        'verifier': verification.Lenient('linear', 0.1),
    },
}
ALL = {
    'token': {},
    'greedy': {'temperature': 0.0},
    **GAINED,
    'adaptive': {'adaptive': adaptive_length.Confidence(0.4)},
    'greedy adaptive': {
        'temperature': 0.0,
        'adaptive': adaptive_length.Confidence(0.4),
    },
}


COUNTS = (
    'emitted', 'blocks', 'drafted', 'accepted', 'accepted_at', 'expected',
    'draft_emitted', 'draft_variation',
)  # fmt: skip


def has_line(name):
  """Greedy, a lossless verifier emits the target's text: those are left out."""
  return not name.startswith('greedy') or name in GAINED


@pytest.fixture(scope='module', name='measured')
def _measured(tmp_path_factory):
  """Every way to speculate, evaluated in one call: lines, and texts scored.

  The metric in the lines is the mean length of the outputs.
  """
  scored = []

  def score(task, outputs, references):
    del task
    assert references == ['abab abab', 'cdcd abab', 'efef abab', 'ghgh abab',
                          'ijij abab', 'klkl abab']  # fmt: skip
    scored.append([tuple(output.tolist()) for output in outputs])
    return {'mean_length': np.array([len(output) for output in outputs])}

  folder = tmp_path_factory.mktemp('evaluation')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(quality, 'score', score)
    lines = evaluate(
        folder,
        ('exact_match',),
        scale=0.1,
        decodings=[SHORT.replace(**changes) for changes in ALL.values()],
        draft_samples=True,
        seed=SEED,
    )
  of_acceptance = [line for line in lines if line['kind'] == 'acceptance']
  of_quality = [line for line in lines if line['kind'] == 'task_quality']
  # The records have the quality of all texts, also where it is the target's.
  names = [*ALL, 'target', 'draft']
  texts = dict(zip(names, scored, strict=True))
  of_quality = [
      (line, texts[name])
      for line, name in zip(of_quality, filter(has_line, names), strict=True)
  ]
  return (
      of_acceptance,
      of_quality,
      example_records.read(folder / 'measured' / 'examples.jsonl'),
  )


def prompt_of(tmp_path):
  """What `evaluate` reads; its task is the same one."""
  task = tiny.task(tmp_path / 'task', label_length=8)
  (batch,) = examples.first(task, 'validation', 6, 6)
  return batch


def decoding_of(name):
  return SHORT.replace(**ALL[name], max_new_tokens=8)


def outputs_of(samples):
  tokens, lengths = np.asarray(samples.tokens), np.asarray(samples.lengths)
  return [tuple(row[:n].tolist()) for row, n in zip(tokens, lengths)]


def test_every_way_to_speculate_is_measured_in_one_call(measured):
  lines, *_ = measured
  assert len(lines) == len(ALL)
  for line, name in zip(lines, ALL):
    decoding = decoding_of(name)
    assert line['decoding'] == decoding.describe(speculative=True, batch_size=6)
    efficiency = line['metrics']['block_efficiency']['value']
    assert 1.0 <= efficiency <= 3.0
  by_name = dict(zip(ALL, (line['decoding'] for line in lines)))
  assert by_name['block']['verifier'] == 'block'
  assert by_name['typical']['verifier'] == 'typical'
  assert by_name['lenient']['verifier'] == 'lenient(linear, 0.5)'
  assert by_name['paths']['paths'] == 2
  assert by_name['adaptive']['adaptive'] == 'confidence(0.4)'


def test_lines_hold_what_each_example_contributes(measured):
  lines, of_quality, _ = measured
  for line in lines:
    for name in ('expected_acceptance', 'block_efficiency'):
      totals, counts = line['examples']['metrics'][name]
      assert len(totals) == len(counts) == 6
      expected = statistics.ratio(totals, counts)
      metric = line['metrics'][name]
      assert metric['value'] == pytest.approx(expected.value, rel=1e-5)
      assert metric['standard_error'] == pytest.approx(
          expected.standard_error, rel=1e-4
      )
  for line, _ in of_quality:
    (values,) = line['examples']['metrics']['mean_length']
    assert np.mean(values) == line['metrics']['mean_length']['value']
    assert line['examples']['inputs'] == lines[0]['examples']['inputs']


def test_records_hold_what_was_counted_of_each_example(measured):
  lines, of_quality, records = measured
  assert len(records) == 6 * (len(ALL) + 2)  # target and draft alone, too
  for line, name in zip(lines, ALL):
    own = [r for r in records if r['decoding'] == line['decoding']]
    assert [r['example'] for r in own] == list(range(6))
    column = {key: np.array([r[key] for r in own]) for key in COUNTS}
    totals, counts = line['examples']['metrics']['block_efficiency']
    np.testing.assert_array_equal(column['emitted'], totals)
    np.testing.assert_array_equal(column['blocks'], counts)
    expected, _ = line['examples']['metrics']['expected_acceptance']
    np.testing.assert_allclose(column['expected'], expected, atol=2e-6)
    np.testing.assert_array_equal(
        column['accepted_at'].sum(1), column['accepted']
    )
    assert np.all(column['accepted'] <= column['drafted'])
    assert np.all(column['draft_variation'] <= column['draft_emitted'])
    for record in own:
      assert (record['draft'], record['seed']) == ('draft', SEED)
      assert record['inputs'] == line['examples']['inputs']
      if not name.endswith('adaptive'):
        paths = record['decoding']['paths']
        assert record['drafted'] == 2 * paths * record['blocks']
  for line, outputs in of_quality:
    # 'pair' is said in results.jsonl alone.
    decoding = {k: v for k, v in line['decoding'].items() if v != 'pair'}
    own = [r for r in records if r['decoding'] == decoding]
    lengths = [len(output) for output in outputs]
    assert [r['emitted'] for r in own] == lengths
    assert [r['quality']['mean_length'] for r in own] == lengths
  alone = [r for r in records if r['decoding'].get('model') == 'target']
  assert 'blocks' not in alone[0]


def test_the_bound_is_that_of_the_theorem(measured):
  lines, _, records = measured
  for line in lines:
    metrics = line['metrics']
    if not line['decoding']['lossless']:
      assert 'acceptance_bound' not in metrics
      continue
    own = [r for r in records if r['decoding'] == line['decoding']]
    eps = np.mean([r['draft_variation'] / r['draft_emitted'] for r in own])
    assert metrics['draft_total_variation']['value'] == pytest.approx(eps)
    shares = np.mean([8 / r['emitted'] for r in own])  # T = 8
    bound = metrics['acceptance_bound']
    assert bound['value'] == pytest.approx(1 - 8 * shares * eps, rel=1e-5)
    assert bound['value'] <= metrics['expected_acceptance']['value']
    assert bound['standard_error'] > 0


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_variation_on_the_drafts_text_is_what_is_not_accepted(temperature):
  """Of a draft that is judged by itself it is 0, of the pair's greedy text
  the share of tokens at which the target would have gone on otherwise."""
  decoding = LONG.replace(temperature=temperature)
  target, draft, batch = tiny.target(), tiny.draft(), tiny.batch(8)
  same = acceptance.count_alone(draft, draft, [batch], decoding, SEED)
  np.testing.assert_allclose(same['draft_variation'], 0.0, atol=1e-4)
  counts = acceptance.count_alone(target, draft, [batch], decoding, SEED)
  samples = autoregressive.generate(
      draft.model, batch.prompt, keys_of(8), decoding.without_draft()
  )
  np.testing.assert_array_equal(counts['draft_emitted'], samples.lengths)
  assert counts['draft_variation'].max() > 0.5
  if decoding.is_greedy:
    segments = np.arange(L)[None] < np.asarray(samples.lengths)[:, None]
    tokens = model_lib.shift_right(samples.tokens, segments.astype(np.int32))
    logits = target.model.logits(batch.prompt, tokens, segments)
    differ = (np.argmax(logits, -1) != samples.tokens) & segments
    np.testing.assert_allclose(counts['draft_variation'], differ.sum(1))


def test_quality_is_of_the_text_that_each_decoding_emits(measured, tmp_path):
  _, of_quality, _ = measured
  target, draft = byte_pair(0.1)
  prompt = prompt_of(tmp_path).prompt
  names = list(filter(has_line, ALL))
  assert [line['decoding']['model'] for line, _ in of_quality] == [
      *['pair'] * len(names), 'target', 'draft',
  ]  # fmt: skip
  greedy = decoding_of('greedy').without_draft()
  models = {'target': target.model, 'draft': draft.model}
  for (line, outputs), name in zip(of_quality, [*names, 'target', 'draft']):
    if name in models:
      samples = autoregressive.generate(
          models[name], prompt, keys_of(6), greedy
      )
      described = greedy.describe(speculative=False, batch_size=6)
    else:
      decoding = decoding_of(name)
      samples = speculative.generate(
          target.model, draft.model, prompt, keys_of(6), decoding
      )
      described = decoding.describe(speculative=True, batch_size=6)
    assert outputs == outputs_of(samples), name
    who = name if name in models else 'pair'
    assert line['decoding'] == {**described, 'model': who}
    assert line['metrics']['mean_length']['value'] == pytest.approx(
        np.mean([len(output) for output in outputs])
    )
  # A lossy verifier's text is not the target's.
  texts = dict(zip([*names, 'target', 'draft'], (t for _, t in of_quality)))
  assert texts['greedy lenient'] != texts['target']
  assert texts['token'] != texts['lenient']


def test_the_gain_of_verifiers_and_paths_is_paired(measured, tmp_path):
  lines, *_ = measured
  target, draft = byte_pair(0.1)
  batch = prompt_of(tmp_path)

  def counts(name):
    return acceptance.count(target, draft, [batch], decoding_of(name), SEED)

  by_name = dict(zip(ALL, (line['metrics'] for line in lines)))
  with_gain = {
      name
      for name, metrics in by_name.items()
      if 'block_efficiency_gain' in metrics
  }
  # Those that differ from an earlier decoding in verifier or paths alone.
  assert with_gain == set(GAINED)
  for name in GAINED:
    base = 'greedy' if name.startswith('greedy') else 'token'
    first, second = counts(base), counts(name)
    value, error = statistics.ratio_difference(
        (first['emitted'], second['emitted']),
        (first['blocks'], second['blocks']),
    )
    gain = by_name[name]['block_efficiency_gain']
    assert gain['value'] == pytest.approx(value)
    assert gain['standard_error'] == pytest.approx(error)
    assert (gain['unit'], gain['count']) == ('tokens/block', 6)
    apart = (
        by_name[name]['block_efficiency']['value']
        - by_name[base]['block_efficiency']['value']
    )
    assert gain['value'] == pytest.approx(apart)
  # The same verdicts on the same inputs: the difference is known to be zero,
  # which two separate measurements would not know.
  gain = by_name['as token']['block_efficiency_gain']
  assert gain['value'] == gain['standard_error'] == 0.0
  assert by_name['token']['block_efficiency']['standard_error'] > 0.0
  assert by_name['lenient']['block_efficiency_gain']['standard_error'] > 0.0


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'decodings': ()}, r'decodings is \(\); give a list of at least one'),
        ({'decodings': SHORT}, r'decodings is Decoding\(.*; give a list'),
        ({'decodings': ('greedy',)}, "decodings has 'greedy'; give Decoding"),
        ({'task': 'code'}, "task is 'code'; give one of data.tasks"),
        ({'target': 5}, 'The path is 5; give a folder or a name'),
        ({'draft': None}, 'The path is None; give a folder'),
        ({'split': ['test']}, r"split is \['test'\]; it must be a text"),
        ({'draft_name': 3}, 'draft_name is 3; it must be a text'),
        ({'seed': -1}, r'seed is -1; it must lie in \[0, 2\*\*32\)'),
        ({'examples': 2.5}, 'examples is 2.5; it must be a whole number'),
        ({'batch_size': 10**12}, 'batch_size is 10+; it must be at most 65536'),
        ({'decodings': [SHORT.replace(length=9)]}, 'block_length is 9'),
        ({'examples': 0}, 'examples is 0'),
        ({'batch_size': 0}, 'batch_size is 0'),
        ({'split': 'nowhere'}, "no split 'nowhere'"),
        ({'target': 'no/such/folder'}, 'There is no folder'),
    ],
)
def test_evaluate_refuses_before_work_starts(tmp_path, changes, message):
  with pytest.raises(errors.UserError, match=message):
    evaluate(tmp_path, **changes)
  assert not (tmp_path / 'measured' / 'results.jsonl').exists()


def one_for_all(answers, labels):
  del labels
  return float(len(answers))


@pytest.mark.parametrize(
    'metric, message',
    [('rouge', "metric is 'rouge'"), (one_for_all, r'returns shape \(\) for')],
)
def test_a_wrong_metric_is_refused_before_the_measurement(
    tmp_path, monkeypatch, metric, message
):
  monkeypatch.setattr(acceptance, 'count', None)  # is not called
  with pytest.raises(errors.UserError, match=message):
    evaluate(tmp_path, (metric,))


def test_evaluate_refuses_a_folder_that_is_a_file(tmp_path):
  (tmp_path / 'measured').write_text('')
  with pytest.raises(errors.UserError, match='Nothing can be written'):
    evaluate(tmp_path)


def test_the_folder_of_a_run_under_way_is_left_alone(tmp_path):
  task = tiny.task(tmp_path / 'task')
  with locks.held(tmp_path / 'run' / locks.FILE):
    with pytest.raises(errors.UserError, match='run is in use by process'):
      acceptance.evaluate(
          run=str(tmp_path / 'run'),
          target=tiny.target(tiny.BYTES),
          draft=tiny.draft(tiny.BYTES),
          task=task,
      )
