"""Text in, text out: in order, whatever the batches, and after a stop."""

import io
import json
import os
import pty
import re
import sys
import types

import jax
import numpy as np
import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.commands import decode
from distillspec_jax.commands import main
from distillspec_jax.core import errors
from distillspec_jax.core import progress
from distillspec_jax.distributed import locks
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from tests import tiny

TEXTS = ['one', 'two words', '', 'a longer line of words', 'é ✓', 'x', 'y z']
DECODING = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0), max_new_tokens=8
)
SAMPLED = {'decoding': DECODING, 'batch_size': 2}


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def write(out, *texts, **arguments):
  decode.decode(*texts, output=decode.Output(out=str(out)), **arguments)


def test_answers_are_those_of_generate_in_order(pair, tmp_path, capsys):
  write(tmp_path / 'out.jsonl', *TEXTS, **pair, **SAMPLED)
  expected = generation.generate(
      loading.load(pair['target']),
      TEXTS,
      draft=loading.load(pair['draft']),
      temperature=1.0,
      max_new_tokens=8,
  )
  lines = read(tmp_path / 'out.jsonl')
  assert [line['input'] for line in lines] == TEXTS
  assert [line['text'] for line in lines] == expected.text
  for number, line in enumerate(lines):
    row = expected.tokens[number, : expected.lengths[number]]
    assert line['index'] == number
    assert line['tokens'] == row.tolist()
    statistics = line['statistics']
    counts = jax.tree.map(lambda x, n=number: x[n], expected.statistics)
    for name in ('blocks', 'drafted', 'accepted', 'emitted'):
      assert statistics[name] == getattr(counts, name)
    for name in ('reached_at', 'accepted_at'):
      assert statistics[name] == getattr(counts, name).tolist()
    assert statistics['block_efficiency'] == (
        statistics['emitted'] / statistics['blocks']
    )
    assert statistics['acceptance_rate'] == (
        statistics['accepted'] / counts.reached_at.sum()
    )
    assert line['settings']['temperature'] == 1.0
    assert line['settings']['draft'] == pair['draft']
  assert '7 texts' in capsys.readouterr().err


def test_int8_models_decode_and_are_named(pair, tmp_path, capsys):
  pytest.importorskip('qwix', reason="needs qwix: pip install -e '.[int8]'")
  out = tmp_path / 'out.jsonl'
  code, _ = run(
      capsys, pair, *TEXTS, f'--draft={pair["draft"]}', f'--out={out}',
      '--max_new_tokens=8', '--target_weights=int8_weight_only',
      '--draft_weights=int8',
  )  # fmt: skip
  assert code == 0
  lines = read(out)
  expected = generation.generate(
      loading.load(pair['target'], weights='int8_weight_only'),
      TEXTS,
      max_new_tokens=8,
  )
  assert [line['text'] for line in lines] == expected.text
  settings = lines[0]['settings']
  assert settings['target_weights'] == 'int8_weight_only'
  assert settings['draft_weights'] == 'int8'
  decoding = decoding_lib.Decoding(max_new_tokens=8)
  with pytest.raises(errors.UserError, match='another .*target_weights'):
    write(out, *TEXTS, **pair, decoding=decoding)


def test_texts_do_not_depend_on_their_batches(pair, tmp_path):
  for size in (2, 5):
    write(
        tmp_path / f'{size}', *TEXTS, **pair, decoding=DECODING, batch_size=size
    )
  assert read(tmp_path / '2') == read(tmp_path / '5')


def test_without_a_draft_there_are_no_blocks(pair, capsys):
  code, printed = run(capsys, pair, '--json', 'one')
  assert code == 0, printed.err
  line = json.loads(printed.out)
  statistics = line['statistics']
  assert statistics['blocks'] == statistics['emitted'] > 0
  assert statistics['drafted'] == statistics['accepted'] == 0
  assert statistics['reached_at'] == statistics['accepted_at'] == []
  assert statistics['acceptance_rate'] is None
  assert statistics['block_efficiency'] == 1.0
  assert line['settings']['block_length'] is None


