"""A conversion is complete and right, and reports it, or leaves nothing."""

import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import parameters
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
  tensors = loading.read(epath.Path(folder)).tensors
  return {
      path: (t.dtype, t.shape, np.ascontiguousarray(t.all()).tobytes())
      for path, t in tensors.items()
  }


@pytest.mark.parametrize(
    'name', ['t5_v10', 't5_v11', 't5_v11_bf16_sharded', 'byt5']
)
def test_in_and_out_gives_the_same_bytes(shared, tmp_path, name):
  source = str(shared / 'golden/hugging_face' / name)
  ours = conversion.convert(source, str(tmp_path / 'ours'))
  theirs = conversion.convert(
      str(tmp_path / 'ours'), str(tmp_path / 'theirs'), to='hugging_face'
  )
  for converted in (ours, theirs):
    assert bytes_of(converted.folder) == bytes_of(source)
    assert converted.comparison.dtypes == {}
    assert converted.comparison.largest_change == 0.0
    assert converted.comparison.largest_logit_difference == 0.0


def test_what_was_compared_is_reported(own, tmp_path):
  converted = conversion.convert(own, str(tmp_path / 'out'), to='hugging_face')
  tensors = loading.read(epath.Path(own)).tensors
  assert converted.folder == epath.Path(tmp_path / 'out')
  assert converted.comparison.tensors == len(tensors)
  count = sum(t.size for t in tensors.values())
  assert conversion.report(converted).splitlines() == [
      f'parameters                 {count:,}',
      f'tensors matched by path    {len(tensors)} of {len(tensors)}',
      'dtype                      unchanged',
      'largest parameter change   0',
      'largest logit difference   0',
      'vocabulary                 259 tokens',
  ]


def test_a_change_of_dtype_is_counted_and_its_effect_measured(own, tmp_path):
  converted = conversion.convert(own, str(tmp_path / 'half'), dtype='bfloat16')
  count = len(bytes_of(own))
  assert converted.comparison.dtypes == {'float32 -> bfloat16': count}
  assert 0.0 < converted.comparison.largest_logit_difference < 1.0
  assert f'float32 -> bfloat16 ({count} tensors)' in conversion.report(
      converted
  )
  half = loading.load(tmp_path / 'half')
  assert {x.dtype for x in jax.tree.leaves(half.model.params)} == {
      jnp.dtype('bfloat16')
  }


@pytest.mark.parametrize('to', conversion.FORMATS)
def test_scanned_layers_become_one_tensor_each(tmp_path, to):
  source = save(tmp_path / 'scanned', scan_layers=True)
  conversion.convert(source, str(tmp_path / 'out'), to=to)
  tokens = np.arange(2, 14).reshape(2, 6)
  expected = loading.load(source).logits(tokens, tokens)
  converted = loading.load(tmp_path / 'out')
  assert not converted.config.scan_layers
  np.testing.assert_allclose(
      converted.logits(tokens, tokens), expected, atol=1e-5
  )


def test_the_step_of_a_run_goes_with_it(own, tmp_path):
  converted = conversion.convert(own, str(tmp_path / 'out'), to='t5x')
  assert (tmp_path / 'out' / 'checkpoint_7').is_dir()
  assert converted.vocabulary.startswith('none: t5x keeps it elsewhere')
  back = conversion.convert(str(tmp_path / 'out'), str(tmp_path / 'back'))
  assert back.ignored == ('the state of the optimizer',)
  assert 'ignored                    the state' in conversion.report(back)
  text = (tmp_path / 'back' / 'model.json').read_text()
  assert json.loads(text)['step'] == 7
  assert bytes_of(tmp_path / 'back') == bytes_of(own)


def test_an_empty_destination_is_taken_and_any_other_is_not(own, tmp_path):
  (tmp_path / 'empty').mkdir()
  conversion.convert(own, str(tmp_path / 'empty'))
  with pytest.raises(
      errors.UserError, match='empty exists and is not an empty'
  ):
    conversion.convert(own, str(tmp_path / 'empty'))
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='file exists and is not'):
    conversion.convert(own, str(tmp_path / 'file'))
  with pytest.raises(errors.UserError, match='Nothing can be written to'):
    conversion.convert(own, '/proc/none/x')


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
    conversion.convert(own, str(tmp_path / 'out'), **options)
  assert list(tmp_path.iterdir()) == []


def with_nan(params):
  kernel = params['decoder']['layers_1']['mlp']['wo']['kernel']
  params['decoder']['layers_1']['mlp']['wo']['kernel'] = kernel.at[0, 0].set(
      jnp.nan
  )
  return params


@pytest.mark.parametrize('to', conversion.FORMATS)
def test_nan_is_named_and_refused_unless_allowed(tmp_path, to):
  source = save(tmp_path / 'nan', with_nan)
  with pytest.raises(
      errors.UserError, match=r'decoder/layers_1/mlp/wo/kernel \(1\)'
  ):
    conversion.convert(source, str(tmp_path / 'out'), to=to)
  assert [path.name for path in tmp_path.iterdir()] == ['nan']
  conversion.convert(source, str(tmp_path / 'out'), to=to, allow_nonfinite=True)
  assert bytes_of(tmp_path / 'out') == bytes_of(source)


def test_overflow_of_a_narrower_dtype_is_refused(tmp_path):
  def large(params):
    return jax.tree.map(lambda x: x * 1e6, params)

  source = save(tmp_path / 'large', large)
  with pytest.raises(errors.UserError, match='NaN or infinite values are in'):
    conversion.convert(source, str(tmp_path / 'out'), dtype='float16')


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
    conversion.convert(source, str(tmp_path / 'out'), to=to)
  assert [path.name for path in tmp_path.iterdir()] == ['model']


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """Two texts: the bytes of 'b' thrice, of 'c' twice, of a blank once."""
  file = tmp_path_factory.mktemp('texts') / 'texts.txt'
  file.write_text('bc b\nbc\n')
  return str(file)


