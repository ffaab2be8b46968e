"""The parts of XLA's HloModuleProto that a plan needs.

The compiler hands out a program as a protocol buffer, whose Python classes are
part of TensorFlow, which this package does without. Protocol buffers skip what
they do not know, and the number of a field never changes
(xla/service/hlo.proto, xla/xla_data.proto), so the fields that are read are
declared here.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory

# Messages and their fields, NAME=NUMBER:TYPE; * marks repeated ones, and types
# are int64 unless given. Names are XLA's own, shortened here and there.
_MESSAGES = """
Module  computations=3:*Computation  entry_id=6
Computation  name=1:string  instructions=2:*Instruction  id=5  root_id=6
Instruction  name=1:string  opcode=2:string  shape=3:Shape  metadata=7:Metadata
  literal=8:Literal  parameter_number=9  tuple_index=13  window=15:Window
  convolution=16:Convolution  dot=30:Dot  id=35  operand_ids=36:*int64
  called_computation_ids=38:*int64  backend_config=43:bytes
  replica_groups=49:*ReplicaGroup  source_target_pairs=52:*Pair
  custom_call_target=28:string  comparison_direction=63:string
  device_list=87:DeviceList
  iota_groups=92:IotaGroups  mesh_groups=93:MeshGroups
Shape  element_type=2  dimensions=3:*int64  tuple_shapes=4:*Shape
  layout=5:Layout
Layout  memory_space=8
Metadata  op_name=2:string
Literal  s32s=4:*int32  s64s=5:*int64  u32s=6:*uint32  u64s=7:*uint64
Window  dimensions=1:*WindowDimension
WindowDimension  stride=2  padding_low=3  window_dilation=5  base_dilation=6
Convolution  kernel_input_feature=3  kernel_output_feature=4
  kernel_spatial=6:*int64  output_batch=9  input_spatial=11:*int64
  output_spatial=12:*int64
Dot  lhs_contracting=1:*int64
Pair  source=1  target=2
ReplicaGroup  ids=1:*int64
DeviceList  replica_groups=1:*ReplicaGroup  iota_groups=2:IotaGroups
IotaGroups  count=1  size=2  dims=3:*int64  order=4:*int32
MeshGroups  mesh=1:Mesh  axes=2:*AxisRef
Mesh  axes=1:*MeshAxis  device_ids=2:*int64  iota=3:Iota
Iota  dims=1:*int64  order=2:*int32
MeshAxis  size=2
AxisRef  index=1  part=2:AxisPart
AxisPart  pre_size=1  size=2
"""


def parse(data: bytes) -> Any:
  """The module, with the fields above; absent ones have protobuf's defaults."""
  return _module_class().FromString(data)


@functools.cache
def _module_class() -> Any:
  file = descriptor_pb2.FileDescriptorProto(
      name='distillspec_jax/hlo.proto', package='hlo', syntax='proto3'
  )
  for word in _MESSAGES.split():
    name, is_field, declared = word.partition('=')
    if not is_field:
      message = file.message_type.add(name=name)
      continue
    number, _, kind = declared.partition(':')
    label = 'LABEL_REPEATED' if kind.startswith('*') else 'LABEL_OPTIONAL'
    kind = kind.removeprefix('*') or 'int64'
    field = message.field.add(name=name, number=int(number), label=label)
    if kind[0].isupper():
      field.type, field.type_name = field.TYPE_MESSAGE, f'.hlo.{kind}'
    else:
      field.type = field.Type.Value(f'TYPE_{kind.upper()}')
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
      pool.FindMessageTypeByName('hlo.Module')
  )
