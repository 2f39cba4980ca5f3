"""The explainer `pattern`: learns rules from examples and states them in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.errors import ExplainerError
from latentgloss.explanations.explainers.base import Explained
from latentgloss.explanations.explainers.pattern.rules import VERSION
from latentgloss.explanations.explainers.pattern.sentence import text
from latentgloss.explanations.labels import VERSION as LABELS
from latentgloss.explanations.labels import label_of, unit_reader
from latentgloss.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latentgloss.config.settings import ExplanationSettings
    from latentgloss.explanations.explainers.base import Evidence, Need, Tools


class PatternExplainer:
    """Explains each latent by the pattern learnt from all its examples of the explain split."""

    computes = True
    asks = False
    needs: frozenset[Need] = frozenset()

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        self.settings, self.vocabulary = settings.pattern, vocabulary

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        """Version and settings."""
        return {
            "explainer": "pattern",
            "version": VERSION,
            "labels": LABELS,
            **settings.pattern.model_dump(mode="json"),
        }

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One explanation per latent, in order."""
        from latentgloss.explanations.explainers.pattern.learning import learn_pattern

        reader = unit_reader(self.vocabulary)
        for each in evidence:
            ids = tuple(each.context_ids)
            try:
                pattern = learn_pattern(each.examples, self.vocabulary, self.settings.rules)
            except ExplainerError as e:
                yield Explained(each.latent, "failed", str(e), context_ids=ids)
                continue
            label = label_of(each.examples, reader)
            yield Explained(
                each.latent,
                "ok",
                text=text(pattern),
                label=label.text,
                coverage=label.coverage,
                kind=label.kind,
                program=pattern.to_json(),
                context_ids=ids,
            )
