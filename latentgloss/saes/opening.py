"""SAEs: one reader per format on disk, and the baselines that need no file, all giving a `SparseCoder`.

What belongs here: which formats there are, which files each consists of, and their digest. Each reader has
its own module. Formats are documented by their authors' code; the orientation of every tensor, and whether
b_dec is subtracted, is stated in the reader. Nothing is ever unpickled. Importing this package does not
load torch.
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
from latentgloss.store.digests import file_sha256, json_sha256

if TYPE_CHECKING:
    from latentgloss.config.entries import SaeSpec
    from latentgloss.saes.coder import SparseCoder


FILES: dict[str, tuple[str, ...]] = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "sparsify": ("cfg.json", "sae.safetensors"),
}
"""Files of a SAE's folder that decide what it computes. Others (sparsities, optimiser state) are never
read.
"""


def _saelens(folder: Path) -> SparseCoder:
    from latentgloss.saes.readers.saelens import read

    return read(folder)


def _sparsify(folder: Path) -> SparseCoder:
    from latentgloss.saes.readers.sparsify import read

    return read(folder)


READERS: dict[str, Callable[[Path], SparseCoder]] = {"saelens": _saelens, "sparsify": _sparsify}


BASELINE_VERSION = 1
"""Raised when `baselines` makes other weights of the same parameters."""


def open_sae(spec: SaeSpec) -> SparseCoder:
    """The SAE of a registry entry, on the CPU, with `weights_sha256` set. Raises SaeError or RegistryError."""
    if spec.format not in BASELINES:
        return read_sae(spec.format, spec.path)
    from latentgloss.saes.baselines import read

    return replace(read(spec), weights_sha256=sae_digest(spec))


def sae_digest(spec: SaeSpec, sha256: Callable[[Path], str] = file_sha256) -> str:
    """What decides the weights of a registry entry: a hash over its files, or over the parameters of a baseline.

    Raises SaeError or RegistryError; `sha256` as in `sae_file_digest`.
    """
    if spec.format in BASELINES:
        return json_sha256({"format": spec.format, "version": BASELINE_VERSION, **spec.parameters})
    return sae_file_digest(spec.format, spec.path, sha256)


def read_sae(format: str, folder: Path) -> SparseCoder:
    """The SAE in a folder, on the CPU, with `weights_sha256` set.

    Raises SaeError naming the file: missing or corrupt files, missing or ill-shaped tensors, and kinds of
    SAE that would be computed wrongly if they were read all the same.
    """
    digest = sae_file_digest(format, folder)
    try:
        return replace(READERS[format](folder), weights_sha256=digest)
    except SaeError as e:
        if str(folder) in e.found:
            raise
        raise SaeError(f"{folder}: {e.found}", expected=e.expected, todo=e.todo) from e


def sae_file_digest(format: str, folder: Path, sha256: Callable[[Path], str] = file_sha256) -> str:
    """sha256 (hex) over the names and bytes of a SAE's files, streamed. Raises SaeError if one is missing.

    `sha256` digests one file; give a `DigestCache`'s to read unchanged files only once.
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
