"""Patterns: what the rules mean, that the sentence says all of them, and that planted rules are found."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from latentgloss.config.settings import ExplanationSettings
from latentgloss.errors import ExplainerError
from latentgloss.explanations.examples import Examples
from latentgloss.explanations.explainers.pattern.explainer import PatternExplainer
from latentgloss.explanations.explainers.pattern.learning import learn_pattern
from latentgloss.explanations.explainers.pattern.rules import (
    LEVELS,
    MAX_ITEMS,
    MAX_RULES,
    RATES,
    SHIFTS,
    SUPPORT,
    Item,
    Pattern,
    Rule,
)
from latentgloss.explanations.explainers.pattern.sentence import parse_text, text
from latentgloss.explanations.explainers.programs import load_program
from latentgloss.explanations.explainers.token_table import learn_token_table
from latentgloss.models.vocabulary import CLASSES, KINDS, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BROKEN = chr(0xFFFD)
WORDS = [f"{c}{v}{d}{e}" for c in "bdfklmnprst" for v in "aeiou" for d in "gkt" for e in ("o", "um")]
FORMS = ["import", " import", " Import", "IMPORT", "imported", " importing", " importance", " from", "from"]
ODD = [
    "\n",
    "\n\n",
    " ",
    "\t",
    "(",
    ")",
    ' "',
    "'",
    "\\",
    " \\n",
    "…",
    "é",
    "\u200b",
    "\U000e0001",
    BROKEN,
    BROKEN,
    " or",
    " a number",
    '", "',
    "don't",
    "e\u0301",
    " İ",
    "#1",
    "12",
    " 7",
    "2024",
    ".",
    ";",
    "_",
]
VOCABULARY = Vocabulary([*ODD, *FORMS, *(f" {word}" for word in WORDS)])
FILLERS = np.arange(len(ODD) + len(FORMS), len(VOCABULARY))
LENGTH = 16


def token(text: str) -> int:
    (found,) = VOCABULARY.ids_of[text]
    return found


def planted(
    rule: Callable[[NDArray[np.int64]], NDArray[np.bool_]], put: list[list[int]], n: int = 400, seed: int = 0
) -> Examples:
    """Random windows in which each phrase of `put` stands with probability 1/2, active where `rule` says so."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice(FILLERS, size=(n, LENGTH))
    for phrase in put:
        for row in np.flatnonzero(rng.random(n) < 0.5):
            at = rng.integers(0, LENGTH - len(phrase) + 1)
            tokens[row, at : at + len(phrase)] = phrase
    active = rule(tokens)
    activations = np.where(active, rng.uniform(0.5, 2, active.shape), 0).astype(np.float32)
    return Examples(tokens.astype(np.uint32), activations, np.ones(n, dtype=np.float32))


def auroc(windows: Examples, strength: NDArray[np.float32]) -> float:
    truth, ranks = (windows.activations > 0).any(axis=1), rankdata(strength.max(axis=1))
    p, n = truth.sum(), (~truth).sum()
    return float((ranks[truth].sum() - p * (p + 1) / 2) / (p * n))


def after(tokens: NDArray[np.int64], first: int) -> NDArray[np.bool_]:
    found = np.zeros(tokens.shape, dtype=np.bool_)
    found[:, 1:] = tokens[:, :-1] == first
    return found


# -- vocabulary ---------------------------------------------------------------------------------------------------


def test_every_token_has_one_class_and_words_ignore_case_and_space() -> None:
    classes = VOCABULARY.groups("class")
    assert ((classes >= 0) & (classes < len(CLASSES))).all()
    named = {
        text: CLASSES[classes[token(text)]] for text in ("\n", " ", "(", " 7", "IMPORT", " Import", "from", " from")
    }
    assert named == {
        "\n": "a line break",
        " ": "blank space",
        "(": "an opening bracket",
        " 7": "a number",
        "IMPORT": "a word in capitals",
        " Import": "a capitalised word",
        "from": "a lower-case piece of a word",
        " from": "a lower-case word",
    }
    words, prefixes = VOCABULARY.groups("word"), VOCABULARY.groups("prefix")
    assert len({words[token(t)] for t in ("import", " import", " Import", "IMPORT")}) == 1
    assert len({prefixes[token(t)] for t in ("import", "imported", " importance")}) == 1
    assert words[token(" ")] == -1
    assert (words[VOCABULARY.ids_of[BROKEN]] == -1).all()
    assert prefixes[token("from")] == -1


# -- meaning ------------------------------------------------------------------------------------------------------


