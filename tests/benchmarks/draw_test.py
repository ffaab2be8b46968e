"""The table of ratios to peers is that of the last measurements."""

import importlib.util
import pathlib

FILE = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'draw.py'
SPEC = importlib.util.spec_from_file_location('draw', FILE)
draw = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draw)


def _line(split='peers', **ratios):
  metrics = {'tokens_per_second': {'value': 3.0, 'count': 5}}
  for name, value in ratios.items():
    for end, number in (('', value), ('_lowest', 1.0), ('_highest', 9.0)):
      metrics[f'{name}{end}'] = {'value': number, 'count': 5}
  return {
      'split': split,
      'task': 'controlled pair',
      'target': 't5_1_1_base',
      'draft': 't5_1_1_small',
      'decoding': {'temperature': 1.0, 'batch_size': 8},
      'metrics': metrics,
  }


def test_ratios_are_found_and_the_last_counts():
  found = draw.rows(
      [
          _line(
              ratio_to_assisted=2.0,
              transformers_ratio_to_own_autoregressive=1.5,
          ),
          _line(ratio_to_assisted=4.0),
          _line('validation', ratio_to_other=7.0),
      ]
  )
  what = 'controlled pair, base, draft small, sampled, batch 8'
  assert found == [
      draw.Row(what, 'ours to assisted', 4.0, 1.0, 9.0, 5),
      draw.Row(what, 'transformers to own autoregressive', 1.5, 1.0, 9.0, 5),
  ]
  assert f'| {what} | ours to assisted | 4.00 | 1.00 to 9.00 | 5 |' in (
      draw.table(found)
  )


def test_a_figure_is_drawn(tmp_path):
  found = draw.rows([_line(ratio_to_assisted=2.0)])
  draw.draw(found).savefig(tmp_path / 'peers.png')
  assert (tmp_path / 'peers.png').stat().st_size > 1000
