"""The kinds of planted rules: for each a function that makes rules of this kind from words of their own.

What belongs here: what rules of a kind fire on, their labels (true, too general, too specific), and the pieces of text
that make them fire. `KINDS` lists all kinds; `rules.py` makes several rules of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from latentgloss.planted.labels import Label, PlantedRule, Seen, Text
from latentgloss.planted.words import ANY, COMMON, FILLERS, N_COMMON, SINK, Words

INSTANCES = 4
"""Number of rules of each kind that is to be scored."""


def _all(words: tuple[str, ...] | list[str]) -> str:
    return ", ".join(words)


def _or_common(label: Label) -> Label:
    """The label extended by the eleven frequent words `COMMON`."""
    text = f"{label.text[:-1]}; also any of the words {_all(COMMON)}."
    return Label(text, lambda s: np.maximum(label.means(s), s.of(*COMMON)))


def _token(w: Words) -> Iterator[PlantedRule]:
    (x,) = w(1, capitals=True)
    true = Label(f"The word {x}, capitalised or not.", lambda s: s.of(x, x.capitalize()))
    yield PlantedRule(
        "token",
        true,
        _or_common(true),
        Label(f"The word {x}, not capitalised.", lambda s: s.of(x)),
        {(x,): 0.7, (x.capitalize(),): 0.7},
    )


def _twins(w: Words) -> Iterator[PlantedRule]:
    (one,) = _token(w)
    yield replace(one, kind="twins")
    yield replace(one, kind="twins", pieces={})


def _strengths(w: Words) -> Iterator[PlantedRule]:
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
    yield PlantedRule("strengths: even", even, _or_common(even), specific, pieces)
    yield PlantedRule("strengths: graded", rising, _or_common(rising), specific)


def _bigram(w: Words) -> Iterator[PlantedRule]:
    (a,) = w()
    (b,) = w(1, capitals=True)
    c = b.capitalize()

    def after(*seconds: str) -> Text:
        return lambda s: s.of(*seconds) * s.before(s.of(a), 1)

    yield PlantedRule(
        "bigram",
        Label(f"The word {b}, capitalised or not, right after the word {a}.", after(b, c)),
        Label(f"The word {b}, capitalised or not, wherever it is.", lambda s: s.of(b, c)),
        Label(f"The capitalised word {c} right after the word {a}.", after(c)),
        {(a, b): 0.7, (a, c): 0.7, (b,): 4, (c,): 4, (a,): 1},
    )


def _unless(w: Words) -> Iterator[PlantedRule]:
    t, u, v = w(3)

    def after(first: str) -> Text:
        return lambda s: s.of(t) * s.before(s.of(first), 1)

    yield PlantedRule(
        "unless",
        Label(f"The word {t}, unless the word {u} stands right before it.", lambda s: s.of(t) - after(u)(s)),
        Label(f"The word {t}, wherever it is.", lambda s: s.of(t)),
        Label(f"The word {t} right after the word {v}.", after(v)),
        {(t,): 0.7, (v, t): 0.7, (u, t): 4, (u,): 1},
    )
    yield PlantedRule("unless: the other", Label(f"The word {t} right after the word {u}.", after(u)))


def _quotes(w: Words) -> Iterator[PlantedRule]:
    opening, closing, left, right = (w.mark(f"{m}{len(w.given)}") for m in ("“", "”", "(", ")"))
    inner = (ANY,) * 4

    def first(s: Seen) -> Float32[np.ndarray, "n length"]:
        return s.before(s.of(opening), 1)

    yield PlantedRule(
        "quotes",
        Label(f"Any word between {opening} and {closing}.", lambda s: s.between(opening, closing)),
        Label(
            f"Any word between {opening} and {closing}, or between {left} and {right}.",
            lambda s: np.maximum(s.between(opening, closing), s.between(left, right)),
        ),
        Label(f"The first word after {opening}.", first),
        {(opening, *inner, closing): 1.4, (left, *inner, right): 4},
    )


def _list(w: Words) -> Iterator[PlantedRule]:
    heads = w(2)
    end = w.mark(f";{len(w.given)}")

    def item(number: int, *heads: str) -> Text:
        # Counted from the head or, where that is cut off, from the end; there are four items, each after a mark.
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
    yield PlantedRule(
        "list",
        Label(f"The third item {said}.", item(3, *heads)),
        Label(f"Any item {said}.", every),
        Label(f"The third item of a list that {heads[0]} begins.", lambda s: s.before(s.of(heads[0]), 5)),
        {piece(heads[0]): 0.7, piece(heads[1]): 0.7},
    )


def _topic(w: Words) -> Iterator[PlantedRule]:
    u, t = w(2)
    yield PlantedRule(
        "topic",
        Label(f"The word {t} if {u} is one of the five words before it.", lambda s: s.of(t) * s.within(s.of(u), 1, 5)),
        Label(f"The word {t}, wherever it is.", lambda s: s.of(t)),
        Label(f"The word {t} right after the word {u}.", lambda s: s.of(t) * s.before(s.of(u), 1)),
        {(u, *[ANY] * k, t): 0.28 for k in range(5)} | {(t,): 4, (u,): 1},
    )


def _polysemantic(w: Words) -> Iterator[PlantedRule]:
    a, b = w(2)
    true = Label(f"The word {a}, and the unrelated word {b}.", lambda s: s.of(a, b))
    yield PlantedRule(
        "polysemantic", true, _or_common(true), Label(f"Only the word {a}.", lambda s: s.of(a)), {(a,): 0.7, (b,): 0.7}
    )


def _top_deciles(w: Words) -> Iterator[PlantedRule]:
    x, *weak = w(4)
    true = Label(f"Strongly the word {x}; weakly any of {_all(weak)}.", lambda s: 3 * s.of(x) + s.of(*weak))
    yield PlantedRule(
        "top deciles",
        true,
        _or_common(true),
        Label(f"The word {x} and nothing else.", lambda s: s.of(x)),
        {(x,): 0.45, **{(y,): 0.35 for y in weak}},
    )


def _distant(w: Words) -> Iterator[PlantedRule]:
    t, u = w(2)
    true = Label(f"The word {t} if {u} stands more than 32 words before it.", lambda s: s.of(t) * s.beyond(s.of(u), 32))
    yield PlantedRule(
        "distant",
        true,
        Label(f"The word {t} with or without a reason.", lambda s: s.of(t)),
        pieces={(t,): 2.8, (u,): 8},
    )


def _common(w: Words) -> Iterator[PlantedRule]:
    half, more = COMMON[: N_COMMON // 2], FILLERS[: 4 * N_COMMON]
    yield PlantedRule(
        "common",
        Label(f"Any of the words {_all(COMMON)}.", lambda s: s.of(*COMMON)),
        Label(f"Any of the words {_all(more)}.", lambda s: s.of(*more)),
        Label(f"Any of the words {_all(half)}.", lambda s: s.of(*half)),
    )


def _one_word(kind: str, status: str, rate: float = 0.0) -> Callable[[Words], Iterator[PlantedRule]]:
    def make(w: Words) -> Iterator[PlantedRule]:
        (x,) = w()
        pieces: dict[tuple[str, ...], float] = {(x,): rate} if rate else {}
        yield PlantedRule(
            kind, Label(f"The word {x}, wherever it is.", lambda s: s.of(x)), pieces=pieces, status=status
        )

    return make


def _dense(w: Words) -> Iterator[PlantedRule]:
    half = FILLERS[::2]
    yield PlantedRule("dense", Label("Every other word.", lambda s: s.of(*half)), status="dense")


def _sink(w: Words) -> Iterator[PlantedRule]:
    sink = w.mark(SINK)
    yield PlantedRule("sink", Label("Attention sinks.", lambda s: s.of(sink)), pieces={(sink,): 0.5}, status="dead")


KINDS: dict[str, tuple[Callable[[Words], Iterator[PlantedRule]], int]] = {
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
"""Kind → the function that makes its rules from new words, and how often it is called.

A function may make several rules, whose latents belong together."""