@pytest.mark.parametrize('tied', [False, True])
def test_an_output_layer_is_trimmed_to_the_frequent_tokens(
    tmp_path, texts, tied
):
  words = vocabularies.load('bytes')
  source = save(tmp_path / 'whole', words=words, logits_via_embedding=tied)
  converted = conversion.convert(
      source, str(tmp_path / 'trimmed'), trim_vocabulary=6, texts=texts
  )
  draft, whole = loading.load(converted.folder), loading.load(source)
  # Padding, EOS and unknown; a byte is its number and three.
  expected = (0, 1, 2, 32 + 3, ord('b') + 3, ord('c') + 3)
  assert draft.config.trimmed_vocabulary == expected
  assert draft.config.vocab_size == whole.config.vocab_size
  assert converted.trimmed.chosen == (expected, 8, 8)
  assert converted.comparison.largest_logit_difference == 0.0
  report = conversion.report(converted)
  assert 'trimmed vocabulary         6 of 384 tokens\n' in report
  assert '100.00% of the 8 tokens' in report
  tokens = np.arange(2, 14).reshape(2, 6)
  before, after = whole.logits(tokens, tokens), draft.logits(tokens, tokens)
  np.testing.assert_allclose(
      after[..., expected], before[..., expected], rtol=1e-5, atol=1e-6
  )
  assert np.isneginf(after).sum() == 2 * 6 * (384 - 6)
  loading.check_pair(whole, draft)
  # It is a model like any other: it can be converted to another dtype, ...
  again = conversion.convert(
      str(converted.folder), str(tmp_path / 'half'), dtype='bfloat16'
  )
  assert loading.load(again.folder).config.trimmed_vocabulary == expected
  # ... and its token numbers are on one line.
  lines = (tmp_path / 'trimmed' / 'model.json').read_text().splitlines()
  assert sum('_vocabulary": [ 0, 1, 2, 35' in line for line in lines) == 1


@pytest.mark.parametrize('to', ['hugging_face', 't5x'])
def test_a_trimmed_output_layer_goes_to_no_other_format(
    own, tmp_path, texts, to
):
  trim = {'trim_vocabulary': 6, 'texts': texts}
  kept = str(conversion.convert(own, str(tmp_path / 'kept'), **trim).folder)
  for source, options in ((kept, {}), (own, trim)):
    with pytest.raises(
        errors.UserError,
        match=f'6 of 384 tokens, which {to} cannot.*convert the whole model',
    ):
      conversion.convert(source, str(tmp_path / 'out'), to=to, **options)
  with pytest.raises(errors.UserError, match='6 of 384 tokens already'):
    conversion.convert(kept, str(tmp_path / 'out'), **trim)
  assert [path.name for path in tmp_path.iterdir()] == ['kept']


@pytest.mark.parametrize(
    'options, message',
    [
        ({'trim_vocabulary': 6}, 'is 6 and texts is None; give both'),
        ({'texts': 'x'}, 'is None and texts is x; give both'),
        (
            {'trim_vocabulary': 6, 'texts': 'x'},
            'x cannot be read: No such file',
        ),
        (
            {'trim_vocabulary': 2, 'texts': None},
            r'is 2; it must lie in \[3, 384',
        ),
        ({'trim_vocabulary': 385, 'texts': None}, 'is 385; it must lie in'),
    ],
)
def test_what_cannot_be_trimmed_is_refused(
    own, tmp_path, texts, options, message
):
  if options.get('texts', '') is None:
    options = {**options, 'texts': texts}
  with pytest.raises(errors.UserError, match=message):
    conversion.convert(own, str(tmp_path / 'out'), **options)
  assert list(tmp_path.iterdir()) == []


def test_trimming_needs_a_vocabulary_and_takes_a_field(tmp_path):
  source = save(tmp_path / 'bare')
  file = tmp_path / 'answers.jsonl'
  file.write_text('{"text": "zz", "said": "yyx"}\n')
  with pytest.raises(
      errors.UserError, match='has no vocabulary, so the tokens'
  ):
    conversion.convert(
        source, str(tmp_path / 'out'), trim_vocabulary=6, texts=str(file)
    )
  out = conversion.convert(
      source,
      str(tmp_path / 'out'),
      trim_vocabulary=5,
      texts=str(file),
      field='said',
      vocabulary='bytes',
  )
  letters = ord('x') + 3, ord('y') + 3
  assert loading.load(out.folder).config.trimmed_vocabulary == (
      0,
      1,
      2,
      *letters,
  )


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
    conversion.convert(own, str(tmp_path / 'out'), to='hugging_face')
  assert list(tmp_path.iterdir()) == []


def test_what_was_interrupted_leaves_nothing(own, tmp_path, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(t5x, 'write', stop)
  with pytest.raises(KeyboardInterrupt):
    conversion.convert(own, str(tmp_path / 'out'), to='t5x')
  assert list(tmp_path.iterdir()) == []


def test_all_that_differs_between_two_is_listed_at_once():
  config = config_lib.published('test')
  tensor = tensors_lib.from_array(np.zeros((2, 3), np.float32))
  a = parameters.Checkpoint(config, {'x': tensor, 'y': tensor, 'z': tensor})
  b = parameters.Checkpoint(config, {'y': tensor.T, 'z': tensor, 'w': tensor})
  with pytest.raises(
      errors.UserError,
      match=r'x is missing; w is left over; y is \(3, 2\) but should be',
  ):
    conversion.compare(a, b, 'a', 'b')
