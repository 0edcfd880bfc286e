"""Element types: their names in packs, for NumPy and for torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

#: Element types of packs and their NumPy types.
NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
}

#: Element types of packs and the names of their torch types.
TORCH = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "BOOL": "bool",
}

#: Element types that hold every value of a type, besides itself.
WIDER = {
    "F16": ("F32", "F64"),
    "BF16": ("F32", "F64"),
    "F32": ("F64",),
    "F8_E4M3": ("F16", "BF16", "F32", "F64"),
    "F8_E5M2": ("F16", "BF16", "F32", "F64"),
}


def import_torch() -> Any:
    """torch, or an error that says what to install."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("torch is needed for tensors of torch: pip install torch") from error
    return torch


def code_of(dtype: object) -> str:
    """The name in packs of a type of NumPy or torch, or of the name of one.

    Raises TypeError if `dtype` is no element type, ValueError if packs have no such type.
    """
    name = dtype if isinstance(dtype, str) else str(dtype)
    name = name.removeprefix("torch.")
    by_torch_name = {torch_name: code for code, torch_name in TORCH.items()}
    if name in by_torch_name:
        return by_torch_name[name]
    try:
        found = np.dtype(dtype)  # type: ignore[call-overload]
    except TypeError as error:
        expected = ", ".join(TORCH.values())
        raise TypeError(f"dtype: found {dtype!r}, expected an element type of NumPy or torch: {expected}") from error
    for code, numpy_dtype in NUMPY.items():
        if numpy_dtype == found:
            return code
    raise ValueError(f"dtype: found {found}, expected one of {', '.join(TORCH.values())}")


def checked_target(name: str, stored: str, dtype: object | None) -> str:
    """The type to which a tensor of the type `stored` is converted: its own or one that holds all of its values.

    Raises ValueError for other types: a conversion that rounds is the caller's to make.
    """
    if dtype is None:
        return stored
    target = code_of(dtype)
    allowed = (stored, *WIDER.get(stored, ()))
    if target not in allowed:
        expected = " or ".join(TORCH[code] for code in allowed)
        raise ValueError(
            f"{name} is {TORCH[stored]}: found dtype {TORCH[target]}, expected {expected}; "
            "convert the tensor yourself if it may be rounded"
        )
    return target


def to_numpy(values: bytearray, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[Any]]:
    """An array on the memory of `values`."""
    return np.frombuffer(values, dtype=NUMPY[dtype]).reshape(shape)


def to_torch(values: bytearray, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor on the memory of `values`."""
    torch = import_torch()
    tensor: Tensor = torch.frombuffer(values, dtype=getattr(torch, TORCH[dtype])).reshape(shape)
    return tensor
