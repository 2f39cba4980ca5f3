"""Brings partitions of a stage up to date; the failure of one partition does not stop the others.

What belongs here: finding the partitions that are fresh, creating a `StageRun` for each of the others, and passing
these to the stage's runner. The code of a stage is in the `stages.py` of its noun.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from latentgloss.pipeline.failures import as_error
from latentgloss.pipeline.processes import check_not_starting
from latentgloss.pipeline.stage_run import Outcome, StageRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latentgloss.config import Registry, Settings
    from latentgloss.pipeline.recipe import Recipe
    from latentgloss.pipeline.stage import Stage
    from latentgloss.pipeline.stage_run import Progress, Runner
    from latentgloss.store import Store, Version


class Opened(Protocol):
    """What running any stage needs: settings, registry, store and recipes."""

    settings: Settings
    store: Store

    @property
    def registry(self) -> Registry:
        """Models, SAEs, embedders and language models."""

    def recipe(self, stage: Stage, partition: str) -> Recipe:
        """The partition's recipe, from the current versions and files."""

    def check(self, version: Version) -> None:
        """Raises StoreError if what a version records outside its folder is damaged."""


R = TypeVar("R", bound=Opened)


def materialise(
    resources: R,
    stage: Stage,
    partitions: Sequence[str],
    runner: Runner[R],
    *,
    run_id: str = "",
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Brings partitions of a stage up to date and yields the outcome of each as soon as it is finished.

    `runner` gets a run for each partition that is not fresh and yields each run when it is done, with `error` set if
    it failed. A fresh partition computes nothing. An exception raised for one partition becomes its outcome and does
    not stop the others. `run_id`: recorded in new versions; calls with the same id (if it is empty, each call alone)
    count as one run for requests to language models.
    """
    check_not_starting()
    runs: list[StageRun[R]] = []
    account = run_id or object()
    # Sorted, so that two runs that lock several partitions lock them in the same order.
    for partition in sorted(set(partitions)):
        began = time.monotonic()
        try:
            recipe = resources.recipe(stage, partition)
            version = resources.store.adopt(stage.name, partition, recipe.fingerprint)
            if version is not None:
                resources.check(version)
                yield Outcome(
                    stage.name,
                    partition,
                    "reused",
                    version,
                    seconds=time.monotonic() - began,
                    blocks_reused=len(version.manifest.blocks),
                    facts=version.manifest.facts,
                )
                continue
            runs.append(
                StageRun(
                    stage,
                    partition,
                    recipe,
                    resources,
                    settings=resources.settings,
                    registry=resources.registry,
                    store=resources.store,
                    account=account,
                    progress=progress,
                )
            )
        except Exception as e:  # an unreadable file of one partition does not stop the others
            error = as_error(e)
            resources.store.fail(stage.name, partition, "", error)
            yield Outcome(stage.name, partition, "failed", error=error)
    try:
        for run in runner(runs):
            yield run.finish(run_id)
    finally:
        for run in runs:
            run.close()
