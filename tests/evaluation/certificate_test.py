"""The certificate holds for the sampler as it is, and for no broken one."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.commands import main
from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.data import vocabularies
from distillspec_jax.evaluation import certificate
from distillspec_jax.evaluation import exactness
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import block_verification
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import multi_draft
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from tests import tiny

FALSE_ALARM = 1e-6
SAMPLED = decoding_lib.Decoding(
    temperature=1.0, block_length=3, max_new_tokens=8
)
SMALL = {
    'inputs': 4,
    'input_length': 6,
    'samples': 512,
    'max_new_tokens': 8,
    'block_length': 3,
}


def model(seed, size=tiny.V, **changes):
  return tiny.loaded(tiny.model(size, seed=seed, gain=1.5, **changes))


@pytest.fixture(name='pair', scope='module')
def _pair():
  return model(0, num_decoder_layers=2), model(1)


@pytest.fixture(name='folders', scope='module')
def _folders(pair, tmp_path_factory):
  """The pair as folders."""
  folder = tmp_path_factory.mktemp('pair')
  for name, one in zip(('target', 'draft'), pair):
    tiny.save(folder / name, one)
  return {name: str(folder / name) for name in ('target', 'draft')}


def inputs(rows):
  tokens = np.random.default_rng(0).integers(2, 40, (4, 6))
  tokens = jnp.asarray(np.tile(tokens, (rows // 4, 1)), jnp.int32)
  return tokens, jnp.ones_like(tokens)


@pytest.fixture(name='fresh')
def _fresh(monkeypatch):
  """A function: compiles the loop afresh, so that it holds what is changed."""

  original = speculative.generate

  def compile_again():
    mutant = jax.jit(
        lambda *args: original.__wrapped__(*args),
        static_argnums=(0, 2, 7),
    )
    monkeypatch.setattr(speculative, 'generate', mutant)

  return compile_again


# Of this pair's draft, at half of its places.
THRESHOLDS = {'confidence': 0.58, 'entropy': 1.43}


def of_rule(rule, **warping):
  changes = dict(certificate.RULES[rule])
  if 'draft_stop' in changes:
    name = changes['draft_stop']
    changes['draft_stop'] = (name, THRESHOLDS[name])
  return dataclasses.replace(SAMPLED, **changes, **warping)


def test_thresholds_are_of_the_draft_itself(pair):
  found = exactness.incremental(pair[1], *inputs(256), SAMPLED, 0)
  for name, value in THRESHOLDS.items():
    assert getattr(found, name) == pytest.approx(value, rel=0.1)
  assert found.apart < 1e-4


@pytest.mark.parametrize(
    'rule, warping',
    [
        *((rule, {}) for rule in certificate.RULES),
        ('token verification', {'top_k': 5}),
        ('block verification', {'top_p': 0.8}),
        ('two drafts', {'top_k': 5}),
        ('length by entropy', {'top_k': 5, 'temperature': 0.7}),
        ('blocks of a length by confidence', {'top_p': 0.8}),
    ],
)
def test_tokens_of_a_pair_have_the_law(pair, rule, warping):
  decoding = of_rule(rule, **warping)
  if decoding.draft_stop is not None:
    counts = exactness.speculate(*pair, *inputs(1024), decoding, 0).statistics
    share = counts.drafted.sum() / counts.blocks.sum() / 3
    assert 0.4 < share < 0.95  # some blocks are short, and some are not
  fit = exactness.uniforms(*pair, *inputs(1024), decoding, seed=0)
  assert fit.count > 4000
  assert fit.p_value > FALSE_ALARM


def test_a_draft_that_is_the_target_has_the_law(pair):
  fit = exactness.uniforms(pair[0], pair[0], *inputs(512), SAMPLED, seed=1)
  assert fit.p_value > FALSE_ALARM


def test_lenient_tokens_have_not(pair):
  lossy = decoding_lib.Decoding(
      temperature=1.0, block_length=3, max_new_tokens=8,
      lenience=('linear', 0.5),
  )  # fmt: skip
  fit = exactness.uniforms(*pair, *inputs(1024), lossy, seed=0)
  assert fit.p_value < FALSE_ALARM


def resamples_target(keys, drafted, q_logits, p_logits, lengths=None):
  """The correction comes from p and not from the residual."""
  verdict = TOKEN(keys, drafted, q_logits, p_logits)
  weights = verification.at(p_logits, verdict.num_accepted)
  again = randomness.categorical(randomness.streams(keys, 'next'), weights)
  return verdict._replace(next_token=again)


def accepts_too_much(keys, drafted, q_logits, p_logits, lengths=None):
  verdict = TOKEN(keys, drafted, q_logits, p_logits)
  more = jnp.minimum(verdict.num_accepted + 1, drafted.shape[1])
  return verdict._replace(num_accepted=more)


TOKEN = verification.token
BROKEN = [resamples_target, accepts_too_much]


@pytest.mark.parametrize('broken', BROKEN)
def test_a_broken_verifier_is_seen_in_both_laws(
    pair, monkeypatch, fresh, broken
):
  monkeypatch.setattr(verification, 'token', broken)
  fresh()
  fit = exactness.uniforms(*pair, *inputs(1024), SAMPLED, seed=0)
  assert fit.p_value < FALSE_ALARM
  assert exactness.enumerated(SAMPLED, 20_000, 0).p_value < FALSE_ALARM


def test_a_broken_block_verifier_is_seen(pair, monkeypatch, fresh):
  monkeypatch.setattr(block_verification, 'block', resamples_target)
  fresh()
  decoding = decoding_lib.Decoding(
      temperature=1.0, block_length=3, max_new_tokens=8, verification='block'
  )
  fit = exactness.uniforms(*pair, *inputs(1024), decoding, seed=0)
  assert fit.p_value < FALSE_ALARM


def whole_block(keys, drafted, q_logits, p_logits, lengths=None):
  """Accepts what it would of the whole block, up to the length."""
  verdict = BLOCK(keys, drafted, q_logits, p_logits, lengths)
  whole = BLOCK(keys, drafted, q_logits, p_logits).num_accepted
  return verdict._replace(num_accepted=jnp.minimum(whole, lengths))


def proposal_of_any_place(q, position, lengths=None):
  """What was not drafted has a q that is not zero."""
  return PROPOSAL(q, position)


BLOCK = block_verification.block
PROPOSAL = verification.proposal_at


@pytest.mark.parametrize(
    'module, name, broken, rule',
    [
        (verification, 'proposal_at', proposal_of_any_place,
         'length by confidence'),
        (block_verification, 'block', whole_block,
         'blocks of a length by entropy'),
    ],
)  # fmt: skip
def test_a_verifier_that_does_not_know_the_length_is_seen(
    pair, monkeypatch, fresh, module, name, broken, rule
):
  # Where the models are near each other, so that whole blocks are accepted.
  noise = lambda x: x + 0.2 * jnp.std(x) * jax.random.normal(
      jax.random.key(x.size), x.shape
  )
  near = jax.tree.map(noise, pair[0].params)
  pair = pair[0], loading.Model(pair[0].transformer, near)
  fit = exactness.uniforms(*pair, *inputs(1024), of_rule(rule), seed=0)
  assert fit.p_value > FALSE_ALARM
  monkeypatch.setattr(module, name, broken)
  fresh()
  law = exactness.enumerated(of_rule(rule), 20_000, 0)
  assert law.p_value < FALSE_ALARM
  if rule == 'length by confidence':  # the other is too small a mistake
    fit = exactness.uniforms(*pair, *inputs(1024), of_rule(rule), seed=0)
    assert fit.p_value < FALSE_ALARM


def test_drafts_that_are_taken_up_again_when_dead_are_seen(
    pair, monkeypatch, fresh
):
  monkeypatch.setattr(
      multi_draft,
      'survivors',
      lambda alive, drafted, token, passed: alive & passed[:, None],
  )
  fresh()
  decoding = dataclasses.replace(SAMPLED, num_drafts=2)
  fit = exactness.uniforms(*pair, *inputs(1024), decoding, seed=0)
  assert fit.p_value < FALSE_ALARM
  assert exactness.enumerated(decoding, 20_000, 0).p_value < FALSE_ALARM


def test_greedy_rows_are_the_same(pair):
  found = exactness.greedy(*pair, *inputs(8), SAMPLED)
  assert found.rows == 8 and found.different == 0 and found.are_ties
  assert 0.0 < found.rounding < 1e-3


def test_a_broken_greedy_verifier_is_no_tie(pair, monkeypatch, fresh):
  exact = verification.greedy

  def second_best(drafted, p_logits, lengths=None):
    verdict = exact(drafted, p_logits)
    order = jnp.argsort(p_logits, axis=-1)[..., -2].astype(jnp.int32)
    return verdict._replace(
        next_token=verification.at(order, verdict.num_accepted)
    )

  monkeypatch.setattr(verification, 'greedy', second_best)
  fresh()
  for dtype in ('float32', 'bfloat16'):
    models = [exactness.compute_in(one, dtype) for one in pair]
    found = exactness.greedy(*models, *inputs(8), SAMPLED)
    assert found.different == 8
    assert not found.are_ties


def test_ties_in_bfloat16_are_recognised():
  # Two words with one vector: whichever is first in the logits is a tie.
  assert exactness.Greedy(9, 2, margin=0.05, rounding=0.03).are_ties
  assert not exactness.Greedy(9, 2, margin=0.07, rounding=0.03).are_ties


def verdicts(lines):
  return [
      metric['value']
      for line in lines
      for name, metric in line['metrics'].items()
      if name.endswith(': holds')
  ]


def test_the_certificate_holds_and_is_written(
    folders, tmp_path, monkeypatch, capsys
):
  only(
      monkeypatch, 'token verification', 'two drafts',
      'blocks of a length by entropy',
  )  # fmt: skip
  certificate.certify(**folders, **SMALL, run=str(tmp_path))
  said = capsys.readouterr().out
  # Two caches; greedy, three loops in two dtypes; two laws of each rule.
  count = 2 + 3 * 2 + 2 * len(certificate.RULES)
  assert said.count('holds  ') == count and 'FAILS' not in said
  assert 'all is right: 1e-06, by 6 statistical checks together' in said
  assert said.count('(fails below 1.7e-07)') == 6  # a share of it each
  assert "is the target's own" in said
  lines = results.read(tmp_path / 'results.jsonl')
  assert len(lines) == count
  assert all(line['kind'] == 'certificate' for line in lines)
  assert verdicts(lines) == [1.0] * count
  stops = [line['decoding'].get('draft_stop') for line in lines]
  assert {stop[0] for stop in stops if stop} == {'entropy'}


def test_rules_that_are_greedy_the_same_loop_are_compared_once():
  assert certificate._greedy_rules() == [
      'token verification', 'two drafts', 'length by confidence',
  ]  # fmt: skip


def test_the_users_own_warping_is_certified_beside_the_plain_one(
    folders, tmp_path, monkeypatch, capsys
):
  only(monkeypatch, 'token verification')
  certificate.certify(
      **folders, **SMALL, temperature=0.7, top_k=5, run=str(tmp_path)
  )
  said = capsys.readouterr().out
  for name in ('', ', temperature 0.7, top_k 5'):
    assert f'holds  law of this pair, token verification{name}: ' in said
  assert 'by 4 statistical checks' in said and 'below 2.5e-07' in said
  lines = results.read(tmp_path / 'results.jsonl')
  own = [line['decoding']['top_k'] for line in lines]
  assert own.count(5) == 6 and own.count(0) == 2


def only(monkeypatch, *names):
  """Fewer rules, for what is not about all of them."""
  rules = {name: certificate.RULES[name] for name in names}
  monkeypatch.setattr(certificate, 'RULES', rules)


def test_a_cache_that_is_wrong_is_seen(folders, monkeypatch, capsys):
  advance = transformer_lib.Transformer.extend

  def wrong(model, *args, **kwargs):
    hidden, state = advance(model, *args, **kwargs)
    return 1.01 * hidden, state

  only(monkeypatch, 'token verification')
  monkeypatch.setattr(transformer_lib.Transformer, 'extend', wrong)
  # Another shape than anything that was compiled before.
  with pytest.raises(errors.Failed, match='cache of the target .* the draft'):
    certificate.certify(**folders, **{**SMALL, 'inputs': 3, 'samples': 3})
  assert 'FAILS  cache of the draft in float32' in capsys.readouterr().out


def test_a_certificate_that_fails_is_exit_code_1(
    folders, tmp_path, monkeypatch, fresh, capsys
):
  monkeypatch.setattr(main, '_use_compilation_cache', lambda: None)
  only(monkeypatch, 'token verification', 'block verification')
  monkeypatch.setattr(verification, 'token', resamples_target)
  fresh()
  flags = [f'--{name}={value}' for name, value in {**folders, **SMALL}.items()]
  assert main.main(['certify', *flags, f'--run={tmp_path}']) == 1
  said = capsys.readouterr()
  assert 'FAILS  law of this pair, token verification' in said.out
  assert 'holds  law of this pair, block verification' in said.out
  assert 'The certificate fails: law of a tiny pair, token' in said.err
  lines = results.read(tmp_path / 'results.jsonl')
  assert verdicts(lines).count(0.0) == 2


int8 = pytest.mark.skipif(
    importlib.util.find_spec('qwix') is None,
    reason="needs qwix: pip install -e '.[int8]'",
)


@int8
def test_an_int8_draft_is_certified_and_named(
    folders, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(
      certificate, 'RULES', {'block verification': {'verification': 'block'}}
  )
  certificate.certify(
      **folders,
      **SMALL,
      target_weights='int8_weight_only',
      draft_weights='int8',
      run=str(tmp_path),
  )
  said = capsys.readouterr().out
  assert 'cache of the target' in said and 'cache of the draft' not in said
  lines = results.read(tmp_path / 'results.jsonl')
  assert verdicts(lines) == [1.0] * 5
  assert lines[0]['target'].endswith(' (int8_weight_only)')
  assert lines[0]['draft'].endswith(' (int8)')


@int8
def test_an_int8_target_has_ties_and_is_not_certified(folders):
  with pytest.raises(errors.UserError, match="target_weights is 'int8'"):
    certificate.certify(**folders, **SMALL, target_weights='int8')
  target = loading.load(folders['target'], weights='int8')
  draft = loading.load(folders['draft'])
  found = exactness.greedy(target, draft, *inputs(8), SAMPLED)
  assert found.rounding > 1e-3 and found.are_ties


def test_lines_of_a_file(folders, tmp_path, capsys):
  (tmp_path / 'in.txt').write_text('one\ntwo words\n')
  with pytest.raises(errors.UserError, match='has no vocabulary'):
    certificate.certify(**folders, **SMALL, file=str(tmp_path / 'in.txt'))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'temperature': 0.0}, 'temperature is 0.0'),
        ({'samples': 0}, 'samples is 0'),
        ({'inputs': 0}, 'inputs is 0'),
        ({'input_length': 0}, 'input_length is 0'),
        ({'block_length': 9}, 'block_length is 9'),
        ({'draft': 'nowhere'}, 'There is no folder nowhere'),
        ({'false_alarm': 0.0}, 'false_alarm is 0.0; it must lie between'),
        ({'false_alarm': 1.0}, 'false_alarm is 1.0'),
        (
            {'lenience': ('linear', 0.5)},
            'lenience is linear,0.5,target, a lossy rule: .* --lenience out',
        ),
        ({'lenience': ('typical',)}, 'lenience is typical,0.09,0.3, a lossy'),
        ({'lenience': ('simulated', 1.0)}, 'simulated,1.0, a lossy rule'),
        ({'lenience': ('cubic', 0.5)}, "lenience function is 'cubic'"),
    ],
)
def test_settings_out_of_range_are_named(folders, changes, message):
  with pytest.raises(errors.UserError, match=message):
    certificate.certify(**{**folders, **SMALL, **changes})


def test_a_lossy_rule_is_refused_on_the_command_line(folders, capsys):
  flags = [f'--{name}={value}' for name, value in folders.items()]
  assert main.main(['certify', *flags, '--lenience=typical,0.1']) == 2
  said = capsys.readouterr()
  assert 'lenience is typical,0.1,0.3, a lossy rule' in said.err
  assert said.out == ''


def test_a_vocabulary_of_words_reads_a_file(pair, tmp_path):
  words = vocabularies.load('bytes')
  one = model(0, 384)
  models = [loading.Model(one.transformer, one.params, words) for _ in range(2)]
  (tmp_path / 'in.txt').write_text('ab\n\nabc\n')
  tokens, segments = certificate._inputs(
      models, str(tmp_path / 'in.txt'), 9, 0, 0
  )
  np.testing.assert_array_equal(segments.sum(axis=1), [3, 4])
  assert tokens[1, 3] == 1
