"""Opening an SAE's weights in safetensors, with errors that name the file and say what to do.

What belongs here: what all readers share. Reads the files of an SAE's folder; writes nothing. Tensors keep their
orientation on disk; `take` returns them as float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentgloss.errors import SaeError
from latentgloss.saes.readers.config import RESTORE

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_UNREADABLE = (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError)
_IN_HEADER = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_IN_HEADER |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8"}
"""PyTorch's names of the types of numbers in the header of a safetensors file."""
_MATRICES = ("W_enc", "W_dec", "encoder.weight")
"""What readers take from a file and tools store quantised."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in their stored dtype.

    Raises SaeError if the file is corrupt, holds a type of number that PyTorch does not know, or if a tensor holds NaN
    or infinity.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except _UNREADABLE as e:
        raise SaeError(f"{path} is not a readable safetensors file ({e})", todo=RESTORE) from e
    for name, tensor in tensors.items():
        if tensor.dtype in _FLOATS and not torch.isfinite(tensor).all():
            raise SaeError(f"{path}: tensor {name!r} holds NaN or infinity", expected="finite weights", todo=RESTORE)
    return tensors


def check_types(path: Path) -> None:
    """Raises what `read_tensors` and `take` would for a file that is no safetensors file or holds quantised weights.

    Reads the header of the file alone.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_slice(name).get_dtype() for name in file.keys() if name in _MATRICES}  # noqa: SIM118
    except _UNREADABLE as e:
        raise SaeError(f"{path} is not a readable safetensors file ({e})", todo=RESTORE) from e
    for name, kind in sorted(stored.items()):
        _check_float(path, name, _IN_HEADER.get(kind, kind))


def _check_float(path: Path, name: str, dtype: str) -> None:
    """Raises SaeError for another type of number than floats of 16 bits or more."""
    if dtype not in {str(known).removeprefix("torch.") for known in _FLOATS}:
        # Such numbers come with scales, whose place and meaning differ between tools.
        raise SaeError(
            f"{path}: {name} is stored as {dtype}",
            expected="float32, float16, bfloat16 or float64",
            todo="save the weights in one of these types with the tool that made them",
        )


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """One tensor as float32. Raises SaeError if it is missing, has another shape, is quantised or too large."""
    if name not in tensors:
        raise SaeError(
            f"{path} has no tensor {name!r}", expected=f"{name!r} in addition to {sorted(tensors)}", todo=RESTORE
        )
    found = tuple(tensors[name].shape)
    if found != shape:
        raise SaeError(
            f"{path}: {name} has shape {found}",
            expected=f"{shape}, as cfg.json says",
            todo="check that cfg.json and the weights belong together, and that `format` in the registry is right",
        )
    _check_float(path, name, str(tensors[name].dtype).removeprefix("torch."))
    found32 = tensors[name].float()
    if tensors[name].dtype == torch.float64 and not torch.isfinite(found32).all():
        raise SaeError(
            f"{path}: {name} holds numbers beyond float32, in which SAEs are computed",
            expected="numbers below 3.4e38",
            todo="check how the weights were saved",
        )
    return found32


def positive_int(config: dict[str, Any], key: str, path: Path) -> int:
    """A positive whole number of a configuration. Raises SaeError if the value is missing or anything else."""
    value = config.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SaeError(f"{path}: {key} is {value!r}", expected="a positive whole number", todo=RESTORE)
    return value