def test_levels_follow_the_most_specific_rule_and_shifts_need_a_named_token() -> None:
    pattern = Pattern(
        1,
        (
            Rule("fires", 4, (Item("class", "a lower-case word"), Item("prefix", "impo"))),
            Rule("fires", 6, (Item("word", "import"),)),
            Rule("fires", 8, (Item("token", token("IMPORT")),)),
            Rule("after", -2, (Item("word", "("),)),
            Rule("after", 3, (Item("class", "an opening bracket"),)),
        ),
        VOCABULARY,
    )
    texts = [" from", "imported", " import", "IMPORT", "\n", "(", "\n", "(", " import", "(", "IMPORT"]
    levels = pattern.levels(np.array([[token(t) for t in texts]], dtype=np.uint32))
    assert levels.tolist() == [[4, 4, 6, 8, 1, 1, 1, 1, 7, 1, 8]]  # 8 + 1 stays on the ladder


def test_strength_is_the_rate_plus_a_share_of_the_windows() -> None:
    pattern = Pattern(0, (Rule("fires", 8, (Item("word", "from"),)),), VOCABULARY)
    tokens = np.array([[token(" from"), token(".")], [token("."), token(".")]], dtype=np.uint32)
    rate = -np.log1p(-RATES)
    expected = np.array([[rate[8], rate[0]], [rate[0], rate[0]]])
    expected += SUPPORT * expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pattern.strength(tokens), expected, rtol=1e-6)
    np.testing.assert_array_equal(pattern.strength(tokens[:1]), pattern.strength(tokens)[:1])  # the window alone


@pytest.mark.parametrize(
    ("otherwise", "rules"),
    [
        (len(LEVELS), ()),
        (0, (Rule("fires", 9, (Item("word", "from"),)),)),
        (0, (Rule("after", 0, (Item("word", "from"),)),)),
        (0, (Rule("fires", 1, ()),)),
        (0, (Rule("fires", 1, (Item("word", "from"),) * (MAX_ITEMS + 1)),)),
        (0, (Rule("fires", 1, (Item("word", "from"),)),) * MAX_RULES),
        (0, (Rule("near", 1, (Item("word", "from"),)),)),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_pattern_is_refused(otherwise: int, rules: tuple[Rule, ...]) -> None:
    with pytest.raises(ExplainerError, match="Expected"):
        Pattern(otherwise, rules, VOCABULARY)


def test_a_token_id_out_of_range_is_refused() -> None:
    with pytest.raises(ExplainerError, match="vocabulary of"):
        Pattern(0, (), VOCABULARY).strength(np.array([[len(VOCABULARY)]], dtype=np.uint32))


# -- sentence and program -----------------------------------------------------------------------------------------


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    def items() -> tuple[Item, ...]:
        drawn = []
        for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=MAX_ITEMS)):
            # Odd tokens are few among many: draw them as often as the rest.
            odd = st.integers(0, min(VOCABULARY.size(kind), len(ODD)) - 1)
            group = draw(odd | st.integers(0, VOCABULARY.size(kind) - 1))
            drawn.append(Item(kind, VOCABULARY.name(kind, group)))
        return tuple(drawn)

    fires = [Rule("fires", draw(st.integers(0, len(LEVELS) - 1)), items()) for _ in range(draw(st.integers(0, 5)))]
    shifts = [Rule("after", draw(st.sampled_from(list(SHIFTS))), items()) for _ in range(draw(st.integers(0, 4)))]
    return Pattern(draw(st.integers(0, len(LEVELS) - 1)), tuple(draw(st.permutations([*fires, *shifts]))), VOCABULARY)