def test_settings_of_generate_are_flags(pair, capsys):
  code, printed = run(
      capsys, pair, f'--draft={pair["draft"]}', '--json', 'one', 'two',
      '--min_new_tokens=3', '--adaptive=confidence(0.3)', '--block_length=2',
      '--temperature=1', '--top_k=50', '--verifier=lenient(linear, 0.5)',
      '--stop=qq', '--stop=e',
  )  # fmt: skip
  assert code == 0, printed.err
  expected = generation.generate(
      loading.load(pair['target']),
      ['one', 'two'],
      draft=loading.load(pair['draft']),
      temperature=1.0,
      max_new_tokens=4,
      min_new_tokens=3,
      top_k=50,
      adaptive='confidence(0.3)',
      verifier='lenient(linear, 0.5)',
      block_length=2,
      stop=['qq', 'e'],
  )
  lines = [json.loads(line) for line in printed.out.splitlines()]
  assert [line['text'] for line in lines] == expected.text
  for line, count in zip(lines, expected.statistics.drafted):
    assert line['statistics']['drafted'] == count
    settings = line['settings']
    assert settings['stop'] == ['qq', 'e']
    assert settings['min_new_tokens'] == 3
    assert settings['adaptive'] == 'confidence(0.3)'
    assert settings['verifier'] == 'lenient(linear, 0.5)'
    assert settings['block_length'] == 2


def test_an_answer_ends_before_a_stop_string(pair, capsys):
  settings = ['--temperature=1', '--json', 'one', 'two words', 'x']
  code, printed = run(capsys, pair, *settings, '--max_new_tokens=12')
  free = [json.loads(line) for line in printed.out.splitlines()]
  letters = [c for line in free for c in line['text'][1:-1] if c.isascii()]
  stop = max(letters, key=letters.count)
  code, printed = run(
      capsys, pair, *settings, '--max_new_tokens=12', f'--stop={stop}'
  )
  assert code == 0, printed.err
  lines = [json.loads(line) for line in printed.out.splitlines()]
  shorter = 0
  for line, whole in zip(lines, free):
    assert line['text'] == whole['text'].split(stop)[0]
    count = len(line['tokens'])
    assert line['tokens'] == whole['tokens'][:count]
    assert line['statistics']['emitted'] == count
    if stop in whole['text']:
      assert line['tokens'][-1] == 3 + ord(stop)
      shorter += count < len(whole['tokens'])
  assert shorter


class Stopped(Exception):
  pass


@pytest.mark.parametrize('after', [1, 2, 3])
def test_a_stopped_file_ends_as_if_it_had_not_been_stopped(
    pair, tmp_path, monkeypatch, after
):
  whole, out = tmp_path / 'whole', tmp_path / 'out'
  write(whole, *TEXTS, **pair, **SAMPLED)
  sample, calls = generation.sample, []

  def stop(*args):
    calls.append(args)
    if len(calls) > after:
      raise Stopped
    return sample(*args)

  with monkeypatch.context() as patch:
    patch.setattr(generation, 'sample', stop)
    with pytest.raises(Stopped):
      write(out, *TEXTS, **pair, **SAMPLED)
  written = out.read_bytes()
  assert whole.read_bytes().startswith(written) and len(written)
  out.write_bytes(written + b'{"index": 9, "inp')  # a line that was cut off
  write(out, *TEXTS, **pair, **SAMPLED)
  assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize('keep', range(1, len(TEXTS)))
