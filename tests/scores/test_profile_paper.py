"""Profile `paper`: a set of settings, labelled in every row, never mixed with the default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from assets import pictures
from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.config import settings
from latentgloss.errors import SettingsError
from latentgloss.scores.scorers.fuzzing import against_random
from latentgloss.store import Version
from latentgloss.workspace import Workspace
from tests import tiny

Both = tuple[Workspace, dict[str, pl.DataFrame], dict[str, pl.DataFrame]]
STAGES = ("detection_scores", "fuzzing_scores")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """One store after the default profile, then after `paper`; scores of each."""
    folder = tmp_path_factory.mktemp("paper")
    tiny.computed_workspace(folder)
    path = folder / settings.FILE
    before = path.read_text()

    def scores() -> dict[str, pl.DataFrame]:
        workspace = Workspace.open(path)
        assert not [o.error for o in tiny.run_all(workspace) if o.error]
        return {name: workspace.store.current(name, tiny.SPARSIFY).read(schema.SCORES) for name in STAGES}  # type: ignore[union-attr]

    first = scores()
    lines = [line for line in before.splitlines() if line.split(" =")[0] not in settings.PAPER["contexts"]]
    path.write_text("\n".join(['profile = "paper"', *lines]))
    second = scores()
    return Workspace.open(path), first, second


def test_every_score_says_whose_protocol_it_is(both: Both) -> None:
    _, default, paper = both
    for name in STAGES:
        assert set(default[name]["profile"]) == {"default"}
        assert set(paper[name]["profile"]) == {"paper"}
    assert set(paper["fuzzing_scores"]["negatives"]) == {"random"}
    assert set(paper["detection_scores"]["negatives"]) == {"random", "population"}


def test_whoever_sees_scores_is_told_whose_protocol_it_is(both: Both) -> None:
    workspace, _, paper = both
    version, model = workspace.store.current("detection_scores", tiny.SPARSIFY), tiny.MODEL
    report, index = (workspace.store.current(stage, model) for stage in ("score_report", "search_index"))
    assert version is not None and report is not None and index is not None
    assert "Profile paper" in pictures.scores(version)
    assert pictures.report(report).splitlines()[0].count("profile") == 1
    (latent,) = paper["detection_scores"].filter(status="ok", explainer="pattern")["latent"].head(1)
    told = {"PROFILE", "paper"}
    config = ["--config", str(workspace.settings.folder / settings.FILE)]
    shown = CliRunner().invoke(cli, [*config, "scores", tiny.SPARSIFY, "--latent", str(latent)]).output
    assert told <= set(shown.split())
    found = CliRunner().invoke(cli, [*config, "search", tiny.words()[0][1], "--mode", "text"]).output
    assert told <= set(found.split())
    assert "(profile paper)" in CliRunner().invoke(cli, [*config, "lineage", tiny.SPARSIFY, str(latent)]).output

    before = [v for v in _versions(workspace, "detection_scores", tiny.SPARSIFY) if v.key != version.key]
    assert before and not any("rofile" in pictures.scores(v) for v in before)
    assert not any(
        "profile" in pictures.report(v) for v in _versions(workspace, "score_report", model) if v.key != report.key
    )


def _versions(workspace: Workspace, stage: str, partition: str) -> list[Version]:
    folder = workspace.settings.store_root / stage / partition
    found = (workspace.store.version(stage, partition, path.name) for path in folder.iterdir() if path.is_dir())
    return [version for version in found if version is not None]


def test_one_pool_scores_what_was_shown(both: Both) -> None:
    workspace, _, _ = both
    contexts = workspace.store.current("sampled_contexts", tiny.SPARSIFY).read(schema.CONTEXTS)  # type: ignore[union-attr]
    shown, scored = (contexts.filter(split=s).select("latent", "context") for s in ("explain", "test"))
    assert shown.join(scored, on=["latent", "context"], how="semi").height > 0
    assert shown.group_by("latent").len()["len"].max() <= 40


def test_latents_of_few_active_tokens_are_left_out(both: Both) -> None:
    workspace, _, _ = both
    table = workspace.store.current("sampled_contexts", tiny.SPARSIFY).read(schema.ELIGIBILITY)  # type: ignore[union-attr]
    counts = workspace.store.current("activation_cache", tiny.SPARSIFY).read(schema.LATENTS).select("latent", "count")  # type: ignore[union-attr]
    joined = table.join(counts, on="latent").filter(pl.col("count") > 0)
    assert joined.filter(pl.col("count") < 200)["status"].unique().to_list() == ["rare"]
    assert "eligible" in joined.filter(pl.col("count") >= 200)["status"].to_list()
    assert not joined.filter((pl.col("count") >= 200) & (pl.col("status") == "rare")).height


def test_the_default_profile_is_found_again(both: Both) -> None:
    workspace, _, _ = both
    path = workspace.settings.folder / settings.FILE
    kept = path.read_text()
    tiny.tiny_workspace(workspace.settings.folder)
    outcomes = list(tiny.run_all(Workspace.open(path)))
    path.write_text(kept)
    assert {o.status for o in outcomes} == {"reused"}


@pytest.mark.parametrize("text", ["[contexts]\npool = 'one'\n", "[fuzzing]\nwrong_marks = 'random'\n"])
def test_parts_of_it_alone_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / settings.FILE).write_text(text)
    with pytest.raises(SettingsError, match="only profile"):
        settings.load(tmp_path / settings.FILE)


def test_what_it_sets_cannot_be_set_otherwise(tmp_path: Path) -> None:
    (tmp_path / settings.FILE).write_text('profile = "paper"\n[contexts]\nexplain = 100\n')
    with pytest.raises(SettingsError, match=r"contexts.explain = 100"):
        settings.load(tmp_path / settings.FILE)


def test_random_marks_are_as_many_as_some_context_has() -> None:
    length = 16
    masked = np.zeros((40, length), dtype=bool)
    masked[:, 0] = True
    contexts = pl.DataFrame(
        {
            "latent": pl.Series([1] * 3, dtype=pl.UInt32),
            "split": ["test"] * 3,
            "context": pl.Series([0, 1, 2], dtype=pl.UInt32),
            "decile": pl.Series([1, 2, 3], dtype=pl.UInt8),
            "document": pl.Series([0, 1, 2], dtype=pl.UInt32),
            "offsets": pl.Series([[3], [4, 5], [1, 2, 3, 9, 10]], dtype=pl.List(pl.UInt8)),
            "activations": pl.Series([[1.0], [1.0, 0.9], [1.0] * 5], dtype=pl.List(pl.Float32)),
        }
    )
    negatives = pl.DataFrame(
        {
            "latent": pl.Series([1] * 30 + [2], dtype=pl.UInt32),
            "split": ["test"] * 31,
            "context": pl.Series([*range(3, 33), 33], dtype=pl.UInt32),
            "document": pl.Series(range(31), dtype=pl.UInt32),
        }
    )
    rows, marked = against_random(contexts, negatives, masked, 0)
    assert set(rows["latent"]) == {1}, "a latent without activating contexts is not asked about"
    counts = marked[~rows["truth"].to_numpy()].sum(axis=1)
    assert set(counts.tolist()) == {1, 2, 5}
    assert not (marked & masked[rows["context"].to_numpy()]).any()
    assert marked[~rows["truth"].to_numpy()][:, 1:].any(axis=0).all(), "marks may be anywhere"
