"""Opening SAEs: from a registry entry to a `SparseCoder`, with a digest of what it was read from.

What belongs here: which formats exist, which files each consists of, the digest over these files, and the choice
between a reader (`saes/readers/`) and a baseline without files (`saes/baselines.py`). Reads an SAE's folder; writes
nothing. Nothing is unpickled. Importing this module does not load torch.

Tensors of an opened SAE are float32 on the CPU, in the orientation of `SparseCoder`: W_enc [d, n], W_dec [n, d_out].
The orientation on disk, and whether b_dec is subtracted, is stated in each reader. The formats are defined by the code
of their authors.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from latentgloss.config.entries import BASELINES
from latentgloss.errors import SaeError
from latentgloss.store.digests import check_regular, file_sha256, json_sha256

if TYPE_CHECKING:
    from latentgloss.config.entries import SaeSpec
    from latentgloss.saes.coder import SparseCoder
    from latentgloss.store.digests import DigestCache


FILES: dict[str, tuple[str, ...]] = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "sparsify": ("cfg.json", "sae.safetensors"),
}
"""Files of an SAE's folder that decide what it computes. Other files (sparsities, optimiser state) are not read."""


def _saelens(folder: Path) -> SparseCoder:
    from latentgloss.saes.readers.saelens import read

    return read(folder)


def _sparsify(folder: Path) -> SparseCoder:
    from latentgloss.saes.readers.sparsify import read

    return read(folder)


READERS: dict[str, Callable[[Path], SparseCoder]] = {"saelens": _saelens, "sparsify": _sparsify}
"""The reader of each format: from the SAE's folder to a coder."""

BASELINE_VERSION = 1
"""To be raised when `saes/baselines.py` makes different weights from the same parameters."""


def open_sae(spec: SaeSpec) -> SparseCoder:
    """The SAE of a registry entry, on the CPU, with `weights_sha256` set. Raises SaeError or RegistryError."""
    if spec.format not in BASELINES:
        return read_sae(spec.format, spec.path)
    from latentgloss.saes.baselines import read

    return replace(read(spec), weights_sha256=sae_digest(spec))


def sae_digest(spec: SaeSpec, sha256: Callable[[Path], str] = file_sha256) -> str:
    """Hash (hex) of what decides the weights of a registry entry: its files, or the parameters of a baseline.

    `sha256`: see `sae_file_digest`. Raises SaeError or RegistryError.
    """
    if spec.format in BASELINES:
        return json_sha256({"format": spec.format, "version": BASELINE_VERSION, **spec.parameters})
    return sae_file_digest(spec.format, spec.path, sha256)


def read_sae(format: str, folder: Path) -> SparseCoder:
    """The SAE in a folder, on the CPU, with `weights_sha256` set.

    Raises SaeError, which names the file, for missing or corrupt files, for missing tensors or wrong shapes, and for
    kinds of SAE that this package would compute wrongly.
    """
    digest = sae_file_digest(format, folder)
    try:
        return replace(READERS[format](folder), weights_sha256=digest)
    except SaeError as e:
        if str(folder) in e.found:
            raise
        raise SaeError(f"{folder}: {e.found}", expected=e.expected, todo=e.todo) from e


def decoder_identity(spec: SaeSpec, digests: DigestCache) -> dict[str, int]:
    """`{"zero_rows": 2}` if what follows from the decoder was once NaN for this SAE; empty for all others.

    That is so for an SAE with `rescale_acts_by_decoder_norm` and a decoder row of zeros. Reads the weights of an SAE
    with that option, once as long as they do not change. Raises SaeError or RegistryError.
    """
    if spec.format != "saelens":
        return {}
    from latentgloss.saes.readers.config import read_config

    if not read_config(spec.path / "cfg.json").get("rescale_acts_by_decoder_norm"):
        return {}
    digest = sae_digest(spec, digests.sha256)
    zero = digests.remember(f"zero decoder rows of {digest}", lambda: bool(open_sae(spec).directionless))
    return {"zero_rows": 2} if zero else {}


def check_sae_files(spec: SaeSpec) -> None:
    """Raises the SaeError of `open_sae` if a file is missing or damaged or its weights are quantised; reads no weights.

    Damage to the weights themselves is not found.
    """
    if spec.format in BASELINES:
        return
    from latentgloss.saes.readers.files import check_types

    sae_file_digest(spec.format, spec.path, _opened)
    check_types(spec.path / FILES[spec.format][-1])


def _opened(path: Path) -> str:
    """In the place of a digest. Raises OSError if the file cannot be opened, as `file_sha256`."""
    check_regular(path)
    with path.open("rb"):
        return ""


def sae_file_digest(format: str, folder: Path, sha256: Callable[[Path], str] = file_sha256) -> str:
    """sha256 (hex) over the names and contents of an SAE's files. Raises SaeError if a file is missing.

    `sha256` digests one file; that of a `DigestCache` reads unchanged files only once.
    """
    if format not in FILES:
        near = difflib.get_close_matches(format, [*FILES, *BASELINES], n=1)
        raise SaeError(
            f"unknown SAE format {format!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
            expected=f"one of {', '.join(sorted([*FILES, *BASELINES]))}",
            todo="correct `format` in the registry",
        )
    digest = hashlib.sha256()
    for name in FILES[format]:
        try:
            content = sha256(folder / name)
        except OSError as e:
            raise SaeError(
                f"{folder / name} cannot be read ({e.strerror})",
                expected=f"a folder with {' and '.join(FILES[format])} (format {format!r})",
                todo="correct `source` or `format` in the registry, or restore the file",
            ) from e
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
