"""The `token_table` explainer: how often the latent fires on each token, whatever stands around it.

The strong baseline of every explainer of inputs. It is the whole table, every token seen on explain, which no
sentence can hold: its text lists the top ten only.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import ExplainerError
from latentgloss.explanations.explainers.base import Explained
from latentgloss.explanations.explainers.examples import Examples
from latentgloss.explanations.explainers.pattern.sentence import token_text
from latentgloss.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jaxtyping import Float32, UInt32

    from latentgloss.config.settings import ExplanationSettings
    from latentgloss.explanations.explainers.base import Evidence, Need, Tools


VERSION = 1
PRIOR = 1.0
"""Occurrences that the global rate counts for in each token's."""

SHOWN = 10
"""Tokens in the text."""


@dataclass(frozen=True)
class TokenTable:
    """Firing rate of every token seen on explain, and of the others the global rate."""

    ids: UInt32[np.ndarray, " types"]
    """Ascending."""
    rates: Float32[np.ndarray, " types"]
    unseen: float
    vocabulary: Vocabulary = field(compare=False, repr=False)

    def strength(self, tokens: UInt32[np.ndarray, "n length"]) -> Float32[np.ndarray, "n length"]:
        """f_t: the rate of the token. Raises ExplainerError if a token id is outside the vocabulary."""
        self.vocabulary.check(tokens)
        table: Float32[np.ndarray, " vocabulary"] = np.full(len(self.vocabulary), self.unseen, dtype=np.float32)
        table[self.ids] = self.rates
        strength: Float32[np.ndarray, "n length"] = table[tokens]
        return strength

    def text(self, vocabulary: Vocabulary | None = None) -> str:
        """The ten tokens of the highest rate."""
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
        """Inverse of `to_json`. Raises ExplainerError if it is no table of this version and vocabulary."""
        try:
            read = json.loads(program)
            if read["kind"] != "token_table" or read["version"] != VERSION:
                raise ExplainerError(
                    f"a program of kind {read['kind']!r}, version {read['version']!r}",
                    expected=f"kind 'token_table', version {VERSION}",
                    todo="compute the explanations again",
                )
            ids = np.cumsum(_unpacked(read["ids"], "<u4"), dtype=np.uint32)
            table = cls(ids, _unpacked(read["rates"], "<f4").astype(np.float32), float(read["unseen"]), vocabulary)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, zlib.error) as e:
            raise ExplainerError(f"not a token table's program ({e})", expected="what `to_json` wrote") from e
        if table.ids.shape != table.rates.shape:
            raise ExplainerError(f"{len(table.ids)} ids and {len(table.rates)} rates", expected="as many of each")
        vocabulary.check(table.ids[None])
        return table


def _packed(values: np.ndarray[Any, Any]) -> str:
    # Bytes of equal place beside each other: most steps are small and most rates repeat.
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(len(values), -1).T)
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode("ascii")


def _unpacked(text: str, dtype: str) -> np.ndarray[Any, Any]:
    raw = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=np.uint8)
    return np.ascontiguousarray(raw.reshape(np.dtype(dtype).itemsize, -1).T).view(dtype).ravel()


def learn_token_table(windows: Examples, vocabulary: Vocabulary) -> TokenTable:
    """Weighted share of active occurrences of each token, shrunk to the global share by `PRIOR` occurrences.

    Raises ExplainerError if no token is active, or the arrays do not fit each other or the vocabulary.
    """
    windows.check(vocabulary)
    tokens, fired = windows.tokens.ravel(), windows.activations.ravel() > 0
    weight = np.repeat(windows.weight.astype(np.float64), windows.tokens.shape[1])
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
        return {"explainer": "token_table", "version": VERSION}

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One explanation per latent, in order."""
        for one in evidence:
            try:
                table = learn_token_table(one.windows, self.vocabulary)
            except ExplainerError as e:
                yield Explained(one.latent, "failed", str(e), context_ids=tuple(one.context_ids))
                continue
            yield Explained(one.latent, "ok", "", table.text(), table.to_json(), context_ids=tuple(one.context_ids))
