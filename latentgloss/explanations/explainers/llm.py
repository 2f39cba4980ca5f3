"""Explainers that show a language model contexts and take its sentence: `llm`, `llm_cot`, `contrastive`.

What belongs here: what of the evidence is shown and how, and in which of two forms the reply is asked for. How replies
are read is in `replies.py`; the wording, in `prompts/`; how corpus text is quoted, in `quoting.py`; what happens to a
reply that cannot be read, in `asking.py`. Method: Paulo et al. (arXiv 2410.13928), section 3, with our own wording;
differences are in docs/prompts.md.
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
from latentgloss.explanations.explainers.replies import LINE, LONGEST, read_explanation, read_line, read_object, schema
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
"""Of what is shown and how a reply is read; part of the recipe."""

STRENGTHS = 10


def model_of(settings: ExplanationSettings, tools: Tools | None, explainer: str) -> LanguageModel:
    """Raises SettingsError if the settings name no model, InputError if there is none of that name."""
    if settings.model is None or tools is None:
        raise SettingsError(
            f"explainer {explainer!r} needs a language model and the settings name none",
            expected='`model = "NAME"` under [explanations]',
            todo="name one of the registry's language models in latentgloss.toml",
        )
    return tools.language_model(settings.model)


class LlmExplainer:
    """Shows activating contexts with marks and strengths; the reply is one sentence."""

    name: ClassVar[str] = "llm"
    prompt_name: ClassVar[str] = "explain"
    """For a model that can be held to a schema its twin is taken, `explain_json`."""
    steps: ClassVar[tuple[str, ...]] = ()
    """Of a reply in JSON: what comes before the explanation."""
    computes = False
    asks = True
    needs: frozenset[Need] = frozenset({"masked"})

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        self.settings, self.vocabulary = settings.llm, vocabulary
        self.model = model_of(settings, tools, self.name)
        self.held = self._held(self.model)
        self.prompt: Prompt = self._prompt(self.held)
        self.read: Callable[[Reply], str] = read_explanation
        if "regex" in self.held:
            self.read = read_line
        elif "json_schema" in self.held:
            self.read = partial(read_object, steps=self.steps)

    @classmethod
    def identity(cls, settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        model = model_of(settings, tools, cls.name)
        held = cls._held(model)
        return {
            "explainer": cls.name,
            "version": VERSION,
            "model": model.identity(),
            "prompt": cls._prompt(held).sha256,
            **held,
            **cls._shown(settings),
        }

    @classmethod
    def _held(cls, model: LanguageModel) -> dict[str, Any]:
        """What a reply is held to, as `Request` has it; nothing where the model cannot be."""
        if "regex" in model.capabilities and not cls.steps:  # small models write worse JSON than lines
            return {"regex": LINE}
        return {"json_schema": schema(cls.steps)} if "json_schema" in model.capabilities else {}

    @classmethod
    def _prompt(cls, held: dict[str, Any]) -> Prompt:
        return prompt(f"{cls.prompt_name}_json" if "json_schema" in held else cls.prompt_name)

    @classmethod
    def _shown(cls, settings: ExplanationSettings) -> dict[str, Any]:
        """The settings it uses."""
        llm = settings.llm
        return {"contexts": llm.contexts, "max_tokens": llm.max_tokens, "temperature": llm.temperature}

    @property
    def max_tokens(self) -> int:
        return self.settings.max_tokens

    def chosen(self, one: Evidence) -> list[int]:
        """Rows of the windows that are shown: the first of the activating ones, in the order of the sample."""
        active = np.flatnonzero((one.windows.activations > 0).any(axis=1))
        return [int(row) for row in active[: self.settings.contexts]]

    def values(self, one: Evidence, rows: list[int]) -> dict[str, str]:
        """The variables of the prompt."""
        return {"passages": passages(one, rows, self.vocabulary)}

    def request(self, one: Evidence) -> Request:
        """What is asked about a latent. Raises ExplainerError if nothing can be."""
        one.windows.check(self.vocabulary)
        messages = self.prompt.messages(**self.values(one, self.chosen(one)))
        return Request(messages, self.max_tokens, temperature=self.settings.temperature, **self.held)

    def repaired(self, messages: tuple[Message, ...], reply: str, problem: str) -> tuple[Message, ...]:
        return self.prompt.repaired(messages, reply, problem=problem)

    def query(self, request: Request) -> Query[str]:
        return Query(request, self.read, self.repaired)

    def planned(self, one: Evidence) -> list[Planned]:
        """What will be asked about a latent."""
        try:
            return [Planned(self.model, self.query(self.request(one)))]
        except ExplainerError:
            return []

    @property
    def unwritten(self) -> int:
        """Most tokens of an explanation, before there is one."""
        return min(self.max_tokens, LONGEST)

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One explanation per latent, in order."""
        going: deque[tuple[Explained, bool]] = deque()  # with whether it is asked about

        def queries() -> Iterator[Query[str]]:
            for one in evidence:
                ids = tuple(one.context_ids[row] for row in self.chosen(one))
                try:
                    request = self.request(one)
                except ExplainerError as e:
                    going.append((Explained(one.latent, "failed", str(e), context_ids=ids), False))
                    continue
                blank = Explained(
                    one.latent,
                    "",
                    context_ids=ids,
                    model=self.model.name,
                    prompt_sha256=messages_sha256(request.messages),
                )
                going.append((blank, True))
                yield self.query(request)

        for result in ask_all(self.model, queries()):
            while not going[0][1]:
                yield going.popleft()[0]
            yield explained(going.popleft()[0], result)
        yield from (row for row, _ in going)