def test_a_stopped_file_goes_on_with_the_batches_of_a_whole_one(
    pair, tmp_path, monkeypatch, keep
):
  # Rounding may depend on a batch's shape and on a row's place in it.
  whole, out = tmp_path / 'whole', tmp_path / 'out'
  sample, calls = generation.sample, []

  def note(target, draft, prompt, numbers, *rest):
    calls.append((prompt.tokens.tolist(), numbers))
    return sample(target, draft, prompt, numbers, *rest)

  monkeypatch.setattr(generation, 'sample', note)
  write(whole, *TEXTS, **pair, **SAMPLED)
  of_whole = calls.copy()
  calls.clear()
  lines = whole.read_bytes().splitlines(keepends=True)
  out.write_bytes(b''.join(lines[:keep]))
  write(out, *TEXTS, **pair, **SAMPLED)
  assert out.read_bytes() == whole.read_bytes()
  assert calls == [call for call in of_whole if max(call[1]) >= keep]
  assert len({np.shape(tokens)[0] for tokens, _ in of_whole}) == 1


def test_what_is_done_is_not_done_again(pair, tmp_path, monkeypatch, capsys):
  out = tmp_path / 'out'
  write(out, 'a', **pair, **SAMPLED)
  monkeypatch.setattr(loading, 'load', None)
  write(out, 'a', **pair, **SAMPLED)
  assert 'already has all 1 answers' in capsys.readouterr().err


@pytest.mark.parametrize(
    'texts, changes, message',
    [
        (['b'], {}, 'line 1 is an answer to another input'),
        ([], {}, 'line 1 is an answer to another input'),
        (['a'], {'seed': 4}, 'line 1 was decoded with another seed'),
        (['a'], {'draft': None}, 'another draft'),
        (
            ['a'],
            {'models': decode.Models(vocabulary='bytes')},
            'with another vocabulary; remove',
        ),
    ],
)
def test_a_file_of_other_answers_is_left_alone(
    pair, tmp_path, texts, changes, message, monkeypatch
):
  out = tmp_path / 'out'
  write(out, 'a', **pair, **SAMPLED)
  before = out.read_bytes()
  give(monkeypatch, b'none\n')
  with pytest.raises(errors.UserError, match=message):
    write(out, *texts, **{**pair, **SAMPLED, **changes})
  assert out.read_bytes() == before


def test_answers_of_a_model_that_has_changed_are_left_alone(tmp_path):
  model, out = tmp_path / 'model', tmp_path / 'out'
  for seed in (0, 1):
    tiny.save(model, tiny.model(tiny.BYTES, seed=seed), 'bytes')
    if seed == 0:
      write(out, 'a', 'b', target=str(model), **SAMPLED)
  out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])
  with pytest.raises(errors.UserError, match='with another target_model'):
    write(out, 'a', 'b', target=str(model), **SAMPLED)


def test_a_file_that_is_being_written_is_left_alone(pair, tmp_path):
  out = tmp_path / 'out'
  with locks.held(f'{out}.lock'):
    with pytest.raises(errors.UserError, match=f'{out} is in use by process'):
      write(out, 'a', **pair, **SAMPLED)
  write(out, 'a', **pair, **SAMPLED)
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def give(monkeypatch, data, terminal=False):
  """Standard input of these bytes."""
  stream = types.SimpleNamespace(
      isatty=lambda: terminal, buffer=io.BytesIO(data)
  )
  monkeypatch.setattr(decode.sys, 'stdin', stream)


def run(capsys, pair, *arguments):
  """Exit code and what was printed of a command line, greedy."""
  code = main.main([
      'decode',
      f'--target={pair["target"]}',
      '--max_new_tokens=4',
      *arguments,
  ])  # fmt: skip
  return code, capsys.readouterr()


@pytest.mark.parametrize('dash', [[], ['-']])
def test_lines_of_standard_input(pair, capsys, monkeypatch, dash):
  give(monkeypatch, '\ufeffone\r\n\ntwo\n'.encode())
  code, printed = run(capsys, pair, '--json', *dash)
  assert code == 0, printed.err
  lines = [json.loads(line) for line in printed.out.splitlines()]
  assert [line['input'] for line in lines] == ['one', '', 'two']


