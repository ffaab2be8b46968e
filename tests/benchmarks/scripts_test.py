"""The scripts run, with the smallest models and a peer that is ourselves."""

import functools
import sys

import comparison
import cost_model
import decoding
import decoding_step
import draw
import jax
import loading
import numpy as np
import pytest
import speculation
import training_step

from distillspec_jax.core import results
from distillspec_jax.models import config as config_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import sampler

FAST = ('--rounds=2', '--pause=0', '--input_length=4')


class Peer:
  """Answers as the servers do; takes a second for everything."""

  servers = []  # that were started

  def __init__(self, python, server):
    assert python == 'python'
    self.servers.append(server)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def ask(self, **request):
    if 'inputs' in request:
      return {'seconds': 1.0, **self.answer(request)}
    for name in ('model', 'draft', 'target'):
      if request.get(name):
        setattr(self, name, comparison.load(request[name]))
    self.settings = request
    return {'library': 'ours', 'device': 'this one'}

  def answer(self, request):
    inputs = np.asarray(request['inputs'])
    if 'max_new_tokens' in request:
      tokens = generate(self.model, inputs, request['max_new_tokens'])
      return {'tokens': tokens, 'accepted': 3, 'judged': 4}
    if 'labels' in request:
      return {'loss': self.loss(inputs, np.asarray(request['labels']))}
    assert set(request) == {'inputs', 'length', 'seed'}
    return {'parts': dict.fromkeys(training_step.PARTS, 0.2)}

  def loss(self, inputs, labels):
    batch = training_step.batch_of(inputs, labels)
    if 'rate' in self.settings:  # a step of fine-tuning
      if not hasattr(self, 'trained'):
        self.trained = training_step.Ours(
            training_step.FINE_TUNING, training_step.ADAFACTOR, self.model
        )
      return float(self.trained.step(batch)[1].total)
    return training_step.Ours(
        training_step.DISTILLATION, training_step.ADAMW, self.draft, self.target
    ).loss_on(batch)


def generate(model, inputs, length):
  settings = decoding_lib.Decoding(max_new_tokens=length, eos_ids=())
  keys = jax.random.split(jax.random.key(0), len(inputs))
  samples = sampler.generate(model, comparison.prompt(inputs), keys, settings)
  return np.asarray(samples.tokens).tolist()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
  # The controlled pair needs some width.
  published = functools.partial(config_lib.published, 'test', emb_dim=64)
  monkeypatch.setattr(
      comparison, 'published', lambda _, **kw: published(vocab_size=32128, **kw)
  )
  monkeypatch.setattr(comparison, 'Peer', Peer)
  monkeypatch.setattr(comparison, 'warn_if_busy', lambda: None)
  monkeypatch.setattr(Peer, 'servers', [])


def run(monkeypatch, tmp_path, script, *options):
  """The lines of results that a script writes."""
  flags = [*FAST, f'--run={tmp_path}', *options]
  monkeypatch.setattr(sys, 'argv', [script.__name__, *flags])
  assert script.main() in (None, 0, 1)  # 1: not as predicted
  return results.read(tmp_path / results.FILE)


@pytest.mark.parametrize('library', ['transformers', 't5x'])
def test_decoding_beside_a_peer(monkeypatch, tmp_path, library):
  monkeypatch.setattr(decoding, 'read_bandwidth', lambda: 1e9)
  lines = run(
      monkeypatch, tmp_path, decoding, '--peer=python', '--sizes=small',
      '--batches=1,2', '--max_new_tokens=4', f'--library={library}',
  )  # fmt: skip
  assert Peer.servers == [decoding.SERVERS[library]]
  for line, batch in zip(lines, (1, 2), strict=True):
    assert (line['split'], line['target']) == ('peers', 't5_1_1_small')
    assert line['decoding']['batch_size'] == batch
    metrics = line['metrics']
    assert metrics['equal_rows']['value'] == 1.0
    # The peer takes a second.
    assert metrics[f'{library}_tokens_per_second']['value'] == 4 * batch
    ratio = metrics[f'ratio_to_{library}']
    assert ratio['value'] > 1.0 and ratio['count'] == 2
  assert len(draw.rows(lines)) == 2


def test_decoding_with_either_weights_beside_ctranslate2(monkeypatch, tmp_path):
  monkeypatch.setattr(decoding, 'read_bandwidth', lambda: 1e9)
  lines = run(
      monkeypatch, tmp_path, decoding, '--peer=python', '--sizes=small',
      '--batches=1', '--max_new_tokens=4', '--library=ctranslate2',
      '--weights=float32,int8',
  )  # fmt: skip
  assert Peer.servers == ['ctranslate2/decode_server.py']
  names = [line['target'] for line in lines]
  assert names == ['t5_1_1_small', 't5_1_1_small (int8)']
  assert all('ratio_to_ctranslate2' in line['metrics'] for line in lines)
  shares = [line['metrics']['share_of_bandwidth']['value'] for line in lines]
  speeds = [line['metrics']['tokens_per_second']['value'] for line in lines]
  # A token reads a quarter of the bytes, and some that are not quantised.
  float_bytes, int8_bytes = (a / b for a, b in zip(shares, speeds))
  assert 0.2 < int8_bytes / float_bytes < 0.4


