"""The conditions under which Dagster runs a partition by itself, composed of built-in ones (docs/architecture.md).

Unlike `AutomationCondition.eager()`, these conditions compare data versions and code versions. They react to events.
Changes that happened while the daemon was off are found by the nightly schedules and by `latentgloss status`.
"""

from typing import Any

import dagster as dg

from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.stage import Stage

A = dg.AutomationCondition


def _unhandled(event: Any) -> dg.AutomationCondition:
    """True from `event` until the partition is requested or updated.

    `event` is typed as Any because Dagster types `since_last_handled` too narrowly.
    """
    return event.since_last_handled()


_changed = _unhandled(A.any_deps_match(A.data_version_changed()) | A.code_version_changed())


def _newly(condition: dg.AutomationCondition) -> dg.AutomationCondition:
    """True from when `condition` becomes true, also in the first evaluation, until the partition is requested.

    A condition that stays true after a request, as `missing` does when the run is cancelled, would request a run in
    every tick.
    """
    return condition.newly_true().since(A.newly_requested() | A.newly_updated())


def _anything_above(
    condition: dg.AutomationCondition, stage: Stage, seen: set[str] | None = None
) -> dg.AutomationCondition | None:
    """True if `condition` holds for any stage upstream of the same grain, at any distance. None if there is none.

    Direct inputs are not enough: scores read `resolved_saes` directly, but must not run before the stages in between
    have run on it. Stages of another grain are left out, because one model's running corpus must not hold up another
    model's SAEs. `seen` limits the search to one path to each stage, because there are very many paths.
    """
    seen = set() if seen is None else seen
    found: dg.AutomationCondition | None = None
    for i in stage.inputs:
        upstream = STAGES[i.stage]
        if upstream.grain == stage.grain and upstream.name not in seen:
            seen.add(upstream.name)
            above = _anything_above(condition, upstream, seen)
            here = A.any_deps_match(condition | above if above else condition)
            here = here.allow(dg.AssetSelection.assets(upstream.name))
            found = found | here if found else here
    return found


def refresh(stage: Stage) -> dg.AutomationCondition:
    """Runs a partition that is missing, or whose code, settings or inputs' content changed.

    It waits until every input exists and nothing upstream is running or about to run. Each partition is requested once
    for being missing and once for each change. The sensor `retries` asks again, so many times, for what such a run has
    left. A missing partition whose last run failed before it was requested here is not run.
    """
    ready = ~A.any_deps_match(A.missing()) & ~A.in_progress()
    above = _anything_above(A.will_be_requested() | A.in_progress(), stage)
    if above is not None:
        ready &= ~above
    return (((_newly(A.missing()) & ~A.execution_failed()) | _changed) & ready).with_label("refresh")


def bridge(*upstream: str) -> dg.AutomationCondition:
    """The condition of a stage between grains, whose inputs are *all* partitions of the stages `upstream`.

    It does not wait for inputs, because one model's missing corpus must not hold up another model, and because the
    runner skips a partition whose own input is missing. A missing partition is therefore requested once, as soon as
    `upstream` has any content, and again whenever the content of `upstream` or of the SAE files changes. Requests that
    find nothing changed cost nothing.
    """
    chosen = dg.AssetSelection.assets(*upstream)
    possible = A.any_deps_match(~A.missing()).allow(chosen)
    watched = A.any_deps_match(A.data_version_changed()).allow(chosen | dg.AssetSelection.assets("sae_files"))
    changed = _unhandled(watched | A.code_version_changed())
    return ((_newly(A.missing() & possible) | changed) & ~A.in_progress()).with_label("refresh (bridge)")
