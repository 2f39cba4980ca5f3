"""The state of each partition of each stage: fresh, stale, missing or failed, and why.

What belongs here: comparing the recipe that a partition would have now with that of its current version. Reads
manifests and the sizes of the files that they list; computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from latentgloss.errors import MissingInput
from latentgloss.pipeline.failures import as_error
from latentgloss.pipeline.recipe import ATTEMPT, UNANSWERED, differences

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latentgloss.pipeline.recipe import Recipe
    from latentgloss.pipeline.stage import Stage
    from latentgloss.store import Store, Version


@dataclass(frozen=True)
class State:
    """The state of one partition of one stage."""

    asset: str
    """Name of the stage."""
    partition: str
    state: Literal["fresh", "stale", "missing", "failed"]
    because: str
    """What changed, what is missing, or the error; empty if fresh."""


def state_of(
    store: Store,
    stage: Stage,
    partition: str,
    recipe: Callable[[], Recipe],
    upstream: Mapping[tuple[str, str], State],
    check: Callable[[Version], None] = lambda version: None,
) -> State:
    """The state of a partition.

    `recipe` returns the recipe that the partition would have now. `upstream`: states of earlier stages, by stage and
    partition. `check`: raises if what the version records outside its folder is damaged. An exception, such as that of
    an unreadable file, makes the partition `failed`, with the reason.
    """

    def state(name: Literal["fresh", "stale", "missing", "failed"], because: str = "") -> State:
        return State(stage.name, partition, name, because)

    try:
        current = store.current(stage.name, partition)
        failure = store.failure(stage.name, partition)
        wanted = recipe()
    except MissingInput as e:
        return state("missing", e.found)
    except Exception as e:
        return state("failed", str(as_error(e)))
    if failure and failure["fingerprint"] == wanted.fingerprint:
        return state("failed", failure["message"])
    if current is None:
        return state("missing", "never materialised")
    changes = differences(current.manifest.recipe, wanted.content)
    if changes and wanted.again:
        return state("stale", "rows without a usable reply are to be asked about again (`latentgloss replies forget`)")
    if changes and ATTEMPT in wanted.content:
        return state("stale", f"{current.manifest.facts[UNANSWERED]:,} rows without a reply of the language model")
    if changes:
        return state("stale", "; ".join(changes))
    damage = current.incomplete()
    if damage:
        return state("stale", damage)
    try:
        check(current)
    except Exception as e:
        return state("failed", str(as_error(e)))
    for name, versions in wanted.inputs.items():
        for key in versions:
            input_state = upstream.get((name, key))
            if input_state and input_state.state != "fresh":
                return state("stale", f"input {name} of {key} is {input_state.state}")
    return state("fresh")
