"""The interfaces through which stages use judges, embedders and language models without importing them.

What belongs here: the protocols, and the records that cross them, with the shapes of their arrays. Implementations
belong to the folder of their noun: judges to `scores/judges/`, embedders to `models/embedder.py`, stored vectors to
`embeddings/vectors.py`, language models to `llm/`, programs to `explanations/explainers/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from jaxtyping import Bool, Float32, Int64, UInt32


Task = Literal["detection", "fuzzing", "intruder", "embedding"]
"""What a judge is asked to do, named after the scorer that asks."""


@dataclass(frozen=True)
class Question:
    """One latent's explanation and the contexts on which a judge tests it. The true answers are not included.

    For the task `intruder`, a question is one trial: it has no explanation, and its five contexts are in the order in
    which they are shown. For every task, a judge sees the contexts in the given order, which is shuffled, and does not
    learn how many of them are activating.
    """

    task: Task
    latent: int
    explanation: str
    program: str | None
    """Executable form of the explanation (JSON), for judges that execute it; None if there is none."""
    tokens: UInt32[np.ndarray, "contexts length"]
    marks: Bool[np.ndarray, "contexts length"] | None
    """Fuzzing and intruder: the tokens marked as active."""
    contexts: UInt32[np.ndarray, " contexts"] | None = None
    """Numbers of the contexts in the corpus, for judges that look up stored data per context (vectors)."""
    masked: Bool[np.ndarray, "contexts length"] | None = None
    """Fuzzing: tokens whose activations do not count (BOS, sinks). They do not depend on which tokens are marked."""
    reference: UInt32[np.ndarray, "windows length"] | None = None
    """Fuzzing: tokens of activating explain contexts, for judges that compare with what explainers learn from."""
    label: str = ""
    """The explanation in at most 120 characters, for judges of labels."""


@dataclass(frozen=True)
class Answer:
    """A judge's answer to one question. Entry i of each array is about context i of the question."""

    evidence: Float32[np.ndarray, " contexts"]
    """Evidence that the latent is active; higher means more active, NaN means that there is none."""
    prediction: Bool[np.ndarray, " contexts"] | None
    """The judge's own decisions; None if the scorer has to choose a threshold on the select split."""
    probability: Float32[np.ndarray, " contexts"] | None
    """Calibrated probability that the latent is active; None if the judge gives none."""
    prompt: Int64[np.ndarray, " contexts"] | None
    """Identifies the prompt in which each context was judged; None if each context was judged alone.

    Contexts judged in the same prompt are not independent."""
    status: list[str] | None = None
    """Per context, `ok` or the reason code for being unscored; None means that all are `ok`."""
    reason: list[str] | None = None
    """Per context, why it is unscored, in words; None means that all are scored."""
    prompt_tokens: int = 0
    """Tokens of the prompts that the answer took; 0 for judges that ask no language model."""
    completion_tokens: int = 0
    """Tokens of the replies that the answer took."""
    cost_usd: float = 0.0
    """Price of those requests in USD."""


class Judge(Protocol):
    """Answers questions about contexts from an explanation alone."""

    @property
    def name(self) -> str:
        """Name of the judge; part of the key in every score table."""

    @property
    def embedder(self) -> str:
        """Name of the embedding model that it uses, or empty; part of the key in every score table."""

    @property
    def decides(self) -> bool:
        """Whether it says yes or no itself. If so, it judges only test contexts, because it needs no threshold."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers; part of the recipe."""
        ...

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yields one answer per question, in order. A failure is an answer with a status, never an exception."""


class Embedder(Protocol):
    """Turns texts into vectors whose inner product is their similarity."""

    @property
    def name(self) -> str:
        """Name in the registry; part of the key in score tables."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides its vectors, without paths; part of recipes. Does not load the model."""
        ...

    @property
    def dimension(self) -> int:
        """Length of its vectors. May load the model (see `loaded`)."""
        ...

    @property
    def loaded(self) -> bool:
        """Whether its model is already in memory, so that `dimension` is cheap."""

    @property
    def max_tokens(self) -> int:
        """Number of tokens of a text that it reads; the rest of the text is ignored."""

    def n_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text before it is cut to `max_tokens`."""
        ...

    def documents(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        """Unit-norm vectors of the texts to search in. A text's vector depends on nothing but the text."""

    def queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        """Unit-norm vectors of the texts to search for."""


