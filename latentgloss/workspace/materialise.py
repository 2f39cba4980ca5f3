"""Bringing partitions of a stage up to date, so that no failure of one stops another.

What belongs here: which partitions are fresh, a run for each of the others, and handing those to the stage's runner.
What a stage computes is in the `stages.py` of its noun.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from latentgloss.pipeline.failures import as_error
from latentgloss.pipeline.stage_run import Outcome, StageRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latentgloss.config import Registry, Settings
    from latentgloss.pipeline.recipe import Recipe
    from latentgloss.pipeline.stage import Stage
    from latentgloss.pipeline.stage_run import Progress, Runner
    from latentgloss.store import Store


class Opened(Protocol):
    """What running any stage takes: where inputs and results are, and what decides them."""

    settings: Settings
    store: Store

    @property
    def registry(self) -> Registry: ...

    def recipe(self, stage: Stage, partition: str) -> Recipe: ...


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
    """Brings partitions of a stage up to date, yielding each as soon as it is finished.

    `runner` gets the runs of stale partitions and yields each when it is done, with `error` set if it failed. A fresh
    partition computes nothing. An exception of one partition is that partition's outcome and stops no other.
    """
    runs: list[StageRun[R]] = []
    account = run_id or object()
    # Sorted: two runs that take several locks take them in the same order.
    for partition in sorted(set(partitions)):
        began = time.monotonic()
        try:
            recipe = resources.recipe(stage, partition)
            version = resources.store.version(stage.name, partition, recipe.fingerprint)
            if version is not None:
                resources.store.adopt(version)
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
        except Exception as e:  # an unreadable file of one partition must not stop the others
            error = as_error(e)
            resources.store.fail(stage.name, partition, "", error)
            yield Outcome(stage.name, partition, "failed", error=error)
    try:
        for run in runner(runs):
            yield run.finish(run_id)
    finally:
        for run in runs:
            run.close()