def test_lines_of_a_file_and_plain_text(pair, capsys, tmp_path):
  (tmp_path / 'in.txt').write_text('one\ntwo')
  code, printed = run(
      capsys, pair, f'--file={tmp_path / "in.txt"}', '--prefix=p '
  )
  expected = generation.generate(
      loading.load(pair['target']), ['p one', 'p two'], max_new_tokens=4
  )
  assert code == 0, printed.err
  assert printed.out == ''.join(text + '\n' for text in expected.text)
  assert '2 texts, ' in printed.err


def test_a_field_of_json_lines(pair, capsys, tmp_path):
  file = tmp_path / 'in.jsonl'
  file.write_text('{"q": "one"}\n{"q": "two\\nlines"}\n')
  code, printed = run(capsys, pair, f'--file={file}', '--field=q', '--json')
  lines = [json.loads(line) for line in printed.out.splitlines()]
  assert code == 0, printed.err
  assert [line['input'] for line in lines] == ['one', 'two\nlines']


def test_a_prompt_asks_until_an_empty_line(pair, capsys, monkeypatch):
  give(monkeypatch, b'', terminal=True)
  asked = iter(['one', 'two', ''])
  monkeypatch.setattr('builtins.input', lambda: next(asked))
  code, printed = run(capsys, pair)
  expected = generation.generate(
      loading.load(pair['target']), ['one', 'two'], max_new_tokens=4
  )
  assert code == 0, printed.err
  assert printed.out == ''.join(text + '\n' for text in expected.text)
  assert printed.err.count('1 text, ') == 2


@pytest.mark.parametrize('end, code', [(EOFError, 0), (KeyboardInterrupt, 130)])
def test_a_prompt_ends_with_the_input(pair, capsys, monkeypatch, end, code):
  def stop():
    raise end

  give(monkeypatch, b'', terminal=True)
  monkeypatch.setattr('builtins.input', stop)
  assert run(capsys, pair)[0] == code


def test_a_terminal_is_asked_and_its_answers_are_json(
    pair, capsys, monkeypatch
):
  typist, terminal = pty.openpty()
  with open(terminal, encoding='utf-8', errors='surrogateescape') as stream:
    monkeypatch.setattr(decode.sys, 'stdin', stream)
    os.write(typist, b'one\n\xff\ntwo\n\x04')
    code, printed = run(capsys, pair, '--json', '--prefix=p ')
  os.close(typist)
  assert code == 0, printed.err
  lines = [json.loads(line) for line in printed.out.splitlines()]
  assert [line['input'] for line in lines] == ['p one', 'p two']
  assert [line['index'] for line in lines] == [0, 1]
  # Standard output is no terminal here: the prompt is not among the answers.
  assert printed.err.count('> ') == 4
  assert "The text is not Unicode ('\\udcff' at character 0)" in printed.err


@pytest.mark.parametrize(
    'out, terminal, shown', [(0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 1)]
)
def test_a_bar_is_shown_unless_answers_are(
    pair, monkeypatch, tmp_path, out, terminal, shown
):
  bars = []
  monkeypatch.setattr(
      progress, 'shown', lambda items, name: bars.append(name) or items
  )
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: bool(terminal))
  decode.decode(
      'one',
      target=pair['target'],
      decoding=decoding_lib.Decoding(max_new_tokens=4),
      output=decode.Output(out=str(tmp_path / 'out') if out else None),
  )
  assert bars == ['decoding'] * shown


