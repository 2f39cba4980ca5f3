"""Golden outputs: no change of the code changes a fingerprint or a content unless a stage's version says so.

`golden/` holds the tiny workspace as it was once computed: the activations as tables, and of the store every JSON
file (manifests with recipes, fingerprints, content hashes and blocks; pointers), packed in `store.tar.xz`. Three
things are compared:

- the store of the time is opened by today's code: everything is fresh, and materialising it computes nothing;
- every stage is computed anew: recipe, fingerprint, data version and blocks are those of the time;
- the model's activations are those committed, within a tolerance, because the last digits differ between processors.

If a change of content is meant, raise the stage's `version` and write the files anew:

    LATENTGLOSS_WRITE_GOLDEN=1 pytest tests/pipeline/test_golden.py
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import judged_world
import polars as pl
import pytest
import tiny
from llm_server import Server
from scripted_model import reader

from latentgloss import schema
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.stage_run import StageRun, one_by_one
from latentgloss.workspace import Workspace

GOLDEN = Path(__file__).parent / "golden"
STORE = GOLDEN / "store.tar.xz"
WRITE = bool(os.environ.get("LATENTGLOSS_WRITE_GOLDEN"))
SETTINGS = (
    tiny.SETTINGS.replace('embedders = ["tiny"]', 'embedders = ["tiny"]\nsample = 20')
    + """
[explanations]
explainers = ["pattern", "token_table", "llm", "llm_cot", "contrastive", "best_of_k", "null:pattern", "null:llm"]
model = "judge"
nulls = 2
llm.contexts = 8
llm.sample = 6
best_of_k.k = 2

[detection]
judges = ["executed", "llm:judge"]
llm.sample = 4
llm.null_sample = 2

[fuzzing]
judges = ["executed", "llm:judge"]
llm.sample = 4
llm.null_sample = 2

[intruder]
judges = ["llm:judge"]
sample = 4

