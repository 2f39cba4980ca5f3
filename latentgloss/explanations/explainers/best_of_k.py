"""The `best_of_k` explainer: several sentences of the `llm` explainer, of which a judge takes one.

The samples differ by seed. A judge of detection reads each on windows of the *select* split, and the one with the
highest balanced accuracy is kept, the first of equals. Nothing of test is seen, so the score of what was chosen is not
flattered by the choice.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import ExplainerError
from latentgloss.explanations.explainers.base import Explained
from latentgloss.explanations.explainers.llm import LlmExplainer, explained, model_of
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
_SHUFFLE = 0xBE57


@dataclass
class _Latent:
    """A latent whose samples are chosen between."""

    row: Explained
    question: Question
    truth: Bool[np.ndarray, " contexts"]
    samples: list[QueryResult[str]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """What is to be judged: different sentences, where there is something to judge them on."""
        if self.truth.all() or not self.truth.any():
            return []
        return list(dict.fromkeys(sample.value for sample in self.samples if sample.value is not None))

    def chosen(self, values: dict[str, float]) -> Explained:
        """The best sample, by its text's balanced accuracy; with the tokens and the price of all of them."""
        row, samples = self.row, self.samples
        if not samples:
            return row
        of = [values.get(sample.value or "", float("nan")) for sample in samples]
        known = [i for i, value in enumerate(of) if not np.isnan(value)]
        if known:
            row = explained(row, samples[max(known, key=lambda i: of[i])])
        elif any(sample.value is not None for sample in samples):
            row = replace(row, status="failed", reason="none of the samples could be judged on the select split")
        else:
            row = explained(row, samples[0])
        return replace(
            row,
            prompt_tokens=sum(sample.prompt_tokens for sample in samples),
            completion_tokens=sum(sample.completion_tokens for sample in samples),
            cost_usd=sum(sample.cost_usd for sample in samples),
        )


class BestOfKExplainer:
    """Samples of `llm`, chosen between on the select split."""

    name = "best_of_k"
    computes = False
    asks = True
    needs: frozenset[Need] = frozenset({"masked", "select"})

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        self.settings, self.seed = settings.best_of_k, settings.seed
        self.llm = LlmExplainer(settings, vocabulary, tools)
        assert tools is not None  # a model was found with them
        self.judge = tools.judge(settings.best_of_k.judge or self.llm.model.name)

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
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
        """One explanation per latent, in order. A latent's samples are judged as soon as they are there."""
        sampled: deque[_Latent] = deque()  # in order, until judged
        truths: deque[Bool[np.ndarray, " contexts"]] = deque()  # of questions, until answered
        answers: deque[Answer] = deque()  # about the texts of `sampled`, in order

        def questions() -> Iterator[Question]:
            for latent in self._sampled(evidence):
                sampled.append(latent)
                for text in latent.texts:
                    truths.append(latent.truth)
                    yield replace(latent.question, explanation=text)

        def finished() -> Iterator[Explained]:
            while sampled and len(answers) >= len(sampled[0].texts):
                latent = sampled.popleft()
                told = [answers.popleft() for _ in latent.texts]
                values = [_balanced_accuracy(answer, truths.popleft()) for answer in told]
                row = latent.chosen(dict(zip(latent.texts, values, strict=True)))
                if row.status == "failed" and any("llm_error" in (answer.status or ()) for answer in told):
                    row = replace(row, status="llm_error", reason="the judge of its samples gave no reply")
                yield replace(
                    row,
                    prompt_tokens=row.prompt_tokens + sum(answer.prompt_tokens for answer in told),
                    completion_tokens=row.completion_tokens + sum(answer.completion_tokens for answer in told),
                    cost_usd=row.cost_usd + sum(answer.cost_usd for answer in told),
                )

        for answer in self.judge.judge(questions()):
            answers.append(answer)
            yield from finished()
        yield from finished()

    def _sampled(self, evidence: Iterable[Evidence]) -> Iterator[_Latent]:
        """Each latent with its samples."""
        going: deque[tuple[_Latent, int]] = deque()  # with how many samples it waits for

        def queries() -> Iterator[Query[str]]:
            for one in evidence:
                ids = tuple(one.context_ids[row] for row in self.llm.chosen(one))
                blank = Explained(one.latent, "failed", context_ids=ids)
                question, truth = self._question(one)
                try:
                    request = self.llm.request(one)
                except ExplainerError as e:
                    going.append((_Latent(replace(blank, reason=str(e)), question, truth), 0))
                    continue
                digest = messages_sha256(request.messages)
                row = replace(blank, model=self.llm.model.name, prompt_sha256=digest)
                going.append((_Latent(row, question, truth), self.settings.k))
                yield from self._samples(request)

        for result in ask_all(self.llm.model, queries()):
            while not going[0][1]:
                yield going.popleft()[0]
            latent, wanted = going[0]
            latent.samples.append(result)
            if len(latent.samples) == wanted:
                yield going.popleft()[0]
        yield from (latent for latent, _ in going)

    def _samples(self, request: Request) -> list[Query[str]]:
        return [
            self.llm.query(replace(request, temperature=self.settings.temperature, seed=self.seed * 1000 + sample))
            for sample in range(self.settings.k)
        ]

    def planned(self, one: Evidence) -> list[Planned]:
        """What will be asked about a latent, at most: that no two samples are alike, and each is judged."""
        try:
            samples = self._samples(self.llm.request(one))
        except ExplainerError:
            return []
        planned = [Planned(self.llm.model, query) for query in samples]
        question, truth = self._question(one)
        if truth.any() and not truth.all():
            of_judge = [replace(p, unwritten=self.unwritten) for p in self.judge.planned(question)]
            planned += of_judge * len(samples)
        return planned

    @property
    def unwritten(self) -> int:
        return self.llm.unwritten

    def _question(self, one: Evidence) -> tuple[Question, Bool[np.ndarray, " contexts"]]:
        """The first windows of either class, in an order that hides which is which."""
        windows = one.select
        assert windows is not None
        truth = np.asarray((windows.activations > 0).any(axis=1))
        n = self.settings.per_class
        rows = np.concatenate([np.flatnonzero(truth)[:n], np.flatnonzero(~truth)[:n]])
        rows = rows[np.argsort(counter_hash(self.seed ^ _SHUFFLE, one.latent, rows), kind="stable")]
        return Question("detection", one.latent, "", None, windows.tokens[rows], None), truth[rows]


def _balanced_accuracy(answer: Answer, truth: Bool[np.ndarray, " contexts"]) -> float:
    """Of the contexts that were answered; NaN unless there is one of each class."""
    status = answer.status or ["ok"] * len(truth)
    answered = np.array([s == "ok" for s in status])
    said = np.asarray(answer.prediction) if answer.prediction is not None else np.asarray(answer.evidence) > 0.5
    right, rates = said == truth, []
    for of in (truth, ~truth):
        counted = answered & of
        if not counted.any():
            return float("nan")
        rates.append(float(right[counted].mean()))
    return sum(rates) / 2
