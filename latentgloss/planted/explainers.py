"""Explainers of known truth: each says of a planted latent what one label of its rule says.

What belongs here: the explainers and their table `PLANTED`. `judges.installed` makes them known to the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.explanations.explainers.base import Evidence, Explained, Explainer, Tools
from latentgloss.planted.labels import Label, PlantedRule
from latentgloss.planted.meaning import PASSAGES
from latentgloss.planted.rules import ANYTHING, rules, vocabulary
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from latentgloss.config.settings import ExplanationSettings
    from latentgloss.explanations.explainers.base import Need
    from latentgloss.models.vocabulary import Vocabulary

SHOWN = 40
"""Most activating contexts that the memoriser repeats."""


def explainer(name: str, label_of: Callable[[PlantedRule], Label | None]) -> type[Explainer]:
    """An explainer that gives each planted latent the label that `label_of` returns for its rule.

    A latent whose rule has no such label gets the status `failed`.
    """
    said = {rule.latent: label for rule in rules() if (label := label_of(rule)) is not None}

    class Scripted:
        computes = False
        asks = False
        needs: frozenset[Need] = frozenset()

        def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
            """Uses none of its arguments."""

        @staticmethod
        def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
            return {"explainer": name, "texts": json_sha256([[i, label.text] for i, label in said.items()])}

        def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
            for each in evidence:
                if each.latent in said:
                    yield Explained(each.latent, "ok", text=said[each.latent].text)
                else:
                    yield Explained(each.latent, "failed", "there is no such label of this rule")

    return Scripted


class Memoriser:
    """Repeats the activating contexts it was shown and says nothing else."""

    computes = False
    asks = False
    needs: frozenset[Need] = frozenset()

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        """Uses none of its arguments."""

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        """Everything that decides its explanations."""
        return {"explainer": "memoriser", "shown": SHOWN}

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One explanation per latent, in order."""
        words = np.array(vocabulary())
        for each in evidence:
            active = np.flatnonzero(each.examples.activations.any(axis=1))[:SHOWN]
            passages = [" ".join(words[row]) for row in each.examples.tokens[active]]
            shown = tuple(each.context_ids[i] for i in active)
            yield Explained(each.latent, "ok", text=PASSAGES + " | ".join(passages), context_ids=shown)


PLANTED: dict[str, type[Explainer]] = {
    "truth": explainer("truth", lambda rule: rule.true),
    "general": explainer("general", lambda rule: rule.general),
    "specific": explainer("specific", lambda rule: rule.specific),
    "anything": explainer("anything", lambda rule: ANYTHING),
    "memoriser": Memoriser,
}
"""The planted explainers by name."""
