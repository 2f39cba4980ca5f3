"""The real MiniLM: unit norm, the same vectors in any company, identity, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from repository import REGISTRY

from latentgloss.config.entries import MINILM, EmbedderSpec
from latentgloss.config.registry import Registry
from latentgloss.errors import EmbedderError, InputError
from latentgloss.models.embedder import STEP, TILE, SentenceEmbedder

WORDS = ["error", "path", "version", "import", "socket", "thread", "comma", "tuple", "iterator", "déjà", "漢字"]


def texts(n: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(0, 40))) for _ in range(n)]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> SentenceEmbedder:
    return SentenceEmbedder(MINILM, tmp_path_factory.mktemp("cache"), device="cpu")


def model_folder(minilm: SentenceEmbedder, target: Path) -> Path:
    shutil.copytree(minilm.folder, target)
    return target


def test_a_text_has_the_same_vector_bit_for_bit_in_any_company(minilm: SentenceEmbedder) -> None:
    given = texts(3 * TILE["cpu"] + 1)
    together = minilm.documents(given)
    assert together.dtype == np.float32
    assert together.shape == (len(given), minilm.dimension) == (len(given), 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    order = np.random.default_rng(1).permutation(len(given))
    np.testing.assert_array_equal(minilm.documents([given[i] for i in order]), together[order])
    for i in (0, 5, len(given) - 1):
        np.testing.assert_array_equal(minilm.documents([given[i]])[0], together[i])


def test_the_number_of_threads_does_not_matter(minilm: SentenceEmbedder) -> None:
    import torch

    given, before = texts(12, seed=3), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(minilm.documents(given))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


def test_float32_is_close_to_sentence_transformers_own_encode_and_bfloat16_to_float32(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    exact = SentenceEmbedder(MINILM.model_copy(update={"dtype": "float32"}), tmp_path, device="cpu")
    given = ["raising an error", "a file path", "numbers in a version string", "", "x" * 3000]
    own = SentenceTransformer(str(exact.folder), device="cpu").encode(given, normalize_embeddings=True)
    np.testing.assert_allclose(exact.documents(given), own, atol=1e-5)
    low = SentenceEmbedder(MINILM.model_copy(update={"dtype": "bfloat16"}), tmp_path, device="cpu").documents(given)
    assert np.abs(low @ low.T - own @ own.T).max() < 0.01
    assert not np.array_equal(low, own)


def test_meaning_is_in_the_vectors(minilm: SentenceEmbedder) -> None:
    query = minilm.queries(["raising an exception"])
    near, far = minilm.documents(["the function raises ValueError", "a recipe for bread"])
    assert query[0] @ near > query[0] @ far + 0.2


def test_text_that_is_no_unicode_is_embedded_all_the_same(minilm: SentenceEmbedder) -> None:
    np.testing.assert_array_equal(minilm.documents(["a \ud800 b"]), minilm.documents(["a ? b"]))


def test_no_texts_give_no_vectors(minilm: SentenceEmbedder) -> None:
    assert minilm.documents([]).shape == (0, 384)
    assert minilm.n_tokens([]) == []


def test_long_texts_are_cut_where_the_registry_says(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    short = SentenceEmbedder(MINILM.model_copy(update={"max_tokens": STEP}), tmp_path, device="cpu")
    long = " ".join(WORDS * 20)
    assert short.n_tokens([long])[0] > short.max_tokens == STEP
    np.testing.assert_array_equal(short.documents([long]), short.documents([long + " and more"]))
    assert not np.array_equal(short.documents([long]), minilm.documents([long]))


def test_identity_is_of_content_and_free_of_paths(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    folder = model_folder(minilm, tmp_path / "model")
    moved = SentenceEmbedder(MINILM.model_copy(update={"source": f"path:{folder}"}), tmp_path)
    assert moved.identity() == minilm.identity()
    assert str(tmp_path) not in str(moved.identity())
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("true", "false", 1))
    again = SentenceEmbedder(moved.spec, tmp_path)
    assert again.identity() != minilm.identity()
    for change in ({"query_prefix": "query: "}, {"dtype": "bfloat16"}, {"max_tokens": 64}):
        other = SentenceEmbedder(MINILM.model_copy(update=change), tmp_path)
        assert other.key != minilm.key


def test_prefixes_separate_queries_from_documents(tmp_path: Path) -> None:
    spec = MINILM.model_copy(update={"query_prefix": "query: "})
    embedder = SentenceEmbedder(spec, tmp_path, device="cpu")
    np.testing.assert_array_equal(embedder.queries(["a path"]), embedder.documents(["query: a path"]))


def test_what_is_no_model_is_refused(minilm: SentenceEmbedder, tmp_path: Path) -> None:
    def opened(source: str) -> SentenceEmbedder:
        return SentenceEmbedder(EmbedderSpec(name="mine", source=source), tmp_path)

    with pytest.raises(EmbedderError, match=r"'no_such_package' is not installed.*pip install"):
        opened("package:no_such_package").identity()
    with pytest.raises(EmbedderError, match="is not a folder"):
        opened(f"path:{tmp_path}/nowhere").identity()
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmbedderError, match=r"no modules\.json"):
        opened(f"path:{tmp_path}/empty").documents(["x"])
    folder = model_folder(minilm, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EmbedderError, match="could not be loaded"):
        opened(f"path:{folder}").documents(["x"])
    weights.unlink()
    with pytest.raises(EmbedderError, match="no weights in safetensors"):
        opened(f"path:{folder}").identity()


def test_registry_of_embedders(tmp_path: Path) -> None:
    assert Registry.open(tmp_path).embedder("minilm") == MINILM
    folder = tmp_path / "embedders"
    folder.mkdir()
    (folder / "e5.toml").write_text('name = "e5"\nsource = "path:../e5"\nquery_prefix = "query: "\n')
    (folder / "bad.toml").write_text('name = "bad"\nsource = "path:x"\nqueryprefix = ""\n')
    registry = Registry.open(tmp_path)
    assert sorted(registry.embedders) == ["e5", "minilm"]
    assert registry.embedder("e5").query_prefix == "query: "
    (problem,) = registry.problems.values()
    assert "did you mean 'query_prefix'" in str(problem)
    with pytest.raises(InputError, match=r"'e6' is not in the registry.*\['e5', 'minilm'\]"):
        registry.embedder("e6")


def test_the_committed_entry_is_the_one_known_without_it() -> None:
    root = REGISTRY
    declared = Registry.open(root).embedder("minilm")
    assert declared.model_copy(update={"folder": Path()}) == MINILM
