"""lineage: every hop is walked by stored keys, and `--verify` names the hop at which a byte was flipped."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import tiny
from click.testing import CliRunner, Result

from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.errors import InputError, StoreError
from latentgloss.lineage.nodes import Node
from latentgloss.lineage.trace import trace
from latentgloss.pipeline.graph import STAGES
from latentgloss.store.blocks import footer_of, parts_of, write_parquet
from latentgloss.store.digests import file_sha256, json_sha256
from latentgloss.store.version import MANIFEST, Version
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LATENT = 4
BEHIND_A_SCORE = [name for name in tiny.RUNNERS if STAGES[name].noun not in ("report", "embeddings")]
DEAD = 1
P = tiny.SPARSIFY
BLOCK = f"{LATENT // schema.BLOCK:06d}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a workspace in which every stage was run."""
    root = tmp_path_factory.mktemp("lineage")
    tiny.computed_workspace(root)
    return root


def opened(root: Path) -> Workspace:
    """Nothing remembered from an earlier look."""
    return Workspace.open(root / "latentgloss.toml")


def current(root: Path, stage: str) -> Version:
    version = opened(root).store.current(stage, tiny.MODEL if stage == "tokenized_corpus" else P)
    assert version is not None
    return version


def command(root: Path, *args: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(root / "latentgloss.toml"), "lineage", P, str(LATENT), *args])


def broken_kinds(tree: dict[str, Any]) -> set[str]:
    own = {tree["kind"]} if any(check["ok"] is False for check in tree.get("checks", ())) else set()
    return own.union(*(broken_kinds(child) for child in tree["inputs"]))


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """One bit of the byte in the middle of a file is the other way round."""
    data = path.read_bytes()
    at = len(data) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    try:
        yield
    finally:
        path.write_bytes(data)


# What is there ----------------------------------------------------------------------------------------------


def test_tree_reaches_documents_and_weights(finished: Path) -> None:
    tree = trace(opened(finished), P, LATENT)
    kinds = {node.kind for node in tree.walk()}
    assert kinds == {
        "score",
        "version",
        "pin",
        "explanation",
        "eligibility",
        "judgements",
        "contexts",
        "negatives",
        "activations",
        "masked",
        "sae",
        "model",
        "tokens",
        "documents",
        "document",
        "source",
    }
    stages = {node.id.split("/")[0] for node in tree.walk() if node.kind == "version"}
    assert stages == {name for name in BEHIND_A_SCORE if STAGES[name].noun != "scores"} | {"detection_scores"}
    assert all(node.sha256 for node in tree.walk())
    assert not any(node.checks for node in tree.walk())


def test_rows_in_the_tree_are_those_of_the_store(finished: Path) -> None:
    tree = trace(opened(finished), P, LATENT, explainer="pattern")
    stored = current(finished, "explanations").read(schema.EXPLANATIONS, f"{BLOCK}-pattern")
    (row,) = stored.filter(pl.col("latent") == LATENT).iter_rows(named=True)
    told = next(node for node in tree.walk() if node.kind == "explanation")
    assert told.facts["explanation"] == row["explanation"] != ""
    scores = current(finished, "detection_scores").read(schema.SCORES, f"{BLOCK}-pattern")
    expected = scores.filter(pl.col("latent") == LATENT)["score"].to_list()
    assert [row["score"] for row in tree.facts["rows"]] == expected
    shown = next(node for node in tree.walk() if node.kind == "contexts" and node.id.endswith("shown"))
    silent = next(node for node in tree.walk() if node.kind == "negatives" and node.id.endswith("shown"))
    assert shown.facts["windows"] + silent.facts["windows"] == len(row["context_ids"])


def test_json_has_the_documented_keys(finished: Path) -> None:
    result = command(finished, "--json")
    assert result.exit_code == 0

    def keys(node: dict[str, Any]) -> set[str]:
        return set(node).union(*(keys(child) for child in node["inputs"]))

    assert keys(json.loads(result.stdout)) == {"kind", "id", "sha256", "facts", "inputs"}


def test_a_latent_without_a_score_still_has_a_reason_and_a_lineage(finished: Path) -> None:
    tree = trace(opened(finished), P, DEAD, verify=True)
    assert tree.broken() == []
    assert {row["status"] for row in tree.facts["rows"]} == {"dead"}
    (why,) = [node for node in tree.walk() if node.kind == "eligibility"]
    assert why.facts["status"] == "dead"


