"""Explainers that show contexts to a language model and keep its sentence: `llm`, `llm_cot`, `contrastive`.

What belongs here: which examples are shown and how, and which form of reply is requested. How replies are read is in
`replies.py`. In `llm/` are the wording (`prompts/*.txt`), the quoting of corpus text (`prompts/quoting.py`) and what
happens to a reply that cannot be parsed (`asking.py`). Method: Paulo et al. (arXiv 2410.13928), section 3, with our own
wording; the differences are in docs/prompts.md.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from latentgloss.contexts.marks import marks
from latentgloss.errors import ExplainerError, SettingsError
from latentgloss.explanations.explainers.base import Explained
from latentgloss.explanations.explainers.replies import (
    LINE,
    LONGEST,
    read_explanation,
    read_line,
    read_object,
    reply_schema,
)
from latentgloss.llm.asking import Planned, Query, QueryResult, ask_all
from latentgloss.llm.prompts.quoting import quoted_runs
from latentgloss.llm.prompts.templates import messages_sha256, prompt
from latentgloss.protocols import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from latentgloss.config.settings import ExplanationSettings
    from latentgloss.explanations.explainers.base import Evidence, Need, Tools
    from latentgloss.llm.prompts.templates import Prompt
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import LanguageModel, Message, Reply


VERSION = 2
"""Version of what is shown and how a reply is read; part of the recipe."""

STRENGTHS = 10
"""The greatest strength shown."""


def model_of(settings: ExplanationSettings, tools: Tools | None, explainer: str) -> LanguageModel:
    """The language model that the settings name for explanations.

    Raises SettingsError if they name none, and InputError if the registry has no such model.
    """
    if settings.model is None or tools is None:
        raise SettingsError(
            f"explainer {explainer!r} needs a language model, but the settings name none",
            expected='`model = "NAME"` under [explanations]',
            todo="name a language model of the registry in latentgloss.toml",
        )
    return tools.language_model(settings.model)


class LlmExplainer:
    """Shows activating contexts with marks and strengths; the reply is one sentence."""

    name: ClassVar[str] = "llm"
    prompt_name: ClassVar[str] = "explain"
    """The prompt's name. If the model's reply is constrained to a JSON schema, `_json` is appended."""
    steps: ClassVar[tuple[str, ...]] = ()
    """The entries that come before the explanation in a JSON reply."""
    computes = False
    asks = True
    needs: frozenset[Need] = frozenset({"masked"})

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        self.settings, self.vocabulary = settings.llm, vocabulary
        self.model = model_of(settings, tools, self.name)
        self.constraint = self._constraint(self.model)
        self.prompt: Prompt = self._prompt(self.constraint)
        self.parse: Callable[[Reply], str] = read_explanation
        if "regex" in self.constraint:
            self.parse = read_line
        elif "json_schema" in self.constraint:
            self.parse = partial(read_object, steps=self.steps)

    @classmethod
    def identity(cls, settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        """Version, model, prompt, constraint of the reply and the settings that it uses."""
        model = model_of(settings, tools, cls.name)
        constraint = cls._constraint(model)
        return {
            "explainer": cls.name,
            "version": VERSION,
            "model": model.identity(),
            "prompt": cls._prompt(constraint).sha256,
            **constraint,
            **cls._shown(settings),
        }

    @classmethod
    def _constraint(cls, model: LanguageModel) -> dict[str, Any]:
        """The constraint of the reply, as a field of `Request`; empty if the model supports none."""
        if "regex" in model.capabilities and not cls.steps:  # small models write worse JSON than lines
            return {"regex": LINE}
        return {"json_schema": reply_schema(cls.steps)} if "json_schema" in model.capabilities else {}

    @classmethod
    def _prompt(cls, constraint: dict[str, Any]) -> Prompt:
        return prompt(f"{cls.prompt_name}_json" if "json_schema" in constraint else cls.prompt_name)

    @classmethod
    def _shown(cls, settings: ExplanationSettings) -> dict[str, Any]:
        """The settings that decide what it shows and requests."""
        llm = settings.llm
        return {"contexts": llm.contexts, "max_tokens": llm.max_tokens, "temperature": llm.temperature}

    @property
    def max_tokens(self) -> int:
        """Most tokens of a reply."""
        return self.settings.max_tokens

    def chosen(self, evidence: Evidence) -> list[int]:
        """Rows of the examples that are shown: the first activating ones, in the order of the sample."""
        active = np.flatnonzero((evidence.examples.activations > 0).any(axis=1))
        return [int(row) for row in active[: self.settings.contexts]]

    def values(self, evidence: Evidence, rows: list[int]) -> dict[str, str]:
        """The variables of the prompt."""
        return {"passages": passages(evidence, rows, self.vocabulary)}

    def request(self, evidence: Evidence) -> Request:
        """The request for a latent's explanation. Raises ExplainerError if nothing can be learnt from the evidence."""
        evidence.examples.check(self.vocabulary)
        messages = self.prompt.messages(**self.values(evidence, self.chosen(evidence)))
        return Request(messages, self.max_tokens, temperature=self.settings.temperature, **self.constraint)

    def repair(self, messages: tuple[Message, ...], reply: str, problem: str) -> tuple[Message, ...]:
        """The messages of the second request, after a reply that cannot be parsed."""
        return self.prompt.repaired(messages, reply, problem=problem)

    def query(self, request: Request) -> Query[str]:
        """The request with the ways to parse its reply and to ask again."""
        return Query(request, self.parse, self.repair)

    def planned(self, evidence: Evidence) -> list[Planned]:
        """The query that a latent will take; empty if no request can be made for it."""
        try:
            return [Planned(self.model, self.query(self.request(evidence)))]
        except ExplainerError:
            return []

    @property
    def unwritten(self) -> int:
        """Upper bound on the tokens of an explanation that does not exist yet."""
        return min(self.max_tokens, LONGEST)

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One explanation per latent, in order."""
        pending: deque[tuple[Explained, bool]] = deque()  # rows, each with whether a query was made for it

        def queries() -> Iterator[Query[str]]:
            for each in evidence:
                ids = tuple(each.context_ids[row] for row in self.chosen(each))
                try:
                    request = self.request(each)
                except ExplainerError as e:
                    pending.append((Explained(each.latent, "failed", str(e), context_ids=ids), False))
                    continue
                row = Explained(
                    each.latent,
                    "",
                    context_ids=ids,
                    model=self.model.name,
                    prompt_sha256=messages_sha256(request.messages),
                )
                pending.append((row, True))
                yield self.query(request)

        for result in ask_all(self.model, queries()):
            while not pending[0][1]:
                yield pending.popleft()[0]
            yield with_result(pending.popleft()[0], result)
        yield from (row for row, _ in pending)


def with_result(row: Explained, result: QueryResult[str]) -> Explained:
    """A latent's row, completed with the result of its query."""
    return replace(
        row,
        status=result.status,
        reason=result.reason,
        text=result.value or "",
        reply=result.reply,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        cost_usd=result.cost_usd,
    )


