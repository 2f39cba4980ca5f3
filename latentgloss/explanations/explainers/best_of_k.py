"""The `best_of_k` explainer: a judge chooses between several sentences of the `llm` explainer.

The sentences (*samples*) differ by seed. A judge of detection applies each to contexts of the *select* split, and the
sample with the highest balanced accuracy is kept, the first one among equals. The choice sees nothing of the test
split, so it does not inflate the score of the chosen explanation.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import ExplainerError
from latentgloss.explanations.explainers.base import Explained
from latentgloss.explanations.explainers.llm import LlmExplainer, model_of, with_result
from latentgloss.llm.asking import Planned, ask_all
from latentgloss.llm.prompts.templates import messages_sha256
from latentgloss.protocols import Question
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jaxtyping import Bool

    from latentgloss.config.settings import ExplanationSettings
    from latentgloss.explanations.explainers.base import Evidence, Need, Tools
    from latentgloss.llm.asking import Query, QueryResult
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import Answer, Request


VERSION = 1
"""Version of how samples are judged and chosen; part of the recipe."""
_SHUFFLE = 0xBE57


@dataclass
class _Latent:
    """A latent with the samples to choose from."""

    row: Explained
    question: Question
    """The question to the judge, still without an explanation."""
    truth: Bool[np.ndarray, " contexts"]
    """Per context of the question, whether the latent is active."""
    samples: list[QueryResult[str]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The distinct sentences to judge; none if the select split does not have contexts of both classes."""
        if self.truth.all() or not self.truth.any():
            return []
        return list(dict.fromkeys(sample.value for sample in self.samples if sample.value is not None))

    def chosen(self, values: dict[str, float]) -> Explained:
        """The row of the best sample, with the tokens and the price of all samples.

        `values`: balanced accuracy per sentence; NaN if unknown.
        """
        row, samples = self.row, self.samples
        if not samples:
            return row
        accuracies = [values.get(sample.value or "", float("nan")) for sample in samples]
        known = [i for i, accuracy in enumerate(accuracies) if not np.isnan(accuracy)]
        if known:
            row = with_result(row, samples[max(known, key=lambda i: accuracies[i])])
        elif any(sample.value is not None for sample in samples):
            row = replace(row, status="failed", reason="none of the samples could be judged on the select split")
        else:
            row = with_result(row, samples[0])
        return replace(
            row,
            prompt_tokens=sum(sample.prompt_tokens for sample in samples),
            completion_tokens=sum(sample.completion_tokens for sample in samples),
            cost_usd=sum(sample.cost_usd for sample in samples),
        )

    def judged(self, answers: list[Answer]) -> Explained:
        """The row of the best sample by the judge's answers about `texts`, with the judge's tokens and price added."""
        values = [_balanced_accuracy(answer, self.truth) for answer in answers]
        row = self.chosen(dict(zip(self.texts, values, strict=True)))
        if row.status == "failed" and any("llm_error" in (answer.status or ()) for answer in answers):
            row = replace(row, status="llm_error", reason="the judge of its samples gave no reply")
        return replace(
            row,
            prompt_tokens=row.prompt_tokens + sum(answer.prompt_tokens for answer in answers),
            completion_tokens=row.completion_tokens + sum(answer.completion_tokens for answer in answers),
            cost_usd=row.cost_usd + sum(answer.cost_usd for answer in answers),
        )


