"""The device on which a model runs: the one that the settings name, or else a GPU if there is one."""

from __future__ import annotations

from latentgloss.errors import SettingsError


def chosen_device(name: str | None) -> str:
    """The device of setting `machine.device`; for None `cuda` if there is a GPU, else `cpu`.

    Raises SettingsError if PyTorch knows no such device or this machine has none.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        there = _exists(device)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = False
    if not there:
        raise SettingsError(
            f"`machine.device` is {name!r}, and this machine has no such device",
            expected=" or ".join(available()),
            todo="correct `device` under [machine] in latentgloss.toml, or remove it to use a GPU if there is one",
        )
    return "cpu" if device.type == "cpu" else name


def available() -> list[str]:
    """The names of the devices that this machine has."""
    import torch

    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def _exists(device: object) -> bool:
    """Whether this machine has a device. May raise what PyTorch raises for one that it does not have."""
    import torch

    assert isinstance(device, torch.device)
    if device.type == "cpu":
        return not device.index
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    if device.type == "meta":  # holds no numbers
        return False
    torch.zeros(1, device=device)
    return True
