"""Labels and rules of planted latents, and the tokens that the function of a label sees.

A label is a text and the function that the text means. The subject model runs the function of a rule's true label over
whole sequences; a judge runs the function of the text it is given over one window.

Functions return shares of truth in [0, 1] instead of booleans, because a window is cut out of a sequence: where the
answer depends on tokens that were cut off, it is one half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Integer

Text = Callable[["Seen"], Float32[np.ndarray, "n length"]]
"""How strongly a latent fires on each token, from what is seen of the tokens."""


class Seen:
    """The tokens that a label's function sees: whole sequences, or windows whose beginning is cut off."""

    def __init__(self, tokens: Integer[np.ndarray, "n length"], ids: Mapping[str, int], *, cut: bool) -> None:
        """`ids`: token id of each word. `cut`: whether the beginning is cut off."""
        self.tokens, self.ids, self.cut = tokens, ids, cut
        self.at = np.arange(tokens.shape[1])
        """Places in a row."""

    def of(self, *words: str) -> Float32[np.ndarray, "n length"]:
        """1 on these words, 0 elsewhere."""
        table = np.zeros(len(self.ids), dtype=np.float32)
        table[[self.ids[w] for w in words]] = 1
        found: Float32[np.ndarray, "n length"] = table[self.tokens]
        return found

    def before(self, p: Float32[np.ndarray, "n length"], n: int) -> Float32[np.ndarray, "n length"]:
        """`p` of the token n places earlier; one half where that token is cut off."""
        out = np.full_like(p, 0.5 if self.cut else 0.0)
        out[:, n:] = p[:, :-n]
        return out

    def after(self, p: Float32[np.ndarray, "n length"], n: int) -> Float32[np.ndarray, "n length"]:
        """`p` of the token n places later; 0 beyond the end."""
        out = np.zeros_like(p)
        out[:, :-n] = p[:, n:]
        return out

    def within(self, p: Float32[np.ndarray, "n length"], first: int, last: int) -> Float32[np.ndarray, "n length"]:
        """The largest `p` among the tokens `first` to `last` places earlier."""
        found: Float32[np.ndarray, "n length"] = np.maximum.reduce([self.before(p, n) for n in range(first, last + 1)])
        return found

    def beyond(self, p: Float32[np.ndarray, "n length"], n: int) -> Float32[np.ndarray, "n length"]:
        """The largest `p` more than n places earlier; where tokens are cut off, at least one half."""
        out = np.full_like(p, 0.5 if self.cut else 0.0)
        far = np.maximum.accumulate(p, axis=1)[:, : max(p.shape[1] - n - 1, 0)]
        out[:, n + 1 :] = np.maximum(out[:, n + 1 :], far)
        return out

    def between(self, opening: str, closing: str) -> Float32[np.ndarray, "n length"]:
        """1 on tokens between two marks, 0 on the marks and elsewhere.

        In a window whose beginning is cut off, a closing mark without an opening one shows that the tokens before it
        are between marks.
        """
        opens, closes = self.of(opening) > 0, self.of(closing) > 0
        last_open, last_close = (np.maximum.accumulate(np.where(m, self.at, -1), axis=1) for m in (opens, closes))
        inside = last_open > last_close
        if self.cut:
            length = self.tokens.shape[1]
            next_open, next_close = (
                np.minimum.accumulate(np.where(m, self.at, length)[:, ::-1], axis=1)[:, ::-1] for m in (opens, closes)
            )
            inside |= (last_open < 0) & (last_close < 0) & (next_close < next_open)
        return (inside & ~opens).astype(np.float32)


@dataclass(frozen=True)
class Label:
    """A sentence and its meaning: how strongly a latent that the sentence is true of fires on each token."""

    text: str
    means: Text = field(repr=False)


@dataclass(frozen=True)
class PlantedRule:
    """A planted latent: its labels, the text that makes it fire, and its number."""

    kind: str
    """Key in `kinds.KINDS`, or one of the rules that this kind makes (such as `strengths: even`)."""
    true: Label
    """The label that is exactly true."""
    general: Label | None = None
    """A label that is too general: true of more than the latent fires on."""
    specific: Label | None = None
    """A label that is too specific: true of only one of the cases."""
    pieces: dict[tuple[str, ...], float] = field(default_factory=dict)
    """Pieces of text and how often each is strewn into documents, per thousand places; `ANY` stands for any filler."""
    status: str = "eligible"
    """Its expected status in `eligibility`."""
    instance: int = 0
    """Its number among the rules of its kind."""
    latent: int = -1
    """Id of the latent in the SAE."""
    near: int | None = None
    """A latent with a similar decoder direction (cosine .4): its twin, or one it is easily confused with."""

    @property
    def name(self) -> str:
        """Kind and instance."""
        return f"{self.kind} {self.instance}"
