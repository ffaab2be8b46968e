"""A conversion is complete, right and says so, or leaves nothing."""

import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import convert
from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from distillspec_jax.data import vocabularies
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib


def save(folder, change=lambda params: params, words=None, **changes):
  """A model folder of ours with random weights."""
  config = config_lib.published('test', vocab_size=384, **changes)
  params = change(transformer_lib.Transformer(config).init(jax.random.key(0)))
  model_folder.save_model(
      folder,
      config.to_dict(),
      params,
      step=7,
      also=lambda path: words and vocabularies.save(words, path),
  )
  return str(folder)


@pytest.fixture(scope='module')
def own(tmp_path_factory):
  folder = tmp_path_factory.mktemp('own') / 'model'
  return save(folder, words=vocabularies.load('bytes'))


def bytes_of(folder):
  """Path -> dtype, shape and bytes of every tensor."""
  found = loading.read(epath.Path(folder)).tensors
  return {
      path: (t.dtype, t.shape, np.ascontiguousarray(t.all()).tobytes())
      for path, t in found.items()
  }


@pytest.mark.parametrize(
    'name', ['t5_v10', 't5_v11', 't5_v11_bf16_sharded', 'byt5']
)
def test_in_and_out_gives_the_same_bytes(shared, tmp_path, name, capsys):
  source = str(shared / 'golden/hugging_face' / name)
  convert.convert(source, str(tmp_path / 'ours'))
  convert.convert(
      str(tmp_path / 'ours'), str(tmp_path / 'theirs'), to='hugging_face'
  )
  assert bytes_of(tmp_path / 'ours') == bytes_of(source)
  assert bytes_of(tmp_path / 'theirs') == bytes_of(source)
  said = capsys.readouterr().out
  assert said.count('dtype                      unchanged') == 2
  assert said.count('largest logit difference   0\n') == 2


def test_what_was_compared_is_said(own, tmp_path, capsys):
  made = convert.convert(own, str(tmp_path / 'out'), to='hugging_face')
  said = capsys.readouterr().out
  count = sum(t.size for t in loading.read(epath.Path(own)).tensors.values())
  number = len(loading.read(epath.Path(own)).tensors)
  assert made == epath.Path(tmp_path / 'out')
  assert f'parameters                 {count:,}\n' in said
  assert f'tensors matched by path    {number} of {number}\n' in said
  assert 'vocabulary                 259 tokens' in said


def test_a_change_of_dtype_is_counted_and_its_effect_shown(
    own, tmp_path, capsys
):
  convert.convert(own, str(tmp_path / 'half'), dtype='bfloat16')
  said = capsys.readouterr().out
  count = len(bytes_of(own))
  assert f'float32 -> bfloat16 ({count} tensors)' in said
  apart = float(said.split('largest logit difference')[1].split()[0])
  assert 0.0 < apart < 1.0
  half = loading.load(tmp_path / 'half')
  assert {x.dtype for x in jax.tree.leaves(half.params)} == {
      jnp.dtype('bfloat16')
  }


@pytest.mark.parametrize('to', convert.FORMATS)
def test_scanned_layers_become_one_tensor_each(tmp_path, to):
  source = save(tmp_path / 'scanned', scan_layers=True)
  convert.convert(source, str(tmp_path / 'out'), to=to)
  tokens = np.arange(2, 14).reshape(2, 6)
  expected = loading.load(source).logits(tokens, tokens)
  found = loading.load(tmp_path / 'out')
  assert not found.config.scan_layers
  np.testing.assert_allclose(found.logits(tokens, tokens), expected, atol=1e-5)


def test_the_step_of_a_run_goes_with_it(own, tmp_path):
  convert.convert(own, str(tmp_path / 'out'), to='t5x')
  assert (tmp_path / 'out' / 'checkpoint_7').is_dir()
  convert.convert(str(tmp_path / 'out'), str(tmp_path / 'back'))
  text = (tmp_path / 'back' / 'model.json').read_text()
  assert json.loads(text)['step'] == 7
  assert bytes_of(tmp_path / 'back') == bytes_of(own)


def test_an_empty_destination_is_taken_and_any_other_is_not(own, tmp_path):
  (tmp_path / 'empty').mkdir()
  convert.convert(own, str(tmp_path / 'empty'))
  with pytest.raises(errors.UserError, match='empty is there already and not'):
    convert.convert(own, str(tmp_path / 'empty'))
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='file is there already'):
    convert.convert(own, str(tmp_path / 'file'))


