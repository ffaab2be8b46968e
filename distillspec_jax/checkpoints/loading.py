"""Loading a model: parameters, network and vocabulary from a folder."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import sources
from distillspec_jax.core import types
from distillspec_jax.data import vocabularies
from distillspec_jax.distributed import layouts
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import int8
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer as transformer_lib


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model that was loaded, with its vocabulary and name.

  Attributes:
    model: network and parameters.
    vocabulary: text <-> tokens, or None.
    name: for tables and messages.
  """

  model: model_lib.Model
  vocabulary: Any = None
  name: str = 'model'

  @property
  def config(self) -> config_lib.T5Config:
    return self.model.config

  def logits(
      self,
      inputs: jax.Array,
      decoder_inputs: jax.Array,
      inputs_mask: jax.Array | None = None,
      encoded: jax.Array | None = None,
  ) -> jax.Array:
    """Teacher-forced logits float32[B, T, V].

    Args:
      inputs: int32[B, S].
      decoder_inputs: int32[B, T], already shifted right: they start with 0.
      inputs_mask: bool[B, S]; default: inputs are padded with 0.
      encoded: float[B, S, E] the encoder's output; only a draft that shares its
        target's encoder needs it, see `models.model.with_shared_encoding`.

    Raises:
      UserError: such a draft without it.
    """
    inputs = jnp.asarray(inputs, jnp.int32)
    mask = inputs != 0 if inputs_mask is None else jnp.asarray(inputs_mask)
    prompt = types.Prompt(inputs, mask.astype(jnp.int32), encoded)
    return _logits(self.model, prompt, jnp.asarray(decoder_inputs, jnp.int32))


@jax.jit
def _logits(model, prompt, decoder_inputs):
  segments = jnp.ones_like(decoder_inputs)
  return model.logits(prompt, decoder_inputs, segments).astype(jnp.float32)


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    dtype: str | None = None,
    param_dtype: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    scan_layers: bool | None = None,
    mesh: jax.sharding.Mesh | None = None,
    layout: layouts.Rules = layouts.SHARDED,
    allow_nonfinite: bool = False,
) -> Loaded:
  """The model in a folder of any supported format.

  Args:
    path: a model folder of this package, or a run's folder, whose best
      checkpoint is taken; a Hugging Face folder with safetensors, or the name
      of a repository in the local cache; a t5x checkpoint, or a folder of
      several, whose latest is taken. Local, or in a bucket ('gs://...').
    step: takes the checkpoint of that step instead, of a run or of t5x.
    dtype: of the computation, 'float32' or 'bfloat16'; default: as saved, and
      float32 for formats that do not record it.
    param_dtype: of the parameters in memory, 'float32' or 'bfloat16'; default:
      as on disk.
    vocabulary: where it is, if not in the folder: a SentencePiece .model file,
      a tokenizer.json, another folder, or 'bytes'.
    weights: 'int8' stores kernels and the embedding in a quarter of the bytes
      of float32 and multiplies in int8; 'int8_weight_only' only stores them so.
      Either is an approximation of the saved model that can decode and score,
      but be neither trained nor saved. Default: as saved.
    scan_layers: whether layers are stacked and scanned, or unrolled; default:
      as saved.
    mesh: lays the parameters out on it, each device reading its own shard;
      default: the current mesh (`jax.set_mesh`), or else the first device.
    layout: over which mesh axes, see `distributed.layouts.rules`.
    allow_nonfinite: accepts parameters that are nan or infinite.

  Raises:
    UserError: there is no model, or it is incomplete, or does not fit its
      configuration.
  """
  if not isinstance(mesh, jax.sharding.Mesh | None):
    raise errors.UserError(f'mesh is {mesh!r}; give a jax.sharding.Mesh.')
  layout = layouts.rules(layout)
  folder = sources.resolve(path)
  loaded = place(
      read(folder, step),
      str(path),
      dtype=dtype,
      param_dtype=param_dtype,
      weights=weights,
      scan_layers=scan_layers,
      mesh=mesh,
      layout=layout,
      allow_nonfinite=allow_nonfinite,
  )
  return dataclasses.replace(
      loaded,
      vocabulary=find_vocabulary(folder, loaded.config.vocab_size, vocabulary),
  )


def place(
    checkpoint: parameters.Checkpoint,
    name: str,
    *,
    dtype: str | None = None,
    param_dtype: str | None = None,
    weights: str | None = None,
    scan_layers: bool | None = None,
    mesh: jax.sharding.Mesh | None = None,
    layout: layouts.Rules = layouts.SHARDED,
    allow_nonfinite: bool = False,
) -> Loaded:
  """A checkpoint's model, without vocabulary; arguments as in `load`."""
  check.one_of((None, 'float32', 'bfloat16'), param_dtype=param_dtype)
  weights = 'float' if weights is None else weights
  int8.check(weights)
  config = checkpoint.config
  wrong = parameters.mismatches(checkpoint.tensors, parameters.shapes(config))
  if wrong:
    raise errors.UserError(
        f'The parameters in {name} do not fit its configuration: {wrong}.'
    )
  if dtype is not None:
    config = dataclasses.replace(config, dtype=dtype)
  network = transformer_lib.Transformer(
      dataclasses.replace(config, weights=weights), layout
  )
  if mesh is None and not jax.sharding.get_mesh().empty:
    mesh = jax.sharding.get_mesh()
  shardings = quantize = None
  if mesh is not None:
    shardings = tensors.flatten(network.shardings(mesh))
  if weights != 'float':
    quantize = functools.partial(int8.quantize, shardings=shardings)
  try:
    params = tensors.place(
        checkpoint.tensors,
        shardings,
        dtype=param_dtype,
        transform=quantize,
        expected=checkpoint.checksums,
        allow_nonfinite=allow_nonfinite,
    )
  except errors.UserError as error:
    raise errors.UserError(f'{name}: {error}') from error
  if scan_layers not in (None, config.scan_layers):
    config = dataclasses.replace(network.config, scan_layers=scan_layers)
    network = transformer_lib.Transformer(config, layout)
    if mesh is not None:
      shardings = tensors.flatten(network.shardings(mesh))
    params = parameters.with_layers(params, bool(scan_layers), shardings)
  model = model_lib.Model(tensors.unflatten(params), network)
  return Loaded(model, None, name)


