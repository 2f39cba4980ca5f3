"""When Dagster asks for a partition by itself: compositions of built-in conditions (docs/architecture.md).

`AutomationCondition.eager()` looks at neither data versions nor code versions; these do. They react to events, so
what changed while the daemon was off is found by the nightly schedules and by `latentgloss status`.
"""

from typing import Any

import dagster as dg

from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.stage import Stage

A = dg.AutomationCondition


def _unhandled(event: Any) -> dg.AutomationCondition:
    """True from `event` until it is requested or updated. (Dagster types `self` too narrowly here, hence Any.)"""
    return event.since_last_handled()


_changed = _unhandled(A.any_deps_match(A.data_version_changed()) | A.code_version_changed())


def _anything_above(
    condition: dg.AutomationCondition, stage: Stage, seen: set[str] | None = None
) -> dg.AutomationCondition | None:
    """`condition` holds for something upstream, at any distance within the grain. None if nothing is upstream.

    One hop is not enough: scores read `resolved_saes` directly, and must not run on it before what lies between has.
    The grain is not left: another model's corpus at work is none of this SAE's business. `seen` keeps every stage to
    one path, since all paths would be many.
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
    """Missing, or its code, settings or an input's content changed; and everything above it is there and still."""
    ready = ~A.any_deps_match(A.missing()) & ~A.in_progress()
    above = _anything_above(A.will_be_requested() | A.in_progress(), stage)
    if above is not None:
        ready &= ~above
    return (((A.missing() & ~A.execution_failed()) | _changed) & ready).with_label("refresh")


def bridge(*upstream: str) -> dg.AutomationCondition:
    """Between grains, where an edge stands for *all* partitions of the stages `upstream`.

    Waits for nothing: one model's missing corpus must not hold up another's, and the runner skips a key whose own
    input is missing. So a missing key is asked for once, as soon as `upstream` has any content, and again whenever
    content of `upstream` (or of an external dependency) changes. Those that turn out the same cost nothing.
    """
    chosen = dg.AssetSelection.assets(*upstream)
    possible = A.any_deps_match(~A.missing()).allow(chosen)
    newly_missing = (A.missing() & possible).newly_true().since(A.newly_requested() | A.newly_updated())
    watched = A.any_deps_match(A.data_version_changed()).allow(chosen | dg.AssetSelection.assets("sae_files"))
    changed = _unhandled(watched | A.code_version_changed())
    return ((newly_missing | changed) & ~A.in_progress()).with_label("refresh (bridge)")
