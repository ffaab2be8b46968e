"""Checkpoints of t5x, against ones that t5x wrote and ones made here."""

import dataclasses
import json
import shutil
import weakref

from etils import epath
from flax import serialization
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import t5x_layout
from distillspec_jax.checkpoints import t5x_native
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from tests.checkpoints.models import as_tensors
from tests.checkpoints.models import CONFIG
from tests.checkpoints.models import random_arrays

# Folder, model, file of the Adafactor steps, number of steps.
GOLDEN = [
    ('t5v11_tiny_adafactor_unfactored_native', 't5v11_tiny', 2),
    ('t5v11_mid_adafactor_factored_native', 't5v11_mid', 1),
    ('t5v11_mid_adafactor_factored_orbax', 't5v11_mid', 1),
]
V1_0 = {
    'mlp_activations': ('relu',),
    'logits_via_embedding': True,
    'scale_logits': True,
}
BIAS = 'encoder/relpos_bias/rel_embedding'
QUERY = 'decoder/layers_1/self_attention/query/kernel'


def write_native(
    folder, arrays, *, edit=lambda spec: spec, inline=(), chunks=list, more=None
):
  """A native checkpoint by TensorStore and msgpack, not by our own writer."""
  folder.mkdir(parents=True)
  target = {}
  for path, array in arrays.items():
    if path in inline:
      target[path] = array
      continue
    name = f'target.{path.replace("/", ".")}'
    spec = {
        'driver': 'zarr',
        'dtype': array.dtype.name,
        'kvstore': {'driver': 'file', 'path': f'{name}/'},
        'metadata': {
            'chunks': chunks(array.shape),
            'compressor': {'id': 'gzip'},
            'shape': list(array.shape),
        },
    }
    spec = edit(spec)
    place = {'driver': 'file', 'path': f'{folder}/{name}/'}
    on_disk = {**spec, 'kvstore': place}
    on_disk.pop('path', None)
    ts.open(on_disk, create=True).result().write(array).result()
    target[path] = spec
  optimizer = {'target': tensors_lib.unflatten(target), **(more or {})}
  write_index(folder, {'version': 3, 'optimizer': optimizer})
  return epath.Path(folder)


def write_index(folder, tree):
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize(tree))


def write_orbax(folder, arrays, use_ocdbt):
  tree = {
      'target': tensors_lib.unflatten(arrays),
      'state': {'step': np.int32(3)},
  }
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(folder / 'state', tree)
  return epath.Path(folder)


def assert_same(tensors, arrays):
  assert set(tensors) == set(arrays)
  for path, array in arrays.items():
    read = tensors[path].all()
    assert tensors[path].shape == read.shape == array.shape, path
    assert tensors[path].dtype == read.dtype == array.dtype, path
    np.testing.assert_array_equal(read, array, err_msg=path)


def scanned(arrays, config):
  """The same as scalable_t5 has it: layers along axis 1, heads not joined."""
  result = {}
  heads = (config.num_heads, config.head_dim)
  for path, array in arrays.items():
    side, layer, *rest = path.split('/')
    if not layer.startswith('layers_'):
      result[path] = array
      continue
    if layer != 'layers_0':
      continue
    name = '/'.join(rest)
    layers = []
    for i in range(getattr(config, f'num_{side}_layers')):
      one = arrays[f'{side}/layers_{i}/{name}']
      if rest[-2] in ('query', 'key', 'value'):
        one = one.reshape(one.shape[0], *heads)
      elif rest[-2] == 'out':
        one = one.reshape(*heads, one.shape[1])
      layers.append(one)
    result[f'{side}/{side}/{name}'] = np.stack(layers, axis=1)
  return result


# Checkpoints that t5x wrote.


@pytest.mark.parametrize('name, model, steps', GOLDEN)
def test_parameters_are_those_that_t5x_saved(shared, name, model, steps):
  golden = shared / 'golden/t5x'
  folder = t5x.find(epath.Path(golden / 'ckpt' / name))
  checkpoint = t5x.read(folder)
  with np.load(golden / f'{model}.adafactor_default.npz') as saved:
    prefix = f'params{steps}/'
    expected = {
        path.removeprefix(prefix): saved[path]
        for path in saved
        if path.startswith(prefix)
    }
  assert_same(checkpoint.tensors, expected)
  saved = json.loads((golden / 'configs.json').read_text())[model]
  known = checkpoint.config.to_dict()
  for field, value in saved.items():
    if field not in ('dropout_rate', 'dtype'):  # no parameter depends on them
      value = tuple(value) if isinstance(value, list) else value
      assert known[field] == value, field


