"""A network without its parameters: configuration, layout, and how to apply it.

No Flax object leaves this folder. `Transformer` is static: functions compiled
for one are reused for every equal one. `model.Model` puts parameters beside it
and is what the other stages work with.
"""

from __future__ import annotations

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.core import types
from distillspec_jax.distributed import layouts
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import layers
from distillspec_jax.models import t5


class Transformer:
  """The network of one configuration in one layout; holds no parameters.

  Two instances of equal configuration and layout are equal, so that a function
  jitted for one is not compiled again for the other.
  """

  def __init__(
      self,
      config: config_lib.T5Config,
      layout: layouts.Rules = layouts.SHARDED,
      scans_decoder: bool = True,
  ):
    """Takes the sizes, and the rules that lay its arrays out on a mesh.

    Args:
      config: sizes and options.
      layout: from `layouts.rules`.
      scans_decoder: whether `config.scan_layers` holds for the decoder, too.
    """
    self.config = config
    self.layout = layout
    self.scans_decoder = config.scan_layers and scans_decoder
    self._module = t5.T5(config, self.scans_decoder)

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, Transformer) and self._key() == other._key()

  def __hash__(self) -> int:
    return hash(self._key())

  def _key(self) -> tuple[config_lib.T5Config, layouts.Rules, bool]:
    return self.config, self.layout, self.scans_decoder

  def init(
      self, key: jax.Array, mesh: jax.sharding.Mesh | None = None
  ) -> types.Params:
    """New parameters, float32, named as in t5x.

    Args:
      key: PRNG key.
      mesh: where to lay them out while they are created; None: one device.

    Raises:
      UserError: the configuration asks for int8 weights.
    """
    self.config.require_float('trained or initialised')
    shardings = None if mesh is None else self.shardings(mesh)
    create = jax.jit(
        lambda key: nn.meta.unbox(self._boxed(key)), out_shardings=shardings
    )
    return create(key)

  @functools.cached_property
  def _abstract(self) -> Any:
    return jax.eval_shape(self._boxed, jax.random.key(0))

  def abstract(self) -> types.Params:
    """The parameters' shapes and dtypes; nothing is allocated."""
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    return jax.tree.map(lambda box: box.value, self._abstract, is_leaf=is_box)

  def logical_axes(self) -> Any:
    """The parameters' logical axes, `PartitionSpec` leaves."""
    return nn.get_partition_spec(self._abstract)

  def shardings(self, mesh: jax.sharding.Mesh) -> Any:
    """The parameters' layout on a mesh, `NamedSharding` leaves."""
    return layouts.shardings(
        mesh, self.abstract(), self.logical_axes(), self.rules(mesh)
    )

  @property
  def is_tensor_parallel(self) -> bool:
    """Whether it is sharded over the axis `tensor` of the current mesh."""
    return layouts.lies_on(self.layout, 'tensor')

  def rules(self, mesh: Any) -> layouts.Rules:
    """The layout on a mesh; a single head is never split over devices."""
    if not self.config.num_heads % mesh.shape.get('tensor', 1):
      return self.layout
    return tuple(
        (name, None if name in ('heads', 'joined_kv') else axes)
        for name, axes in self.layout
    )

  def apply(self, params: types.Params, *args: Any, method: str) -> Any:
    """Calls a method of the Flax module, with the layout's rules in force."""
    mesh = jax.sharding.get_abstract_mesh()
    with nn.logical_axis_rules(() if mesh.empty else self.rules(mesh)):
      return self._module.apply({'params': params}, *args, method=method)

  def trimmed_vocabulary(
      self, size: int | None = None
  ) -> trimmed_vocabulary.TrimmedVocabulary:
    """Which tokens `unembed` has logits for; only those below `size`."""
    return trimmed_vocabulary.TrimmedVocabulary(
        self.config.trimmed_vocabulary,
        self.config.vocab_size if size is None else size,
    )

  def constrain(
      self, array: jax.Array, names: tuple[str, ...], gather_fsdp: bool = False
  ) -> jax.Array:
    """The array with its logical axes laid out on the current mesh, if any.

    Args:
      array: traced.
      names: its logical axes.
      gather_fsdp: whether to shard nothing but rows over the axis fsdp.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
      return array
    rules = self.rules(mesh)
    if gather_fsdp:
      rules = layouts.gathered(rules)
    return layouts.constrain(array, names, rules)

  def _boxed(self, key: jax.Array) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return self._module.init(key, tokens, tokens, method='init_all')['params']

  def compute_dtype(self) -> Any:
    return layers.compute_dtype(self.config)