@pytest.mark.parametrize(("latent", "message"), [(9999, "0 to 287"), (tiny.N_LATENTS, "0 to 287")])
def test_latent_out_of_range(finished: Path, latent: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace(opened(finished), P, latent)


def test_latent_that_was_not_selected(finished: Path) -> None:
    with pytest.raises(InputError, match="was not selected"):
        trace(opened(finished), tiny.SAELENS, 40)


def test_unknown_explainer(finished: Path) -> None:
    with pytest.raises(InputError, match=r"null:pattern, null:pattern:2, .*pattern, token_table"):
        trace(opened(finished), P, LATENT, explainer="patern")


# Verification -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", ["pattern", "token_table", "null:pattern", "null:pattern:2"])
@pytest.mark.parametrize("partition", tiny.SAES)
def test_everything_verifies_when_nothing_was_touched(finished: Path, explainer: str, partition: str) -> None:
    for latent in (0, LATENT, 8, 20) if "null" not in explainer else (16, 20):
        tree = trace(opened(finished), partition, latent, explainer=explainer, verify=True)
        assert [str(c) for node in tree.broken() for c in node.failed] == []
        assert sum(check.ok is True for node in tree.walk() for check in node.checks) > 40


def test_command_says_so_hop_by_hop(finished: Path) -> None:
    result = command(finished, "--verify")
    assert result.exit_code == 0, result.stderr
    assert "✓ score" in result.stdout
    assert "✓ model tiny" in result.stdout
    assert "✗" not in result.stdout


STORED = [
    ("detection_scores", f"scores/{BLOCK}-pattern.parquet", "score"),
    ("detection_scores", f"scores/{BLOCK}-null.pattern.parquet", "score"),
    ("detection_scores", f"scores/{BLOCK}-null.pattern.2.parquet", "score"),
    ("detection_scores", f"judgements/{BLOCK}-pattern.parquet", "judgements"),
    ("explanations", f"explanations/{BLOCK}-pattern.parquet", "explanation"),
    ("sampled_contexts", f"contexts/{BLOCK}.parquet", "contexts"),
    ("sampled_contexts", f"eligibility/{BLOCK}.parquet", "eligibility"),
    ("sampled_negatives", f"negatives/{BLOCK}.parquet", "negatives"),
    ("sampled_negatives", f"strata/{BLOCK}.parquet", "negatives"),
    ("activation_cache", "activations/shard-000000.parquet", "activations"),
    ("activation_cache", "masked/shard-000000.parquet", "masked"),
    ("tokenized_corpus", "tokens.npy", "tokens"),
    ("tokenized_corpus", "shared_13grams.npy", "tokens"),
    ("tokenized_corpus", "spans.parquet", "tokens"),
    ("tokenized_corpus", "sequences.parquet", "tokens"),
    ("tokenized_corpus", "documents.parquet", "documents"),
    ("resolved_saes", "resolved.json", "sae"),
]


@pytest.mark.parametrize(("stage", "file", "hop"), STORED)
def test_a_flipped_byte_in_the_store_is_named(finished: Path, stage: str, file: str, hop: str) -> None:
    version = current(finished, stage)
    with flipped(finished / "data" / version.key / file):
        result = command(finished, "--verify", "--json")
        assert result.exit_code == 1
        assert broken_kinds(json.loads(result.stdout)) == {hop}
        assert f"{hop} " in result.stderr
        assert f"file {version.key}/{file}" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("stage", BEHIND_A_SCORE)
def test_a_flipped_byte_in_a_manifest_is_named(finished: Path, stage: str) -> None:
    version = current(finished, stage)
    with flipped(finished / "data" / version.key / MANIFEST):
        scorer = stage.removesuffix("_scores") if stage.endswith("_scores") else "detection"
        result = command(finished, "--verify", "--json", "--scorer", scorer)
        assert result.exit_code == 1
        assert broken_kinds(json.loads(result.stdout)) == {"version"}
        assert f"version {stage}/{version.manifest.partition}" in result.stderr


@pytest.mark.parametrize(
    ("file", "hop"),
    [
        ("saes/words/sae.safetensors", "sae"),
        ("saes/words/cfg.json", "sae"),
        ("model/model.safetensors", "model"),
        ("model/config.json", "model"),
        ("model/tokenizer_config.json", "model"),
    ],
)
def test_a_flipped_byte_in_weights_is_named(finished: Path, file: str, hop: str) -> None:
    path = finished / file
    data = path.read_bytes()
    if path.suffix == ".json":  # a change that JSON survives, so that what reads the file for use still can
        path.write_bytes(data + b"\n")
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        result = command(finished, "--verify", "--json")
    finally:
        path.write_bytes(data)
    assert result.exit_code == 1
    assert broken_kinds(json.loads(result.stdout)) == {hop}
    assert f"files of the {'SAE' if hop == 'sae' else 'model'}" in result.stderr


def test_a_changed_letter_in_the_source_is_named(finished: Path) -> None:
    tree = trace(opened(finished), P, LATENT)
    used = next(node for node in tree.walk() if node.kind == "document")
    path = finished / "corpus" / "documents.jsonl"
    data = path.read_bytes()
    lines = data.decode().splitlines(keepends=True)
    number = int(used.id.rpartition(":")[2]) - 1
    text = json.loads(lines[number])["text"]
    lines[number] = json.dumps({"text": text[:1].swapcase() + text[1:]}) + "\n"
    path.write_text("".join(lines))
    try:
        result = command(finished, "--verify", "--json")
    finally:
        path.write_bytes(data)
    assert result.exit_code == 1
    assert broken_kinds(json.loads(result.stdout)) == {"source", "document", "tokens"}
    assert f"document {used.id}" in result.stderr


def test_a_source_that_is_gone_is_named(finished: Path, tmp_path: Path) -> None:
    moved = shutil.move(finished / "corpus" / "documents.jsonl", tmp_path)
    try:
        tree = trace(opened(finished), P, LATENT, verify=True)
    finally:
        shutil.move(moved, finished / "corpus" / "documents.jsonl")
    assert {node.kind for node in tree.broken()} == {"source", "document"}


def test_without_verify_damage_is_an_error_that_names_the_file(finished: Path) -> None:
    version = current(finished, "explanations")
    file = finished / "data" / version.key / "explanations" / f"{BLOCK}-pattern.parquet"
    with flipped(file):
        with pytest.raises(StoreError, match=r"pattern\.parquet"):
            trace(opened(finished), P, LATENT)
        result = command(finished)
    assert result.exit_code == 1
    assert "gc --broken explanations" in result.stderr
    assert "Traceback" not in result.stderr


# Forgeries: every hash is made to fit, so only computing it again can tell ----------------------------------


@contextmanager
def forged(
    root: Path, stage: str, table: schema.Table, block: str, edit: Callable[[pl.DataFrame], pl.DataFrame]
) -> Iterator[None]:
    """A table of a block is edited, and file, block, parts, data version and manifest are made to agree."""
    version = current(root, stage)
    folder = root / "data" / version.key
    path, manifest = folder / table.name / f"{block}.parquet", folder / MANIFEST
    before = {p: p.read_bytes() for p in (path, manifest)}
    frame = table.conform(edit(pl.read_parquet(path)))
    assert not frame.equals(pl.read_parquet(path))
    footer = footer_of(path)
    path.unlink()  # the file may be a link that other versions share
    write_parquet(table, frame, path, json.dumps(footer))
    data = json.loads(before[manifest])
    del data["manifest_sha256"]
    data["blocks"][block]["parts"] |= parts_of(table, frame)
    for part in {part for b in data["blocks"].values() for part in b["parts"]}:
        data["parts"][part] = json_sha256(
            {n: b["parts"][part] for n, b in sorted(data["blocks"].items()) if part in b["parts"]}
        )
    data["data_version"] = json_sha256(data["parts"])
    data["files"][f"{table.name}/{block}.parquet"] |= {
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }
    data["manifest_sha256"] = json_sha256(data)
    manifest.write_text(json.dumps(data))
    try:
        yield
    finally:
        for p, content in before.items():
            p.write_bytes(content)


def where(column: str, value: pl.Expr) -> Callable[[pl.DataFrame], pl.DataFrame]:
    mine = pl.col("latent") == LATENT
    return lambda frame: frame.with_columns(pl.when(mine).then(value).otherwise(pl.col(column)).alias(column))


def failures(root: Path) -> dict[str, list[str]]:
    tree = trace(opened(root), P, LATENT, explainer="pattern", verify=True)
    return {node.kind: [check.what for check in node.failed] for node in tree.broken()}


def test_a_forged_score_is_found_from_its_judgements(finished: Path) -> None:
    edit = where("score", pl.col("score") - 1e-6)
    with forged(finished, "detection_scores", schema.SCORES, f"{BLOCK}-pattern", edit):
        found = failures(finished)
    assert set(found) == {"score"}
    assert "score of executed on random from its judgements" in found["score"]


def test_a_forged_interval_is_found_from_its_judgements(finished: Path) -> None:
    edit = where("ci_low", pl.col("ci_low") - 1e-6)
    with forged(finished, "detection_scores", schema.SCORES, f"{BLOCK}-pattern", edit):
        found = failures(finished)
    assert set(found) == {"score"}
    assert "score of executed on random from its judgements" in found["score"]


def test_a_forged_specificity_is_found_from_the_null(finished: Path) -> None:
    edit = where("specificity", pl.col("specificity") + 0.1)
    with forged(finished, "detection_scores", schema.SCORES, f"{BLOCK}-pattern", edit):
        found = failures(finished)
    assert found == {
        "score": [f"specificity of executed on {arm}" for arm in ("population", "random", "same_document")]
    }


def test_forged_evidence_is_found_by_executing_the_program(finished: Path) -> None:
    edit = where("evidence", pl.col("evidence") + 1)
    with forged(finished, "detection_scores", schema.JUDGEMENTS, f"{BLOCK}-pattern", edit):
        found = failures(finished)
    assert "evidence from executing the program again" in found["judgements"]


def test_a_forged_truth_is_found_from_the_sample(finished: Path) -> None:
    edit = where("truth", ~pl.col("truth"))
    with forged(finished, "detection_scores", schema.JUDGEMENTS, f"{BLOCK}-pattern", edit):
        found = failures(finished)
    assert "activating contexts judged are sampled ones" in found["judgements"]


def test_a_score_of_fuzzing_verifies_and_has_no_negatives_of_its_own(finished: Path) -> None:
    tree = trace(opened(finished), P, LATENT, scorer="fuzzing", explainer="pattern", verify=True)
    assert tree.broken() == []
    (judged,) = [node for node in tree.walk() if node.kind == "judgements"]
    assert {node.kind for node in judged.inputs} == {"contexts"}
    done = {check.what for check in judged.checks}
    assert {
        "evidence from executing the program again",
        "contexts with marks have donors",
        "truth matches the stratum",
    } <= done


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("evidence", pl.col("evidence") + 1, "evidence from executing the program again"),
        ("truth", ~pl.col("truth"), "truth matches the stratum"),
        ("decile", 11 - pl.col("decile"), "activating contexts judged are sampled ones"),
    ],
)
def test_forged_judgements_of_fuzzing_are_found(finished: Path, column: str, value: pl.Expr, found: str) -> None:
    edit = where(column, value)
    with forged(finished, "fuzzing_scores", schema.JUDGEMENTS, f"{BLOCK}-pattern", edit):
        tree = trace(opened(finished), P, LATENT, scorer="fuzzing", explainer="pattern", verify=True)
    assert found in {check.what for node in tree.broken() if node.kind == "judgements" for check in node.failed}


