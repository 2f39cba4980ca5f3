"""corpus: what packing, splitting and marking must never get wrong."""

from __future__ import annotations

import tempfile
import unicodedata
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgloss.corpus import building
from latentgloss.corpus.building import CorpusSummary, build_corpus
from latentgloss.corpus.packing import CorpusPlan, split_of
from latentgloss.corpus.reader import Corpus
from latentgloss.corpus.sources import Document
from latentgloss.errors import CorpusError
from latentgloss.schema import GRAM, SPLITS

BOS, SEPARATOR = 1, 0
PLAN = CorpusPlan(sequence_length=16, separator_id=SEPARATOR, bos_id=BOS)
FILES = ("tokens.npy", "shared_13grams.npy", "documents.parquet", "spans.parquet", "sequences.parquet")


def encode(texts: list[str]) -> list[list[int]]:
    """One token per word; 0 and 1 stay free for separator and BOS."""
    return [[2 + zlib.crc32(word.encode()) % 50_000 for word in text.split()] for text in texts]


def build(documents: list[Document], plan: CorpusPlan = PLAN) -> tuple[Corpus, pl.DataFrame, CorpusSummary]:
    """The corpus, read into memory so that its folder can go."""
    with tempfile.TemporaryDirectory() as folder:
        summary = build_corpus(iter(documents), encode, plan, Path(folder))
        assert {path.name for path in Path(folder).iterdir()} == set(FILES)
        corpus = Corpus.open(Path(folder))
        table = corpus.documents.collect()
        loaded = replace(corpus, tokens=np.array(corpus.tokens), shared_13grams=np.array(corpus.shared_13grams))
    return loaded, table, summary


