"""The command prints the page that it writes."""

from distillspec_jax.commands import main
from distillspec_jax.core import results


def test_it_prints_the_page(tmp_path, capsys, monkeypatch):
  results.write(
      tmp_path, 'acceptance', target='target', draft='draft', task='task',
      split='validation',
      decoding={
          'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'max_new_tokens': 8,
          'batch_size': 1, 'block_length': 5, 'paths': 1, 'adaptive': None,
          'verifier': 'token',
      },
      metrics={
          'expected_acceptance': results.Metric(0.5, 0.1, 4, '1'),
          'block_efficiency': results.Metric(2.0, 0.1, 4, 'tokens/block'),
      },
      seed=0,
  )  # fmt: skip
  monkeypatch.setenv('HOME', str(tmp_path))
  assert main.main(['report', '--run=~', '--output=~/page']) == 0
  page = tmp_path / 'page' / 'report.html'
  assert capsys.readouterr().out == f'{page}\n'
  assert page.read_text().startswith('<!DOCTYPE html>')