@pytest.mark.parametrize('name, model, steps', GOLDEN)
def test_adafactors_state_is_the_one_that_t5x_saved(shared, name, model, steps):
  golden = shared / 'golden/t5x'
  folder = t5x.find(epath.Path(golden / 'ckpt' / name))
  step, moments = t5x.read_adafactor(folder)
  assert step == steps
  prefix = f'state{steps}/state/param_states/'
  with np.load(golden / f'{model}.adafactor_default.npz') as saved:
    expected = {
        path.removeprefix(prefix): saved[path]
        for path in saved
        if path.startswith(prefix)
    }
  arrays = {
      f'{path}/{name}': array
      for path, state in moments.items()
      for name, array in state.items()
  }
  assert set(arrays) == set(expected)
  for path, array in expected.items():
    np.testing.assert_array_equal(arrays[path], array, err_msg=path)


def test_native_and_orbax_are_read_as_the_same(shared):
  folder = shared / 'golden/t5x/ckpt'
  native, orbax = (
      t5x.read(t5x.find(epath.Path(folder / f't5v11_mid_adafactor_{name}')))
      for name in ('factored_native', 'factored_orbax')
  )
  assert native.config == orbax.config
  assert_same(native.tensors, {p: t.all() for p, t in orbax.tensors.items()})


# Layouts.


@pytest.mark.parametrize(
    'changes',
    [
        {},
        V1_0,
        {'relative_bias_per_layer': True},
        {'num_encoder_layers': 0},
        {'num_decoder_layers': 12},
    ],
    ids=['v1.1', 'v1.0', 'bias-per-layer', 'decoder-only', 'two-digits'],
)
def test_the_configuration_follows_from_the_shapes(tmp_path, changes):
  config = dataclasses.replace(CONFIG, **changes)
  arrays = random_arrays(config)
  folder = write_native(tmp_path / 'checkpoint_5', arrays)
  checkpoint = t5x.read(folder)
  assert checkpoint.config == config
  assert_same(checkpoint.tensors, arrays)


def test_decoder_only_has_its_embedding_elsewhere(tmp_path):
  config = dataclasses.replace(CONFIG, num_encoder_layers=0)
  arrays = random_arrays(config)
  theirs = dict(arrays)
  name = 'token_embedder/embedding'
  theirs[f'decoder/{name}'] = theirs.pop(name)
  checkpoint = t5x.read(write_native(tmp_path / 'checkpoint_1', theirs))
  assert checkpoint.config == config
  assert_same(checkpoint.tensors, arrays)
  folder = t5x.write(epath.Path(tmp_path), checkpoint.tensors, 2)
  assert (folder / f'target.decoder.{name.replace("/", ".")}').exists()
  assert_same(t5x.read(folder).tensors, arrays)


@pytest.mark.parametrize('layout', ['native', 'orbax', 'orbax-folders'])
def test_scanned_layers_are_unscanned(tmp_path, layout):
  config = dataclasses.replace(CONFIG, relative_bias_per_layer=True)
  arrays = random_arrays(config)
  folder = tmp_path / 'checkpoint_9'
  stacked = scanned(arrays, config)
  query = 'decoder/decoder/self_attention/query/kernel'
  assert stacked[query].shape == (6, 2, 2, 5)
  if layout == 'native':
    folder = write_native(folder, stacked)
  else:
    folder = write_orbax(folder, stacked, use_ocdbt=layout == 'orbax')
  checkpoint = t5x.read(t5x.find(folder))
  assert checkpoint.config == config
  assert_same(checkpoint.tensors, arrays)
  box = (slice(1, 5), slice(3, 9))
  query = checkpoint.tensors[QUERY]
  np.testing.assert_array_equal(query.read(box), arrays[QUERY][box])


