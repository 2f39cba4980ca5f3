"""Vectors in a folder: an embedder without a model, and tables of its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentgloss.embeddings.lance import LanceTables
from latentgloss.embeddings.vector_table import VectorTable
from latentgloss.embeddings.vectors import ContextVectors

D = 4


class Hashed:
    """An embedder whose vectors are a function of the text, and which counts what it was asked for."""

    name = "hashed"

    def __init__(self, dimension: int = D, prefix: str = "", version: str = "1") -> None:
        self.dimension, self.prefix, self.version = dimension, prefix, version
        self.loaded = True
        self.asked: list[str] = []

    def identity(self) -> dict[str, Any]:
        return {"hashed": self.version, "prefix": self.prefix}

    max_tokens = 9

    def n_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = [np.random.default_rng(list(t.encode(errors="replace"))).standard_normal(self.dimension) for t in texts]
        out = np.array(rows, np.float32).reshape(-1, self.dimension)
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self.documents([self.prefix + t for t in texts])


class Windows:
    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def contexts(self, context_ids: np.ndarray, length: int) -> np.ndarray:
        return self.tokens[context_ids]


def decode(tokens: np.ndarray) -> list[str]:
    return [" ".join(map(str, row)) for row in tokens.tolist()]


def of_contexts(tables: LanceTables, embedder: Hashed, tokens: np.ndarray, **options: Any) -> ContextVectors:
    return ContextVectors(tables, embedder, Windows(tokens), tokens.shape[1], decode, "tokenizer", **options)


def table(tmp_path: Path, **facts: Any) -> VectorTable:
    return VectorTable(LanceTables(tmp_path), "t", {"embedder": "a", **facts})


def keys(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)
