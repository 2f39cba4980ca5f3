"""Identities of subject models: everything that decides a model's activations or tokens, as hashes of its files.

What belongs here: which files and settings are in an identity. Identities are part of recipes, so they contain no paths
and nothing that differs between machines. Reads the model's files, each once while it does not change
(`store/digests.py`); writes only the remembered digests. Loads no model and converts nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentgloss.config.entries import ModelSpec
from latentgloss.errors import SubjectError
from latentgloss.models.files import (
    CONVERSION,
    MODEL_FILES,
    TOKENIZER_FILES,
    files_sha256,
    gguf_of,
    revision,
    source_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def tokenizer_identity(spec: ModelSpec, cache_dir: Path) -> str:
    """sha256 over the names and contents of the files from which the tokenizer is read.

    Raises SubjectError if there are none.
    """
    folder = source_folder(spec, [*TOKENIZER_FILES, "config.json"])
    gguf = gguf_of(folder)
    files = [gguf] if gguf else [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        raise SubjectError(
            f"{spec.name}: {folder} has no tokenizer",
            expected=f"one of {', '.join(TOKENIZER_FILES)}",
            todo="correct `source` in the registry, or save the tokenizer beside the model",
        )
    return files_sha256(files, cache_dir)


def model_identity(spec: ModelSpec, cache_dir: Path) -> dict[str, Any]:
    """Everything that decides the model's activations: its files' contents, dtype and re-randomisation.

    Raises SubjectError if weights or tokenizer are missing.
    """
    folder = source_folder(spec, MODEL_FILES)
    gguf = gguf_of(folder)
    files = [gguf] if gguf else sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    if not any(file.suffix in (".gguf", ".safetensors") for file in files):
        raise SubjectError(
            f"{spec.name}: {folder} has no weights",
            expected="*.safetensors or one *.gguf file",
            todo="correct `source` in the registry",
        )
    return {
        "source": portable_source(spec),
        "revision": revision(spec),
        "weights_sha256": files_sha256(files, cache_dir),
        "tokenizer_sha256": tokenizer_identity(spec, cache_dir),
        "dtype": spec.dtype,
        "rerandomise": spec.rerandomise,
        "conversion": CONVERSION,
    }


def subject_identity(spec: ModelSpec, cache_dir: Path) -> dict[str, Any]:
    """`model_identity`, and a revision for architectures whose activations earlier versions of latentgloss got wrong.

    Raises as `model_identity`.
    """
    identity = model_identity(spec, cache_dir)
    wrong = spec.dtype in WRONG_BEFORE.get(_architecture(source_folder(spec, MODEL_FILES)), ())
    return identity | ({"activations": 2} if wrong else {})


_ALL, _LOW = ("float32", "float16", "bfloat16"), ("bfloat16",)
WRONG_BEFORE = {
    **dict.fromkeys(("bloom", "codegen", "gpt_neox_japanese", "mvp", "xglm"), _LOW),
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), _LOW),
    **dict.fromkeys(("falcon", "phi"), _ALL),
}
"""The dtypes in which what was cached before could be wrong, by `model_type`. On CPUs in bfloat16, later tokens changed
the activations of the first group, and values of the second group were taken from memory that nothing had filled. Those
of the third group depended on the other hookpoints of the pass."""


def _architecture(folder: Path) -> str:
    """`model_type` of a folder's config.json, or the architecture that its GGUF file begins with; "" if neither is."""
    if gguf := gguf_of(folder):
        with gguf.open("rb") as file:
            head = file.read(256)
        key = b"general.architecture"
        at = head.find(key) + len(key)
        size = int.from_bytes(head[at + 4 : at + 12], "little")  # after the number of the type, string
        return head[at + 12 : at + 12 + size].decode("utf-8", "replace") if key in head else ""
    found = _config(folder).get("model_type")
    return found if isinstance(found, str) else ""


def portable_source(spec: ModelSpec) -> str:
    """`source` without a local path, which differs between machines, and without a revision (see `revision`)."""
    return "path" if spec.source.startswith("path:") else spec.source.partition("@")[0]


_OTHER_LENS = {"opt", "cohere", "cohere2", "command-r", "olmo"}
"""Kinds of models whose final norm was not found, or not centred, before `LENS` 2."""
LENS = 2


def lens_identity(spec: ModelSpec) -> dict[str, Any]:
    """`{"lens": LENS}` for models whose logit lens has changed since its first form; empty for all others.

    So the caches of models for which it is the same stay fresh. Those with a text model inside have changed, too. A
    model whose files lack its LM head has the lens "none"; before, it was made from random numbers. Loads no weights.
    Raises SubjectError if the model is not there.
    """
    folder = source_folder(spec, MODEL_FILES)
    if gguf_of(folder) is None and _lacks_head(spec, folder):
        return {"lens": "none"}
    nested = "text_config" in _config(folder)
    return {"lens": LENS} if nested or _architecture(folder) in _OTHER_LENS else {}


def _lacks_head(spec: ModelSpec, folder: Path) -> bool:
    """Whether the files hold one matrix over the vocabulary, the embedding, and the LM head is another."""
    config = _config(folder)
    nested = config.get("text_config")
    text: dict[str, Any] = nested if isinstance(nested, dict) else config
    architectures = config.get("architectures")
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    base = bool(names) and all(name.endswith("Model") and not name.endswith("LMHeadModel") for name in names)
    if tied is True or not (tied is False or base):
        return False
    rows = text.get("vocab_size")
    if not isinstance(rows, int) or sum(shape[:1] == [rows] and len(shape) == 2 for shape in _shapes(folder)) > 1:
        return False
    if tied is None:  # the class decides, of which transformers is asked only here because importing it takes seconds
        from latentgloss.models.readiness import load_config

        found: Any = load_config(spec, folder)
        return not getattr(found.get_text_config(), "tie_word_embeddings", True)
    return True


def _shapes(folder: Path) -> Iterator[list[int]]:
    """The shapes of the tensors in a folder's files; files that cannot be read are left out (loading says so)."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                yield from (file.get_slice(name).get_shape() for name in file.keys())  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError):
            continue


def _config(folder: Path) -> dict[str, Any]:
    """The object in a folder's config.json; empty if there is none."""
    try:
        path = folder / "config.json"
        found = json.loads(path.read_bytes()) if path.is_file() else {}  # reading a named pipe would wait for ever
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