def test_a_forged_sentence_is_found_from_its_program(finished: Path) -> None:
    version = current(finished, "explanations")
    texts = version.read(schema.EXPLANATIONS, f"{BLOCK}-pattern").filter(pl.col("status") == "ok")
    other = texts.filter(pl.col("latent") != LATENT)["explanation"][0]
    edit = where("explanation", pl.lit(other))
    with forged(finished, "explanations", schema.EXPLANATIONS, f"{BLOCK}-pattern", edit):
        found = failures(finished)
    assert found["explanation"] == ["program read back from the sentence"]
    assert "pin of explanations tiny/layers.0/words" in found["version"]


def test_forged_activations_of_a_context_are_found_from_the_cache(finished: Path) -> None:
    edit = where("activations", pl.col("activations").list.eval(pl.element() * 2))
    with forged(finished, "sampled_contexts", schema.CONTEXTS, BLOCK, edit):
        found = failures(finished)
    assert found["activations"] == ["activations of the contexts, as cached"]


def test_a_silent_context_that_is_not_silent_is_found(finished: Path) -> None:
    contexts = current(finished, "sampled_contexts").read(schema.CONTEXTS, BLOCK)
    loud = contexts.filter(pl.col("latent") == LATENT, pl.col("split") == "explain")["context"][0]
    told = current(finished, "explanations").read(schema.EXPLANATIONS, f"{BLOCK}-pattern")
    shown = told.filter(pl.col("latent") == LATENT)["context_ids"][0]
    negatives = current(finished, "sampled_negatives").read(schema.NEGATIVES, BLOCK)
    mine = negatives.filter(pl.col("latent") == LATENT, pl.col("split") == "explain")
    victim = mine.filter(pl.col("context").is_in(shown.implode()))["context"][0]
    chosen = (pl.col("split") == "explain") & (pl.col("context") == victim)
    edit = where("context", pl.when(chosen).then(pl.lit(loud, dtype=pl.UInt32)).otherwise(pl.col("context")))
    with forged(finished, "sampled_negatives", schema.NEGATIVES, BLOCK, edit):
        found = failures(finished)
    assert "no activation in the non-activating contexts" in found["activations"]


def test_nodes_met_twice_are_walked_once(finished: Path) -> None:
    tree = trace(opened(finished), P, LATENT)
    seen: dict[str, int] = {}
    for node in tree.walk():
        if node.kind == "version" and node.inputs:
            seen[node.id] = seen.get(node.id, 0) + 1
    assert set(seen.values()) == {1}


def test_reference_keeps_identity() -> None:
    node = Node("sae", "a/b/c", "0123", inputs=[Node("model", "a", "4567")])
    assert node.reference().as_json() == {
        "kind": "sae",
        "id": "a/b/c",
        "sha256": "0123",
        "facts": {"again": True},
        "inputs": [],
    }