def test_heads_that_are_not_joined_are_joined(tmp_path):
  arrays = random_arrays(CONFIG)
  separate = {
      path: x.reshape(6, 2, 5)
      if path.endswith(('query/kernel', 'key/kernel', 'value/kernel'))
      else x.reshape(2, 5, 6)
      if path.endswith('out/kernel')
      else x
      for path, x in arrays.items()
  }
  checkpoint = t5x.read(write_native(tmp_path / 'checkpoint_1', separate))
  assert checkpoint.config == CONFIG
  assert_same(checkpoint.tensors, arrays)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_any_box_of_joined_axes_is_what_a_reshape_gives(axis):
  array = np.arange(4 * 3 * 5 * 2).reshape(4, 3, 5, 2)
  tensor = t5x_layout.join_axes(tensors_lib.from_array(array), axis)
  joined = (*array.shape[:axis], -1, *array.shape[axis + 2 :])
  expected = array.reshape(joined)
  assert tensor.shape == expected.shape
  rng = np.random.default_rng(0)
  for _ in range(200):
    ends = [sorted(rng.integers(0, n + 1, 2)) for n in expected.shape]
    box = tuple(slice(int(a), int(b)) for a, b in ends)
    np.testing.assert_array_equal(tensor.read(box), expected[box])


def test_older_orbax_named_its_folders_in_an_index(tmp_path):
  arrays = random_arrays(CONFIG)
  state = tmp_path / 'checkpoint_4' / 'state'
  write_native(state, arrays, inline=[BIAS])
  target = {
      path: f'PLACEHOLDER://target.{path.replace("/", ".")}' for path in arrays
  }
  target[BIAS] = arrays[BIAS]
  write_index(state, {'target': tensors_lib.unflatten(target)})
  assert_same(t5x.read(t5x.find(epath.Path(tmp_path))).tensors, arrays)


# How arrays are named and kept.


def next_to_kvstore(spec):
  path = spec['kvstore'].pop('path')
  return {**spec, 'path': path}


def with_kvstore(**entries):
  return lambda spec: {**spec, 'kvstore': {**spec['kvstore'], **entries}}


def uncompressed(spec):
  return {**spec, 'metadata': {**spec['metadata'], 'compressor': None}}


@pytest.mark.parametrize(
    'edit',
    [
        uncompressed,
        with_kvstore(driver='gfile'),
        with_kvstore(driver='gcs', bucket='t5x-dummy-bucket'),
        lambda spec: with_kvstore(path=spec['kvstore']['path'][:-1])(spec),
        next_to_kvstore,
    ],
    ids=['uncompressed', 'gfile', 'gcs', 'no-slash', 'next-to-kvstore'],
)
def test_all_ways_of_naming_an_array_are_understood(tmp_path, edit):
  arrays = random_arrays(CONFIG)
  folder = write_native(tmp_path / 'checkpoint_1', arrays, edit=edit)
  assert_same(t5x.read(folder).tensors, arrays)


def test_a_checkpoint_may_have_been_moved(tmp_path, monkeypatch):
  arrays = random_arrays(CONFIG)
  write_native(tmp_path / 'checkpoint_1', arrays, inline=[BIAS])
  shutil.move(tmp_path / 'checkpoint_1', tmp_path / 'renamed')
  monkeypatch.chdir(tmp_path)
  folder = t5x.find(epath.Path('renamed'))  # relative, too
  assert_same(t5x.read(folder).tensors, arrays)


def test_bfloat16_stays_what_it_is(tmp_path):
  arrays = random_arrays(CONFIG, ml_dtypes.bfloat16)
  folder = write_native(tmp_path / 'checkpoint_1', arrays, inline=[BIAS])
  assert_same(t5x.read(folder).tensors, arrays)


def test_only_what_is_asked_for_is_read(tmp_path):
  arrays = random_arrays(CONFIG)
  folder = write_native(
      tmp_path / 'checkpoint_1',
      arrays,
      chunks=lambda shape: [2, *shape[1:]],
  )
  chunk = folder / f'target.{QUERY.replace("/", ".")}' / '1.0'
  chunk.write_bytes(b'damaged')
  tensor = t5x.read(folder).tensors[QUERY]  # not noticed, nor by the next two
  for box in [(slice(4, 6), slice(2, 3)), (slice(0, 2), slice(0, 10))]:
    np.testing.assert_array_equal(tensor.read(box), arrays[QUERY][box])
  with pytest.raises(
      errors.UserError, match='query/kernel in .* cannot be read'
  ):
    tensor.read((slice(1, 4), slice(0, 1)))
  chunk.unlink()  # TensorStore would read zeros
  with pytest.raises(errors.UserError, match='query.kernel/1.0" is missing'):
    t5x.read(folder).tensors[QUERY].all()


