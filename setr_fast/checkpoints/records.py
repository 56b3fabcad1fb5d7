"""Tensors from the calls that torch's and NumPy's pickles ask for; each is read into memory of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr_fast.checkpoints.faults import Unusable, is_shape, shortened
from setr_fast.checkpoints.reading import Reading
from setr_fast.checkpoints.unpickle import Buffer, Call, Global, PersistentId, Span

DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
NUMPY_DTYPES = {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"}
_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
_ENCODE = Global("_codecs", "encode")
_TUPLES = {Global("builtins", "tuple"), Global("__builtin__", "tuple")}
NUMPY = {*(Global(core, "_reconstruct") for core in _CORES), Global("numpy", "ndarray"), Global("numpy", "dtype")}
_BYTES = {Global("builtins", "bytes"), Global("__builtin__", "bytes")}
NUMPY |= {_ENCODE, *_BYTES}  # how protocol 2 writes the bytes of an array, and no bytes
PADDLE = NUMPY | _TUPLES | {Global("collections", "OrderedDict")}
_UTILS = "torch._utils"
_PARAMETERS = {Global(_UTILS, "_rebuild_parameter"), Global(_UTILS, "_rebuild_parameter_with_state")}
_TENSORS = {Global(_UTILS, "_rebuild_tensor_v2"), Global(_UTILS, "_rebuild_tensor")}
TORCH = {
    *NUMPY,
    *_PARAMETERS,
    *_TENSORS,
    *(Global("torch", f"{name}Storage") for name in DTYPES),
    *(Global(builtins, name) for builtins in ("builtins", "__builtin__") for name in ("set", "dict", "bytearray")),
    Global("collections", "OrderedDict"),
    Global("collections", "defaultdict"),
    Global("collections", "Counter"),
    Global("torch", "Size"),
    Global("torch", "device"),
    # What training loops leave beside the weights. Nothing of it is used, so that nothing of it needs its class.
    *(Global(core, "scalar") for core in _CORES),
    *(Global("numpy.dtypes", f"{kind}DType") for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    Global("argparse", "Namespace"),
    *(
        Global(module, f"{pure}{kind}Path")
        for module in ("pathlib", "pathlib._local")  # the second is Python 3.13's name for it
        for pure in ("", "Pure")
        for kind in ("Posix", "Windows")
    ),
    Global("mmengine.logging.history_buffer", "HistoryBuffer"),
}
Storages = Callable[[Any, int, torch.dtype], Tensor]
"""Key, number of elements and dtype of a storage to its elements."""


def is_tensor(value: Any) -> bool:
    """Tell whether ``to_tensor`` is meant for a value."""
    return isinstance(value, Call) and (value.function in _PARAMETERS | _TENSORS or value.function in NUMPY)


def to_tensor(name: str, value: Any, storages: Storages | None, reading: Reading, data: Buffer) -> Tensor:
    """Make the tensor that one entry of a state dict asks for; it holds its values after ``reading.run``.

    Raises: Unusable for what is no dense tensor, and for views that leave their storage or repeat its elements.
    """
    if isinstance(value, Call) and value.function in _PARAMETERS and value.args:
        value = value.args[0]
    if storages and isinstance(value, Call) and value.function in _TENSORS:
        return _torch_tensor(name, value.args, storages)
    if isinstance(value, Call) and value.function.name == "_reconstruct":
        return array_tensor(name, value, reading, data)
    raise Unusable(f"{shortened(name)} must be a dense tensor, got {_kind(value)}", "save only the state dict")


def _torch_tensor(name: str, args: tuple[Any, ...], storages: Storages) -> Tensor:
    told = shortened(name)
    match args:
        case (
            PersistentId(("storage", Global("torch", kind), key, _, int(count), *view)),
            int(offset),
            size,
            stride,
            *_,
        ):
            dtype = DTYPES[kind.removesuffix("Storage")]
        case _:
            raise Unusable(f"{told} must be a tensor in a storage, got {shortened(args)}")
    if view and view[0] is not None:  # torch before 0.4 could save a storage inside another
        raise Unusable(f"{told} must have a storage of its own, got a view of another", "save the file again")
    if not is_shape(size) or not _whole_numbers(stride) or len(size) != len(stride) or min(offset, count) < 0:
        raise Unusable(f"{told} must have a shape and strides, got {shortened((size, stride, offset))}")
    elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else 0
    if elements > count or (elements and last >= count):
        raise Unusable(f"{told} must fit its storage of {count} elements, got shape {list(size)} and strides {stride}")
    storage = storages(key, count, dtype)
    return torch.as_strided(storage, tuple(size), tuple(stride), offset if elements else 0)


def array_tensor(name: str, value: Any, reading: Reading, data: Buffer, turn: bool = False) -> Tensor:
    """Make the tensor of a pickled NumPy array, which holds its values after ``reading.run``; ``turn``: large matrices
    in column-major memory, whose transpose is contiguous (linear weights stored [in, out]).

    Raises: Unusable for anything but an array of numbers whose bytes are exactly as many as its shape needs.
    """
    told = shortened(name)
    match value:
        case Call(Global(_, "_reconstruct"), _, (_, size, Call() as kind, bool(fortran), content)):
            dtype = _array_dtype(told, kind)
        case _:
            raise Unusable(f"{told} must be an array of numbers, got {_kind(value)}")
    if not isinstance(size, tuple) or not is_shape(size):
        raise Unusable(f"{told} must have a shape, got {shortened(size)}")
    if isinstance(content, Call) and content.function == _ENCODE and len(content.args) == 2:
        content = _encoded(told, content.args, data)
    if isinstance(content, Call) and content.function in _BYTES and not content.args:
        content = b""
    length = content.length if isinstance(content, Span) else len(content) if isinstance(content, bytes) else -1
    if length != math.prod(size) * dtype.itemsize:
        raise Unusable(f"{told} must have the bytes of shape {shortened(list(size))}, got {length} bytes")
    order = size[::-1] if fortran else size
    if not isinstance(content, Span):
        array = np.frombuffer(content, dtype).reshape(order).copy()
    elif dtype.isnative and not fortran:
        if turn and reading.takes(size, dtype):
            return torch.from_numpy(reading.turned(content.start, size, dtype)).T
        return torch.from_numpy(reading.array(content.start, size, dtype))
    else:
        array = np.frombuffer(data, dtype, math.prod(size), content.start).reshape(order)
    return array_to_tensor(array.T if fortran else array)


def array_to_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor of a numeric array in native byte order and row-major layout, in memory of its own."""
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _array_dtype(told: str, call: Call) -> np.dtype[Any]:
    match call:
        case Call(Global("numpy", "dtype"), (str(code), *_), state) if code in NUMPY_DTYPES:
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
            return np.dtype(f"{order}{code}" if order in ("<", ">") else code)
    raise Unusable(f"{told} must be an array of numbers, got dtype {shortened(call.args[:1])}")


def _encoded(told: str, args: tuple[Any, ...], data: Buffer) -> bytes:
    text, coding = args
    if isinstance(text, Span) and text.text:
        text = str(memoryview(data)[text.start : text.start + text.length], "utf-8")
    if not isinstance(text, str) or coding != "latin1":
        raise Unusable(f"{told} must have its bytes as latin1 text, got {shortened(coding)}")
    return text.encode("latin-1")


def unwrap_named(value: Any) -> Any:
    """Return the array of a pair (name, array), which some versions of Paddle write."""
    if isinstance(value, Call) and value.function in _TUPLES and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], str):
        return value[1]
    return value


def _whole_numbers(values: Any) -> bool:
    if isinstance(values, Call) and values.function == Global("torch", "Size") and values.args:
        return False  # a size inside a tensor is always a plain tuple
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _kind(value: Any) -> str:
    if isinstance(value, Call):
        return f"a call of {shortened(value.function)}"
    return f"a {type(value).__name__}"
