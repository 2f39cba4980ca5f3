"""Where each partition of each stage stands: fresh, stale, missing or failed, and why.

What belongs here: comparing a recipe of today with that of the current version. Reads manifests; computes nothing.
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
    from latentgloss.store import Store


@dataclass(frozen=True)
class State:
    """Where one partition of one stage stands."""

    asset: str
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
) -> State:
    """State of a partition. `recipe` makes that of today; `upstream`: states of earlier stages, by stage and partition.

    Never raises: a partition whose files cannot be read is `failed`, with the reason.
    """

    def state(name: Literal["fresh", "stale", "missing", "failed"], because: str = "") -> State:
        return State(stage.name, partition, name, because)

    try:
        current = store.current(stage.name, partition)
        failure = store.failure(stage.name, partition)
        today = recipe()
    except MissingInput as e:
        return state("missing", e.found)
    except Exception as e:
        return state("failed", str(as_error(e)))
    if failure and failure["fingerprint"] == today.fingerprint:
        return state("failed", failure["message"])
    if current is None:
        return state("missing", "never materialised")
    changes = differences(current.manifest.recipe, today.content)
    if changes and ATTEMPT in today.content:
        return state("stale", f"{current.manifest.facts[UNANSWERED]:,} without a reply of the language model")
    if changes:
        return state("stale", "; ".join(changes))
    for name, versions in today.inputs.items():
        for key in versions:
            above = upstream.get((name, key))
            if above and above.state != "fresh":
                return state("stale", f"input {name} of {key} is {above.state}")
    return state("fresh")