@settings(max_examples=150, deadline=None)
@given(pattern=patterns(), seed=st.integers(0, 2**32 - 1))
def test_sentence_and_program_restore_the_pattern(pattern: Pattern, seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(0, len(VOCABULARY), (6, LENGTH)).astype(np.uint32)
    read = parse_text(text(pattern), VOCABULARY)
    assert sorted(read.rules, key=repr) == sorted(pattern.rules, key=repr)
    assert read.otherwise == pattern.otherwise
    np.testing.assert_array_equal(read.strength(tokens), pattern.strength(tokens))
    assert text(read) == text(parse_text(text(read), VOCABULARY))
    loaded = load_program(pattern.to_json(), VOCABULARY)
    assert loaded == pattern
    np.testing.assert_array_equal(loaded.strength(tokens), pattern.strength(tokens))


def test_the_sentence_reads_like_one() -> None:
    pattern = Pattern(
        1,
        (
            Rule("fires", 8, (Item("word", "import"), Item("token", token(" from")))),
            Rule("fires", 5, (Item("prefix", "impo"), Item("class", "a number"), Item("token", token("\n\n")))),
            Rule("after", -3, (Item("word", "don't"), Item("token", VOCABULARY.ids_of[BROKEN][1]))),
        ),
        VOCABULARY,
    )
    assert text(pattern) == (
        "Fires almost always on 'import' or \" from\"; sometimes on 'impo…', a number or \"\\n\\n\"; "
        f"hardly ever on anything else; much less often right after 'don\\'t' or \"{BROKEN}\"#15."
    )


def test_odd_tokens_are_visible_and_distinct() -> None:
    shown = [text(Pattern(0, (Rule("fires", 1, (Item("token", i),)),), VOCABULARY)) for i in range(len(VOCABULARY))]
    assert len(set(shown)) == len(VOCABULARY)
    assert all(text.isprintable() for text in shown)
    assert '"\\u200b"' in shown[token("\u200b")]


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "Fires.",
        "Fires often on 'import'.",
        "Fires often on anything else; never on anything else.",
        "Fires often on anything else; more often.",
        "Fires often on anything else; more often right after.",
        "Fires often on 'nosuchword'; never on anything else.",
        'Fires often on " nosuchtoken"; never on anything else.',
        f'Fires often on "{BROKEN}"; never on anything else.',
        'Fires often on "import"#3; never on anything else.',
        "Fires often on a bat; never on anything else.",
        "Fires often on anything else. ",
    ],
)
def test_a_sentence_of_another_grammar_is_refused(sentence: str) -> None:
    with pytest.raises(ExplainerError, match="Expected"):
        parse_text(sentence, VOCABULARY)


@pytest.mark.parametrize(
    "program",
    [
        "",
        "[]",
        '{"kind":"poem"}',
        '{"kind":"pattern"}',
        '{"kind":"pattern","version":0,"otherwise":0,"rules":[]}',
        '{"kind":"pattern","version":1,"otherwise":0,"rules":[{"form":"fires"}]}',
        '{"kind":"pattern","version":1,"otherwise":0,"rules":[{"form":"fires","value":1,"items":[["word","zzz"]]}]}',
        '{"kind":"pattern","version":1,"otherwise":0,"rules":[{"form":"fires","value":1,"items":[["token",99999]]}]}',
        '{"kind":"pattern","version":1,"otherwise":0,"rules":[{"form":"fires","value":1,"items":[["word",3]]}]}',
    ],
)
def test_a_program_of_another_kind_or_vocabulary_is_refused(program: str) -> None:
    with pytest.raises(ExplainerError, match="Expected"):
        load_program(program, VOCABULARY)


# -- learning -----------------------------------------------------------------------------------------------------

KA, BUM = (int(i) for i in FILLERS[[0, 1]])
PLANTED: dict[str, tuple[Callable[[NDArray[np.int64]], NDArray[np.bool_]], list[list[int]]]] = {
    "token": (lambda t: t == token(" import"), [[token(" import")], [token(".")]]),
    "bigram": (lambda t: (t == BUM) & after(t, KA), [[KA, BUM], [BUM], [KA]]),
    "unless": (lambda t: (t == BUM) & ~after(t, KA), [[KA, BUM], [BUM], [KA]]),
    "class": (lambda t: VOCABULARY.groups("class")[t] == CLASSES.index("a number"), [[token("12")], [token(" 7")]]),
    "pair": (lambda t: (t == token("(")) | (t == token(" from")), [[token("(")], [token(" from")], [token(";")]]),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_rule_is_found_and_holds_on_other_windows(name: str) -> None:
    rule, put = PLANTED[name]
    pattern = learn_pattern(planted(rule, put), VOCABULARY)
    fresh = planted(rule, put, seed=1)
    assert auroc(fresh, pattern.strength(fresh.tokens)) > 0.97
    assert parse_text(text(pattern), VOCABULARY) == pattern


@pytest.mark.parametrize("name", ["bigram", "unless"])
def test_conditions_beat_the_token_table(name: str) -> None:
    rule, put = PLANTED[name]
    windows, fresh = planted(rule, put), planted(rule, put, seed=1)
    pattern, table = learn_pattern(windows, VOCABULARY), learn_token_table(windows, VOCABULARY)
    assert auroc(fresh, pattern.strength(fresh.tokens)) > auroc(fresh, table.strength(fresh.tokens)) + 0.05


def test_what_is_learnt_holds_for_relatives_never_seen() -> None:
    firing = [token(t) for t in ("12", "2024", " import", "import", "imported")]
    windows = planted(lambda t: np.isin(t, firing), [[t] for t in firing])
    pattern, table = learn_pattern(windows, VOCABULARY), learn_token_table(windows, VOCABULARY)
    unseen = np.array([[token(t)] for t in (" 7", " Import", " importance")], dtype=np.uint32)
    usual = np.array([[token(" from")], [int(FILLERS[7])], [token("(")]], dtype=np.uint32)
    assert pattern.strength(unseen).min() > 3 * pattern.strength(usual).max()
    assert table.strength(unseen).max() <= table.unseen + 1e-6


@pytest.mark.parametrize("rules", [1, 2, 4, 10])
def test_rules_items_and_weights_keep_their_bounds(rules: int) -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, len(VOCABULARY), (500, LENGTH)).astype(np.uint32)
    chance = rng.random(len(VOCABULARY))[tokens]
    activations = np.where(rng.random(tokens.shape) < chance, 1, 0).astype(np.float32)
    pattern = learn_pattern(Examples(tokens, activations, np.ones(500, np.float32)), VOCABULARY, rules)
    assert len(pattern.rules) + 1 <= rules
    assert all(len(rule.items) <= MAX_ITEMS for rule in pattern.rules)


