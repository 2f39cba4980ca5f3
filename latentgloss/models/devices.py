"""Devices: where models run, and whether a device of the settings is there.

What belongs here: the choice of the device, and the error for one that is not there. Loads torch inside the function.
"""

from __future__ import annotations

import difflib

from latentgloss.errors import SettingsError


def usable_device(name: str | None) -> str:
    """The device to run models on: `name` (setting `machine.device`), or a GPU if there is one, or else the CPU.

    Raises SettingsError if this machine has no such device, or PyTorch knows none of this name.
    """
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return "cuda" if n_gpus else "cpu"
    there = ["cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{i}" for i in range(n_gpus))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as e:  # RuntimeError, AssertionError and others, each of which means that it cannot be used
        near = difflib.get_close_matches("cuda" if name.lower().startswith("gpu") else name.lower(), there, n=1)
        raise SettingsError(
            f"device {name!r} of [machine] cannot be used ({next(iter(str(e).splitlines()), type(e).__name__)[:120]})",
            expected=f"one of {', '.join(there)}" + (f" (did you mean {near[0]!r}?)" if near else ""),
            todo="correct `device` under [machine] in latentgloss.toml, or remove it",
        ) from e
    if device.type == "meta":
        raise SettingsError(
            f"device {name!r} of [machine] holds no numbers",
            expected=f"one of {', '.join(there)}",
            todo="correct `device` under [machine] in latentgloss.toml, or remove it",
        )
    return name
