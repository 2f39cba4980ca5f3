"""A small workspace for tests of the Dagster layer: real store, real recipes, stages that write one number.

What is tested with it is when stages run and what is recorded, not what they compute. What a stage depends on outside
the store is read from `external.json` instead of from model and SAE files.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from assets.partitions import apply, changes
from assets.stage_asset import is_bridge, one_step, sae_files, wired
from latentgloss.errors import SaeError
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.stage import Stage
from latentgloss.pipeline.stage_run import Runner, StageRun, one_by_one
from latentgloss.store import Version
from latentgloss.store.digests import json_sha256
from latentgloss.workspace import Workspace
from resources import Progress, WorkspaceResource
from resources.workspace import loaded_settings

SAES = ("m1/layers.0/a", "m1/layers.0/b", "m2/layers.0/a")
JUDGED = ("intruder_scores", "detection_scores", "fuzzing_scores")
"""In one step, as in the project."""


class TinyWorkspace(Workspace):
    def external(self, stage: Stage, partition: str) -> dict[str, Any]:
        known = json.loads((self.settings.folder / "external.json").read_text())
        return {"value": known.get(partition, 0)} if stage.name in ("tokenized_corpus", "resolved_saes") else {}


class TinyResource(WorkspaceResource):
    _tiny: TinyWorkspace | None = PrivateAttr(default=None)

    @property
    def workspace(self) -> Workspace:
        return self.opened()

    def opened(self) -> Workspace:
        return TinyWorkspace(Workspace.open(Path(self.config)).settings)


def _counted(version: Version) -> tuple[bool, dict[str, Any]]:
    return True, {"version": version.key}


class Tiny:
    """A folder with settings, registry and store, an instance, and jobs over the real table of stages."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, saes: Sequence[str] = SAES) -> None:
        self.folder, self.instance = folder, instance
        self.ran: list[tuple[str, str]] = []
        self.broken: set[tuple[str, str]] = set()
        self.fail = _cut_short
        (folder / "registry/models").mkdir(parents=True)
        (folder / "registry/saes").mkdir()
        (folder / "latentgloss.toml").write_text("")
        self.external({})
        for key in saes:
            self.declare(key)
        stages = {name: wired(checks={"counted": _counted})(self._runner(stage)) for name, stage in STAGES.items()}
        alone = [one_step(name, stage) for name, stage in stages.items() if name not in JUDGED]
        self.assets = [*alone, one_step("judged_scores", *(stages[name] for name in JUDGED))]
        self.definitions = dg.Definitions(
            assets=[*self.assets, sae_files],
            jobs=[dg.define_asset_job(s.name, selection=dg.AssetSelection.assets(s.name)) for s in STAGES.values()]
            + [
                dg.define_asset_job(
                    "saes", dg.AssetSelection.assets(*(s.name for s in STAGES.values() if s.grain == "sae"))
                ),
                dg.define_asset_job("checks", dg.AssetSelection.checks_for_assets("fuzzing_scores")),
            ],
            resources={"workspace": TinyResource(config=str(folder / "latentgloss.toml")), "progress": Progress()},
            executor=dg.in_process_executor,
        )
        self.sync()

    @property
    def workspace(self) -> Workspace:
        return TinyResource(config=str(self.folder / "latentgloss.toml")).workspace

    def external(self, values: dict[str, int]) -> None:
        (self.folder / "external.json").write_text(json.dumps(values))

    def declare(self, key: str) -> Path:
        model, hookpoint, name = key.split("/")
        (self.folder / f"registry/models/{model}.toml").write_text(f'name = "{model}"\nsource = "path:nowhere"\n')
        path = self.folder / "registry/saes" / f"{key.replace('/', '-')}.toml"
        path.write_text(
            f'model = "{model}"\nhookpoint = "{hookpoint}"\nname = "{name}"\nformat = "sparsify"\n'
            'source = "path:nowhere"\n'
        )
        return path

    def sync(self) -> None:
        apply(self.instance, changes(self.instance, self.workspace.registry))

    def run(self, job: str, first: str, last: str | None = None, **tags: str) -> dg.ExecuteInProcessResult:
        """Runs a job over a range of partitions, as a single-run backfill does."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            tags={
                "dagster/asset_partition_range_start": first,
                "dagster/asset_partition_range_end": last or first,
                **tags,
            },
            run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
            raise_on_error=False,
        )

    def everything(self) -> None:
        models = [s.name for s in STAGES.values() if s.grain == "model"]
        first = [name for name in models if not is_bridge(STAGES[name])]
        chain = [*first, "saes", *(name for name in models if name not in first)]
        for job, keys in ((job, SAES if job == "saes" else ("m1", "m2")) for job in chain):
            assert self.run(job, keys[0], keys[-1]).success

    def _runner(self, stage: Stage) -> Callable[[], Runner]:
        def compute(run: StageRun) -> None:
            self.ran.append((stage.name, run.partition))
            if (stage.name, run.partition) in self.broken:
                self.fail()
            for part in _parts(stage.name):
                run.draft.part(part, json_sha256([part, run.recipe.content["inputs"], run.recipe.content["external"]]))

        def runner() -> Runner:
            return one_by_one(compute)

        runner.__name__ = stage.name
        return runner


def _cut_short() -> None:
    """How a broken stage fails, unless a test sets `Tiny.fail`."""
    raise SaeError("weights are cut short", expected="whole weights", todo="copy them again")


def _parts(stage: str) -> list[str]:
    """Every part of a stage's content that some other stage reads."""
    return sorted({p for s in STAGES.values() for i in s.inputs if i.stage == stage for p in i.parts} | {"all"})


def tiny(tmp_path: Path) -> Iterator[Tiny]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Tiny(tmp_path, instance)


__all__ = ["SAES", "Tiny", "loaded_settings", "tiny"]
