"""Full text: words are found in every script, also inside text that is written without spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from latentgloss.embeddings import lance
from latentgloss.embeddings.lance import LanceTables
from latentgloss.embeddings.search_index import SCORERS, SearchIndex
from latentgloss.embeddings.search_writer import writing

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [
    "描述动物的词，例如猫和狗",
    "関数の戻り値を説明する文章で現れる",
    "东京的天气很好，适合散步",
    "東京都に住んでいる猫が好き",
    "The word don't, state-of-the-art functions and classes",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "numbers 3.14 and foo_bar.baz @decorator",
    "on the running of a café",
]
FOUND = {
    "猫": {0, 3}, "动物": {0}, "戻り値": {1}, "説明": {1}, "天气": {2}, "散步": {2}, "東京": {3}, "猫 天气": {0, 2, 3},
    "ช่องว่าง": {5}, "functions": {4}, "function": {4}, "don't": {4}, "state": {4}, "foo_bar": {6}, "baz": {6},
    "3.14": {6}, "decorator": {6}, "cafe": {7}, "run": {7}, "on": {7}, "狗 cafe": {0, 7}, "鳥": set(),
}  # fmt: skip


def index_of(tables: LanceTables) -> SearchIndex:
    return SearchIndex(tables, {"embedder": "e"})


def fill(index: SearchIndex, texts: list[str], partition: str = "m/h/s") -> None:
    n = len(texts)
    rows = pl.DataFrame(
        {
            "latent": np.arange(n, dtype=np.uint32),
            "explainer": ["pattern"] * n,
            "explanation": texts,
            "density": [0.1] * n,
            **{name: pl.Series([None] * n, dtype=pl.Float64) for name in SCORERS},
            "key": [f"{partition}#{i}" for i in range(n)],
            **dict(zip(("model", "hookpoint", "sae"), ([part] * n for part in partition.split("/")), strict=True)),
            "partition": [partition] * n,
        }
    )
    vectors = np.eye(n, 8, dtype=np.float32)
    with writing(index, replace=False) as writer:
        writer.put(partition, rows, vectors, "v")


def found(index: SearchIndex, text: str) -> set[int]:
    return {hit.latent for hit in index.search(text, None, mode="text", limit=10)}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    index = index_of(LanceTables(tmp_path_factory.mktemp("words")))
    fill(index, TEXTS)
    return index


@pytest.mark.parametrize("text", FOUND)
def test_a_word_is_found(index: SearchIndex, text: str) -> None:
    assert found(index, text) == FOUND[text]


def test_an_index_from_before_is_used_and_made_anew_by_the_next_writer(tmp_path: Path) -> None:
    from lancedb.index import FTS

    tables = LanceTables(tmp_path)
    index = index_of(tables)
    fill(index, TEXTS)
    table: Any = index.table()
    table.drop_index(lance.WORDS)
    table.create_index("explanation", config=FTS(remove_stop_words=False))
    assert found(index, "functions") == {4} and found(index, "动物") == set()
    fill(index, TEXTS[:2], "m/h/t")
    assert found(index, "动物") == {0} and [i.name for i in index.table().list_indices()] == [lance.WORDS]


def test_a_version_of_lancedb_without_icu_finds_words_between_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lancedb.index

    real = lancedb.index.FTS

    def without(**config: Any) -> Any:
        if "base_tokenizer" in config:
            raise ValueError("unknown base tokenizer icu/split")
        return real(**config)

    monkeypatch.setattr(lancedb.index, "FTS", without)
    index = index_of(LanceTables(tmp_path))
    fill(index, TEXTS)
    assert found(index, "functions") == {4} and found(index, "cafe") == {7}
