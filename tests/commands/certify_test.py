"""`distillspec certify`: what it prints, writes and refuses."""

import pytest

from distillspec_jax.commands import certify
from distillspec_jax.commands import main
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.evaluation import certificate
from distillspec_jax.evaluation import sensitivity as sensitivity_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import verification
from tests import tiny

SAMPLED = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0),
    drafting=decoding_lib.Drafting(length=3),
    max_new_tokens=8,
)
SMALL = {
    'inputs': 4,
    'input_length': 6,
    'samples': 512,
    'decoding': SAMPLED,
    'sensitivity': sensitivity_lib.Sensitivity(bias=0.05),
}


@pytest.fixture(name='folders', scope='module')
def _folders(tmp_path_factory):
  """A pair as folders."""
  folder = tmp_path_factory.mktemp('pair')
  models = {
      'target': tiny.model(seed=0, gain=2.0, num_decoder_layers=2),
      'draft': tiny.model(seed=1, gain=2.0),
  }
  return {
      name: str(tiny.save(folder / name, model))
      for name, model in models.items()
  }


def verdicts(folder):
  return [
      metric['value']
      for line in results.read(folder / 'results.jsonl')
      for name, metric in line['metrics'].items()
      if name.endswith(': holds')
  ]


def one_rule(monkeypatch):
  name = 'token verification'
  monkeypatch.setattr(certificate, 'RULES', {name: certificate.RULES[name]})


def test_a_certificate_that_holds_is_printed_and_written(
    folders, tmp_path, monkeypatch, capsys
):
  one_rule(monkeypatch)
  certify.certify(**folders, **SMALL, run=str(tmp_path))
  printed = capsys.readouterr().out
  # Two caches, greedy in two dtypes, three distributions.
  assert printed.count('holds  ') == 7 and 'FAILS' not in printed
  assert 'false alarm: 1e-06, shared by 3 statistical checks' in printed
  assert printed.count('(fails below 3.3e-07); detects a bias of') == 3
  assert 'with probability 0.99; on the tiny pair 5 %, set by' in printed
  assert 'this pair emits what the target would' in printed
  lines = results.read(tmp_path / 'results.jsonl')
  assert all(line['kind'] == 'certificate' for line in lines)
  assert verdicts(tmp_path) == [1.0] * 7
  assert lines[-1]['decoding']['temperature'] == 1.0
  assert (lines[0]['target'], lines[0]['draft']) == tuple(folders.values())


def fake_checks(*holds):
  """Checks that are not made."""

  def checks(target, draft, prompt, decoding, *, samples, sensitivity, seed):
    assert prompt.tokens.shape == (4, 6)
    assert (samples, seed) == (512, 0)
    assert sensitivity == SMALL['sensitivity']
    for number, verdict in enumerate(holds):
      metrics = {'holds': results.Metric(float(verdict), None, 4, '1')}
      yield certificate.Check(
          f'check {number}', verdict, 'why', metrics, decoding
      )

  return checks


def test_a_certificate_fails_with_the_names_of_its_checks(
    folders, tmp_path, monkeypatch, capsys
):
  checks = fake_checks(True, False, True, False)
  monkeypatch.setattr(certificate, 'checks', checks)
  with pytest.raises(errors.Failed, match='fails: check 1, check 3. Do not'):
    certify.certify(**folders, **SMALL, run=str(tmp_path))
  printed = capsys.readouterr().out
  assert 'holds  check 0: why' in printed
  assert 'FAILS  check 1: why' in printed
  assert 'emits what the target would' not in printed
  # All are written, those that hold and those that do not.
  assert verdicts(tmp_path) == [1.0, 0.0, 1.0, 0.0]


FLAGS = [
    '--inputs=4', '--input_length=6', '--samples=512', '--temperature=1',
    '--block_length=3', '--max_new_tokens=8', '--bias=0.05',
]  # fmt: skip