def test_speculation_beside_a_peer(monkeypatch, tmp_path):
  lines = run(
      monkeypatch, tmp_path, speculation, '--peer=python', '--batch=2',
      '--blocks=1,2', '--peer_blocks=1', '--plain_blocks=1',
      '--max_new_tokens=6',
  )  # fmt: skip
  settings = [
      (line['decoding']['temperature'], line['decoding']['batch_size'])
      for line in lines
  ]
  assert settings == [(0.0, 1), (0.0, 2), (1.0, 1), (1.0, 2)]
  for line in lines:
    metrics = line['metrics']
    assert metrics['ratio_to_own_autoregressive']['value'] > 0
    # Their batch is always 1, and only equal batches are compared.
    is_single = line['decoding']['batch_size'] == 1
    assert ('ratio_to_assisted' in metrics) == is_single
    assert ('transformers_tokens_per_second' in metrics) == is_single
    if is_single:
      assert metrics['transformers_acceptance_rate']['value'] == 0.75
    greedy = line['decoding']['temperature'] == 0.0
    assert ('equal_rows' in metrics) == greedy
    if greedy:  # all of them are the target's
      assert metrics['equal_rows']['value'] == 1.0


def test_a_distillation_step_beside_a_peer(monkeypatch, tmp_path):
  (line,) = run(
      monkeypatch, tmp_path, training_step, '--peer=python', '--batch=2',
      '--length=4',
  )  # fmt: skip
  assert Peer.servers == ['hugging_face/train_server.py']
  metrics = line['metrics']
  assert metrics['pytorch_step_s']['value'] == 1.0
  assert metrics['loss_difference']['value'] < 1e-5
  for prefix in ('', 'pytorch_'):
    shares = [
        metrics[f'{prefix}{part}_share']['value']
        for part in training_step.PARTS
    ]
    assert sum(shares) == pytest.approx(1.0)


def test_a_fine_tuning_step_beside_a_peer(monkeypatch, tmp_path):
  (line,) = run(
      monkeypatch, tmp_path, training_step, '--peer=python', '--batch=2',
      '--length=4', '--library=t5x',
  )  # fmt: skip
  assert Peer.servers == ['t5x/train_server.py']
  metrics = line['metrics']
  assert metrics['t5x_step_s']['value'] == 1.0
  assert metrics['loss_difference']['value'] < 1e-5
  assert metrics['loss_difference']['count'] == 3


def test_losses_that_differ_are_refused():
  assert training_step.check_equal([2.0], [2.0 + 1e-6]) < 1e-5
  with pytest.raises(RuntimeError, match='they must be equal'):
    training_step.check_equal([2.0, 2.0], [2.0, 2.01])


@pytest.mark.parametrize('ways', [(), ('--parallel',)], ids=len)
def test_the_cost_model(monkeypatch, tmp_path, ways):
  lines = run(
      monkeypatch, tmp_path, cost_model, '--batches=2', '--rates=0.5,0.9',
      '--block_lengths=2', '--max_new_tokens=6', *ways,
  )  # fmt: skip
  verifiers = [line['decoding']['verifier'] for line in lines]
  assert verifiers == ['simulated(0.5)', 'simulated(0.9)']
  for line in lines:
    metrics = line['metrics']
    assert 1.0 <= metrics['block_efficiency']['value'] <= 3.0
    assert metrics['predicted_speedup_by_place']['value'] > 0
    assert line['decoding']['parallel'] == (True if ways else None)


def test_steps_of_several_kinds(monkeypatch, tmp_path):
  (line,) = run(
      monkeypatch, tmp_path, decoding_step, '--sizes=small', '--batches=1',
      '--kinds=float32,bfloat16,trimmed', '--trim_vocabulary=64',
      '--settings=top-p 0.9',
  )  # fmt: skip
  assert line['decoding']['top_p'] == 0.9
  metrics = line['metrics']
  assert metrics['float32_ratio']['value'] == 1.0
  assert metrics['trimmed_step_ms']['value'] > 0


def test_loading(monkeypatch, capsys):
  monkeypatch.setattr(
      loading.subprocess,
      'run',
      lambda *_, **__: type('Done', (), {'stdout': '0.5\n'}),
  )
  monkeypatch.setattr(sys, 'argv', ['loading', '--rounds=2'])
  loading.main()
  printed = capsys.readouterr().out
  assert 'peak memory in loading   0.5 GB' in printed
  assert '2 rounds' in printed


# What comparisons share.


def test_who_goes_first_goes_last_in_the_next_round():
  calls = []
  times = comparison.take_turns(
      {
          name: lambda i, name=name: calls.append((i, name)) or i
          for name in ('a', 'b')
      },
      rounds=2,
      pause=0.0,
      name='turns',
  )
  assert calls == [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a'), (2, 'a'), (2, 'b')]
  assert times == {'a': [1, 2], 'b': [1, 2]}  # round 0 warms up


def test_a_ratio_is_of_neighbouring_calls():
  ratio = comparison.ratio(theirs=[2.0, 8.0, 6.0], ours=[1.0, 2.0, 1.0])
  assert ratio == (4.0, 2.0, 6.0)
  assert str(ratio) == '4.00 (2.00 to 6.00)'


REAL_PEER = comparison.Peer
ECHO = """
import json, sys
for line in sys.stdin:
  request = json.loads(line)
  if request.get('end'):
    sys.exit('the reason')
  print(json.dumps({'same': request}), flush=True)
"""


def test_a_peer_answers_until_it_ends(tmp_path):
  server = tmp_path / 'server.py'
  server.write_text(ECHO)
  with REAL_PEER(sys.executable, str(server)) as peer:
    answer = peer.ask(inputs=np.arange(3), size=2)
    assert answer == {'same': {'inputs': [0, 1, 2], 'size': 2}}
    with pytest.raises(RuntimeError, match='has ended: the reason'):
      peer.ask(end=True)