def texts(seed: int, n: int, longest: int = 40, vocabulary: int = 5_000) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [
        Document(f"d{i}", " ".join(f"w{w}" for w in rng.integers(vocabulary, size=rng.integers(longest + 1))))
        for i in range(n)
    ]


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    """Fresh texts, exact copies, near copies and blanks, shuffled; enough for whole sequences in each split."""
    documents = texts(draw(st.integers(0, 2**32 - 1)), draw(st.integers(150, 250)))
    for i in draw(st.lists(st.integers(0, 149), max_size=20)):
        text = documents[i].text
        documents.append(
            Document(
                f"copy{len(documents)}",
                draw(st.sampled_from((text, f"  {text}\n", f"{text} w1", text.upper(), " \n", text[: len(text) // 2]))),
            )
        )
    return draw(st.permutations(documents))


@st.composite
def plans(draw: st.DrawFn) -> CorpusPlan:
    return replace(
        PLAN,
        sequence_length=draw(st.integers(4, 24)),
        bos_id=draw(st.sampled_from((BOS, None))),
        seed=draw(st.integers(0, 3)),
        near_duplicate=draw(st.sampled_from((0.5, 0.8, 1.0))),
    )


def split_by_name(table: pl.DataFrame) -> dict[str, str]:
    return dict(table.select("name", "split").iter_rows())


@settings(max_examples=25, deadline=None)
@given(documents=corpora(), plan=plans())
def test_every_token_is_where_the_tables_say(documents: list[Document], plan: CorpusPlan) -> None:
    corpus, table, summary = build(documents, plan)
    assert table["name"].to_list() == [d.name for d in documents]
    assert set(table.group_by("cluster").agg(pl.col("split").n_unique())["split"]) == {1}
    split = table["split"].to_list()

    flat = corpus.tokens.ravel()
    pieces: dict[int, list[int]] = {}
    covered = np.zeros(len(flat), dtype=int)
    for document, start, end in zip(corpus.span_document, corpus.span_start, corpus.span_end, strict=True):
        assert start < end
        first, last = start // plan.sequence_length, (end - 1) // plan.sequence_length
        assert first == last, "a span lies within one sequence"
        assert SPLITS[corpus.split_of_sequence[first]] == split[document], "a sequence never mixes splits"
        pieces.setdefault(int(document), []).extend(flat[start:end].tolist())
        covered[start:end] += 1
    assert covered.max() == 1
    # What is in no span is a BOS at the head of a sequence or a separator.
    bare = np.where(covered.reshape(corpus.tokens.shape) == 0, corpus.tokens.astype(np.int64), -1)
    if plan.bos_id is not None:
        assert (bare[:, 0] == BOS).all()
        bare = bare[:, 1:]
    assert set(np.unique(bare)) <= {-1, SEPARATOR}
    assert (corpus.document_of_position(np.arange(len(flat))) >= 0).tolist() == (covered == 1).tolist()

    whole = dict(zip(range(len(documents)), encode([d.text for d in documents]), strict=True))
    lost = dict.fromkeys(SPLITS, 0)
    for i, (status, n_tokens) in enumerate(table.select("status", "n_tokens").iter_rows()):
        stored = pieces.get(i, [])
        assert n_tokens == len(stored)
        assert (status == "ok") or not stored
        assert stored == whole[i][: len(stored)], "only the end of a document may be missing"
        if status == "ok":
            lost[split[i]] += len(whole[i]) - len(stored)
    assert lost == summary.dropped_tail
    assert all(tail < plan.payload for tail in lost.values())
    assert list(corpus.split_of_sequence) == sorted(corpus.split_of_sequence)
    assert summary.sequences == {s: int((corpus.split_of_sequence == k).sum()) for k, s in enumerate(SPLITS)}
    assert sum(summary.tokens.values()) == covered.sum()
    assert sum(summary.documents.values()) == len(documents)


@settings(max_examples=15, deadline=None)
@given(documents=corpora(), order=st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_order(documents: list[Document], order: object) -> None:
    shuffled = list(documents)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split_by_name(build(documents)[1]) == split_by_name(build(shuffled)[1])


@settings(max_examples=15, deadline=None)
@given(documents=corpora(), place=st.integers(0, 150), seed=st.integers(0, 2**32 - 1))
def test_an_unrelated_document_changes_no_other_split(documents: list[Document], place: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    stranger = Document("stranger", " ".join(f"{word:x}" for word in rng.integers(2**60, size=30)))
    before = split_by_name(build(documents)[1])
    after = split_by_name(build([*documents[:place], stranger, *documents[place:]])[1])
    assert {name: split for name, split in after.items() if name != "stranger"} == before


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), word=st.integers(0, 59), threshold=st.sampled_from((0.5, 0.8, 1.0)))
def test_near_duplicates_share_a_split(seed: int, word: int, threshold: float) -> None:
    """One of 60 words differs: similarity about .9."""
    rng = np.random.default_rng(seed)
    words = [f"{w:x}" for w in rng.integers(2**28, size=60)]
    changed = [*words[:word], "another", *words[word + 1 :]]
    documents = [Document("a", " ".join(words)), Document("b", " ".join(changed)), *texts(seed, 200)]
    _, table, _ = build(documents, replace(PLAN, near_duplicate=threshold))
    a, b = table.row(0, named=True), table.row(1, named=True)
    assert a["cluster"] == b["cluster"]
    assert a["split"] == b["split"]
    assert (b["status"], b["duplicate_of"]) == (("ok", None) if threshold == 1.0 else ("duplicate_near", 0))


WORDS = {
    "French": "été forêt déjà sèche allés où être garçon naïve hôtel Noël château élève père mère leçon",
    "Korean": "어제 저녁에 우리는 한국 음식을 먹고 공원에서 산책했습니다 날씨가 아주 좋았습니다 학교 도서관 친구",
    "Vietnamese": "Tiếng Việt có nhiều dấu thanh mỗi chữ được viết bằng cách khác nhau nước người một ngày",
}


@pytest.mark.parametrize("language", WORDS)
@pytest.mark.parametrize("first", ["NFC", "NFD"])
def test_canonical_twins_are_duplicates_and_the_text_stays(language: str, first: str) -> None:
    """Forty documents in one form, exact twins of half of them in the other, and near twins of the other half."""
    second = "NFD" if first == "NFC" else "NFC"
    rng, words = np.random.default_rng(0), WORDS[language].split()
    plain = [" ".join(rng.choice(words, 60)) for _ in range(40)]
    twins = [text if i < 20 else f"{text} {words[0]}" for i, text in enumerate(plain)]
    documents = [Document(f"a{i}", unicodedata.normalize(first, text)) for i, text in enumerate(plain)]
    documents += [Document(f"b{i}", unicodedata.normalize(second, text)) for i, text in enumerate(twins)]
    corpus, table, _ = build([*documents, *texts(0, 200)])
    rows = table.rows(named=True)
    found = [(row["status"], row["duplicate_of"]) for row in rows[40:80]]
    assert found == [("duplicate_exact" if i < 20 else "duplicate_near", i) for i in range(40)]
    for before, after in zip(rows[:40], rows[40:80], strict=True):
        assert (before["status"], before["cluster"], before["split"]) == ("ok", after["cluster"], after["split"])
    stored = set(corpus.tokens.ravel().tolist())
    written, twinned, fillers = (
        {token for tokens in encode([d.text for d in some]) for token in tokens}
        for some in (documents[:40], documents[40:], texts(0, 200))
    )
    other = twinned - written - fillers
    assert len(stored & written) > 0.9 * len(written), "as they were written, but for ends of splits"
    assert other and not stored & other


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(8, 40), bos=st.sampled_from((BOS, None)))
def test_shared_13grams_equal_brute_force(seed: int, length: int, bos: int | None) -> None:
    """Texts quote from a small pool of passages, so that splits share long stretches."""
    rng = np.random.default_rng(seed)
    pool = [" ".join(f"{w:x}" for w in rng.integers(2**28, size=18)) for _ in range(6)]
    documents = [
        Document(f"d{i}", f"{text.text} {pool[rng.integers(6)]} {text.text[::-1]}")
        for i, text in enumerate(texts(seed, 150, longest=90))
    ]
    plan = replace(PLAN, sequence_length=length, bos_id=bos)
    corpus, _, summary = build(documents, plan)
    first = 0 if bos is None else 1
    seen: list[set[tuple[int, ...]]] = [set(), set(), set()]
    expected = np.zeros(corpus.tokens.shape, dtype=bool)
    for row, split in enumerate(corpus.split_of_sequence):
        for offset in range(first, length - GRAM + 1):
            gram = tuple(corpus.tokens[row, offset : offset + GRAM].tolist())
            seen[split].add(gram)
            expected[row, offset] = any(gram in earlier for earlier in seen[:split])
    assert (corpus.shared_13grams == expected).all()
    assert [summary.shared_positions[s] for s in SPLITS] == [
        int(expected[corpus.split_of_sequence == k].sum()) for k in range(3)
    ]
    if length >= 30:
        assert expected.any(), "the test would prove nothing"


def test_windows_are_judged_by_whole_13grams() -> None:
    corpus, _, _ = build(texts(0, 200), replace(PLAN, sequence_length=64))
    shared = np.zeros_like(corpus.shared_13grams)
    shared[0, [32 - GRAM, 32 - GRAM + 1]] = True  # ends at the window's last token; ends one token after it
    shared[1, 32 - GRAM + 1] = True
    marked = replace(corpus, shared_13grams=shared).shares_13gram(32)
    assert np.flatnonzero(marked).tolist() == [0]
    assert replace(corpus, shared_13grams=shared).shares_13gram(64)[:3].tolist() == [True, True, False]
    assert not corpus.shares_13gram(8).any()


def test_same_input_same_bytes_however_batched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = texts(3, 200)
    documents += [Document("near", documents[0].text + " w1"), Document("exact", documents[1].text)]
    for name, size in (("a", 2048), ("b", 2048), ("c", 7)):
        monkeypatch.setattr(building, "_BATCH_DOCUMENTS", size)
        (tmp_path / name).mkdir()
        build_corpus(documents, encode, replace(PLAN, max_tokens=3000), tmp_path / name)
    for file in FILES:
        content = {(tmp_path / name / file).read_bytes() for name in "abc"}
        assert len(content) == 1, file


def test_left_out_documents_keep_a_row_with_a_reason() -> None:
    long = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau"
    documents = [
        Document("kept", long),
        Document("spaced", long.replace(" ", "\n  ")),
        Document("near", long.upper() + "."),
        Document("copy of near", long.upper() + " ."[1:]),
        Document("blank", " \t\n"),
        *texts(1, 200),
    ]
    _, table, summary = build(documents)
    rows = table.head(5).select("status", "duplicate_of", "n_tokens").rows()
    assert [row[:2] for row in rows] == [
        ("ok", None),
        ("duplicate_exact", 0),
        ("duplicate_near", 0),
        ("duplicate_exact", 0),  # of a document that was itself left out: points at the one kept
        ("empty", None),
    ]
    assert [row[2] for row in rows[1:]] == [0, 0, 0, 0]
    assert table.head(4)["cluster"].n_unique() == 1
    assert summary.documents["duplicate_near"] >= 1
    assert asdict(summary)["largest_cluster"] >= 4


def test_reading_stops_at_the_limit() -> None:
    read: list[str] = []

    def source() -> object:
        for document in texts(5, 10_000):
            read.append(document.name)
            yield document

    plan = replace(PLAN, max_tokens=4000)
    with tempfile.TemporaryDirectory() as folder:
        summary = build_corpus(source(), encode, plan, Path(folder))  # type: ignore[arg-type]
        table = Corpus.open(Path(folder)).documents.collect()
    total = sum(summary.tokens.values()) + sum(summary.dropped_tail.values())
    assert 4000 - 40 <= total <= 4000
    assert table["status"].to_list().count("over_limit") == 1
    assert table["status"][-1] == "over_limit"
    assert len(read) <= building._BATCH_DOCUMENTS, "the rest of the source is not read"


def test_shares_are_met_by_hash() -> None:
    plan = replace(PLAN, seed=7)
    splits = [split_of(f"{i:064x}", plan) for i in range(20_000)]
    assert [splits.count(s) / len(splits) for s in SPLITS] == pytest.approx([0.4, 0.1, 0.5], abs=0.015)
    assert {split_of(f"{i:064x}", replace(plan, shares=(0.5, 0.0, 0.5))) for i in range(2000)} == {
        "explain",
        "test",
    }
    assert {split_of(f"{i:064x}", replace(plan, shares=(1.0, 0.0, 0.0))) for i in range(200)} == {"explain"}
    assert splits[:2000] != [split_of(f"{i:064x}", PLAN) for i in range(2000)], "the seed matters"


def test_progress_counts_up(tmp_path: Path) -> None:
    calls: list[tuple[int, int | None, str]] = []
    build_corpus(texts(0, 200), encode, PLAN, tmp_path, lambda *call: calls.append(call))
    assert {unit for *_, unit in calls} == {"tokens", "sequences packed", "sequences compared"}
    assert all(total is None or done <= total for done, total, _ in calls)
    assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize(
    ("documents", "plan", "message"),
    [
        ([], PLAN, "empty: 0 documents were read"),
        ([Document("a", " "), Document("b", "\n")], PLAN, "empty: 2 documents were read"),
        ([Document("a", "x y z")], replace(PLAN, max_tokens=2), "within the limit of 2"),
        ([Document("book.txt", "word " * 999)], PLAN, r"split '\w+' got 0 tokens in 0 documents.*jsonl"),
        ([Document("a.jsonl:3", "cut \ud83d")], PLAN, "a.jsonl:3 holds half a surrogate pair at character 4"),
    ],
)
def test_bad_corpora_are_refused(tmp_path: Path, documents: list[Document], plan: CorpusPlan, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        build_corpus(documents, encode, plan, tmp_path)
    assert not (tmp_path / "tokens.npy").exists()
    assert list(tmp_path.iterdir()) == []


def test_bad_plans_are_refused() -> None:
    for shares in ((0.5, 0.5), (0.5, 0.6, -0.1), (0.4, 0.1, 0.4)):
        with pytest.raises(CorpusError, match="add up to 1"):
            replace(PLAN, shares=shares)
    with pytest.raises(CorpusError, match="at least 2"):
        replace(PLAN, sequence_length=1)


@pytest.mark.parametrize("name", ["tokens.npy", "shared_13grams.npy", "spans.parquet", "sequences.parquet"])
def test_a_damaged_corpus_is_refused_by_name(tmp_path: Path, name: str) -> None:
    build_corpus(texts(0, 200), encode, PLAN, tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorpusError, match=name):
        Corpus.open(tmp_path)
    path.unlink()
    with pytest.raises(CorpusError, match=name):
        Corpus.open(tmp_path)


def test_files_of_two_corpora_are_not_mixed(tmp_path: Path) -> None:
    for name, length in (("a", 16), ("b", 32)):
        (tmp_path / name).mkdir()
        build_corpus(texts(0, 200), encode, replace(PLAN, sequence_length=length), tmp_path / name)
    (tmp_path / "b" / "tokens.npy").replace(tmp_path / "a" / "tokens.npy")
    with pytest.raises(CorpusError, match="do not fit"):
        Corpus.open(tmp_path / "a")


def test_contexts_are_numbered_by_position() -> None:
    corpus, _, _ = build(texts(0, 200))
    flat = corpus.tokens.ravel()
    assert corpus.contexts(np.array([5]), 8)[0].tolist() == flat[40:48].tolist()
    assert corpus.contexts(np.array([5, 0]), 8).tolist() == [flat[40:48].tolist(), flat[:8].tolist()]
    assert corpus.split_of_context(8).tolist() == np.repeat(corpus.split_of_sequence, 2).tolist()
    with pytest.raises(CorpusError, match="do not divide sequences of 16"):
        corpus.contexts(np.array([0]), 5)
