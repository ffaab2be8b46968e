"""The table of ratios to peers is that of the last measurements."""

import draw


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


def test_of_repeated_ratios_the_last_counts():
  rows = draw.rows(
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
  assert rows == [
      draw.Row(what, 'ours to assisted', 4.0, 1.0, 9.0, 5),
      draw.Row(what, 'transformers to own autoregressive', 1.5, 1.0, 9.0, 5),
  ]
  assert f'| {what} | ours to assisted | 4.00 | 1.00 to 9.00 | 5 |' in (
      draw.table(rows)
  )


def test_a_figure_is_drawn(tmp_path):
  rows = draw.rows([_line(ratio_to_assisted=2.0)])
  draw.draw(rows).savefig(tmp_path / 'peers.png')
  assert (tmp_path / 'peers.png').stat().st_size > 1000
