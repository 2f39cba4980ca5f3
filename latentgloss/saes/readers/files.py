"""Opening a SAE's files: JSON configuration and safetensors, with errors a person can act on.

What belongs here: what all readers share. Reads; writes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentgloss.errors import SaeError

_RESTORE = "download or copy the file again"


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object. Raises SaeError if the file is not one."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as e:
        raise SaeError(f"{path} cannot be read ({e.strerror})", todo=_RESTORE) from e
    except ValueError as e:
        raise SaeError(f"{path} is not valid JSON ({e})", todo=_RESTORE) from e
    if not isinstance(config, dict):
        raise SaeError(f"{path} holds a {type(config).__name__}", expected="a JSON object", todo=_RESTORE)
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in their stored dtype. Raises SaeError if it is corrupt or not
    finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as e:
        raise SaeError(f"{path} is not a readable safetensors file ({e})", todo=_RESTORE) from e
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SaeError(f"{path}: tensor {name!r} holds NaN or infinity", expected="finite weights", todo=_RESTORE)
    return tensors


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """One tensor as float32. Raises SaeError if it is absent or has another shape."""
    if name not in tensors:
        raise SaeError(f"{path} has no tensor {name!r}", expected=f"{name!r} beside {sorted(tensors)}", todo=_RESTORE)
    found = tuple(tensors[name].shape)
    if found != shape:
        raise SaeError(
            f"{path}: {name} has shape {found}",
            expected=f"{shape}, as cfg.json says",
            todo="check that configuration and weights belong together, and `format` in the registry",
        )
    return tensors[name].float()


def positive_int(config: dict[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SaeError(f"{path}: {key} is {value!r}", expected="a positive whole number", todo=_RESTORE)
    return value