@pytest.mark.parametrize(
    'options, message',
    [
        ({'to': 'onnx'}, "to is 'onnx'; it must be one of"),
        ({'dtype': 'int8'}, "dtype is 'int8'; it must be one of"),
        ({'to': 't5x', 'dtype': 'bfloat16'}, 't5x keeps float32'),
        ({'step': 3}, 'no checkpoint of step 3; it has none'),
    ],
)
def test_options_out_of_range_are_named(own, tmp_path, options, message):
  with pytest.raises(errors.UserError, match=message):
    convert.convert(own, str(tmp_path / 'out'), **options)
  assert list(tmp_path.iterdir()) == []


def spoil(params):
  kernel = params['decoder']['layers_1']['mlp']['wo']['kernel']
  params['decoder']['layers_1']['mlp']['wo']['kernel'] = kernel.at[0, 0].set(
      jnp.nan
  )
  return params


@pytest.mark.parametrize('to', convert.FORMATS)
def test_nan_is_named_and_refused_unless_allowed(tmp_path, to):
  source = save(tmp_path / 'spoilt', spoil)
  with pytest.raises(
      errors.UserError, match=r'decoder/layers_1/mlp/wo/kernel \(1\)'
  ):
    convert.convert(source, str(tmp_path / 'out'), to=to)
  assert [path.name for path in tmp_path.iterdir()] == ['spoilt']
  convert.convert(source, str(tmp_path / 'out'), to=to, allow_nonfinite=True)
  assert bytes_of(tmp_path / 'out') == bytes_of(source)


def test_overflow_of_a_narrower_dtype_is_refused(tmp_path):
  def large(params):
    return jax.tree.map(lambda x: x * 1e6, params)

  source = save(tmp_path / 'large', large)
  with pytest.raises(errors.UserError, match='NaN or infinite values are in'):
    convert.convert(source, str(tmp_path / 'out'), dtype='float16')


@pytest.mark.parametrize(
    'to, changes, field',
    [
        ('t5x', {'mlp_activations': ('silu', 'linear')}, 'mlp_activations'),
        ('t5x', {'norm_epsilon': 1e-3}, 'norm_epsilon'),
        ('t5x', {'scale_logits': True}, 'scale_logits'),
        ('hugging_face', {'num_encoder_layers': 0}, 'decoder-only'),
    ],
)
def test_what_a_format_cannot_express_is_refused(tmp_path, to, changes, field):
  source = save(tmp_path / 'model', **changes)
  with pytest.raises(errors.UserError, match=field):
    convert.convert(source, str(tmp_path / 'out'), to=to)
  assert [path.name for path in tmp_path.iterdir()] == ['model']


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """Two texts: the bytes of 'b' thrice, of 'c' twice, of a blank once."""
  file = tmp_path_factory.mktemp('texts') / 'texts.txt'
  file.write_text('bc b\nbc\n')
  return str(file)


@pytest.mark.parametrize('tied', [False, True])
def test_an_output_layer_is_cut_to_the_frequent_tokens(
    tmp_path, texts, tied, capsys
):
  words = vocabularies.load('bytes')
  source = save(tmp_path / 'whole', words=words, logits_via_embedding=tied)
  out = convert.convert(
      source, str(tmp_path / 'cut'), output_tokens=6, texts=texts
  )
  said = capsys.readouterr().out
  found, whole = loading.load(out), loading.load(source)
  # Padding, EOS and unknown; a byte is its number and three.
  expected = (0, 1, 2, 32 + 3, ord('b') + 3, ord('c') + 3)
  assert found.config.output_tokens == expected
  assert found.config.vocab_size == whole.config.vocab_size
  assert 'tokens of the output layer 6 of 384\n' in said
  assert '100.00% of the 8 tokens' in said
  assert 'largest logit difference   0\n' in said
  tokens = np.arange(2, 14).reshape(2, 6)
  before, after = whole.logits(tokens, tokens), found.logits(tokens, tokens)
  np.testing.assert_allclose(
      after[..., expected], before[..., expected], rtol=1e-5, atol=1e-6
  )
  assert np.isneginf(after).sum() == 2 * 6 * (384 - 6)
  loading.check_pair(whole, found)
  # It is a model like any other: it goes on as it is, in another dtype, ...
  again = convert.convert(str(out), str(tmp_path / 'half'), dtype='bfloat16')
  assert loading.load(again).config.output_tokens == expected
  # ... and its numbers stand on one line.
  lines = (tmp_path / 'cut' / 'model.json').read_text().splitlines()
  assert sum('"output_tokens": [ 0, 1, 2, 35' in line for line in lines) == 1


