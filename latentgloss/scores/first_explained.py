"""The first explanations of an explainer, on which some judges depend beside the explanation that they judge.

What belongs here: which explanations these are. They are the first in the order in which the registry selects latents,
so that latents which are added later change nothing once there are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import polars as pl

from latentgloss import schema
from latentgloss.contexts.latent_sample import latents_in_turn

if TYPE_CHECKING:
    from typing import Any

    from latentgloss.config.entries import SaeSpec
    from latentgloss.protocols import Judge
    from latentgloss.store import Version


@runtime_checkable
class MadeReady(Protocol):
    """A judge that is made ready for the explanations of one explainer, nulls included, before it judges them."""

    def for_explainer(self, explainer: str) -> Judge:
        """The judge for the explanations of this explainer. Its identity says what it depends on."""

    def facts(self) -> dict[str, Any]:
        """What it was made ready with, by the name of the judge; stored with every block of scores."""


def first_explained(explanations: Version, explainer: str, spec: SaeSpec, resolved: Version, n: int) -> pl.DataFrame:
    """Columns latent, explanation and label of the first `n` latents that have an explanation by an explainer, in turn.

    `explanations` and `resolved`: versions of these stages. `spec`: the SAE's registry entry.
    """
    rows = explanations.scan(schema.EXPLANATIONS).filter(explainer=explainer, status="ok")
    order = latents_in_turn(spec, resolved.json("resolved.json")["n_latents"])
    in_turn = pl.DataFrame({"latent": order}, schema={"latent": pl.UInt32}).with_row_index("turn").lazy()
    found = rows.select("latent", "explanation", "label").join(in_turn, on="latent")
    return found.sort("turn").head(n).drop("turn").collect()
