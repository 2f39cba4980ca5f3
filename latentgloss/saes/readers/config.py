"""The JSON configuration of an SAE, with errors that name the file. Reads one file; loads no torch, for `status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from latentgloss.errors import SaeError

if TYPE_CHECKING:
    from pathlib import Path

RESTORE = "download or copy the file again"
"""What to do about a damaged file."""


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises SaeError if the file cannot be read or holds anything else."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as e:
        raise SaeError(f"{path} cannot be read ({e.strerror})", todo=RESTORE) from e
    except (ValueError, RecursionError) as e:
        raise SaeError(f"{path} is not valid JSON ({e})", todo=RESTORE) from e
    if not isinstance(config, dict):
        raise SaeError(f"{path} holds a value of type {type(config).__name__}", expected="a JSON object", todo=RESTORE)
    return config