def test_learning_depends_on_nothing_but_the_windows() -> None:
    windows = planted(*PLANTED["bigram"])
    order = np.random.default_rng(5).permutation(len(windows.tokens))
    shuffled = Examples(windows.tokens[order], windows.activations[order], windows.weight[order])
    pattern = learn_pattern(windows, VOCABULARY)
    assert learn_pattern(windows, VOCABULARY) == pattern
    assert learn_pattern(shuffled, VOCABULARY) == pattern
    louder = replace(windows, activations=windows.activations * 7, weight=windows.weight * np.float32(2))
    assert learn_pattern(louder, VOCABULARY) == pattern


def test_weights_restore_the_base_rate() -> None:
    windows = planted(*PLANTED["unless"])
    quiet = (windows.activations == 0).all(axis=1)
    rare = replace(windows, weight=np.where(quiet, 200, 1).astype(np.float32))
    tokens = np.array([[BUM]], dtype=np.uint32)
    common = learn_pattern(windows, VOCABULARY, 2).levels(tokens)
    assert learn_pattern(rare, VOCABULARY, 2).levels(tokens) < common


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 4), length=st.integers(1, 6))
def test_tiny_evidence_gives_a_pattern(data: st.DataObject, n: int, length: int) -> None:
    ids = data.draw(st.lists(st.integers(0, len(VOCABULARY) - 1), min_size=n * length, max_size=n * length))
    tokens = np.array(ids, dtype=np.uint32).reshape(n, length)
    activations = np.zeros((n, length), dtype=np.float32)
    activations[0, data.draw(st.integers(0, length - 1))] = 1
    pattern = learn_pattern(Examples(tokens, activations, np.ones(n, np.float32)), VOCABULARY)
    assert np.isfinite(pattern.strength(tokens)).all()
    assert parse_text(text(pattern), VOCABULARY) == pattern


def test_evidence_nothing_can_be_learnt_from_is_refused() -> None:
    windows = planted(*PLANTED["token"], n=4)
    for broken in (
        replace(windows, activations=np.zeros_like(windows.activations)),
        replace(windows, weight=np.zeros_like(windows.weight)),
        replace(windows, tokens=windows.tokens + np.uint32(len(VOCABULARY))),
    ):
        with pytest.raises(ExplainerError, match="Expected"):
            learn_pattern(broken, VOCABULARY)


def test_the_explainer_gives_one_row_per_latent() -> None:
    good = planted(*PLANTED["token"])
    evidence = [
        SimpleNamespace(latent=3, examples=good, context_ids=list(range(400))),
        SimpleNamespace(latent=5, examples=replace(good, activations=good.activations * 0), context_ids=[1]),
    ]
    first, second = PatternExplainer(ExplanationSettings(), VOCABULARY).explain(evidence)  # type: ignore[arg-type]
    assert (first.latent, first.status, len(first.context_ids)) == (3, "ok", 400)
    assert first.program is not None
    assert load_program(first.program, VOCABULARY) == parse_text(first.text, VOCABULARY)
    assert (second.latent, second.status, second.text, second.program) == (5, "failed", "", None)
    assert "active in none" in second.reason
