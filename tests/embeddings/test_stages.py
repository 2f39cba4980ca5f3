"""Stages of embeddings on the tiny workspace, and the cosine judge: real LanceDB, a real (tiny) sentence model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny

from latentgloss import schema
from latentgloss.embeddings.search_index import SearchIndex
from latentgloss.embeddings.search_writer import BEGUN, Writer, explanation_rows, writing
from latentgloss.errors import MissingInput, ScorerError
from latentgloss.protocols import Question
from latentgloss.scores.judges.cosine import cosine_judge
from latentgloss.workspace import Workspace
from latentgloss.workspace.search import _pinned, behind, open_index, rebuild

P = tiny.SPARSIFY
STAGES = ("context_embeddings", "explanation_embeddings", "search_index")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return tiny.computed_workspace(tmp_path_factory.mktemp("embedded"))


@pytest.fixture
def own(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    shutil.copytree(finished.settings.folder, tmp_path / "w", symlinks=True)
    return Workspace.open(tmp_path / "w" / "latentgloss.toml")


def record(workspace: Workspace, stage: str, partition: str, file: str = "vectors.json") -> Any:
    version = workspace.store.current(stage, partition)
    assert version is not None
    return version.json(file)


def corpus_of(workspace: Workspace) -> Any:
    resolved = workspace.store.current("resolved_saes", P)
    assert resolved is not None
    return workspace.corpus(resolved)


# Stages ------------------------------------------------------------------------------------------------------


def test_every_window_that_is_sampled_has_a_vector(finished: Workspace) -> None:
    entry = record(finished, "context_embeddings", "tiny")["tiny"]
    vectors = finished.context_vectors("tiny", corpus_of(finished), "tiny")
    assert len(vectors.table) == entry["distinct"] <= entry["contexts"]
    assert entry["table"] == vectors.table.name
    assert entry["dimension"] == 32
    for stage, table in (("sampled_contexts", schema.CONTEXTS), ("sampled_negatives", schema.NEGATIVES)):
        for partition in tiny.SAES:
            sampled = finished.store.current(stage, partition).read(table)["context"].to_numpy()  # type: ignore[union-attr]
            assert len(vectors.table.missing(vectors._keys(sampled))) == 0


def test_a_context_is_embedded_as_its_raw_text(finished: Workspace) -> None:
    corpus = corpus_of(finished)
    vectors = finished.context_vectors("tiny", corpus, "tiny")
    context = np.array([5])
    strings = finished.vocabulary("tiny").strings
    words = [strings[t] for t in corpus.contexts(context, 16)[0] if not strings[t].startswith("<")]
    expected = finished.embedder("tiny").documents([" ".join(words)])
    np.testing.assert_array_equal(vectors.get(context), expected)


def test_every_explanation_has_a_vector_and_nulls_cost_nothing(finished: Workspace) -> None:
    entry = record(finished, "explanation_embeddings", P)["tiny"]
    rows = finished.store.current("explanations", P).read(schema.EXPLANATIONS).filter(status="ok")  # type: ignore[union-attr]
    assert entry["explanations"] == rows.height
    assert entry["cut"] == 0
    assert entry["distinct"] == rows.filter(~pl.col("explainer").str.starts_with("null:"))["explanation"].n_unique()
    texts = finished.text_vectors("tiny", "document")
    assert len(texts.table.missing(texts.keys(rows["explanation"].to_list()))) == 0


def test_a_second_embedder_is_added_beside_the_first(own: Workspace) -> None:
    folder = own.settings.folder
    tiny.write_embedder(folder / "other", d=16, seed=9)
    (folder / "registry/embedders/other.toml").write_text(
        'name = "other"\nsource = "path:../../other"\nmax_tokens = 16\n'
    )
    path = folder / "latentgloss.toml"
    path.write_text(path.read_text().replace('embedders = ["tiny"]', 'embedders = ["tiny", "other"]'))
    workspace = Workspace.open(path)
    outcomes = tiny.run_all(workspace, STAGES[:2])
    assert not [o.error for o in outcomes if o.error]
    entry = record(workspace, "context_embeddings", "tiny")
    assert {name: e["dimension"] for name, e in entry.items()} == {"tiny": 32, "other": 16}
    explained = record(workspace, "explanation_embeddings", P)
    assert explained["tiny"]["cut"] == 0 < explained["other"]["cut"] < explained["other"]["distinct"]
    made = next(o.facts for o in outcomes if o.stage == "context_embeddings")
    assert made["made"] == made["there already"] == entry["other"]["distinct"]


def test_deleted_vectors_are_made_again_by_who_needs_them(own: Workspace) -> None:
    shutil.rmtree(own.lance.root)
    vectors = own.context_vectors("tiny", corpus_of(own), "tiny")
    assert vectors.get(np.array([3, 4, 3])).shape == (3, 32)
    assert len(vectors.table) == 2
    assert all(s.state == "fresh" for s in own.states())


def test_an_embedder_that_is_not_there_fails_its_stages_and_says_what_to_do(own: Workspace) -> None:
    shutil.rmtree(own.settings.folder / "embedder")
    workspace = Workspace.open(own.settings.folder / "latentgloss.toml")
    states = {s.asset: s for s in workspace.states()}
    for stage in STAGES:
        assert states[stage].state == "failed"
        assert "embedder is not a folder" in states[stage].because
    assert states["detection_scores"].state == "fresh"


# The index ---------------------------------------------------------------------------------------------------


def rows_of(workspace: Workspace) -> pl.DataFrame:
    index, _ = open_index(workspace)
    frame = pl.from_arrow(index.table().search().to_arrow())
    assert isinstance(frame, pl.DataFrame)
    return frame.sort("key")


def test_the_index_holds_each_explanation_with_its_lowest_score(finished: Workspace) -> None:
    rows = rows_of(finished)
    explained = finished.store.current("explanations", P).read(schema.EXPLANATIONS).filter(status="ok")  # type: ignore[union-attr]
    mine = rows.filter(partition=P)
    assert mine.height == explained.filter(~pl.col("explainer").str.starts_with("null:")).height
    assert (
        rows["key"].n_unique()
        == rows.height
        == sum(record(finished, "search_index", "tiny", "index.json")["rows"].values())
    )
    assert set(rows["explainer"]) == {"pattern", "token_table"}
    scores = finished.store.current("detection_scores", P).read(schema.SCORES).filter(status="ok")  # type: ignore[union-attr]
    latent = int(mine["latent"][0])
    expected = scores.filter(latent=latent, explainer="pattern")["score"].min()
    (found,) = mine.filter(latent=latent, explainer="pattern")["detection"]
    assert found == expected
    assert mine["intruder"].null_count() == mine.height


def test_indexing_twice_changes_nothing(own: Workspace) -> None:
    before = rows_of(own)
    shutil.rmtree(own.settings.store_root / "search_index")
    workspace = Workspace.open(own.settings.folder / "latentgloss.toml")
    assert not [o.error for o in tiny.run_all(workspace, ["search_index"]) if o.error]
    assert rows_of(workspace).equals(before)


def test_a_sae_that_left_the_registry_leaves_the_index(own: Workspace) -> None:
    (own.settings.folder / "registry/saes/mixed.toml").unlink()
    workspace = Workspace.open(own.settings.folder / "latentgloss.toml")
    assert not [o.error for o in tiny.run_all(workspace, ["search_index"]) if o.error]
    assert set(rows_of(workspace)["partition"]) == {P}
    index, _ = open_index(workspace)
    assert behind(workspace, index) == []


def test_rebuilding_gives_the_same_rows(own: Workspace) -> None:
    before = rows_of(own)
    shutil.rmtree(own.lance.root)
    rows, removed = rebuild(own)
    assert (sum(rows.values()), removed) == (before.height, {})
    assert rows_of(own).equals(before)


class Stopped(BaseException):
    """A process that is stopped."""


@pytest.fixture
def stopped_after_one_sae(monkeypatch: pytest.MonkeyPatch) -> None:
    put, done = Writer.put, []

    def once(self: Writer, partition: str, *args: Any) -> None:
        if done:
            raise Stopped
        done.append(partition)
        put(self, partition, *args)

    monkeypatch.setattr(Writer, "put", once)


@pytest.mark.usefixtures("stopped_after_one_sae")
def test_a_rebuild_that_is_stopped_leaves_the_index_that_was_there(
    own: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(own)
    with pytest.raises(Stopped):
        rebuild(own)
    assert rows_of(own).equals(before)
    monkeypatch.undo()
    (own.lance.path(BEGUN) / "data").rename(own.lance.path(BEGUN) / "gone")
    rebuild(own)
    assert rows_of(own).equals(before)
    assert BEGUN not in own.lance.names()


@pytest.mark.usefixtures("stopped_after_one_sae")
def test_an_index_whose_writer_was_stopped_is_behind_and_finds_words_by_the_same_rules(
    own: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = open_index(own)
    whole = index.search("on", None, mode="text", limit=1000)
    version = own.store.current("search_index", "tiny")
    assert version is not None and whole
    shutil.rmtree(own.lance.path("search"))

    def write() -> None:
        with writing(index, replace=True) as table:
            for partition, pinned in sorted(_pinned(own, version).items()):
                frame = explanation_rows(partition, pinned)
                vectors = own.text_vectors("tiny", "document").get(frame["explanation"].to_list())
                table.put(partition, frame, vectors, version.manifest.fingerprint)

    with pytest.raises(Stopped):
        write()
    (there,) = index.counts()["tiny"]
    assert there == (P, version.manifest.fingerprint)
    assert behind(own, index) == ["tiny"]
    # A stop word of English, which these explanations hold.
    found = {hit.latent for hit in index.search("on", None, mode="text", limit=1000)}
    assert found == {hit.latent for hit in whole if hit.partition == P}
    monkeypatch.undo()
    rebuild(own)
    assert behind(own, index) == []
    assert index.search("on", None, mode="text", limit=1000) == whole


@pytest.mark.parametrize("stage", ["explanations", "activation_cache", "detection_scores"])
def test_a_version_that_is_gone_is_named_and_the_index_stays(own: Workspace, stage: str) -> None:
    before = rows_of(own)
    version = own.store.current(stage, P)
    assert version is not None
    shutil.rmtree(own.store.files.path(version.key))
    workspace = Workspace.open(own.settings.folder / "latentgloss.toml")
    with pytest.raises(MissingInput, match=rf"made from {stage} of {P}, version {version.manifest.fingerprint}"):
        rebuild(workspace)
    assert rows_of(workspace).equals(before)


def test_an_index_that_is_behind_is_told(own: Workspace) -> None:
    path = own.settings.folder / "latentgloss.toml"
    text = path.read_text()
    path.write_text(text.replace("test = 30", "test = 32"))
    assert not [o.error for o in tiny.run_all(Workspace.open(path)) if o.error]
    path.write_text(text)
    workspace = Workspace.open(path)  # the old version is adopted; the table holds the newer rows
    assert {o.status for o in tiny.run_all(workspace)} == {"reused"}
    index, _ = open_index(workspace)
    assert behind(workspace, index) == ["tiny"]
    rebuild(workspace)
    assert behind(workspace, index) == []


def test_another_embedder_begins_the_index_anew(own: Workspace) -> None:
    folder = own.settings.folder
    tiny.write_embedder(folder / "other", d=16, seed=9)
    (folder / "registry/embedders/other.toml").write_text('name = "other"\nsource = "path:../../other"\n')
    path = folder / "latentgloss.toml"
    path.write_text(path.read_text().replace('embedder = "tiny"', 'embedder = "other"'))
    workspace = Workspace.open(path)
    with pytest.raises(Exception, match=r"search\.lance was made with embedder .*latentgloss index rebuild"):
        open_index(workspace)[0].table()
    assert not [o.error for o in tiny.run_all(workspace, ["search_index"]) if o.error]
    assert len(rows_of(workspace)["vector"][0]) == 16


def test_versions_record_what_they_stand_for(finished: Workspace) -> None:
    told = json.dumps(record(finished, "search_index", "tiny", "index.json"))
    assert str(finished.settings.folder) not in told
    assert SearchIndex.name == record(finished, "search_index", "tiny", "index.json")["table"]


# The judge ---------------------------------------------------------------------------------------------------


def question(workspace: Workspace, text: str, contexts: list[int] | None, latent: int = 4) -> Question:
    numbers = None if contexts is None else np.array(contexts, dtype=np.uint32)
    tokens = np.zeros((len(contexts or []), 16), np.uint32)
    return Question("embedding", latent, text, None, tokens, None, numbers)


def test_evidence_is_the_cosine_with_each_context(finished: Workspace) -> None:
    corpus = corpus_of(finished)
    judge = cosine_judge(finished, "tiny", corpus, "tiny")
    assert (judge.name, judge.embedder) == ("cosine", "tiny")
    texts, contexts = ["Fires on 'povisu'", "Fires on 'dusi'"], [[7, 2, 7, 900], [3]]
    asked = [question(finished, t, c) for t, c in zip(texts, contexts, strict=True)]
    answers = list(judge.judge(iter(asked)))
    embedder, vectors = finished.embedder("tiny"), finished.context_vectors("tiny", corpus, "tiny")
    for text, numbers, answer in zip(texts, contexts, answers, strict=True):
        expected = vectors.get(np.array(numbers)) @ embedder.queries([text])[0]
        np.testing.assert_allclose(answer.evidence, expected, rtol=1e-5)
        assert answer.evidence.dtype == np.float32
        assert (answer.prediction, answer.probability, answer.prompt, answer.status) == (None, None, None, None)


def test_answers_do_not_depend_on_what_else_is_asked(finished: Workspace) -> None:
    judge = cosine_judge(finished, "tiny", corpus_of(finished), "tiny")
    one, two = question(finished, "a", [1, 2, 3]), question(finished, "b", [9, 3])
    together = list(judge.judge([one, two]))
    np.testing.assert_array_equal(together[1].evidence, next(judge.judge([two])).evidence)
    assert list(judge.judge([])) == []


def test_the_judge_tells_contexts_of_a_word_from_others(finished: Workspace) -> None:
    corpus = corpus_of(finished)
    judge = cosine_judge(finished, "tiny", corpus, "tiny")
    strings = finished.vocabulary("tiny").strings
    word = strings.index("povisu")
    tokens = corpus.contexts(np.arange(400), 16)
    has = (tokens == word).any(1)
    answer = next(judge.judge([question(finished, "povisu povisu", list(range(400)))]))
    positive, negative = answer.evidence[has], answer.evidence[~has]
    assert len(positive) > 10
    assert (positive[:, None] > negative[None]).mean() > 0.7


def test_a_question_without_contexts_is_a_defect(finished: Workspace) -> None:
    judge = cosine_judge(finished, "tiny", corpus_of(finished), "tiny")
    with pytest.raises(ScorerError, match="latent 4 does not say which contexts"):
        next(judge.judge([question(finished, "a", None)]))


def test_identity_follows_the_embedder(finished: Workspace) -> None:
    judge = cosine_judge(finished, "tiny", corpus_of(finished), "tiny")
    assert judge.identity()["embedder"] == finished.embedder("tiny").identity()
