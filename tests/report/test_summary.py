"""What is current of several stages need not belong together: later stages must see it, and say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from latentgloss import schema
from latentgloss.config import settings
from latentgloss.scores import score_rows
from latentgloss.workspace import Workspace
from tests import tiny

SCORES = ("detection_scores", "fuzzing_scores", "intruder_scores", "embedding_scores")
BEFORE_SCORES = [stage for stage in tiny.RUNNERS if stage not in (*SCORES, "search_index", "score_report")]


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("belonging")
    tiny.computed_workspace(folder)
    return folder


@pytest.fixture
def folder(computed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(computed, tmp_path / "copy"))


def reset(folder: Path, old: str, new: str) -> Workspace:
    path = folder / settings.FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return Workspace.open(path)


@pytest.mark.parametrize("stage", [*SCORES, "explanations"])
def test_contexts_cut_by_other_settings_are_refused(folder: Path, stage: str) -> None:
    """Their numbers would be read as those of other windows."""
    workspace = reset(folder, "length = 16", "length = 32")
    outcomes = tiny.run_all(workspace, [stage])
    assert {o.status for o in outcomes} == {"failed"}
    assert all("was made with contexts.length = 16" in str(o.error) for o in outcomes)


def test_scores_of_other_explanations_are_not_reported_beside_these(folder: Path) -> None:
    workspace = reset(folder, "[report]", "[explanations.pattern]\nrules = 2\n[report]")
    assert not [o.error for o in tiny.run_all(workspace, ["explanations", "detection_scores"]) if o.error]
    (report, *_) = tiny.run_all(workspace, ["score_report"])
    assert report.error is None and report.version is not None
    assert set(report.version.read(schema.REPORT)["scorer"]) == {"detection"}
    behind = {f"{stage} of {sae}" for stage in ("fuzzing_scores", "embedding_scores") for sae in tiny.SAES}
    assert set(report.facts["scores_behind"]) == behind
    (index,) = tiny.run_all(workspace, ["search_index"])
    assert index.error is None
    table = workspace.lance.open("search", _facts(workspace)).search().to_arrow()
    assert table["fuzzing"].null_count == len(table)
    assert table["detection"].null_count < len(table)


def _facts(workspace: Workspace) -> dict[str, object]:
    from latentgloss.embeddings.search_index import SearchIndex

    return SearchIndex(workspace.lance, workspace.embedder(workspace.settings.search.embedder).identity()).facts


def test_one_scorer_is_enough_for_a_report_and_none_is_not(tmp_path: Path) -> None:
    workspace = tiny.tiny_workspace(tmp_path)
    assert not [o.error for o in tiny.run_all(workspace, BEFORE_SCORES) if o.error]
    (none,) = tiny.run_all(workspace, ["score_report"])
    assert "none of detection_scores, fuzzing_scores, intruder_scores, embedding_scores" in str(none.error)
    empty = tiny.run_all(workspace, ["intruder_scores"])  # nobody is asked unless the settings name judges
    assert not [o.error for o in empty if o.error] and not any(o.version.manifest.blocks for o in empty if o.version)
    for stage in ("score_report", "search_index"):
        (still_none,) = tiny.run_all(workspace, [stage])
        assert still_none.error is not None and "none of detection_scores" in str(still_none.error)
    assert not [o.error for o in tiny.run_all(workspace, ["fuzzing_scores"]) if o.error]
    (report,) = tiny.run_all(workspace, ["score_report"])
    assert report.error is None and report.version is not None
    assert set(report.version.read(schema.REPORT)["scorer"]) == {"fuzzing"}


def test_a_sae_of_which_a_scorer_holds_nothing_is_not_reported_as_scored(tmp_path: Path) -> None:
    workspace = tiny.tiny_workspace(tmp_path)
    assert not [o.error for o in tiny.run_all(workspace, [*BEFORE_SCORES, "intruder_scores"]) if o.error]
    (scored,) = workspace.materialise("detection_scores", [tiny.SPARSIFY], tiny.runner("detection_scores"))
    (report,) = tiny.run_all(workspace, ["score_report"])
    assert scored.error is None and report.error is None
    assert report.facts["partitions"] == [tiny.SPARSIFY]


def test_a_handful_of_judgements_left_of_many_is_no_score() -> None:
    n, counted = 40, 3
    truth = np.tile([True, False], n // 2)
    rows = pl.DataFrame(
        {
            "latent": pl.Series([0] * n + [1] * n, dtype=pl.UInt32),
            "arm": "donor",
            "split": "test",
            "decile": pl.Series(np.where(truth, 5, 0).tolist() * 2, dtype=pl.UInt8),
            "document": pl.Series(range(2 * n), dtype=pl.UInt32),
            "truth": truth.tolist() * 2,
            "evidence": pl.Series([float(t) for t in truth] * 2, dtype=pl.Float32),
            "prediction": truth.tolist() * 2,
            "prompt": pl.Series([None] * 2 * n, dtype=pl.Int64),
        }
    )
    lost = (pl.col("latent") == 1) & (pl.int_range(pl.len()).over("latent") >= 2 * counted)
    rows = rows.with_columns(pl.when(~lost).then(pl.col("evidence", "prediction")))
    key = {"explainer": "e", "scorer": "fuzzing", "judge": "j", "embedder": "", "profile": "default"}
    whole, few = score_rows.scores_of_arm(
        rows, pl.Series([0, 1], dtype=pl.UInt32), "donor", "balanced_accuracy", key
    ).iter_rows(named=True)
    assert (whole["status"], whole["score"]) == ("ok", 1.0)
    assert (few["status"], few["score"], few["auroc"], few["n"]) == ("unscored", None, None, 2 * counted)
    assert "fewer than 10 decided judgements" in few["reason"]
    asked = rows.filter(pl.int_range(pl.len()).over("latent") < 2 * counted)
    (_, all_there) = score_rows.scores_of_arm(
        asked, pl.Series([0, 1], dtype=pl.UInt32), "donor", "balanced_accuracy", key
    )["status"]
    assert all_there == "ok", "few were asked for, none was lost"