[budget]
usd = 1000
"""
)
"""Every stage, with a language model in all that may ask one."""


def stored(partition: str, table: schema.Table) -> Path:
    return GOLDEN / partition.replace("/", "~") / f"{table.name}.parquet"


def from_golden(run: StageRun) -> None:
    """A runner of `activation_cache` that takes the committed activations instead of the model's."""
    tables = (schema.ACTIVATIONS, schema.MASKED)
    frames = {table.name: pl.read_parquet(stored(run.partition, table)) for table in tables}
    run.draft.put("shard-000000", {}, tables, frames)
    latents = pl.read_parquet(stored(run.partition, schema.LATENTS))
    for (block,), rows in latents.group_by(pl.col("latent") // schema.BLOCK, maintain_order=True):
        run.draft.put(f"{block:06d}", {}, (schema.LATENTS,), {"latents": rows})


def runner(stage: str):
    return one_by_one(from_golden) if stage == "activation_cache" else tiny.runner(stage)


def manifests(folder: Path) -> dict[str, dict[str, object]]:
    """Manifests of a store by stage and partition."""
    read = (json.loads(path.read_bytes()) for path in sorted(folder.rglob("manifest.json")))
    return {f"{m['stage']} of {m['partition']}": m for m in read}


def stand_in(store: Path) -> None:
    """Writes files of the right size, without content, where manifests list files that are not in the archive."""
    for path in store.rglob("manifest.json"):
        for name, entry in json.loads(path.read_bytes())["files"].items():
            file = path.parent / name
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as empty:
                    empty.truncate(entry["bytes"])


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The tiny workspace with activations as the model gives them."""
    workspace = tiny.computed_workspace(tmp_path_factory.mktemp("cached"))
    if WRITE:
        for partition in tiny.SAES:
            version = workspace.store.current("activation_cache", partition)
            stored(partition, schema.MASKED).parent.mkdir(parents=True, exist_ok=True)
            for table in (schema.ACTIVATIONS, schema.MASKED, schema.LATENTS):
                version.read(table).write_parquet(stored(partition, table), compression="zstd")
    return workspace


@pytest.fixture(scope="module")
def world(cached, tmp_path_factory):
    """Folder of a workspace in which every stage was computed from the committed activations by today's code."""
    folder = tmp_path_factory.mktemp("golden")
    tiny.tiny_workspace(folder, settings=SETTINGS)
    with Server(lambda body: reader(judged_world.request_of(body))) as server:
        judged_world.register(folder, server, in_flight=8)
        workspace = Workspace.open(folder / "latentgloss.toml")
        for name, stage in STAGES.items():
            outcomes = list(workspace.materialise(name, workspace.partitions(stage), runner(name)))
            assert not [o.error for o in outcomes if o.error]
    if WRITE:
        with tarfile.open(STORE, "w:xz") as archive:
            for path in sorted((folder / "data").rglob("*.json")):
                archive.add(path, path.relative_to(folder))
    return folder


@pytest.fixture(scope="module")
def golden(world, tmp_path_factory):
    """Folder of the same workspace with the store of the time; in the place of its tables are files of their size."""
    folder = tmp_path_factory.mktemp("of-the-time")
    tiny.tiny_workspace(folder, settings=SETTINGS)
    with Server(lambda body: "") as server:
        judged_world.register(folder, server, in_flight=8)
        with tarfile.open(STORE) as archive:
            archive.extractall(folder, filter="data")
        stand_in(folder / "data")
        yield folder
        assert not server.requests, "a language model was asked for what is in the store"


def test_the_store_of_the_time_is_fresh(golden):
    states = Workspace.open(golden / "latentgloss.toml").states()
    assert {(s.asset, s.partition): s.because for s in states if s.state != "fresh"} == {}
    assert {f"{s.asset} of {s.partition}" for s in states} == set(manifests(golden))


def test_materialising_the_store_of_the_time_computes_nothing(golden):
    before = manifests(golden)
    workspace = Workspace.open(golden / "latentgloss.toml")
    for name, stage in STAGES.items():
        outcomes = list(workspace.materialise(name, workspace.partitions(stage), runner(name)))
        assert [(o.partition, o.status) for o in outcomes if o.status != "reused"] == []
    assert manifests(golden) == before


@pytest.mark.parametrize("stage", STAGES)
def test_content_changes_only_with_the_stage_version(world, golden, stage):
    then, now = ({key: m for key, m in manifests(folder).items() if m["stage"] == stage} for folder in (golden, world))
    if {m["recipe"]["version"] for m in then.values()} != {STAGES[stage].version}:
        pytest.fail(f"{stage} has a new version: write the golden files anew (see the top of this file)")
    assert set(now) == set(then)
    for key in then:
        for part in ("recipe", "fingerprint", "data_version", "parts", "blocks"):
            assert now[key][part] == then[key][part], f"{part} of {key} changed: raise the version of {stage}"


@pytest.mark.parametrize("partition", tiny.SAES)
def test_activations_are_those_committed(cached, world, partition):
    """The same pairs but for one in a thousand (ties at the k-th place), values within 1 %, the same mask."""
    version = cached.store.current("activation_cache", partition)
    now, committed = version.read(schema.ACTIVATIONS), pl.read_parquet(stored(partition, schema.ACTIVATIONS))
    both = now.join(committed, on=["latent", "position"], suffix="_committed")
    assert both.height >= 0.999 * max(now.height, committed.height)
    error = (both["activation"] - both["activation_committed"]).abs() / both["activation_committed"]
    assert error.max() <= 0.01
    assert version.read(schema.MASKED).equals(pl.read_parquet(stored(partition, schema.MASKED)))


def test_latent_statistics_are_those_of_the_activations(cached, world):
    for partition in tiny.SAES:
        now = cached.store.current("activation_cache", partition).read(schema.LATENTS)
        committed = pl.read_parquet(stored(partition, schema.LATENTS))
        for column in ("latent", "count", "density"):
            assert now[column].equals(committed[column])
        assert (now["token_entropy"] - committed["token_entropy"]).abs().max() < 1e-6