# Finding.


def test_the_latest_checkpoint_is_found(tmp_path):
  arrays = {BIAS: np.zeros((2, 7), np.float32)}
  for step in (9, 10, 2):
    write_native(tmp_path / f'checkpoint_{step}', arrays)
  for name in ('checkpoint_11', 'checkpoint_x', 'other'):  # empty, or no number
    (tmp_path / name).mkdir()
  path = epath.Path(tmp_path)
  assert t5x.find(path) == path / 'checkpoint_10'
  assert t5x.find(path, 2) == path / 'checkpoint_2'
  assert t5x.find(path / 'checkpoint_9') == path / 'checkpoint_9'
  assert t5x.find(path / 'checkpoint_9', 9) == path / 'checkpoint_9'
  with pytest.raises(errors.UserError, match=r'step 11.*steps 2, 9, 10\.'):
    t5x.find(path, 11)
  with pytest.raises(errors.UserError, match='is one checkpoint, but step is'):
    t5x.find(path / 'checkpoint_9', 8)


@pytest.mark.parametrize(
    'name',
    [
        'checkpoint_3.tmp',
        'checkpoint_3.tmp-1700000000',
        'checkpoint_3.orbax-checkpoint-tmp-17',
    ],
)
def test_what_is_being_written_is_no_checkpoint(tmp_path, name):
  write_native(tmp_path / name, {BIAS: np.zeros((2, 7), np.float32)})
  path = epath.Path(tmp_path)
  assert t5x.find(path) is None
  assert t5x.find(path, 3) is None
  assert t5x.find(path / name) is None


def test_in_a_bucket_orbax_says_when_it_is_done(monkeypatch):
  there = {'gs://b/checkpoint_1/state/_METADATA'}
  path = epath.Path('gs://b/checkpoint_1')
  exists = lambda path: str(path) in there
  monkeypatch.setattr(type(path), 'exists', exists)
  monkeypatch.setattr(type(path), 'is_dir', lambda path: False)
  assert t5x.find(path) is None
  there.add('gs://b/checkpoint_1/commit_success.txt')
  assert t5x.find(path) == path


def test_where_there_is_nothing_nothing_is_found(tmp_path):
  assert t5x.find(epath.Path(tmp_path)) is None
  assert t5x.find(epath.Path(tmp_path), 5) is None
  assert t5x.find(epath.Path(tmp_path / 'absent')) is None


# What is refused.