class Vectors(Protocol):
    """Stored vectors (`embeddings/vectors.py`), of contexts by their numbers or of texts by their wording."""

    def get(self, items: Any) -> Float32[np.ndarray, "items dimension"]:
        """One unit-norm vector per item, in order. A vector that is missing is computed and stored."""


Capability = Literal["choice", "json_schema", "regex", "logprobs", "prompt_logprobs", "seed", "reasoning"]
"""What a language model can do beyond answering with text. `reasoning`: it thinks before it answers."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Request:
    """Everything that decides a reply except the model. With the model's identity it forms the reply cache's key."""

    messages: tuple[Message, ...]
    max_tokens: int
    """Maximum number of tokens in the reply."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    """Distinguishes several replies to one prompt, even for a model that accepts no seed (capability `seed`)."""
    stop: tuple[str, ...] = ()
    """Texts at which the reply ends."""
    choice: tuple[str, ...] | None = None
    """The reply must be one of these (capability `choice`)."""
    json_schema: Mapping[str, Any] | None = None
    """The reply must be JSON that conforms to this schema (capability `json_schema`)."""
    regex: str | None = None
    """The whole reply must match this regular expression (capability `regex`)."""
    logprobs: int = 0
    """Number of alternatives per reply token whose log probability is returned (capability `logprobs`)."""
    attempt: int = 0
    """Distinguishes a request that is sent again because an earlier run could not use its reply. It is not sent."""


@dataclass(frozen=True)
class TokenLogprobs:
    """One token of a reply, with natural-log probabilities from the model's distribution before temperature.

    If the reply is constrained (choice, schema, expression), the probabilities are relative to the tokens that the
    constraint allows. Some servers also return the token that ended the reply.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The most probable tokens at this position with their log probabilities, descending."""


@dataclass(frozen=True)
class Reply:
    """A model's answer to one request, or the reason why there is none."""

    status: Literal["ok", "truncated", "prompt_truncated", "refused", "llm_error", "unsupported", "over_budget"]
    """`truncated` means that the reply was cut at `max_tokens`; `text` holds the part before the cut.
    `prompt_truncated` means that the model read only a part of the prompt, so that `text` answers something else."""
    reason: str = ""
    """Explains a status other than `ok` in words."""
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    """Prompt tokens that the server took from its own prefix cache, if it reports them."""
    completion_tokens: int = 0
    cost_usd: float = 0.0
    """Price in USD at the time of payment; a reply from the reply cache keeps it."""
    note: str = ""
    """What the server's report of these tokens could not mean, and so was not charged as it stands; usually empty."""
    model: str = ""
    """The model that answered, in the server's words; empty if it does not say."""
    counted_prompt_tokens: int = 0
    """Tokens of the prompt as counted with the model's tokenizer; 0 if they were not counted."""
    from_cache: bool = False
    """Whether the reply came from the reply cache, so that nothing was paid for it this time."""


class LanguageModel(Protocol):
    """A language model that answers requests with text."""

    @property
    def name(self) -> str:
        """Name in the registry and in settings; part of the key in score tables."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the model can do beyond answering with text."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that decides its replies, without addresses and keys; part of recipes. Sends no request."""
        ...

    def count_tokens(self, requests: Sequence[Request]) -> list[int] | None:
        """Prompt tokens of each request as the model counts them; None if its tokenizer is not available."""
        ...

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Yields one reply per request, in order. Reads only a bounded number of `requests` ahead.

        A failure is a reply with a status. Raises LanguageModelError only if no further request can be answered (the
        server is gone or the budget is spent). Replies received before that are in the reply cache.
        """
        ...


class Predictor(Protocol):
    """The executable form of an explanation."""

    def strength(self, tokens: UInt32[np.ndarray, "contexts length"]) -> Float32[np.ndarray, "contexts length"]:
        """Predicts how strongly the latent fires on each token, from the window alone. The unit is any monotone one."""