def find_vocabulary(
    folder: epath.Path,
    vocab_size: int,
    given: str | os.PathLike[str] | None = None,
) -> Any | None:
  """The vocabulary that is given, or else the one in the folder, or None."""
  if given is not None:
    return vocabularies.load(given, vocab_size)
  return vocabularies.load_from(folder, vocab_size)


def read(folder: epath.Path, step: int | None = None) -> parameters.Checkpoint:
  """The checkpoint in a folder of any format; parameters are read lazily.

  Raises:
    UserError: there is none; the message says what was looked for.
  """
  if model_folder.is_checkpoint(folder):
    return model_folder.read(folder, step)
  checkpoint = t5x.find(folder, step)
  if checkpoint is not None:
    return t5x.read(checkpoint)
  if hugging_face.is_checkpoint(folder):
    if step is not None:
      raise errors.UserError(
          f'step is {step}, but {folder} is a Hugging Face folder, which has no'
          ' steps; leave step out.'
      )
    return hugging_face.read(folder)
  raise errors.UserError(
      f'{folder} holds no model. Looked for: model.json and params/, there or'
      ' in best/ (a model or a run of this package); config.json and'
      ' model.safetensors (Hugging Face); checkpoint_STEP/ or a file checkpoint'
      f' (t5x).{_question(folder)}'
  )


def _question(folder: epath.Path) -> str:
  """Asks for one of the models inside a local folder, such as a study's."""
  inside = [] if '://' in str(folder) else ['*', '*/*']
  models = [
      str(path)
      for pattern in inside
      for path in sorted(folder.glob(pattern))
      if model_folder.is_checkpoint(path) or hugging_face.is_checkpoint(path)
  ]
  return f' Did you mean {" or ".join(models[:3])}?' if models else ''


def check_encoder(target: Loaded, draft: Loaded) -> None:
  """Raises UserError where the draft would share an encoder that is not there.

  Args:
    target: must have an encoder of its own if the draft has none.
    draft: any model.
  """
  if target.config.shares_encoder:
    raise errors.UserError(
        f'The target {target.name} has no encoder of its own: it is a draft'
        " that reads its target's. Name the model that it was trained for."
    )
  width = draft.config.encoded_dim
  if not width:
    return
  if target.config.is_decoder_only:
    raise errors.UserError(
        f"The draft {draft.name} reads its target's encoder output, but the"
        f' target {target.name} is decoder-only. Use a decoder-only draft.'
    )
  if target.config.emb_dim != width:
    raise errors.UserError(
        f'The draft {draft.name} reads an encoder output of width {width}, but'
        f' that of the target {target.name} is {target.config.emb_dim} wide.'
        ' Name the target that the draft was trained for.'
    )


def check_pair(target: Loaded, draft: Loaded) -> None:
  """Raises UserError where the draft cannot propose for the target.

  Both must have the same tokens. Sizes may differ by padding rows, which no
  token of the vocabulary has: T5 has 32,100 tokens and 32,128 rows. A draft
  that shares an encoder must have been trained for one as wide as the target's.
  """
  check_encoder(target, draft)
  if target.config.is_decoder_only != draft.config.is_decoder_only:
    raise errors.UserError(
        f'One of {target.name} and {draft.name} is decoder-only, the other is'
        ' not; both must be of one kind.'
    )
  known = [x.vocabulary for x in (target, draft) if x.vocabulary is not None]
  if len(known) == 2 and not vocabularies.same(*known):
    raise errors.UserError(
        f'The vocabularies of the target {target.name} and the draft'
        f' {draft.name} differ: the same token id stands for different text.'
        ' Train the draft with the vocabulary of the target.'
    )
  a, b = target.config.vocab_size, draft.config.vocab_size
  if a == b:
    return
  # Neither model may emit what the other has no row for, so that the target
  # would lose any token from here on.
  tokens = max((vocabularies.size(x) for x in known), default=max(a, b))
  if tokens > min(a, b):
    limit = (
        f'their vocabulary has {tokens} tokens'
        if known
        else 'neither has a vocabulary that would say which are padding'
    )
    raise errors.UserError(
        f'The target {target.name} has {a} tokens and the draft {draft.name}'
        f' has {b}, and {limit}. Speculative decoding compares them token by'
        ' token; only padding may differ. Train the draft with the vocabulary'
        ' of the target, or load the models with theirs.'
    )
