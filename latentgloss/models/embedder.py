"""Sentence-transformers models as embedders: texts to vectors of unit norm.

What belongs here: finding a model's files, its identity, and computing vectors so that the vector of a text depends
on that text alone. Vectors are kept by `vectors.py`; who needs an embedder gets one through `protocols.Embedder`.

**The same whatever the batch.** A matrix product's last digits depend on its shape, so texts that share a batch would
change each other's vectors. Here every product has one of few shapes: a text is padded to a multiple of 16 tokens,
and texts of one padded length are computed `TILE` at a time, the last tile filled up with empty texts. Measured: the
same bits in any order and company, on one thread and on two, in float32 and in bfloat16 (tests/test_embedder.py).
Another kind of device or another version of torch may still differ in the last digits.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import EmbedderError, SubjectError
from latentgloss.store.digests import DigestCache, json_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float32
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from latentgloss.config.entries import EmbedderSpec


VERSION = "1"
"""Part of every identity: raise it when the same files can give other vectors."""

STEP = 16
"""Texts are padded to a multiple of this many tokens."""

TILE = {"cpu": 8}
TILE_GPU = 256
"""Texts per product. Small on a CPU, where larger ones leave the cache and were slower."""

_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
_IGNORED = ("data_config.json", "README.md")
"""Carried beside models, read by nobody."""


class SentenceEmbedder:
    """`protocols.Embedder` over a sentence-transformers model, loaded when the first vector is asked for."""

    def __init__(
        self, spec: EmbedderSpec, cache_dir: Path, *, device: str | None = None, threads: int | None = None
    ) -> None:
        self.spec, self.cache_dir, self.device, self.threads = spec, cache_dir, device, threads

    @property
    def name(self) -> str:
        return self.spec.name

    def identity(self) -> dict[str, Any]:
        """Content of the model's files (weights, tokenizer, pooling), prefixes, length, dtype. Raises EmbedderError."""
        return {"files": self._files_sha256, **self.spec.model_dump(include=_DECIDES), "version": VERSION}

    @cached_property
    def key(self) -> str:
        """Hash of `identity()`, 16 digits: names tables of vectors."""
        return json_sha256(self.identity())[:16]

    @cached_property
    def folder(self) -> Path:
        """Where the model's `modules.json` is. Raises EmbedderError."""
        from latentgloss.models.files import source_folder

        try:
            root = source_folder(self.spec, list(_FILES))
        except SubjectError as e:
            raise EmbedderError(e.found, expected=e.expected, todo=e.todo) from e
        found = [
            path.parent for path in (root / "modules.json", *sorted(root.glob("*/modules.json"))) if path.is_file()
        ]
        if not found or not any(found[0].rglob("*.safetensors")):
            missing = "weights in safetensors" if found else "modules.json"
            raise EmbedderError(
                f"{self.name}: {root} has no {missing}",
                expected="a sentence-transformers model as `SentenceTransformer.save` writes it",
                todo="correct `source` in the registry",
            )
        return found[0]

    @cached_property
    def _files_sha256(self) -> str:
        files = {path for pattern in _FILES for path in self.folder.rglob(pattern) if path.name not in _IGNORED}
        return DigestCache(self.cache_dir / "digests.json").tree_sha256(files, self.folder)

    @cached_property
    def _model(self) -> SentenceTransformer:
        import torch
        from sentence_transformers import SentenceTransformer

        from latentgloss.models.cpu_linear import order_weights
        from latentgloss.models.files import quiet

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with quiet():
                model = SentenceTransformer(
                    str(self.folder),
                    device=device,
                    local_files_only=True,
                    model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                )
        except Exception as e:  # of a dozen kinds, all of which mean that these files are no such model
            reason = next(iter(str(e).splitlines()), "")
            raise EmbedderError(
                f"{self.name}: {self.folder} could not be loaded ({type(e).__name__}: {reason})",
                expected="a sentence-transformers model with weights in safetensors",
                todo="check `source` in the registry, or fetch the model again",
            ) from e
        if device == "cpu" and self.spec.dtype == "bfloat16":
            order_weights(model, dtype=torch.float32)
        return model.eval()

    @property
    def loaded(self) -> bool:
        return "_model" in vars(self)

    @cached_property
    def dimension(self) -> int:
        return int(self._model.get_embedding_dimension() or self.documents([""]).shape[1])

    @cached_property
    def max_tokens(self) -> int:
        """Tokens of a text that are read; the rest is left out."""
        own = int(self._model.max_seq_length or 512)
        return min(own, self.spec.max_tokens or own)

    def n_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text, the model's own special tokens included, before anything is cut."""
        from latentgloss.models.files import quiet

        if not texts:  # a tokenizer makes nothing of nothing
            return []
        with quiet():  # the tokenizer warns of what `max_tokens` is about to mend
            return [len(ids) for ids in self._model.tokenizer(list(texts))["input_ids"]]

    def documents(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        return self._embed([self.spec.document_prefix + text for text in texts])

    def queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        return self._embed([self.spec.query_prefix + text for text in texts])

    def _embed(self, texts: list[str]) -> Float32[np.ndarray, "texts dimension"]:
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        # A byte of the command line that is no UTF-8 arrives as a surrogate, which no tokenizer takes.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        lengths = np.minimum(self.n_tokens(texts), self.max_tokens)
        padded = np.minimum(-(-lengths // STEP) * STEP, self.max_tokens)
        rows = TILE.get(self._model.device.type, TILE_GPU)
        vectors: list[Float32[np.ndarray, "tile dimension"]] = []
        places: list[np.ndarray] = []
        for length in np.unique(padded):
            same = np.flatnonzero(padded == length)
            features = self._features([texts[i] for i in same] + [""] * (-len(same) % rows), int(length))
            for first in range(0, len(same), rows):
                places.append(same[first : first + rows])
                tile = {name: values[first : first + rows] for name, values in features.items()}
                vectors.append(self._tile(tile)[: len(places[-1])])
        out = np.empty((len(texts), vectors[0].shape[1]), dtype=np.float32)
        out[np.concatenate(places)] = np.concatenate(vectors)
        return out

    def _features(self, texts: list[str], length: int) -> dict[str, Tensor]:
        """Texts padded (or cut) to `length` tokens. Many at once: a tokenizer shares them between threads."""
        found = self._model.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return dict(found)

    def _tile(self, features: dict[str, Tensor]) -> Float32[np.ndarray, "tile dimension"]:
        import torch

        model = self._model
        low = self.spec.dtype == "bfloat16"
        with torch.inference_mode(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=low):
            found = model({key: value.to(model.device) for key, value in features.items()})["sentence_embedding"]
        vectors = torch.nn.functional.normalize(found.float(), dim=1)
        array: Float32[np.ndarray, "tile dimension"] = vectors.cpu().numpy()
        return array


_DECIDES = {"query_prefix", "document_prefix", "max_tokens", "dtype"}
"""What of a registry entry decides vectors."""