def explained(blank: Explained, result: QueryResult[str]) -> Explained:
    """The row of a latent that was asked about."""
    return replace(
        blank,
        status=result.status,
        reason=result.reason,
        text=result.value or "",
        reply=result.reply,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        cost_usd=result.cost_usd,
    )


class CotExplainer(LlmExplainer):
    """The same contexts; the model thinks aloud before it answers."""

    name = "llm_cot"
    prompt_name = "explain_cot"
    steps = ("strongest", "around", "weaker")

    @classmethod
    def _shown(cls, settings: ExplanationSettings) -> dict[str, Any]:
        return {**super()._shown(settings), "max_tokens": settings.llm.max_tokens_cot}

    @property
    def max_tokens(self) -> int:
        return self.settings.max_tokens_cot


class ContrastiveExplainer(LlmExplainer):
    """Activating contexts, and beside them contexts of explain in which the latent is silent."""

    name = "contrastive"
    prompt_name = "contrastive"

    @classmethod
    def _shown(cls, settings: ExplanationSettings) -> dict[str, Any]:
        return {**super()._shown(settings), "silent": settings.llm.silent}

    def chosen(self, one: Evidence) -> list[int]:
        return super().chosen(one) + _in_turns(one.strata, self.settings.silent)

    def values(self, one: Evidence, rows: list[int]) -> dict[str, str]:
        active = [row for row in rows if one.strata[row] == "activating"]
        silent = [row for row in rows if one.strata[row] != "activating"]
        return {
            "passages": passages(one, active, self.vocabulary),
            "silent": passages(one, silent, self.vocabulary) if silent else "(none)",
        }


def _in_turns(strata: tuple[str, ...], n: int) -> list[int]:
    """The first `n` rows of non-activating windows, one of each stratum in turn."""
    turn: dict[str, int] = {}
    rows: list[tuple[int, str, int]] = []
    for row, stratum in enumerate(strata):
        if stratum != "activating":
            turn[stratum] = turn.get(stratum, -1) + 1
            rows.append((turn[stratum], stratum, row))
    return [row for _, _, row in sorted(rows)[:n]]


def passages(one: Evidence, rows: list[int], vocabulary: Vocabulary) -> str:
    """Numbered windows, one a line, with marks (`marks.py`) and behind each the strengths of its marked parts.

    A part is as strong as its strongest token: ⌈10 a / max⌉, the maximum over all of the latent's explain windows here.
    """
    windows = one.windows
    masked = np.zeros(windows.tokens.shape, dtype=np.bool_) if one.masked is None else one.masked
    counted = np.where(masked, np.float32(0), windows.activations)
    most = float(counted.max(initial=0))
    lines: list[str] = []
    for number, row in enumerate(rows, 1):
        at = slice(row, row + 1)
        marked = marks(windows.activations[at], masked[at])[0]
        text, runs = quoted_runs(windows.tokens[row], vocabulary, marked)
        strengths = [_strength(float(counted[row, run].max()), most) for run in runs]
        lines.append(f"{number}. {text}" + (f" ({', '.join(map(str, strengths))})" if strengths else ""))
    return "\n".join(lines)


def _strength(activation: float, most: float) -> int:
    return min(max(int(np.ceil(STRENGTHS * activation / most)), 1), STRENGTHS)
