"""When Dagster asks for a partition by itself: compositions of built-in conditions (docs/architecture.md).

`AutomationCondition.eager()` looks at neither data versions nor code versions; these do. They react to events, so
what changed while the daemon was off is found by the nightly schedules and by `latentgloss status`.
"""

import dagster as dg

from latentgloss.stages import STAGES, Stage

A = dg.AutomationCondition

_changed = (A.any_deps_match(A.data_version_changed()) | A.code_version_changed()).since_last_handled()


def _depth(stage: Stage) -> int:
    """Length of the longest chain of inputs within the stage's grain."""
    return max((1 + _depth(STAGES[i.stage]) for i in stage.inputs if STAGES[i.stage].grain == stage.grain), default=0)


def _anything_above(condition: dg.AutomationCondition, stage: Stage) -> dg.AutomationCondition:
    """`condition` holds for something upstream, at any distance within the grain.

    One hop is not enough: scores read `resolved_saes` directly, and must not run on it before what lies between has.
    The grain is not left: another model's corpus at work is none of this SAE's business.
    """
    others = dg.AssetSelection.assets(*(s.name for s in STAGES.values() if s.grain != stage.grain))
    found: dg.AutomationCondition = A.any_deps_match(condition).ignore(others)
    for _ in range(_depth(stage) - 1):
        found = A.any_deps_match(condition | found).ignore(others)
    return found


def refresh(stage: Stage) -> dg.AutomationCondition:
    """Missing, or its code, settings or an input's content changed; and everything above it is there and still."""
    ready = (
        ~A.any_deps_match(A.missing())
        & ~_anything_above(A.will_be_requested(), stage)
        & ~_anything_above(A.in_progress(), stage)
        & ~A.in_progress()
    )
    return (((A.missing() & ~A.execution_failed()) | _changed) & ready).with_label("refresh")


def bridge(upstream: str) -> dg.AutomationCondition:
    """Between grains, where an edge stands for *all* upstream partitions.

    Waits for nothing: one model's missing corpus must not hold up another's, and the runner skips a key whose own
    input is missing. So a missing key is asked for once, as soon as `upstream` has any content, and again whenever
    content of `upstream` (or of an external dependency) changes. Those that turn out the same cost nothing.
    """
    chosen = dg.AssetSelection.assets(upstream)
    possible = A.any_deps_match(~A.missing()).allow(chosen)
    newly_missing = (A.missing() & possible).newly_true().since(A.newly_requested() | A.newly_updated())
    watched = A.any_deps_match(A.data_version_changed()).allow(chosen | dg.AssetSelection.assets("sae_files"))
    changed = (watched | A.code_version_changed()).since_last_handled()
    return ((newly_missing | changed) & ~A.in_progress()).with_label("refresh (bridge)")
