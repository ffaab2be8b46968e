"""Models of every kind as Hugging Face folders, with the logits of ours.

Runs in the project's environment; `check_exported.py` then loads the folders
with transformers itself. One of the models is distilled here first.

    python benchmarks/hugging_face/export.py FOLDER
"""

import json
import pathlib
import sys

import jax
import numpy as np

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.training import loop
from distillspec_jax.training import method
from distillspec_jax.training import optimizers
from distillspec_jax.training import settings

SIZES = {
    'vocab_size': 384,
    'emb_dim': 64,
    'num_heads': 4,
    'head_dim': 24,
    'mlp_dim': 96,
    'num_encoder_layers': 3,
    'num_decoder_layers': 2,
}
KINDS = {
    't5_1_0': {'mlp_activations': ('relu',), 'logits_via_embedding': True},
    't5_1_1': {},
    'tied_and_unscaled': {'logits_via_embedding': True, 'scale_logits': False},
    'untied_and_scaled': {'scale_logits': True},
    'gated_relu': {'mlp_activations': ('relu', 'linear')},
    'gated_silu': {'mlp_activations': ('silu', 'linear')},
    'plain_gelu': {'mlp_activations': ('gelu_exact',)},
    'plain_gelu_tanh': {'mlp_activations': ('gelu',)},
    'other_buckets': {'relative_buckets': 16, 'relative_max_distance': 40},
    'other_epsilon': {'norm_epsilon': 1e-3},
    'scanned': {'scan_layers': True},
    'umt5': {
        'relative_bias_per_layer': True,
        'logits_via_embedding': True,
    },
}
TEXTS = ['one two three four five six', 'the quick brown fox', 'aaa bbb ccc']


def main(folder: pathlib.Path) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  vocabulary = vocabularies.load('bytes')
  for number, (kind, changes) in enumerate(KINDS.items()):
    config = config_lib.T5Config(**{**SIZES, **changes})
    # transformers has no byte tokenizer for umT5.
    words = None if kind == 'umt5' else vocabulary
    save(folder / kind, config, number, words)
    export(folder, kind)
  distil(folder)
  export(folder, 'distilled')


def save(folder, config, seed, vocabulary) -> None:
  """A model folder with random weights, its norms away from 1."""
  params = transformer_lib.Transformer(config).init(jax.random.key(seed))
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
      lambda x: x * rng.uniform(0.6, 1.6, x.shape).astype(np.float32), params
  )
  model_folder.save_model(
      folder,
      config.to_dict(),
      params,
      step=0,
      also=lambda path: vocabulary and vocabularies.save(vocabulary, path),
  )


def distil(folder: pathlib.Path) -> None:
  """A draft that came from a Hugging Face folder, after ten steps."""
  lines = [{'inputs': text, 'labels': text[::-1]} for text in TEXTS * 8]
  data = folder / 'data.jsonl'
  data.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  exported = str(folder / 't5_1_1' / 'hugging_face')
  loop.train(
      run=str(folder / 'distilled'),
      task=tasks.json_lines(
          train=str(data), validation=str(data),
          input_length=32, label_length=32,
      ),
      training=settings.Training(
          start=settings.Start(checkpoint=exported),
          target=settings.Target(
              checkpoint=str(folder / 't5_1_0' / 'hugging_face')
          ),
          method=method.Method(divergence='forward_kl'),
          optimizer=optimizers.Optimizer(learning_rate=1e-2),
          steps=settings.Steps(num_steps=10, batch_size=8),
          validation=settings.Validation(examples=8),
      ),
  )  # fmt: skip


def export(folder: pathlib.Path, kind: str) -> None:
  """FOLDER/KIND -> FOLDER/KIND/hugging_face, with logits.npz beside it."""
  print(f'--- {kind}')
  source = str(folder / kind)
  converted = conversion.convert(
      source, f'{source}/hugging_face', to='hugging_face'
  )
  print(conversion.report(converted))
  model = loading.load(source)
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, model.config.vocab_size, (3, 200))
  mask = np.arange(200) < np.array([[200], [131], [7]])
  decoder_inputs = rng.integers(2, model.config.vocab_size, (3, 150))
  decoder_inputs[:, 0] = 0
  tokens = []
  if model.vocabulary is not None:
    tokens = [model.vocabulary.encode(text) for text in TEXTS]
  np.savez(
      converted.folder / 'logits.npz',
      inputs=inputs,
      mask=mask,
      decoder_inputs=decoder_inputs,
      logits=model.logits(inputs, decoder_inputs, mask),
      texts=np.array(TEXTS),
      tokens=np.array(json.dumps(tokens)),
  )


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