class BestOfKExplainer:
    """Draws samples of the explainer `llm` and chooses between them on the select split."""

    name = "best_of_k"
    computes = False
    asks = True
    needs: frozenset[Need] = frozenset({"masked", "select"})

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        self.settings, self.seed = settings.best_of_k, settings.seed
        self.llm = LlmExplainer(settings, vocabulary, tools)
        assert tools is not None  # LlmExplainer has just taken its model from them
        self.judge = tools.judge(settings.best_of_k.judge or self.llm.model.name)

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        """Version, identities of samples and judge, seed and settings."""
        judge = tools.judge(settings.best_of_k.judge or model_of(settings, tools, BestOfKExplainer.name).name)
        chosen = settings.best_of_k.model_dump(mode="json", exclude={"judge"})
        return {
            "explainer": BestOfKExplainer.name,
            "version": VERSION,
            "samples": LlmExplainer.identity(settings, tools),
            "judge": judge.identity(),
            "seed": settings.seed,
            **chosen,
        }

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One explanation per latent, in order. The samples of a latent are judged as soon as all have arrived."""
        sampled: deque[_Latent] = deque()  # in order, until the judge has answered
        answers: deque[Answer] = deque()  # about the texts of `sampled`, in order

        def questions() -> Iterator[Question]:
            for latent in self._sampled(evidence):
                sampled.append(latent)
                for text in latent.texts:
                    yield replace(latent.question, explanation=text)

        def finished() -> Iterator[Explained]:
            while sampled and len(answers) >= len(sampled[0].texts):
                latent = sampled.popleft()
                yield latent.judged([answers.popleft() for _ in latent.texts])

        for answer in self.judge.judge(questions()):
            answers.append(answer)
            yield from finished()
        yield from finished()

    def _sampled(self, evidence: Iterable[Evidence]) -> Iterator[_Latent]:
        """Each latent with its samples."""
        pending: deque[tuple[_Latent, int]] = deque()  # with the number of samples that it will have

        def queries() -> Iterator[Query[str]]:
            for each in evidence:
                ids = tuple(each.context_ids[row] for row in self.llm.chosen(each))
                row = Explained(each.latent, "failed", context_ids=ids)
                question, truth = self._question(each)
                try:
                    request = self.llm.request(each)
                except ExplainerError as e:
                    pending.append((_Latent(replace(row, reason=str(e)), question, truth), 0))
                    continue
                digest = messages_sha256(request.messages)
                row = replace(row, model=self.llm.model.name, prompt_sha256=digest)
                pending.append((_Latent(row, question, truth), self.settings.k))
                yield from self._samples(request)

        for result in ask_all(self.llm.model, queries()):
            while not pending[0][1]:
                yield pending.popleft()[0]
            latent, n_samples = pending[0]
            latent.samples.append(result)
            if len(latent.samples) == n_samples:
                yield pending.popleft()[0]
        yield from (latent for latent, _ in pending)

    def _samples(self, request: Request) -> list[Query[str]]:
        """The queries of the `k` samples of one request."""
        return [
            self.llm.query(replace(request, temperature=self.settings.temperature, seed=self.seed * 1000 + sample))
            for sample in range(self.settings.k)
        ]

    def planned(self, evidence: Evidence) -> list[Planned]:
        """The most queries that a latent can take: all samples differ and each is judged."""
        try:
            samples = self._samples(self.llm.request(evidence))
        except ExplainerError:
            return []
        planned = [Planned(self.llm.model, query) for query in samples]
        question, truth = self._question(evidence)
        if truth.any() and not truth.all():
            of_judge = [replace(p, unwritten=self.unwritten) for p in self.judge.planned(question)]
            planned += of_judge * len(samples)
        return planned

    @property
    def unwritten(self) -> int:
        """Upper bound on the tokens of an explanation that does not exist yet."""
        return self.llm.unwritten

    def _question(self, evidence: Evidence) -> tuple[Question, Bool[np.ndarray, " contexts"]]:
        """The first examples of each class, in an order that hides the classes; and which ones are activating."""
        examples = evidence.select
        assert examples is not None
        truth = np.asarray((examples.activations > 0).any(axis=1))
        n = self.settings.per_class
        rows = np.concatenate([np.flatnonzero(truth)[:n], np.flatnonzero(~truth)[:n]])
        rows = rows[np.argsort(counter_hash(self.seed ^ _SHUFFLE, evidence.latent, rows), kind="stable")]
        return Question("detection", evidence.latent, "", None, examples.tokens[rows], None), truth[rows]


def _balanced_accuracy(answer: Answer, truth: Bool[np.ndarray, " contexts"]) -> float:
    """Balanced accuracy over the answered contexts; NaN unless there is at least one of each class."""
    status = answer.status or ["ok"] * len(truth)
    answered = np.array([s == "ok" for s in status])
    said = np.asarray(answer.prediction) if answer.prediction is not None else np.asarray(answer.evidence) > 0.5
    right, rates = said == truth, []
    for of_class in (truth, ~truth):
        counted = answered & of_class
        if not counted.any():
            return float("nan")
        rates.append(float(right[counted].mean()))
    return sum(rates) / 2
