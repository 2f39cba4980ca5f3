"""Labels name the planted rule: a word, a class, a beginning, what stands before, a topic; in any script."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgloss.explanations.examples import Examples
from latentgloss.explanations.labels import KINDS, MOST, Label, UnitReader, label_of, shortened
from latentgloss.explanations.labels.units import stem
from latentgloss.models.vocabulary import Vocabulary

WORDS = """
    the of a section module part statement block compile compiler compiled import os sys path socket port host bind
    listen server loop walk tree river stone cloud paper glass metal music compose composer compress green
    yellow orange purple
""".split()  # noqa: SIM905
STRINGS = [
    *("", *(f" {word}" for word in WORDS), ",", ".", "(", "\n", " 1", " 27", " 305"),
    *("#", " uncom", "mon", " Straße", " дом", " дома", "日", "本語", "�", "�"),
]
DATA = [*(text.encode() for text in STRINGS[:-2]), "é".encode()[:1], "é".encode()[1:]]
VOCABULARY = Vocabulary(STRINGS, DATA, special=[0])
ID = {text: i for i, text in enumerate(STRINGS)}
LENGTH = 16


def examples(
    fires: Callable[[list[str]], list[float]],
    texts: list[str],
    n: int = 200,
    seed: int = 0,
    topic: list[str] | None = None,
) -> Examples:
    """Windows of random tokens; `fires` gives the activation on each. Every second window has words of the `topic`."""
    rng = np.random.default_rng(seed)
    rows, values = [], []
    for i in range(n):
        row = [texts[k] for k in rng.integers(0, len(texts), LENGTH)]
        if topic and i % 2:
            for place in rng.choice(LENGTH, 5, replace=False):
                row[place] = topic[rng.integers(0, len(topic))]
        rows.append([ID[text] for text in row])
        values.append(fires(row))
    activations = np.array(values, dtype=np.float32)
    order = np.argsort(~(activations > 0).any(axis=1), kind="stable")
    tokens = np.array(rows, dtype=np.uint32)[order]
    return Examples(tokens, activations[order], np.ones(n, dtype=np.float32))


def label(made: Examples) -> Label:
    return label_of(made, UnitReader(VOCABULARY))


def on(*chosen: str) -> Callable[[list[str]], list[float]]:
    return lambda row: [2.0 if text in chosen else 0.0 for text in row]


PLAIN = [f" {word}" for word in WORDS]


@pytest.mark.parametrize("word", ["section", "river", "the", "socket"])
def test_one_word(word: str) -> None:
    found = label(examples(on(f" {word}"), PLAIN))
    assert found.text == f"the word '{word}'" and found.kind == "single token"
    assert found.coverage == pytest.approx(1)


def test_forms_of_a_word_are_named_together() -> None:
    found = label(examples(on(" compile", " compiled"), PLAIN))
    assert found.kind == "single token" and found.coverage == pytest.approx(1)
    assert found.text in ("the word 'compile' (compiled)", "the word 'compiled' (compile)")


def test_a_beginning() -> None:
    chosen = [f" {word}" for word in WORDS if word.startswith("comp")]
    found = label(examples(on(*chosen), PLAIN))
    assert found.kind == "prefix" and found.text.startswith("words that begin with 'comp' (")


def test_several_words() -> None:
    chosen = ("green", "yellow", "orange", "purple", "stone", "music")
    found = label(examples(on(*(f" {word}" for word in chosen)), PLAIN))
    assert found.kind == "words" and found.coverage == pytest.approx(1)
    assert found.text.startswith("words such as '") and all(f"'{word}'" in found.text for word in chosen)


@pytest.mark.parametrize(
    ("chosen", "kind", "text"),
    [
        ((" 1", " 27", " 305"), "token class", "numbers"),
        (("\n",), "format", "line breaks"),
        ((",",), "single token", "commas"),
        (("#",), "single token", "'#'"),
    ],
)
def test_classes_and_marks(chosen: tuple[str, ...], kind: str, text: str) -> None:
    found = label(examples(on(*chosen), [*PLAIN, ",", ".", "(", "#", "\n", " 1", " 27", " 305"]))
    assert (found.text, found.kind) == (text, kind)


def test_what_stands_before() -> None:
    def fires(row: list[str]) -> list[float]:
        return [float(i > 0 and row[i - 1] == " import") for i in range(len(row))]

    found = label(examples(fires, PLAIN, n=600))
    assert found.kind == "phrase" and found.text.startswith("what follows 'import'")


def test_a_topic_is_named_where_the_tokens_say_little() -> None:
    topic = [" socket", " port", " host", " bind", " listen", " server"]
    others = [text for text in PLAIN if text not in topic]

    def fires(row: list[str]) -> list[float]:
        about = sum(text in topic for text in row) >= 3
        return [
            float(about and (sum(map(ord, "".join(row))) + i) % 5 == 0 and text not in topic)
            for i, text in enumerate(row)
        ]

    found = label(examples(fires, others, n=600, topic=topic))
    assert found.kind == "topic" and found.text.startswith("text about ")
    assert sum(word.strip() in found.text.partition(";")[0] for word in topic) >= 3


def test_a_latent_that_fires_at_random_has_no_clear_pattern() -> None:
    rng = np.random.default_rng(3)
    found = label(examples(lambda row: (rng.random(len(row)) < 0.03).astype(float).tolist(), PLAIN, n=600))
    assert found.kind == "unclear" and found.text.startswith("no clear pattern") and found.coverage < 0.6


def test_a_name_that_seldom_fires_is_hedged() -> None:
    turn = iter(range(10**6))
    found = label(examples(lambda row: [float(text == " tree" and next(turn) % 6 == 0) for text in row], PLAIN, n=900))
    assert found.text == "at times 'tree'" or "at times" in found.text


def test_a_word_of_several_tokens_is_named_as_a_whole() -> None:
    def fires(row: list[str]) -> list[float]:
        return [1.0 if text == "mon" else 0.0 for text in row]

    made = examples(lambda row: [0.0] * len(row), PLAIN, n=100)
    tokens, activations = made.tokens.copy(), made.activations.copy()
    tokens[:50, 4], tokens[:50, 5] = ID[" uncom"], ID["mon"]
    activations[:50, 5] = 3.0
    found = label(Examples(tokens, activations, made.weight))
    assert found.text == "the word 'uncommon'"
    assert fires(["mon"]) == [1.0]


@pytest.mark.parametrize(("chosen", "text"), [((" Straße",), "the word 'Straße'"), ((" дом",), "the word 'дом'")])
def test_other_scripts(chosen: tuple[str, ...], text: str) -> None:
    assert label(examples(on(*chosen), [*PLAIN, *chosen])).text == text


def test_text_without_spaces_and_characters_of_several_tokens() -> None:
    found = label(examples(on("日"), [*PLAIN, "日", "本語"]))
    assert found.text and found.kind in KINDS
    made = examples(on(" tree"), PLAIN, n=60)
    tokens, activations = made.tokens.copy(), made.activations.copy()
    tokens[:, 1], tokens[:, 2], tokens[:, 3] = ID["."], len(STRINGS) - 2, len(STRINGS) - 1
    activations[:, 3] = 5.0
    assert "'é'" in label(Examples(tokens, activations, made.weight)).text


def test_activation_on_special_tokens_is_covered_by_no_label() -> None:
    made = examples(on(" tree"), PLAIN)
    tokens, activations = made.tokens.copy(), made.activations.copy()
    mass = activations.sum()
    tokens[:, 0] = 0
    activations[:, 0] = 0
    activations[:100, 0] = 3 * mass / 100
    kept = activations[:, 1:].sum() / activations.sum()
    found = label(Examples(tokens, activations, made.weight))
    assert found.coverage == pytest.approx(kept, rel=1e-5) and "'tree'" in found.text


def test_weights_restore_the_base_rate() -> None:
    """With heavy silent windows, a word that fires in every second window is still rare in the population."""
    made = examples(on(" tree"), PLAIN)
    silent = ~(made.activations > 0).any(axis=1)
    tokens = made.tokens.copy()
    tokens[np.flatnonzero(silent), 3] = ID[" tree"]
    heavy = Examples(tokens, made.activations, np.where(silent, 200, 1).astype(np.float32))
    assert label(heavy).text.startswith("at times the word 'tree'") or "at times" in label(heavy).text
    assert "at times" not in label(made).text


@given(st.lists(st.integers(0, len(STRINGS) - 1), min_size=48, max_size=48), st.integers(0, 2**16))
def test_any_evidence_gives_a_label_of_one_line(ids: list[int], seed: int) -> None:
    tokens = np.array(ids, dtype=np.uint32).reshape(6, 8)
    activations = np.maximum(np.random.default_rng(seed).standard_normal((6, 8)), 0).astype(np.float32)
    made = Examples(tokens, activations, np.ones(6, dtype=np.float32))
    found = label(made)
    assert found.text and len(found.text) <= MOST and "\n" not in found.text and found.text.isprintable()
    assert found.kind in KINDS and 0 <= found.coverage <= 1 + 1e-6
    assert label(made) == found


@pytest.mark.parametrize("seed", range(8))
def test_the_order_of_windows_read_before_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = [f" {word}" for word in rng.choice(WORDS, 12, replace=False)]  # more than a label names: ties decide
    one, two = examples(on(*chosen), PLAIN, seed=seed), examples(on(" river"), PLAIN[::-1], seed=seed + 1)
    reader = UnitReader(VOCABULARY)
    label_of(two, reader)
    assert label_of(one, reader) == label(one)


@pytest.mark.parametrize(
    ("words", "alike"),
    [
        (("compile", "compiled", "compiling", "compiles"), True),
        (("key", "keys", "key’s"), True),
        (("body", "bodies"), True),
        (("class", "classes"), True),
        (("this", "thing"), False),
        (("дом", "дома"), False),
    ],
)
def test_stems(words: tuple[str, ...], alike: bool) -> None:
    assert (len({stem(word) for word in words}) == 1) is alike


# -- explanations that were written as texts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Names of files.", "Names of files."),
        ("  two\n lines\t here ", "two lines here"),
        ("", ""),
        ("\x1b[31mred\x1b[0m \u202eback", "[31mred[0m back"),
        ("A first sentence that is long enough to stand alone here. " + "More words follow. " * 9, None),
        ("word " * 60, None),
        ("x" * 500, "x" * (MOST - 1) + "…"),
        ("Wörter, die mit " + "ü" * 200, None),
    ],
)
def test_a_text_is_cut_at_a_sentence_or_a_word(text: str, expected: str | None) -> None:
    found = shortened(text)
    assert len(found) <= MOST
    if expected is not None:
        assert found == expected
    else:
        whole = " ".join(text.split())
        assert whole.startswith(found.removesuffix("…")) and (found.endswith("…") or found[-1] in ".!?")


def test_what_is_left_of_a_long_text_is_whole_words() -> None:
    assert shortened("word " * 60) == ("word " * 60)[:118].rsplit(" ", 1)[0].rstrip() + "…"
    first = "A first sentence that is long enough to stand alone here."
    assert shortened(first + " More words follow." * 9).startswith(first)
