"""Embedders: sentence-transformers models that turn texts into vectors of unit norm.

What belongs here: finding a model's files, its identity, and computing vectors in such a way that the vector of a text
depends on that text alone. Reads the model's files; writes only remembered digests into the cache folder. Other modules
use an embedder through `protocols.Embedder`, and `embeddings/vectors.py` stores its vectors.

**A vector does not depend on its batch.** The last digits of a matrix product depend on its shape, so texts in one
batch would change each other's vectors. Here products have only a few shapes: a text is padded to a multiple of `STEP`
tokens, texts of equal padded length are computed `TILE` at a time, and the last tile is filled up with empty texts.
Measured: the bits are the same in any order and batch, on one thread and on two, in float32 and in bfloat16
(tests/models/test_embedder.py). On another kind of device or with another version of torch, the last digits may differ.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import EmbedderError, SubjectError
from latentgloss.models.devices import chosen_device
from latentgloss.store.digests import DigestCache, json_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float32
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from latentgloss.config.entries import EmbedderSpec


VERSION = "1"
"""Part of every identity. Raise it when the same files can give other vectors."""

STEP = 16
"""Texts are padded to a multiple of this many tokens."""

TILE = {"cpu": 8}
TILE_GPU = 256
"""Texts per tile. The number is small on a CPU, where larger tiles exceed the cache and were slower."""

_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
_IGNORED = ("data_config.json", "README.md")
"""Files beside a model that decide no vector."""


class SentenceEmbedder:
    """A `protocols.Embedder` over a sentence-transformers model, which is loaded when it is first needed."""

    def __init__(
        self, spec: EmbedderSpec, cache_dir: Path, *, device: str | None = None, threads: int | None = None
    ) -> None:
        self.spec, self.cache_dir, self.device, self.threads = spec, cache_dir, device, threads

    @property
    def name(self) -> str:
        """Name of the registry entry."""
        return self.spec.name

    def identity(self) -> dict[str, Any]:
        """Hash of the model's files (weights, tokenizer, pooling), and the settings that decide its vectors.

        Loads no model. Raises EmbedderError if the files are missing.
        """
        return {"files": self._files_sha256, **self.spec.model_dump(include=_DECIDES), "version": VERSION}

    @cached_property
    def key(self) -> str:
        """The first 16 hex digits of the hash of `identity()`, which name the tables of vectors."""
        return json_sha256(self.identity())[:16]

    @cached_property
    def folder(self) -> Path:
        """The folder with the model's `modules.json`. Raises EmbedderError if there is none."""
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
                expected="a sentence-transformers model in the format of `SentenceTransformer.save`",
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
        from latentgloss.models.files import loading, quiet

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = chosen_device(self.device)
        self._check_modules()
        with quiet(), loading(self.spec, self.folder):
            model = SentenceTransformer(
                str(self.folder),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={
                    "use_safetensors": True,
                    "dtype": torch.float32,
                    "trust_remote_code": False,
                    "ignore_mismatched_sizes": True,  # found, and named, by `_check_weights`
                },
            ).eval()
            self._check_weights(model)
        if device == "cpu" and self.spec.dtype == "bfloat16":
            example = dict(model.tokenizer(["an example"], return_tensors="pt"))
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                order_weights(model, lambda: model(example), dtype=torch.float32)
        return model

    def _check_weights(self, model: SentenceTransformer) -> None:
        """Raises EmbedderError if the files lack weights that decide vectors (`weights.py`).

        sentence-transformers does not say what was missing, so the files are compared once more, without their content.
        """
        import torch
        from transformers import PreTrainedModel

        from latentgloss.models.weights import check_whole

        example = {name: x.to(model.device) for name, x in model.tokenizer(["an example"], return_tensors="pt").items()}
        for module in json.loads((self.folder / "modules.json").read_bytes()):
            part, folder = model[int(module["idx"])], self.folder / str(module.get("path", ""))
            inner = getattr(part, "auto_model", None)
            if not isinstance(inner, PreTrainedModel) or not any(folder.glob("*.safetensors")):
                continue
            loaded: Any = type(inner).from_pretrained(
                folder,
                config=inner.config,
                dtype=torch.float32,
                device_map="meta",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            check_whole(inner, loaded[1], self.name, EmbedderError, lambda: model(example)["sentence_embedding"])

    def _check_modules(self) -> None:
        """Raises EmbedderError if `modules.json` names a class outside sentence-transformers.

        Releases of sentence-transformers before 5.3 import such a class from the folder without asking.
        """
        from latentgloss.models.files import own_code

        for path in self.folder.rglob("modules.json"):
            try:
                modules = json.loads(path.read_bytes())
                types = [str(module["type"]) for module in modules]
            except (OSError, ValueError, TypeError, KeyError) as e:
                raise EmbedderError(f"{self.name}: {path} cannot be read ({e})", todo="download the model again") from e
            if any(not name.startswith("sentence_transformers.") for name in types):
                raise own_code(EmbedderError, self.name, self.folder)

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return "_model" in vars(self)

    @cached_property
    def dimension(self) -> int:
        """Length of a vector. Loads the model."""
        return int(self._model.get_embedding_dimension() or self.documents([""]).shape[1])

    @cached_property
    def max_tokens(self) -> int:
        """Number of tokens of a text that the model reads; the rest is ignored. Loads the model."""
        own = int(self._model.max_seq_length or 512)
        return min(own, self.spec.max_tokens or own)

    def n_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, including the model's special tokens, before it is cut to `max_tokens`."""
        from latentgloss.models.files import quiet

        if not texts:  # a tokenizer fails on an empty list
            return []
        with quiet():  # the tokenizer warns of long texts, which `max_tokens` cuts
            return [len(ids) for ids in self._model.tokenizer(list(texts))["input_ids"]]

    def documents(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        """Unit-norm vectors of texts to search in."""
        return self._embed([self.spec.document_prefix + text for text in texts])

    def queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        """Unit-norm vectors of texts to search for."""
        return self._embed([self.spec.query_prefix + text for text in texts])

    def _embed(self, texts: list[str]) -> Float32[np.ndarray, "texts dimension"]:
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        # A byte of the command line that is not UTF-8 arrives as a surrogate, which tokenizers refuse.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        lengths = np.minimum(self.n_tokens(texts), self.max_tokens)
        padded = np.minimum(-(-lengths // STEP) * STEP, self.max_tokens)
        rows = TILE.get(self._model.device.type, TILE_GPU)
        tiles: list[dict[str, Tensor]] = []
        places: list[np.ndarray] = []
        for length in np.unique(padded):
            same = np.flatnonzero(padded == length)
            features = self._features([texts[i] for i in same] + [""] * (-len(same) % rows), int(length))
            for first in range(0, len(same), rows):
                places.append(same[first : first + rows])
                tiles.append({name: values[first : first + rows] for name, values in features.items()})
        found = self._tiles(tiles)
        out = np.empty((len(texts), found[0].shape[1]), dtype=np.float32)
        out[np.concatenate(places)] = np.concatenate([v[: len(p)] for v, p in zip(found, places, strict=True)])
        return out

    def _tiles(self, tiles: Sequence[dict[str, Tensor]]) -> list[Float32[np.ndarray, "tile dimension"]]:
        """Vectors of tiles, in order.

        On a CPU one thread computes a tile, and several tiles are computed at a time. Products are so small here that
        sharing each between threads costs more than it saves (63 texts per second of CPU time instead of 101), and on
        some CPUs it would change last digits.
        """
        import torch

        threads = torch.get_num_threads()
        if self._model.device.type != "cpu" or threads == 1:
            return [self._tile(tile) for tile in tiles]
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(self._tile, tiles))
        finally:
            torch.set_num_threads(threads)

    def _features(self, texts: list[str], length: int) -> dict[str, Tensor]:
        """Texts padded (or cut) to `length` tokens, many at once because the tokenizer spreads them over threads."""
        found = self._model.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return dict(found)

    def _tile(self, features: dict[str, Tensor]) -> Float32[np.ndarray, "tile dimension"]:
        """The unit-norm vectors of one tile."""
        import torch

        model = self._model
        low = self.spec.dtype == "bfloat16"
        with torch.inference_mode(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=low):
            found = model({key: value.to(model.device) for key, value in features.items()})["sentence_embedding"]
        vectors = torch.nn.functional.normalize(found.float(), dim=1)
        array: Float32[np.ndarray, "tile dimension"] = vectors.cpu().numpy()
        return array


_DECIDES = {"query_prefix", "document_prefix", "max_tokens", "dtype"}
"""The fields of a registry entry that decide vectors."""
