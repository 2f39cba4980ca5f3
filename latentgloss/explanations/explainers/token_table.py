"""The `token_table` explainer: how often the latent fires on each token, whatever surrounds it.

It is the strong baseline for every explainer that describes the inputs of a latent. Its program is the whole table of
all tokens seen in the explain split, which no sentence can hold; its text lists the ten tokens of the highest rate.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import ExplainerError
from latentgloss.explanations.examples import Examples
from latentgloss.explanations.explainers.base import Explained
from latentgloss.explanations.explainers.pattern.sentence import token_text
from latentgloss.explanations.explainers.program_json import read_program
from latentgloss.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jaxtyping import Float32, UInt32

    from latentgloss.config.settings import ExplanationSettings
    from latentgloss.explanations.explainers.base import Evidence, Need, Tools


VERSION = 1
"""Version of the learner and of the program's format; part of the recipe."""

PRIOR = 1.0
"""Occurrences by which the global rate counts in the rate of each token."""

SHOWN = 10
"""Tokens in the text."""


@dataclass(frozen=True)
class TokenTable:
    """The firing rate of every token seen in the explain split; all other tokens have the global rate."""

    ids: UInt32[np.ndarray, " types"]
    """Ascending."""
    rates: Float32[np.ndarray, " types"]
    unseen: float
    """The global rate, for tokens that are not in `ids`."""
    vocabulary: Vocabulary = field(compare=False, repr=False)

    def strength(self, tokens: UInt32[np.ndarray, "n length"]) -> Float32[np.ndarray, "n length"]:
        """f_t, the rate of each token. Raises ExplainerError if a token id is outside the vocabulary."""
        self.vocabulary.check(tokens)
        table: Float32[np.ndarray, " vocabulary"] = np.full(len(self.vocabulary), self.unseen, dtype=np.float32)
        table[self.ids] = self.rates
        strength: Float32[np.ndarray, "n length"] = table[tokens]
        return strength

    def text(self, vocabulary: Vocabulary | None = None) -> str:
        """A sentence that lists the ten tokens of the highest rate."""
        top = np.argsort(-self.rates, kind="stable")[:SHOWN]
        words = (token_text(int(self.ids[i]), vocabulary or self.vocabulary) for i in top if self.rates[i] > 0)
        return "Fires most on " + ", ".join(words) + "."

    def to_json(self) -> str:
        """The table as JSON: ids (as differences) and rates as compressed little-endian arrays in base64."""
        steps = np.diff(self.ids.astype("<u4"), prepend=np.uint32(0)).astype("<u4")
        return json.dumps(
            {
                "kind": "token_table",
                "version": VERSION,
                "unseen": self.unseen,
                "ids": _packed(steps),
                "rates": _packed(self.rates.astype("<f4")),
            }
        )

    @classmethod
    def from_json(cls, program: str, vocabulary: Vocabulary) -> TokenTable:
        """Inverse of `to_json`. Raises ExplainerError if it is not a table of this version and vocabulary."""

        def build(content: dict[str, Any]) -> TokenTable:
            ids = np.cumsum(_unpacked(content["ids"], "<u4"), dtype=np.uint32)
            rates = _unpacked(content["rates"], "<f4").astype(np.float32)
            return cls(ids, rates, float(content["unseen"]), vocabulary)

        table = read_program(program, "token_table", VERSION, build)
        if table.ids.shape != table.rates.shape:
            raise ExplainerError(
                f"a token table of {len(table.ids)} ids and {len(table.rates)} rates",
                expected="one rate per id",
                todo="compute the explanations again",
            )
        vocabulary.check(table.ids[None])
        return table


def _packed(values: np.ndarray[Any, Any]) -> str:
    # The bytes of one place stand together, because most steps are small and most rates repeat.
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(len(values), -1).T)
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode("ascii")


def _unpacked(text: str, dtype: str) -> np.ndarray[Any, Any]:
    """Inverse of `_packed`. Raises ValueError."""
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
    except zlib.error as e:
        raise ValueError(str(e)) from e
    planes = np.frombuffer(data, dtype=np.uint8)
    return np.ascontiguousarray(planes.reshape(np.dtype(dtype).itemsize, -1).T).view(dtype).ravel()


def learn_token_table(examples: Examples, vocabulary: Vocabulary) -> TokenTable:
    """The weighted share of active occurrences of each token, shrunk to the global share by `PRIOR` occurrences.

    Raises ExplainerError if no token is active, or if the arrays do not fit each other or the vocabulary.
    """
    examples.check(vocabulary)
    tokens, fired = examples.tokens.ravel(), examples.activations.ravel() > 0
    weight = np.repeat(examples.weight.astype(np.float64), examples.tokens.shape[1])
    seen = np.bincount(tokens, minlength=len(vocabulary))
    ids = np.flatnonzero(seen)
    total = np.bincount(tokens, weight, len(vocabulary))[ids]
    hits = np.bincount(tokens[fired], weight[fired], len(vocabulary))[ids]
    overall = hits.sum() / total.sum()
    rates = (hits / total * seen[ids] + PRIOR * overall) / (seen[ids] + PRIOR)
    return TokenTable(ids.astype(np.uint32), rates.astype(np.float32), float(np.float32(overall)), vocabulary)


class TokenTableExplainer:
    """Explains each latent by its token table."""

    computes = True
    asks = False
    needs: frozenset[Need] = frozenset()

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        self.vocabulary = vocabulary

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        """Name and version."""
        return {"explainer": "token_table", "version": VERSION}

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One explanation per latent, in order."""
        for each in evidence:
            try:
                table = learn_token_table(each.examples, self.vocabulary)
            except ExplainerError as e:
                yield Explained(each.latent, "failed", str(e), context_ids=tuple(each.context_ids))
                continue
            yield Explained(
                each.latent, "ok", text=table.text(), program=table.to_json(), context_ids=tuple(each.context_ids)
            )
