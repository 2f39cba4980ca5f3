"""Golden outputs: a stage that gives other content under an unchanged stage version fails here.

The input is the tiny workspace. What the model computes may differ in the last digits between processors, so
activations are compared with a tolerance, and everything after them starts from the committed activations. If a
change of content is meant, raise the stage's `version` in `stages.py` and write the files anew:

    LATENTGLOSS_WRITE_GOLDEN=1 pytest tests/test_golden.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest
import tiny

from latentgloss import schema
from latentgloss.stages import STAGES
from latentgloss.work import Work, one_by_one

GOLDEN = Path(__file__).parent / "golden"
CONTENTS = GOLDEN / "contents.json"
WRITE = bool(os.environ.get("LATENTGLOSS_WRITE_GOLDEN"))
EXACT = [name for name in STAGES if name not in ("resolved_saes", "activation_cache")]
"""Compared by hash. `resolved_saes` holds nothing but hashes of its inputs."""


def stored(partition: str, table: schema.Table) -> Path:
    return GOLDEN / partition.replace("/", "~") / f"{table.name}.parquet"


def from_golden(work: Work) -> None:
    """A runner of `activation_cache` that takes the committed activations instead of the model's."""
    tables = (schema.ACTIVATIONS, schema.MASKED)
    frames = {table.name: pl.read_parquet(stored(work.partition, table)) for table in tables}
    work.draft.put("shard-000000", {}, tables, frames)
    latents = pl.read_parquet(stored(work.partition, schema.LATENTS))
    for (block,), rows in latents.group_by(pl.col("latent") // schema.BLOCK, maintain_order=True):
        work.draft.put(f"{block:06d}", {}, (schema.LATENTS,), {"latents": rows})


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """The tiny workspace with activations as the model gives them."""
    workspace = tiny.tiny_workspace(tmp_path_factory.mktemp("computed"))
    outcomes = tiny.run_all(workspace, ["tokenized_corpus", "resolved_saes", "activation_cache"])
    assert not [o.error for o in outcomes if o.error]
    return workspace


@pytest.fixture(scope="module")
def contents(computed, tmp_path_factory):
    """Per stage: version and content hash per partition, with everything after the activations from golden ones."""
    if WRITE:
        for partition in tiny.SAES:
            version = computed.store.current("activation_cache", partition)
            stored(partition, schema.MASKED).parent.mkdir(parents=True, exist_ok=True)
            for table in (schema.ACTIVATIONS, schema.MASKED, schema.LATENTS):
                version.read(table).write_parquet(stored(partition, table), compression="zstd")
    workspace = tiny.tiny_workspace(tmp_path_factory.mktemp("golden"))
    found: dict[str, dict[str, object]] = {}
    for name, stage in STAGES.items():
        runner = one_by_one(from_golden) if name == "activation_cache" else tiny.runner(name)
        outcomes = list(workspace.materialise(name, workspace.partitions(stage), runner))
        assert not [o.error for o in outcomes if o.error]
        if name in EXACT:
            parts = {o.partition: o.version.manifest.parts for o in outcomes}
            found[name] = {"version": stage.version, "contents": parts}
    if WRITE:
        CONTENTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return found


@pytest.mark.parametrize("stage", EXACT)
def test_content_changes_only_with_the_stage_version(contents, stage):
    golden = json.loads(CONTENTS.read_text())[stage]
    if golden["version"] != contents[stage]["version"]:
        pytest.fail(f"{stage} has a new version: write the golden files anew (see the top of this file)")
    assert contents[stage]["contents"] == golden["contents"], f"{stage} gives other content: raise its version"


@pytest.mark.parametrize("partition", tiny.SAES)
def test_activations_are_those_committed(computed, contents, partition):
    """The same pairs but for one in a thousand (ties at the k-th place), values within 1 %, the same mask."""
    version = computed.store.current("activation_cache", partition)
    now, golden = version.read(schema.ACTIVATIONS), pl.read_parquet(stored(partition, schema.ACTIVATIONS))
    both = now.join(golden, on=["latent", "position"], suffix="_golden")
    assert both.height >= 0.999 * max(now.height, golden.height)
    error = (both["activation"] - both["activation_golden"]).abs() / both["activation_golden"]
    assert error.max() <= 0.01
    assert version.read(schema.MASKED).equals(pl.read_parquet(stored(partition, schema.MASKED)))


def test_latent_statistics_are_those_of_the_activations(computed, contents):
    for partition in tiny.SAES:
        now = computed.store.current("activation_cache", partition).read(schema.LATENTS)
        golden = pl.read_parquet(stored(partition, schema.LATENTS))
        for column in ("latent", "count", "density"):
            assert now[column].equals(golden[column])
        assert (now["token_entropy"] - golden["token_entropy"]).abs().max() < 1e-6