@pytest.mark.parametrize(
    'arguments, data, message',
    [
        (['a', '--file=x'], b'', 'give one of them'),
        (['--file=none.txt'], b'', 'none.txt cannot be read: No such file'),
        (['--file=.'], b'', r'\. cannot be read: it is a folder'),
        (
            ['a', 'b\udcff'],
            b'',
            r"Text 2 of .* not Unicode \('\\udcff' at .* 1",
        ),
        (['a', '--prefix=\udcff'], b'', '--prefix is not Unicode'),
        (['a', '--seed=-1'], b'', r'seed is -1; it must lie in \[0, 2\*\*32'),
        (['a', '--seed=4294967296'], b'', 'seed is 4294967296; it must'),
        (['a', '--batch_size=x'], b'', "--batch_size: invalid int value: 'x'"),
        (['a', '--max-tokens=3'], b'', 'Did you mean --max_new_tokens?'),
        (['a', '--out=gs://bucket/x'], b'', 'added to local files only'),
        ([], b'', 'standard input is empty'),
        ([], b'a\n\xff\n', 'standard input, line 2 is not UTF-8'),
        (['a', '--batch_size=0'], b'', 'batch_size is 0'),
        (['a', '--batch_size=100000'], b'', 'must be at most 65536'),
        (['a', f'--seed={10**20}'], b'', r'must lie in \[0, 2\*\*32'),
        (['a', '--temperature=-1'], b'', 'temperature is -1'),
        (['a', '--min_new_tokens=5'], b'', 'min_new_tokens is 5; it must lie'),
        (['a', '--adaptive=confidence'], b'', "'confidence' has arguments"),
        (['a', '--adaptive=sure(1)'], b'', "called 'sure'; use one of conf"),
        (['a', '--verifier=lenient'], b'', "'lenient' has arguments that do"),
        (['a', '--verifier=typical(2)'], b'', 'Typical.epsilon is 2; it'),
        (['a', '--verifier=my.rules:X'], b'', 'There is no module my.rules'),
        (['a', '--verifier=block', '--paths=2'], b'', 'paths is 2, but the'),
        (['a', '--paths=2', '--parallel'], b'', 'parallel is True and paths'),
        (['a', '--stop='], b'', 'A stop string is empty'),
        (['a', '--field=text'], b'', '--field=text is given, but no --file'),
        (['a', '--stop=\udcff'], b'', 'stop string .* is not Unicode'),
        (['a', '--target=nowhere'], b'', 'There is no folder nowhere'),
        (
            ['a', '--draft=nowhere', '--block_length=2'],
            b'',
            'There is no folder nowhere',
        ),
        (['a', '--out=/proc/none/x'], b'', '/proc/none/x cannot be written to'),
    ],
)
def test_what_does_not_fit_is_one_line(
    pair, capsys, monkeypatch, arguments, data, message
):
  give(monkeypatch, data)
  code, printed = run(capsys, pair, *arguments)
  assert code == 2
  assert len(printed.err.splitlines()) == 1 and printed.out == ''
  assert re.search(message, printed.err)


@pytest.mark.parametrize(
    'flag',
    [
        'block_length=2', 'paths=2', 'adaptive=confidence(0.4)',
        'verifier=block', 'draft_weights=int8', 'parallel',
    ],
)  # fmt: skip
def test_what_needs_a_draft_is_refused_without_one(pair, capsys, flag):
  name = flag.partition('=')[0]
  code, printed = run(capsys, pair, f'--{flag}', 'a')
  assert code == 2
  assert f'--{name} is given, but there is no draft' in printed.err


@pytest.mark.parametrize(
    'text, message',
    [
        ('{"inputs": "a"}\n[]\n', 'line 2 is JSON, but not an object'),
        ('{"inputs": 3}\n', "line 1 has a field 'inputs' that is not a str"),
        ('{', 'line 1 is not JSON'),
        (
            '{"inputs": "a\\ud800"}',
            "line 1 has a field 'inputs' that is not Uni",
        ),
    ],
)
def test_bad_json_lines_are_named(pair, tmp_path, text, message):
  (tmp_path / 'in.jsonl').write_text(text)
  with pytest.raises(errors.UserError, match=message):
    decode.decode(**pair, source=decode.Source(file=str(tmp_path / 'in.jsonl')))


def test_a_target_without_a_vocabulary_is_refused(pair, tmp_path, capsys):
  target = tiny.save(tmp_path / 'm', tiny.model(tiny.BYTES))
  code, printed = run(capsys, {'target': target}, 'a')
  assert code == 2
  assert re.search('has no vocabulary.*--vocabulary', printed.err)
  code, printed = run(capsys, {'target': target}, 'a', '--vocabulary=bytes')
  assert code == 0, printed.err