def refused(folder, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    t5x.read(epath.Path(folder))
  assert str(folder) in str(caught.value)
  return str(caught.value)


def test_all_that_is_missing_or_left_over_is_named(tmp_path):
  arrays = random_arrays(CONFIG)
  norm = 'decoder/layers_1/pre_mlp_layer_norm/scale'
  wrong = 'encoder/layers_2/mlp/wo/kernel'
  del arrays[QUERY], arrays[norm]
  arrays['encoder/adapter/kernel'] = np.zeros((2, 2), np.float32)
  arrays[wrong] = arrays[wrong][:-1]
  folder = write_native(tmp_path / 'checkpoint_1', arrays)
  message = refused(folder, 'is not a complete T5')
  assert f'{QUERY} is missing' in message
  assert f'{norm} is missing' in message
  assert 'encoder/adapter/kernel is left over' in message
  assert f'{wrong} is (7, 6) but should be (8, 6)' in message


def test_a_missing_layer_is_named(tmp_path):
  arrays = random_arrays(CONFIG)
  arrays = {p: x for p, x in arrays.items() if 'encoder/layers_1/' not in p}
  folder = write_native(tmp_path / 'checkpoint_1', arrays)
  message = refused(folder, 'encoder/layers_1/mlp/wo/kernel is missing')
  assert 'layers_2' not in message


def test_stacks_of_unequal_depth_are_named(tmp_path):
  config = dataclasses.replace(CONFIG, relative_bias_per_layer=True)
  arrays = scanned(random_arrays(config), config)
  name = 'encoder/encoder/mlp/wo/kernel'
  arrays[name] = arrays[name][:, :2]
  folder = write_native(tmp_path / 'checkpoint_1', arrays)
  refused(folder, 'encoder/layers_2/mlp/wo/kernel is missing')


def test_another_architecture_is_refused(tmp_path):
  arrays = {'model/kernel': np.zeros((2, 2), np.float32)}
  folder = write_native(tmp_path / 'checkpoint_1', arrays)
  message = refused(folder, r'lacks token_embedder/embedding.*decoder/layers_0')
  assert 'It has model/kernel' in message
  names = {f'x_{i}/kernel': np.zeros((2,), np.float32) for i in range(7)}
  folder = write_native(tmp_path / 'checkpoint_2', names)
  refused(folder, 'x_4/kernel and 2 more')


def test_heads_that_do_not_divide_are_refused(tmp_path):
  arrays = random_arrays(CONFIG)
  for side in ('encoder', 'decoder'):
    path = f'{side}/relpos_bias/rel_embedding'
    arrays[path] = np.zeros((3, 7), np.float32)
  folder = write_native(tmp_path / 'checkpoint_1', arrays)
  refused(folder, 'has 3 heads .* 10 columns')


@pytest.mark.parametrize('version', [0, 1, 4, None])
def test_other_versions_are_refused(tmp_path, version):
  folder = tmp_path / 'checkpoint_1'
  write_native(folder, random_arrays(CONFIG))
  tree = serialization.msgpack_restore((folder / 'checkpoint').read_bytes())
  write_index(folder, {**tree, 'version': version})
  refused(folder, f'has version {version}; versions 2 and 3')


def test_version_2_is_read_where_it_means_the_same(tmp_path):
  folder = tmp_path / 'checkpoint_1'
  arrays = random_arrays(CONFIG)
  write_native(folder, arrays)
  tree = serialization.msgpack_restore((folder / 'checkpoint').read_bytes())
  write_index(folder, {**tree, 'version': 2})
  assert_same(t5x.read(folder).tensors, arrays)


def test_uint16_is_refused(tmp_path):
  arrays = random_arrays(CONFIG)
  arrays[QUERY] = arrays[QUERY].astype(np.uint16)
  folder = write_native(tmp_path / 'checkpoint_1', arrays)
  refused(folder, f'1 arrays .* such as {QUERY}, which is uint16')


def test_an_index_that_is_cut_off_is_refused(tmp_path):
  folder = write_native(tmp_path / 'checkpoint_1', random_arrays(CONFIG))
  index = folder / 'checkpoint'
  data = index.read_bytes()
  for length in (0, 1, 100, len(data) - 1):
    index.write_bytes(data[:length])
    message = refused(folder, 'is cut off or is not a checkpoint of t5x')
    assert str(index) in message


def test_a_missing_array_is_refused(tmp_path):
  folder = write_native(tmp_path / 'checkpoint_1', random_arrays(CONFIG))
  shutil.rmtree(folder / f'target.{QUERY.replace("/", ".")}')
  refused(folder, f'{QUERY} in .* cannot be read: .*does not exist')


def test_a_damaged_array_is_refused(tmp_path):
  folder = write_native(tmp_path / 'checkpoint_1', random_arrays(CONFIG))
  (folder / f'target.{QUERY.replace("/", ".")}/.zarray').write_text('{')
  refused(folder, f'{QUERY} in .* cannot be read: .*query.kernel/.zarray')


def test_lost_files_of_orbax_are_noticed(tmp_path):
  arrays = random_arrays(CONFIG)
  folder = write_orbax(tmp_path / 'checkpoint_1', arrays, use_ocdbt=False)
  array = folder / 'state' / f'target.{QUERY.replace("/", ".")}'
  (array / '0.0').unlink()
  with pytest.raises(errors.UserError, match='0.0" is missing'):
    t5x.read(folder).tensors[QUERY].all()
  array.rmtree()
  refused(folder, f'{QUERY} is missing')


@pytest.mark.parametrize('name', ['../elsewhere', '/', '..'])
def test_an_array_elsewhere_is_refused(tmp_path, name):
  folder = write_native(
      tmp_path / 'checkpoint_1',
      random_arrays(CONFIG),
      edit=with_kvstore(path=name),
  )
  refused(folder, 'which is not a folder next to it')


def test_what_is_no_checkpoint_is_refused(tmp_path):
  refused(tmp_path, 'neither the file checkpoint nor the folder state')
  write_index(tmp_path, {'version': 3, 'weights': {}})
  refused(tmp_path, 'has no entry optimizer')
  write_index(tmp_path, {'version': 3, 'optimizer': {'state': {}}})
  refused(tmp_path, 'has no parameters')
  (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-1"')
  refused(tmp_path, 'is of TensorFlow')


# Adafactor's state.


def refused_state(folder, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    t5x.read_adafactor(epath.Path(folder))
  assert str(folder) in str(caught.value)


def test_states_that_cannot_be_taken_over_are_refused(tmp_path):
  arrays = random_arrays(CONFIG)
  folder = write_native(tmp_path / 'checkpoint_1', arrays)
  refused_state(folder, 'has no state of an optimizer')
  one = np.zeros(1, np.float32)
  adam = {'step': np.int32(1), 'param_states': {'0': {'count': one}}}
  folder = write_native(tmp_path / 'checkpoint_2', arrays, more={'state': adam})
  refused_state(folder, r'is not Adafactor: its state has param_states/0/count')
  state = dict.fromkeys(('m', 'v', 'v_row', 'v_col'), one)
  stacked = {
      'step': np.int32(1),
      'param_states': {'encoder': {'encoder': {'mlp': {'kernel': state}}}},
  }
  folder = write_native(
      tmp_path / 'checkpoint_3', arrays, more={'state': stacked}
  )
  refused_state(folder, 'are scanned')


# Writing.


@pytest.mark.parametrize('name, model, steps', GOLDEN)
def test_what_was_written_is_read_again(shared, tmp_path, name, model, steps):
  del model
  folder = t5x.find(epath.Path(shared / 'golden/t5x/ckpt' / name))
  checkpoint = t5x.read(folder)
  state = t5x.read_adafactor(folder)
  written = t5x.write(
      epath.Path(tmp_path), checkpoint.tensors, steps, state.by_path
  )
  assert written == epath.Path(tmp_path) / f'checkpoint_{steps}'
  assert t5x.find(epath.Path(tmp_path)) == written
  assert [path.name for path in tmp_path.iterdir()] == [written.name]
  again = t5x.read(written)
  assert again.config == checkpoint.config
  assert again.step == steps
  assert_same(
      again.tensors, {p: t.all() for p, t in checkpoint.tensors.items()}
  )
  step, moments = t5x.read_adafactor(written)
  assert step == steps
  for path, arrays in state.by_path.items():
    for key, array in arrays.items():
      np.testing.assert_array_equal(moments[path][key], array, err_msg=path)


def test_the_files_are_those_of_t5x(shared, tmp_path):
  name = 't5v11_mid_adafactor_factored_native'
  folder = t5x.find(epath.Path(shared / 'golden/t5x/ckpt' / name))
  state = t5x.read_adafactor(folder)
  written = t5x.write(epath.Path(tmp_path), t5x.read(folder).tensors, *state)

  def files(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.glob('*')
        for path in (path.iterdir() if path.is_dir() else [path])
    )

  assert files(written) == files(folder)
  for array in folder.glob('*/.zarray'):
    ours = written / array.parent.name / '.zarray'
    assert json.loads(ours.read_text()) == json.loads(array.read_text())
  ours, theirs = (
      serialization.msgpack_restore((path / 'checkpoint').read_bytes())
      for path in (written, folder)
  )
  np.testing.assert_equal(ours, theirs)
  assert ours['optimizer']['state']['step'].dtype == np.int32


@pytest.mark.parametrize('model, steps', [g[1:] for g in GOLDEN[:2]])
def test_a_fresh_state_is_the_one_that_t5x_makes(
    shared, tmp_path, model, steps
):
  golden = shared / 'golden/t5x'
  with np.load(golden / f'{model}.params.npz') as arrays:
    tensors = as_tensors({path: arrays[path] for path in arrays})
  step, moments = t5x.read_adafactor(
      t5x.write(epath.Path(tmp_path), tensors, 7)
  )
  assert step == 7
  prefix = f'state{steps}/state/param_states/'
  with np.load(golden / f'{model}.adafactor_default.npz') as saved:
    for path in saved:
      if path.startswith(prefix):
        parameter, name = path.removeprefix(prefix).rsplit('/', 1)
        moment = moments[parameter].pop(name)
        assert (moment.shape, moment.dtype) == (saved[path].shape, np.float32)
        assert not moment.any()
  assert not any(moments.values())


def test_parameters_are_written_as_float32(tmp_path):
  arrays = random_arrays(CONFIG, ml_dtypes.bfloat16)
  folder = t5x.write(epath.Path(tmp_path), as_tensors(arrays), 0)
  expected = {path: x.astype(np.float32) for path, x in arrays.items()}
  assert_same(t5x.read(folder).tensors, expected)


def test_large_arrays_are_written_in_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(t5x_native, '_CHUNK_BYTES', 100)
  arrays = random_arrays(CONFIG)
  folder = t5x.write(epath.Path(tmp_path), as_tensors(arrays), 0)
  assert len(list((folder / 'target.token_embedder.embedding').iterdir())) == 7
  assert_same(t5x.read(folder).tensors, arrays)


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
  alive, counts = weakref.WeakSet(), []

  class Block(np.ndarray):
    __hash__ = object.__hash__
    __eq__ = object.__eq__

  def tensor(array):
    def read(index):
      block = array[index].copy().view(Block)
      alive.add(block)
      counts.append(len(alive))
      return block

    return tensors_lib.Tensor(array.shape, array.dtype, read)

  arrays = random_arrays(CONFIG)
  tensors = {path: tensor(array) for path, array in arrays.items()}
  t5x.write(epath.Path(tmp_path), tensors, 0)
  assert len(counts) == len(arrays)
  assert max(counts) == 1


def test_a_checkpoint_is_not_overwritten(tmp_path):
  tensors = as_tensors(random_arrays(CONFIG))
  t5x.write(epath.Path(tmp_path), tensors, 3)
  with pytest.raises(errors.UserError, match='checkpoint_3 exists already'):
    t5x.write(epath.Path(tmp_path), tensors, 3)


def test_an_interrupted_checkpoint_is_none_and_is_written_anew(tmp_path):
  arrays = random_arrays(CONFIG)
  tensors = as_tensors(arrays)

  def fail(index):
    raise OSError('no space left')

  failing = tensors_lib.Tensor((6,), np.dtype(np.float32), fail)
  last = list(tensors)[-1]
  path = epath.Path(tmp_path)
  with pytest.raises(OSError, match='no space left'):
    t5x.write(path, {**tensors, last: failing}, 3)
  assert t5x.find(path) is None
  assert_same(t5x.read(t5x.write(path, tensors, 3)).tensors, arrays)
  assert [child.name for child in path.iterdir()] == ['checkpoint_3']


def test_a_state_of_other_parameters_is_not_written(tmp_path):
  path = epath.Path(tmp_path)
  tensors = as_tensors(random_arrays(CONFIG))
  _, moments = t5x.read_adafactor(t5x.write(path, tensors, 1))
  bias = moments.pop(BIAS)
  with pytest.raises(errors.UserError, match=f'{BIAS}/v is missing'):
    t5x.write(path, tensors, 2, moments)
  moments[BIAS] = {**bias, 'v': bias['v'][:1]}
  with pytest.raises(errors.UserError, match=rf'{BIAS}/v is \(1, 7\) but'):
    t5x.write(path, tensors, 2, moments)
  moments[BIAS] = {'v': bias['v']}
  with pytest.raises(errors.UserError, match=f'{BIAS}/m is missing'):
    t5x.write(path, tensors, 2, moments)
  moments[BIAS] = {**bias, 'm': np.ones_like(bias['v'])}  # with momentum
  _, again = t5x.read_adafactor(t5x.write(path, tensors, 2, moments))
  np.testing.assert_array_equal(again[BIAS]['m'], np.ones((2, 7)))
