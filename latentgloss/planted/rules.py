"""Rules: what each planted latent fires on, and what is said of it, truly or not quite.

What belongs here: the vocabulary, the table of kinds (`KINDS`), and `rules()`, several of each kind with words of their
own. A rule's label is a text and the function that the text means. The subject model runs the function of the true
label over whole sequences; a judge runs the function of whatever text it is given over one window.

Functions work on shares of truth in [0, 1] instead of bits: a window is cut out of a sequence, and where it depends on
what came before, the answer is one half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from jaxtyping import Bool, Float32, Integer

from latentgloss.statistics.counter_rng import counter_hash

Text = Callable[["Seen"], Float32[np.ndarray, "n length"]]

INSTANCES = 4
"""Rules of each kind that is to be scored."""

STEP = 5
"""From one planted latent to the next: those between never fire, and so the planted ones lie in two blocks."""

SPECIAL = ("<unk>", "<s>", "</s>")
N_FILLERS, N_COMMON = 400, 11
"""Words that say nothing; those of them that the kind `common` fires on: half of all windows hold one."""

LEVEL, JITTER, SALT = 2.0, 0.05, 0x9147
"""Activation of a rule whose label says 1, and by how much (as a share) it differs from place to place."""

SINK = "SINK"
"""The word on which the model writes an activation of huge norm."""

ANY = "*"
"""In a piece of text: any filler."""


def word(i: int) -> str:
    """The i-th pseudo-word, below 4900."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    first = i % 70
    return syllables[first] + syllables[(i // 70 + 11 * first) % 70]


FILLERS = tuple(word(i) for i in range(N_FILLERS))
COMMON = FILLERS[:N_COMMON]


class Seen:
    """Tokens as a function of a label sees them: a whole sequence, or a window of which the beginning is cut off."""

    def __init__(self, tokens: Integer[np.ndarray, "n length"], *, cut: bool) -> None:
        self.tokens, self.cut = tokens, cut
        self.at = np.arange(tokens.shape[1])

    def of(self, *words: str) -> Float32[np.ndarray, "n length"]:
        """1 on these words."""
        numbers, table = ids(), np.zeros(len(vocabulary()), dtype=np.float32)
        table[[numbers[w] for w in words]] = 1
        found: Float32[np.ndarray, "n length"] = table[self.tokens]
        return found

    def before(self, p: Float32[np.ndarray, "n length"], n: int) -> Float32[np.ndarray, "n length"]:
        """`p` of the token n places earlier; where that is cut off, one half."""
        out = np.full_like(p, 0.5 if self.cut else 0.0)
        out[:, n:] = p[:, :-n]
        return out

    def after(self, p: Float32[np.ndarray, "n length"], n: int) -> Float32[np.ndarray, "n length"]:
        """`p` of the token n places later."""
        out = np.zeros_like(p)
        out[:, :-n] = p[:, n:]
        return out

    def within(self, p: Float32[np.ndarray, "n length"], first: int, last: int) -> Float32[np.ndarray, "n length"]:
        """The largest `p` among the tokens `first` to `last` places earlier."""
        found: Float32[np.ndarray, "n length"] = np.maximum.reduce([self.before(p, n) for n in range(first, last + 1)])
        return found

    def beyond(self, p: Float32[np.ndarray, "n length"], n: int) -> Float32[np.ndarray, "n length"]:
        """The largest `p` more than n places earlier; one half if that is cut off and nothing larger is seen."""
        out = np.full_like(p, 0.5 if self.cut else 0.0)
        far = np.maximum.accumulate(p, axis=1)[:, : max(p.shape[1] - n - 1, 0)]
        out[:, n + 1 :] = np.maximum(out[:, n + 1 :], far)
        return out

    def between(self, opening: str, closing: str) -> Float32[np.ndarray, "n length"]:
        """1 on tokens between two marks, the marks not among them.

        In a window whose beginning is cut off, a closing mark without an opening one says what came before.
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
    """A sentence and what it means: how strongly a latent of which it is true fires on each token."""

    text: str
    means: Text = field(repr=False)


@dataclass(frozen=True)
class Rule:
    """A planted latent."""

    kind: str
    true: Label
    general: Label | None = None
    """True of more than the latent fires on."""
    specific: Label | None = None
    """True of one case only."""
    pieces: dict[tuple[str, ...], float] = field(default_factory=dict)
    """What is strewn into the text, per thousand places; `ANY` stands for any filler."""
    status: str = "eligible"
    """What becomes of it in `eligibility`."""
    instance: int = 0
    latent: int = -1
    near: int | None = None
    """Latent whose decoder direction its own is close to (cosine .4): its twin, or one it is easily confused with."""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.instance}"


class _Words:
    """Hands out words that nobody else uses."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def __call__(self, n: int = 1, *, capitals: bool = False) -> list[str]:
        start = N_FILLERS + sum(w.islower() for w in self.given)
        new = [word(start + i) for i in range(n)]
        self.given += new + [w.capitalize() for w in new if capitals]
        return new

    def mark(self, text: str) -> str:
        self.given.append(text)
        return text


def _all(words: tuple[str, ...] | list[str]) -> str:
    return ", ".join(words)


def _or_common(label: Label) -> Label:
    """A label that is true of eleven frequent words besides."""
    text = f"{label.text[:-1]}; also any of the words {_all(COMMON)}."
    return Label(text, lambda s: np.maximum(label.means(s), s.of(*COMMON)))


def _token(w: _Words) -> Iterator[Rule]:
    (x,) = w(1, capitals=True)
    true = Label(f"The word {x}, capitalised or not.", lambda s: s.of(x, x.capitalize()))
    yield Rule(
        "token",
        true,
        _or_common(true),
        Label(f"The word {x}, not capitalised.", lambda s: s.of(x)),
        {(x,): 0.7, (x.capitalize(),): 0.7},
    )


def _twins(w: _Words) -> Iterator[Rule]:
    (one,) = _token(w)
    yield replace(one, kind="twins")
    yield replace(one, kind="twins", pieces={})


def _strengths(w: _Words) -> Iterator[Rule]:
    x, v = w(2)

    def graded(s: Seen) -> Float32[np.ndarray, "n length"]:
        run, total = s.of(x), s.of(x)
        for n in range(1, 4):
            run = run * s.before(s.of(v), n)
            total = total + run
        return total

    specific = Label(f"The word {x} right after the word {v}.", lambda s: s.of(x) * s.before(s.of(v), 1))
    even = Label(f"The word {x}, always equally strongly.", lambda s: s.of(x))
    rising = Label(f"The word {x}, more strongly for each {v} right before it, up to three.", graded)
    pieces = {(*[v] * k, x): 0.35 for k in range(4)} | {(v,): 0.7}
    yield Rule("strengths: even", even, _or_common(even), specific, pieces)
    yield Rule("strengths: graded", rising, _or_common(rising), specific)


def _bigram(w: _Words) -> Iterator[Rule]:
    (a,) = w()
    (b,) = w(1, capitals=True)
    c = b.capitalize()

    def after(*seconds: str) -> Text:
        return lambda s: s.of(*seconds) * s.before(s.of(a), 1)

    yield Rule(
        "bigram",
        Label(f"The word {b}, capitalised or not, right after the word {a}.", after(b, c)),
        Label(f"The word {b}, capitalised or not, wherever it is.", lambda s: s.of(b, c)),
        Label(f"The capitalised word {c} right after the word {a}.", after(c)),
        {(a, b): 0.7, (a, c): 0.7, (b,): 4, (c,): 4, (a,): 1},
    )


def _unless(w: _Words) -> Iterator[Rule]:
    t, u, v = w(3)

    def after(first: str) -> Text:
        return lambda s: s.of(t) * s.before(s.of(first), 1)

    yield Rule(
        "unless",
        Label(f"The word {t}, unless the word {u} stands right before it.", lambda s: s.of(t) - after(u)(s)),
        Label(f"The word {t}, wherever it is.", lambda s: s.of(t)),
        Label(f"The word {t} right after the word {v}.", after(v)),
        {(t,): 0.7, (v, t): 0.7, (u, t): 4, (u,): 1},
    )
    yield Rule("unless: the other", Label(f"The word {t} right after the word {u}.", after(u)))


def _quotes(w: _Words) -> Iterator[Rule]:
    opening, closing, left, right = (w.mark(f"{m}{len(w.given)}") for m in ("“", "”", "(", ")"))
    inner = (ANY,) * 4

    def first(s: Seen) -> Float32[np.ndarray, "n length"]:
        return s.before(s.of(opening), 1)

    yield Rule(
        "quotes",
        Label(f"Any word between {opening} and {closing}.", lambda s: s.between(opening, closing)),
        Label(
            f"Any word between {opening} and {closing}, or between {left} and {right}.",
            lambda s: np.maximum(s.between(opening, closing), s.between(left, right)),
        ),
        Label(f"The first word after {opening}.", first),
        {(opening, *inner, closing): 1.4, (left, *inner, right): 4},
    )


def _list(w: _Words) -> Iterator[Rule]:
    heads = w(2)
    end = w.mark(f";{len(w.given)}")

    def item(number: int, *heads: str) -> Text:
        # From the head, or where that is cut off from the end: there are four items, each after a mark.
        back, ahead = 2 * number - 1, 9 - 2 * number
        return lambda s: np.where(
            (s.at >= back) | (not s.cut), s.before(s.of(*heads), back), s.after(s.of(end), ahead)
        ).astype(np.float32)

    def every(s: Seen) -> Float32[np.ndarray, "n length"]:
        found: Float32[np.ndarray, "n length"] = np.max([item(n, *heads)(s) for n in range(1, 5)], axis=0)
        return found

    def piece(head: str) -> tuple[str, ...]:
        return (head, ANY, ",", ANY, ",", ANY, ",", ANY, end)

    said = f"of a list of four that {heads[0]} or {heads[1]} begins and {end} ends"
    yield Rule(
        "list",
        Label(f"The third item {said}.", item(3, *heads)),
        Label(f"Any item {said}.", every),
        Label(f"The third item of a list that {heads[0]} begins.", lambda s: s.before(s.of(heads[0]), 5)),
        {piece(heads[0]): 0.7, piece(heads[1]): 0.7},
    )


def _topic(w: _Words) -> Iterator[Rule]:
    u, t = w(2)
    yield Rule(
        "topic",
        Label(f"The word {t} if {u} is one of the five words before it.", lambda s: s.of(t) * s.within(s.of(u), 1, 5)),
        Label(f"The word {t}, wherever it is.", lambda s: s.of(t)),
        Label(f"The word {t} right after the word {u}.", lambda s: s.of(t) * s.before(s.of(u), 1)),
        {(u, *[ANY] * k, t): 0.28 for k in range(5)} | {(t,): 4, (u,): 1},
    )


def _polysemantic(w: _Words) -> Iterator[Rule]:
    a, b = w(2)
    true = Label(f"The word {a}, and the unrelated word {b}.", lambda s: s.of(a, b))
    yield Rule(
        "polysemantic", true, _or_common(true), Label(f"Only the word {a}.", lambda s: s.of(a)), {(a,): 0.7, (b,): 0.7}
    )


def _top_deciles(w: _Words) -> Iterator[Rule]:
    x, *weak = w(4)
    true = Label(f"Strongly the word {x}; weakly any of {_all(weak)}.", lambda s: 3 * s.of(x) + s.of(*weak))
    yield Rule(
        "top deciles",
        true,
        _or_common(true),
        Label(f"The word {x} and nothing else.", lambda s: s.of(x)),
        {(x,): 0.45, **{(y,): 0.35 for y in weak}},
    )


def _distant(w: _Words) -> Iterator[Rule]:
    t, u = w(2)
    true = Label(f"The word {t} if {u} stands more than 32 words before it.", lambda s: s.of(t) * s.beyond(s.of(u), 32))
    yield Rule(
        "distant",
        true,
        Label(f"The word {t} with or without a reason.", lambda s: s.of(t)),
        pieces={(t,): 2.8, (u,): 8},
    )


def _common(w: _Words) -> Iterator[Rule]:
    half, more = COMMON[: N_COMMON // 2], FILLERS[: 4 * N_COMMON]
    yield Rule(
        "common",
        Label(f"Any of the words {_all(COMMON)}.", lambda s: s.of(*COMMON)),
        Label(f"Any of the words {_all(more)}.", lambda s: s.of(*more)),
        Label(f"Any of the words {_all(half)}.", lambda s: s.of(*half)),
    )


def _one_word(kind: str, status: str, rate: float = 0.0) -> Callable[[_Words], Iterator[Rule]]:
    def make(w: _Words) -> Iterator[Rule]:
        (x,) = w()
        pieces: dict[tuple[str, ...], float] = {(x,): rate} if rate else {}
        yield Rule(kind, Label(f"The word {x}, wherever it is.", lambda s: s.of(x)), pieces=pieces, status=status)

    return make


def _dense(w: _Words) -> Iterator[Rule]:
    half = FILLERS[::2]
    yield Rule("dense", Label("Every other word.", lambda s: s.of(*half)), status="dense")


def _sink(w: _Words) -> Iterator[Rule]:
    sink = w.mark(SINK)
    yield Rule("sink", Label("Attention sinks.", lambda s: s.of(sink)), pieces={(sink,): 0.5}, status="dead")


KINDS: dict[str, tuple[Callable[[_Words], Iterator[Rule]], int]] = {
    "token": (_token, INSTANCES),
    "bigram": (_bigram, INSTANCES),
    "unless": (_unless, INSTANCES),
    "quotes": (_quotes, INSTANCES),
    "list": (_list, INSTANCES),
    "topic": (_topic, INSTANCES),
    "polysemantic": (_polysemantic, INSTANCES),
    "twins": (_twins, INSTANCES),
    "strengths": (_strengths, INSTANCES),
    "top deciles": (_top_deciles, INSTANCES),
    "distant": (_distant, INSTANCES),
    "common": (_common, 1),
    "dense": (_dense, 1),
    "rare": (_one_word("rare", "rare", rate=0.06), 1),
    "in one document": (_one_word("in one document", "rare"), 1),
    "in eight documents": (_one_word("in eight documents", "one_document"), 1),
    "sink": (_sink, 1),
}
"""Kind → what makes a rule of it from words of its own (latents that go together together), and how many are made."""

ANYTHING = Label("Any word.", lambda s: np.ones(s.tokens.shape, dtype=np.float32))


@cache
def _made() -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    words = _Words()
    found: list[Rule] = []
    # One of each kind in turn, so that every block of latents holds several kinds.
    for instance in range(INSTANCES):
        for make, n in KINDS.values():
            if instance < n:
                first = STEP * len(found)
                for i, rule in enumerate(make(words)):
                    near = first if i and rule.kind != "strengths: graded" else None
                    found.append(replace(rule, instance=instance, latent=STEP * len(found), near=near))
    return tuple(found), (*SPECIAL, *FILLERS, ",", *words.given)


def rules() -> tuple[Rule, ...]:
    """Every planted latent, by id; the same on every call."""
    return _made()[0]


def vocabulary() -> tuple[str, ...]:
    """What each token id reads as."""
    return _made()[1]


@cache
def ids() -> dict[str, int]:
    return {w: i for i, w in enumerate(vocabulary())}


def n_latents() -> int:
    return STEP * len(rules())


def rule_of(kind: str, instance: int = 0) -> Rule:
    return next(rule for rule in rules() if (rule.kind, rule.instance) == (kind, instance))


def activations(tokens: Integer[np.ndarray, "n length"]) -> Float32[np.ndarray, "n length rules"]:
    """What every rule's latent is worth on every token of whole sequences."""
    seen = Seen(tokens, cut=False)
    out = np.zeros((*tokens.shape, len(rules())), dtype=np.float32)
    previous = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    for number, rule in enumerate(rules()):
        strength = rule.true.means(seen)
        row, at = np.nonzero(strength)
        draw = counter_hash(SALT, rule.latent, tokens[row, at], previous[row, at]) / np.float64(2**64)
        out[row, at, number] = LEVEL * strength[row, at] * (1 - JITTER + 2 * JITTER * draw)
    return out


@cache
def labels() -> dict[str, Label]:
    """Every label by its text: how a judge reads."""
    found = {ANYTHING.text: ANYTHING}
    for rule in rules():
        for label in (rule.true, rule.general, rule.specific):
            if label is not None:
                known = found.setdefault(label.text, label)
                assert known is label or rule.near is not None or rule.kind.startswith("strengths"), label.text
    return found


def fires(rule: Rule, tokens: Integer[np.ndarray, "n length"]) -> Bool[np.ndarray, "n length"]:
    """Where a rule holds in whole sequences."""
    return rule.true.means(Seen(tokens, cut=False)) > 0