@pytest.mark.usefixtures('fresh_configuration')
@pytest.mark.parametrize('holds, code', [(True, 0), (False, 1)])
def test_a_certificate_that_fails_is_exit_code_1(
    folders, monkeypatch, capsys, holds, code
):
  monkeypatch.setattr(certificate, 'checks', fake_checks(holds))
  models = [f'--{name}={folder}' for name, folder in folders.items()]
  assert main.main(['certify', *models, *FLAGS]) == code
  printed = capsys.readouterr()
  assert ('The certificate fails: check 0' in printed.err) == (not holds)


@pytest.mark.usefixtures('fresh_configuration')
def test_a_lossy_verifier_is_refused_on_the_command_line(folders, capsys):
  models = [f'--{name}={folder}' for name, folder in folders.items()]
  flags = [*models, *FLAGS, '--verifier=typical(0.1)']
  assert main.main(['certify', *flags]) == 2
  printed = capsys.readouterr()
  assert 'The verifier typical(0.1) is lossy' in printed.err
  assert printed.out == ''


def test_models_held_in_int8_are_named(folders, tmp_path, monkeypatch):
  pytest.importorskip('qwix', reason='distillspec_jax[int8] is not installed')
  monkeypatch.setattr(certificate, 'checks', fake_checks(True))
  certify.certify(
      **folders,
      **SMALL,
      target_weights='int8_weight_only',
      draft_weights='int8',
      run=str(tmp_path),
  )
  (line,) = results.read(tmp_path / 'results.jsonl')
  assert line['target'].endswith(' (int8_weight_only)')
  assert line['draft'].endswith(' (int8)')


def test_inputs_are_the_lines_of_a_file(tmp_path, monkeypatch):
  folder = str(tiny.save(tmp_path / 'model', tiny.model(tiny.BYTES), 'bytes'))
  (tmp_path / 'in.txt').write_text('ab\n\nabc\nabcd\n')
  prompts = []

  def checks(target, draft, prompt, decoding, **options):
    prompts.append(prompt)
    yield from ()

  monkeypatch.setattr(certificate, 'checks', checks)
  certify.certify(
      target=folder, draft=folder, file=str(tmp_path / 'in.txt'), inputs=2
  )
  # The first two lines with text, and EOS after each.
  assert prompts[0].segments.sum(axis=1).tolist() == [3, 4]


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'decoding': SAMPLED.replace(temperature=0.0)}, 'temperature is 0'),
        ({'decoding': SAMPLED.replace(length=9)}, 'block_length is 9'),
        (
            {
                'decoding': SAMPLED.replace(
                    verifier=verification.Lenient('linear', 0.5)
                )
            },
            r'lenient\(linear, 0.5\) is lossy',
        ),
        ({'samples': 0}, 'samples is 0'),
        ({'samples': 10**12}, 'samples is 1000000000000; it must be at most'),
        ({'inputs': 10**12}, 'inputs is 1000000000000; it must be at most'),
        ({'input_length': 10**12}, 'length is 1000000000000; it must be at'),
        ({'inputs': 0}, 'inputs is 0'),
        ({'input_length': 0}, 'input_length is 0'),
        ({'draft': 'nowhere'}, 'There is no folder nowhere'),
        ({'target_weights': 'int8'}, "target_weights is 'int8'"),
        ({'file': 'in.txt'}, 'has no vocabulary'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    folders, tmp_path, monkeypatch, capsys, changes, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'in.txt').write_text('one\ntwo words\n')
  with pytest.raises(errors.UserError, match=message):
    certify.certify(**{**folders, **SMALL, **changes})
  assert capsys.readouterr().out == ''


def test_a_file_without_text_is_refused(tmp_path):
  folder = str(tiny.save(tmp_path / 'model', tiny.model(tiny.BYTES), 'bytes'))
  (tmp_path / 'in.txt').write_text('\n\n')
  with pytest.raises(errors.UserError, match='has no line with text'):
    certify.certify(target=folder, draft=folder, file=str(tmp_path / 'in.txt'))