@pytest.mark.parametrize('to', ['hugging_face', 't5x'])
def test_a_cut_output_layer_goes_to_no_other_format(own, tmp_path, texts, to):
  cut = {'output_tokens': 6, 'texts': texts}
  kept = convert.convert(own, str(tmp_path / 'kept'), **cut)
  for source, options in ((str(kept), {}), (own, cut)):
    with pytest.raises(
        errors.UserError,
        match=f'6 of 384 tokens, which {to} cannot.*convert the whole model',
    ):
      convert.convert(source, str(tmp_path / 'out'), to=to, **options)
  with pytest.raises(errors.UserError, match='6 of 384 tokens already'):
    convert.convert(str(kept), str(tmp_path / 'out'), **cut)
  assert [path.name for path in tmp_path.iterdir()] == ['kept']


@pytest.mark.parametrize(
    'options, message',
    [
        ({'output_tokens': 6}, 'is 6 and texts is None; give both'),
        ({'texts': 'x'}, 'is None and texts is x; give both'),
        ({'output_tokens': 6, 'texts': 'x'}, 'x cannot be read: No such file'),
        ({'output_tokens': 2, 'texts': None}, r'is 2; it must lie in \[3, 384'),
        ({'output_tokens': 385, 'texts': None}, 'is 385; it must lie in'),
    ],
)
def test_what_cannot_be_cut_is_refused(own, tmp_path, texts, options, message):
  if options.get('texts', '') is None:
    options = {**options, 'texts': texts}
  with pytest.raises(errors.UserError, match=message):
    convert.convert(own, str(tmp_path / 'out'), **options)
  assert list(tmp_path.iterdir()) == []


def test_cutting_needs_a_vocabulary_and_takes_a_field(tmp_path):
  source = save(tmp_path / 'bare')
  file = tmp_path / 'answers.jsonl'
  file.write_text('{"text": "zz", "said": "yyx"}\n')
  with pytest.raises(
      errors.UserError, match='has no vocabulary, so the tokens'
  ):
    convert.convert(
        source, str(tmp_path / 'out'), output_tokens=6, texts=str(file)
    )
  out = convert.convert(
      source,
      str(tmp_path / 'out'),
      output_tokens=5,
      texts=str(file),
      field='said',
      vocabulary='bytes',
  )
  letters = ord('x') + 3, ord('y') + 3
  assert loading.load(out).config.output_tokens == (0, 1, 2, *letters)


def test_a_writer_that_confuses_tensors_is_caught(own, tmp_path, monkeypatch):
  write = hugging_face.write

  def confused(folder, config, tensors):
    a = 'encoder/layers_0/attention/query/kernel'
    b = 'encoder/layers_0/attention/key/kernel'
    write(folder, config, {**tensors, a: tensors[b], b: tensors[a]})

  monkeypatch.setattr(hugging_face, 'write', confused)
  with pytest.raises(
      errors.UserError, match='attention/key/kernel, .*attention/query/kernel'
  ):
    convert.convert(own, str(tmp_path / 'out'), to='hugging_face')
  assert list(tmp_path.iterdir()) == []


def test_what_was_interrupted_leaves_nothing(own, tmp_path, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(t5x, 'write', stop)
  with pytest.raises(KeyboardInterrupt):
    convert.convert(own, str(tmp_path / 'out'), to='t5x')
  assert list(tmp_path.iterdir()) == []


def test_all_that_differs_between_two_is_listed_at_once():
  config = config_lib.published('test').to_dict()
  tensor = tensors_lib.from_array(np.zeros((2, 3), np.float32))
  a = tensors_lib.Checkpoint(config, {'x': tensor, 'y': tensor, 'z': tensor})
  b = tensors_lib.Checkpoint(config, {'y': tensor.T, 'z': tensor, 'w': tensor})
  with pytest.raises(
      errors.UserError,
      match=r'x is missing; w is left over; y is \(3, 2\) but should be',
  ):
    convert.compare(a, b, 'a', 'b')
