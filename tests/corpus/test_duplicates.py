"""corpus/duplicates.py: sketches, clusters, and what is left out."""

from __future__ import annotations

import unicodedata

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgloss.corpus.duplicates import SHINGLE, SLOTS, Duplicates, gram_hashes, normalised, sketches

ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=80)


def jaccard(a: str, b: str) -> float:
    def shingles(text: str) -> set[str]:
        text = normalised(text).lower().ljust(SHINGLE, "\0")
        return {text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)}

    x, y = shingles(a), shingles(b)
    return len(x & y) / len(x | y)


def partition(clusters: np.ndarray, names: list[int]) -> set[frozenset[int]]:
    return {frozenset(np.array(names)[clusters == c].tolist()) for c in np.unique(clusters)}


@settings(max_examples=50, deadline=None)
@given(st.lists(ANY_TEXT, max_size=8))
def test_a_sketch_depends_on_its_text_alone(texts: list[str]) -> None:
    together = sketches(texts)
    assert together.shape == (len(texts), SLOTS)
    for text, sketch in zip(texts, together, strict=True):
        assert (sketches([text])[0] == sketch).all()


def test_sketches_estimate_similarity() -> None:
    """Mean error over pairs within 3 standard errors of 128 slots, at similarities from 0 to 1."""
    rng = np.random.default_rng(0)
    base = "".join(rng.choice(list("abcdefghijklmnop "), 2000))
    for cut in (0, 100, 400, 800, 1500, 1990):
        other = base[cut:] + "".join(rng.choice(list("ABCDEFGHIJKLMNOP0123456789".lower()), cut))
        a, b = sketches([base, other])
        true = jaccard(base, other)
        assert abs((a == b).mean() - true) <= 3 * np.sqrt(max(true * (1 - true), 0.01) / SLOTS)


def test_sketches_do_not_change_unnoticed() -> None:
    """Another sketch is another clustering: raise the version of `tokenized_corpus` if this has to change."""
    sketch = sketches(["Return a shallow copy of the dictionary.", "", "日本語のとても短い文です。"])
    assert [int(np.bitwise_xor.reduce(row)) for row in sketch] == [136963856, 379071478, 758494203]
    assert sketch[0, :4].tolist() == [3257954772, 2243094455, 35816572, 1288383724]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_gram_hashes_tell_grams_apart(values: list[int], n: int) -> None:
    hashes = gram_hashes(np.array(values, dtype=np.uint32), n)
    grams = [tuple(values[i : i + n]) for i in range(len(values) - n + 1)]
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams))
    assert len(set(zip(hashes.tolist(), grams, strict=True))) == len(set(grams))


@settings(max_examples=25, deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=30), st.randoms(use_true_random=False), st.integers(1, 5))
def test_clusters_do_not_depend_on_order_or_batches(texts: list[str], order: object, batch: int) -> None:
    texts = [text for base in texts for text in (base, base + base, f" {base}\n")]
    names = list(range(len(texts)))
    once = Duplicates(0.8)
    once.add(0, texts)
    order.shuffle(names)  # type: ignore[attr-defined]
    again = Duplicates(0.8)
    for start in range(0, len(names), batch):
        again.add(start, [texts[i] for i in names[start : start + batch]])
    expected = partition(once.clusters(len(texts)), list(range(len(texts))))
    assert partition(again.clusters(len(texts)), names) == expected


def test_short_texts_are_alike_only_if_nearly_equal() -> None:
    texts = ["Close.", "Open.", "close.", "Return the name.", "Return the size.", "Return the names."]
    found = Duplicates(0.8)
    verdicts = found.add(0, texts)
    assert verdicts == [("ok", None), ("ok", None), ("duplicate_near", 0), *[("ok", None)] * 3]
    clusters = found.clusters(len(texts)).tolist()
    assert clusters[0] == clusters[2] != clusters[1]
    assert clusters[3] == clusters[5] != clusters[4], "similarity 4/7: one cluster, both kept"


def test_a_template_with_many_instances_stays_cheap_and_in_one_cluster() -> None:
    rng = np.random.default_rng(0)
    frame = "This page was generated from the template and holds no text of its own except the number {} here. " * 2
    texts = [frame.format(*rng.integers(10**6, size=2)) for _ in range(3000)]
    found = Duplicates(1.0)  # nothing but identical sketches is left out
    found.add(0, texts)
    clusters, sizes = np.unique(found.clusters(len(texts)), return_counts=True)
    assert sizes.max() >= 2990
    assert len(clusters) <= 10


def test_documents_beyond_the_end_join_nothing() -> None:
    """A bridge between two clusters that was not admitted to the corpus does not join them."""
    rng = np.random.default_rng(1)
    a, b = ("".join(rng.choice(list("abcdefgh "), 300)) for _ in range(2))
    found = Duplicates(1.0)
    found.add(0, [a, b, a + b])
    assert len(set(found.clusters(3).tolist())) == 1
    assert found.clusters(2).tolist() == [0, 1]


FRENCH = "L'été dernier, la forêt près de Besançon était déjà très sèche ; où êtes-vous allés, et à quelle heure ?"
KOREAN = "어제 저녁에 우리는 한국 음식을 먹고 공원에서 산책했습니다. 날씨가 아주 좋았습니다."
VIETNAMESE = "Tiếng Việt có nhiều dấu thanh, và mỗi chữ có thể được viết bằng nhiều cách khác nhau."


def test_canonically_equal_texts_are_duplicates() -> None:
    texts = [f"{base} {i} {base[i:]}" for base in (FRENCH, KOREAN, VIETNAMESE) for i in range(0, 60, 3)]
    kept = Duplicates(0.8)
    first = kept.add(0, [unicodedata.normalize("NFC", text) for text in texts])
    again = kept.add(len(texts), [unicodedata.normalize("NFD", text) for text in texts])
    for i, (before, after) in enumerate(zip(first, again, strict=True)):
        assert after == ("duplicate_exact", i if before[0] == "ok" else before[1])
    clusters = kept.clusters(2 * len(texts))
    assert (clusters[: len(texts)] == clusters[len(texts) :]).all()


@given(ANY_TEXT)
def test_canonical_forms_have_one_sketch(text: str) -> None:
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert normalised(forms[0]) == normalised(forms[1])
    one, two = sketches(forms)
    assert (one == two).all()


def test_compatible_characters_stay_apart() -> None:
    """They differ in meaning: a superscript two is not a two."""
    assert normalised("x\u00b2 \ufb01n") != normalised("x2 fin")
