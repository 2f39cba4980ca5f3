"""What stages are handed instead of importing it: judges, and later language models and embedders.

What belongs here: the interfaces across which explanation and scoring meet whatever answers, with the arrays that
pass. Implementations live with their noun (`explainers/`, `scorers/`, `llm/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from jaxtyping import Bool, Float32, Int64, UInt32


Task = Literal["detection", "fuzzing", "intruder", "embedding"]


@dataclass(frozen=True)
class Question:
    """One latent's explanation and the contexts it is to be judged on. The truth is not in it.

    Of task `intruder` it is one trial: no explanation, five contexts in the order they are shown.

    A judge sees the contexts in this order, which is shuffled; how many are activating is not disclosed.
    """

    task: Task
    latent: int
    explanation: str
    program: str | None
    """Executable form of the explanation (JSON), for judges that execute."""
    tokens: UInt32[np.ndarray, "contexts length"]
    marks: Bool[np.ndarray, "contexts length"] | None
    """Fuzzing, intruder: the tokens marked as active."""
    contexts: UInt32[np.ndarray, " contexts"] | None = None
    """Numbers of the contexts in the corpus, for judges that keep something per context (vectors)."""
    masked: Bool[np.ndarray, "contexts length"] | None = None
    """Fuzzing: tokens on which no activation counts (BOS, sinks), the same whatever is marked."""
    reference: UInt32[np.ndarray, "windows length"] | None = None
    """Fuzzing: tokens of activating explain contexts, for judges that compare with what was there to learn from."""


@dataclass(frozen=True)
class Answer:
    """A judge's answer to one question, aligned with its contexts."""

    evidence: Float32[np.ndarray, " contexts"]
    """Higher is more active; NaN where there is none."""
    prediction: Bool[np.ndarray, " contexts"] | None
    """The judge's own decision; None if the scorer is to choose a threshold on the select split."""
    probability: Float32[np.ndarray, " contexts"] | None
    prompt: Int64[np.ndarray, " contexts"] | None
    """Which prompt a context was judged in (contexts judged together are not independent); None: each alone."""
    status: list[str] | None = None
    """Per context `ok` or why it is unscored; None: all ok."""
    reason: list[str] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    """What the answer took, of judges that pay."""


class Judge(Protocol):
    """Answers questions about contexts from an explanation alone."""

    @property
    def name(self) -> str:
        """Key in every score table."""

    @property
    def embedder(self) -> str:
        """The embedding model it asks, or empty; key in every score table."""

    @property
    def decides(self) -> bool:
        """Whether it says yes or no itself. Then it is asked about test alone: no threshold has to be chosen."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers; part of the recipe."""
        ...

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """One answer per question, in order. A failure is an answer with a status, never an exception."""


class Embedder(Protocol):
    """Turns texts into vectors whose inner product is their similarity."""

    @property
    def name(self) -> str:
        """Key in score tables, as in the registry."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides its vectors, free of paths; part of recipes. Loads nothing."""
        ...

    @property
    def dimension(self) -> int: ...

    @property
    def loaded(self) -> bool:
        """Whether its model is in memory already: `dimension` may load it."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read; the rest is left out."""

    def n_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text, before anything is cut."""
        ...

    def documents(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        """Vectors of unit norm of what is searched in; the vector of a text depends on nothing but the text."""

    def queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        """Vectors of unit norm of what is searched for."""


class Vectors(Protocol):
    """Vectors that are kept (`vectors.py`): of contexts by their number, of texts by their wording."""

    def get(self, items: Any) -> Float32[np.ndarray, "items dimension"]:
        """One vector of unit norm per item, in order; what is missing is made and kept."""


Capability = Literal["choice", "json_schema", "regex", "logprobs", "prompt_logprobs", "seed"]
"""What a language model can do beyond answering with text."""


@dataclass(frozen=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Request:
    """Everything that decides a reply, beside the model's identity: with it, the key of the reply cache."""

    messages: tuple[Message, ...]
    max_tokens: int
    """Most tokens of the reply."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    """Tells several replies to one prompt apart, also where the model takes none (capability `seed`)."""
    stop: tuple[str, ...] = ()
    choice: tuple[str, ...] | None = None
    """The reply is one of these (capability `choice`)."""
    json_schema: Mapping[str, Any] | None = None
    """The reply is JSON that fits (capability `json_schema`)."""
    regex: str | None = None
    """The reply matches, as a whole (capability `regex`)."""
    logprobs: int = 0
    """Alternatives per token of the reply whose log probability is wanted (capability `logprobs`)."""


@dataclass(frozen=True)
class TokenLogprobs:
    """One token of a reply. Natural logarithms, of the model before temperature.

    Where the reply is held to something they are relative to the tokens that lead to it. Some servers add the token
    that ended the reply.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """Most probable tokens at this place with theirs, descending."""


@dataclass(frozen=True)
class Reply:
    """A model's answer to one request, or why there is none."""

    status: Literal["ok", "truncated", "refused", "llm_error", "unsupported", "over_budget"]
    """`truncated`: cut at `max_tokens`, with the text so far."""
    reason: str = ""
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    """Of those, the ones the server did not compute again, where it says so."""
    completion_tokens: int = 0
    cost_usd: float = 0.0
    """Price when it was paid for; a reply from the cache keeps it."""
    from_cache: bool = False
    """It had been paid for before."""


class LanguageModel(Protocol):
    """Answers requests."""

    @property
    def name(self) -> str:
        """Key in score tables, as in settings."""

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    def identity(self) -> dict[str, Any]:
        """Everything that decides its replies, free of addresses and keys; part of recipes. Asks nobody."""
        ...

    def count_tokens(self, requests: Sequence[Request]) -> list[int] | None:
        """Prompt tokens per request as the model will count them; None if its tokenizer is not at hand."""
        ...

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply per request, in order. `requests` is read only as far ahead as can be in flight.

        A failure is a reply with a status. Raises LanguageModelError only where nothing more can be answered (the
        server is gone, the budget is spent); what had arrived by then is in the reply cache.
        """
        ...


class Predictor(Protocol):
    """The executable form of an explanation."""

    def strength(self, tokens: UInt32[np.ndarray, "contexts length"]) -> Float32[np.ndarray, "contexts length"]:
        """How strongly the latent should fire on each token, from the window alone; any monotone unit."""