class CotExplainer(LlmExplainer):
    """Shows the same contexts as `llm`; the model writes down its reasoning before the explanation."""

    name = "llm_cot"
    prompt_name = "explain_cot"
    steps = ("strongest", "around", "weaker")

    @classmethod
    def _shown(cls, settings: ExplanationSettings) -> dict[str, Any]:
        return {**super()._shown(settings), "max_tokens": settings.llm.max_tokens_cot}

    @property
    def max_tokens(self) -> int:
        """Most tokens of a reply, reasoning included."""
        return self.settings.max_tokens_cot


class ContrastiveExplainer(LlmExplainer):
    """Shows activating contexts, and also contexts of the explain split in which the latent is silent."""

    name = "contrastive"
    prompt_name = "contrastive"

    @classmethod
    def _shown(cls, settings: ExplanationSettings) -> dict[str, Any]:
        return {**super()._shown(settings), "silent": settings.llm.silent}

    def chosen(self, evidence: Evidence) -> list[int]:
        """Rows of the examples that are shown: activating ones, then silent ones."""
        return super().chosen(evidence) + _in_turns(evidence.strata, self.settings.silent)

    def values(self, evidence: Evidence, rows: list[int]) -> dict[str, str]:
        """The variables of the prompt."""
        active = [row for row in rows if evidence.strata[row] == "activating"]
        silent = [row for row in rows if evidence.strata[row] != "activating"]
        return {
            "passages": passages(evidence, active, self.vocabulary),
            "silent": passages(evidence, silent, self.vocabulary) if silent else "(none)",
        }


def _in_turns(strata: tuple[str, ...], n: int) -> list[int]:
    """The first `n` rows of non-activating examples, one of each stratum in turn."""
    turn: dict[str, int] = {}
    rows: list[tuple[int, str, int]] = []
    for row, stratum in enumerate(strata):
        if stratum != "activating":
            turn[stratum] = turn.get(stratum, -1) + 1
            rows.append((turn[stratum], stratum, row))
    return [row for _, _, row in sorted(rows)[:n]]


def passages(evidence: Evidence, rows: list[int], vocabulary: Vocabulary) -> str:
    """Numbered examples, one per line, with marks (`contexts/marks.py`) and, after each, the strengths of its parts.

    A marked part is as strong as its strongest token: ⌈10 a / max⌉, where max is taken over all examples of the latent
    in the explain split.
    """
    examples = evidence.examples
    masked = np.zeros(examples.tokens.shape, dtype=np.bool_) if evidence.masked is None else evidence.masked
    counted = np.where(masked, np.float32(0), examples.activations)
    most = float(counted.max(initial=0))
    lines: list[str] = []
    for number, row in enumerate(rows, 1):
        at = slice(row, row + 1)
        marked = marks(examples.activations[at], masked[at])[0]
        text, runs = quoted_runs(examples.tokens[row], vocabulary, marked)
        strengths = [_strength(float(counted[row, run].max()), most) for run in runs]
        lines.append(f"{number}. {text}" + (f" ({', '.join(map(str, strengths))})" if strengths else ""))
    return "\n".join(lines)


def _strength(activation: float, most: float) -> int:
    return min(max(int(np.ceil(STRENGTHS * activation / most)), 1), STRENGTHS)
