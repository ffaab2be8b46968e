"""Files that nobody wrote in good faith: one clear error, and no waiting."""

import json
import os
import pathlib
import shutil

from etils import epath
from flax import serialization
import pytest

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from distillspec_jax.data import vocabularies
from tests import tiny

MODEL = tiny.model(tiny.BYTES)
KERNEL = 'target.decoder.layers_0.mlp.wo.kernel'


@pytest.fixture(name='folders', scope='module')
def _folders(tmp_path_factory):
  """A model in each format."""
  root = tmp_path_factory.mktemp('formats')
  tensors = {
      path: tensors_lib.from_array(x)
      for path, x in tensors_lib.flatten(MODEL.params).items()
  }
  tiny.save(root / 'ours', MODEL)
  vocabularies.save(vocabularies.load('bytes'), root / 'ours')
  (root / 'theirs').mkdir()
  hugging_face.write(epath.Path(root / 'theirs'), MODEL.config, tensors)
  (root / 'theirs' / 'tokenizer_config.json').write_text(
      '{"tokenizer_class": "ByT5Tokenizer"}'
  )
  written = t5x.write(epath.Path(root / 'steps'), tensors, 3)
  return {
      'ours': root / 'ours',
      'theirs': root / 'theirs',
      't5x': pathlib.Path(os.fspath(written)),
  }


@pytest.fixture(name='copy')
def _copy(folders, tmp_path):
  """Copies the folder of a format, without checksums."""
  without = shutil.ignore_patterns('checksums.json')
  return lambda name: shutil.copytree(
      folders[name], tmp_path / folders[name].name, ignore=without
  )


@pytest.mark.parametrize(
    'name, file',
    [
        ('ours', 'model.json'),
        ('ours', 'vocabulary.json'),
        ('ours', 'params/_METADATA'),
        ('ours', 'params/manifest.ocdbt'),
        ('theirs', 'config.json'),
        ('theirs', 'model.safetensors'),
        ('theirs', 'tokenizer_config.json'),
        ('t5x', 'checkpoint'),
        ('t5x', f'{KERNEL}/.zarray'),
        ('t5x', f'{KERNEL}/0.0'),
    ],
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(copy, name, file):
  folder = copy(name)
  (folder / file).unlink()
  os.mkfifo(folder / file)
  with pytest.raises(errors.UserError, match=f'{file} is a pipe or a device'):
    loading.load(folder)


def test_a_pipe_among_files_with_checksums_is_not_waited_for(folders, tmp_path):
  folder = shutil.copytree(folders['ours'], tmp_path / 'ours')
  for file in ('model.json', 'checksums.json'):
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(errors.UserError, match=f'{file} is a pipe or a dev'):
      loading.load(folder)


@pytest.mark.parametrize('file', ['config.json', 'model.safetensors'])
def test_a_folder_in_place_of_a_file_is_named(copy, file):
  folder = copy('theirs')
  (folder / file).unlink()
  (folder / file).mkdir()
  with pytest.raises(errors.UserError, match=f'{file} cannot be read: it is a'):
    loading.load(folder)


@pytest.mark.parametrize(
    'name, changes, message',
    [
        ('ours', {'num_decoder_layers': 10**9}, 'must be at most 4096'),
        ('ours', {'vocab_size': 10**12}, 'vocab_size is 10+; it must be at m'),
        (
            'ours',
            {'mlp_activations': ['relu'] * 99},
            'has 99 entries; give one',
        ),
        ('theirs', {'num_layers': 10**9}, 'encoder_layers is 10+; it must be'),
        ('theirs', {'d_model': 10**400}, 'emb_dim is 10+[.]*; it must be at m'),
    ],
)
def test_sizes_beyond_any_model_are_refused(copy, name, changes, message):
  folder = copy(name)
  path = folder / ('model.json' if name == 'ours' else 'config.json')
  values = json.loads(path.read_text())
  (values['config'] if name == 'ours' else values).update(changes)
  path.write_text(json.dumps(values))
  with pytest.raises(errors.UserError, match=message):
    loading.load(folder)


@pytest.mark.parametrize(
    'file', ['model.json', 'vocabulary.json', 'params/_METADATA']
)
def test_deep_nesting_is_damage(copy, file):
  folder = copy('ours')
  (folder / file).write_text('[' * 200_000)
  with pytest.raises(errors.UserError, match='is damaged .*Recursion'):
    loading.load(folder)


@pytest.mark.parametrize(
    'values, message',
    [
        ({'kind': 'bytes', 'files': ['../model.json']}, 'not in the folder'),
        ({'kind': 'sentencepiece', 'model': '/x'}, 'not in the folder'),
        ({'kind': 'bytes', 'files': [5]}, 'is damaged'),
        ({'kind': 'bytes', 'tokens': 5}, 'is damaged'),
        ([], 'is damaged'),
    ],
)
def test_a_vocabulary_reads_its_own_folder_alone(copy, values, message):
  folder = copy('ours')
  (folder / 'vocabulary.json').write_text(json.dumps(values))
  with pytest.raises(errors.UserError, match=message):
    loading.load(folder)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'chunks': [10**12, 10**12]}, 'kernel in .* cannot be read'),
        ({'chunks': [10**9, 10**9]}, 'its chunks would have 10+ elements'),
        ({'chunks': [10**12, 1]}, 'its chunks would have 10+ elements'),
        ({'shape': [10**12, 16]}, r'is \(10+, 16\) but should be \(32, 16\)'),
    ],
)
def test_chunks_beyond_the_memory_are_refused(copy, changes, message):
  folder = copy('t5x')
  path = folder / KERNEL / '.zarray'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(errors.UserError, match=message):
    loading.load(folder)


@pytest.mark.parametrize(
    'store', [{'path': 5}, {'path': '../x'}, 'file:///etc/x', 5, None, {}]
)
def test_an_index_names_folders_beside_it(copy, store):
  folder = copy('t5x')
  tree = serialization.msgpack_restore((folder / 'checkpoint').read_bytes())
  leaf = tree['optimizer']['target']['decoder']['layers_0']['mlp']['wo']
  leaf['kernel']['kvstore'] = store
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize(tree))
  with pytest.raises(errors.UserError, match='which is not a folder next to'):
    loading.load(folder)


@pytest.mark.parametrize('path', [None, 5, b'x', 'x' * 5000, 'x/' * 5000])
def test_paths_of_other_kinds_are_refused(path):
  with pytest.raises(errors.UserError, match='(The path|no folder)'):
    loading.load(path)


def test_a_mesh_and_a_layout_are_checked(folders):
  with pytest.raises(errors.UserError, match="mesh is 'x'; give a jax.shard"):
    loading.load(folders['ours'], mesh='x')
  with pytest.raises(errors.UserError, match="Unknown layout 'x'"):
    loading.load(folders['ours'], layout='x')
  with pytest.raises(errors.UserError, match='layout is 5; give'):
    loading.load(folders['ours'], layout=5)
