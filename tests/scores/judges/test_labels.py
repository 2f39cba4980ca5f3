"""The judge of labels: what it reads of a label, what it learns, and how well it judges planted truth."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from vectors_world import Hashed

from latentgloss.explanations.labels.kinds import CLASSES
from latentgloss.explanations.labels.wording import MARKS
from latentgloss.models.vocabulary import Vocabulary
from latentgloss.protocols import Question
from latentgloss.scores.judges.labels.fitting import FEATURES, PRIOR, Fit, Lesson, features, fitted, logistic
from latentgloss.scores.judges.labels.judge import LabelJudge
from latentgloss.scores.judges.labels.lexicon import Lexicon
from latentgloss.scores.judges.labels.reading import MOST, Item, items_of, types_of

WORDS = [a + b for a in ("ba", "de", "fi", "go", "lu", "ma", "ne", "po", "ru", "ti") for b in ("n", "r", "sk", "lo")]
VOCABULARY = Vocabulary(["<s>", ",", "\n", *(f" {word}" for word in WORDS), "ing", " 7"], special=[0])
FIRST, LENGTH = 3, 12


class Near(Hashed):
    """An embedder for which "bar" and "der" mean nearly the same, and all words have much in common."""

    def documents(self, texts):
        found = super().documents(["bar" if text == "der" else text for text in texts]) + np.float32(1)
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


class Of:
    """Stored vectors without a store."""

    def __init__(self, embedder):
        self.get = embedder.documents


def corpus(n=400, seed=0):
    return np.random.default_rng(seed).integers(1, len(VOCABULARY), (n, LENGTH)).astype(np.uint32)


def lexicon_of(tokens, embedder=None):
    return Lexicon(lambda: VOCABULARY, lambda n: tokens[:n], lambda: Of(embedder or Near(16)))


def judge_of(tokens, fit=None):
    embedder = Near(16)
    fits = None if fit is None else lambda explainer: ("hash", lambda: fit)
    return LabelJudge(embedder, lexicon_of(tokens, embedder), fits).for_explainer("any")


def asked(label, tokens, latent=0, **more):
    return Question("detection", latent, "unread", None, tokens, None, label=label, **more)


def about(label, text):
    return [item for item in items_of(label) if text in item.names]


# Reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "items"),
    [
        ("the word 'the' (uses)", [Item(("the",))]),
        ("'don't', “is”, «mot», 'x'", [Item(("don't",)), Item(("is",)), Item(("mot",)), Item(("x",))]),
        ("files; at times sockets, 'of'; hosts", [Item(("files",)), Item(("sockets",), hedged=True)]),
        ("words that begin with 'supp' (support)", [Item(("supp",), prefix=True), Item(("support",))]),
        ("'alia…', '3', numbers", [Item(("alia",), prefix=True), Item(("0",)), Item(("0",))]),
        ("what follows 'import': 'os'", [Item(("os",))]),
        ("Слова о файлах", [Item(("слова",)), Item(("о",)), Item(("файлах",))]),
        ("'文件'", [Item(("文件",))]),
        ("the latent fires on the", []),
        ("\x00\x1b\u202e", []),
        ("", []),
    ],
)
def test_a_label_names(label, items):
    found = items_of(label)
    assert found[: len(items)] == items and (items or not found)


def test_the_names_that_labels_use_are_read_as_what_they_stand_for():
    for mark, name in MARKS.items():
        (item,) = items_of(name)
        assert mark in item.names and len(item.names) <= 3, name  # “double quotes” are several marks
    for name, within in CLASSES.items():
        (item, *more) = items_of(name)
        named = {n for i in (item, *more) for n in i.names}
        assert all(within(n) for n in named if n.isascii()), name
        assert len(named) >= (1 if name in ("numbers", "line breaks") else 2), name


def test_quoted_words_are_read_whatever_they_are_and_others_only_if_they_are_rare():
    assert [i.names for i in items_of("bar, 'bar', der", lambda word: word == "bar")] == [("bar",), ("der",)]


@given(st.text(max_size=300))
def test_any_label_can_be_read(label):
    for item in items_of(label):
        assert item.names and all(item.names)


def test_a_long_label_is_read_in_part():
    assert len(items_of(", ".join(f"'w{chr(97 + i % 26)}'" for i in range(5000)))) == MOST + 1
    assert types_of("a" * 10_000) == ["a" * 1000]


# Features and coefficients -----------------------------------------------------------------------------------------


def test_features_are_those_of_the_definition():
    tokens = corpus()
    lexicon = lexicon_of(tokens)
    items = items_of("'ban', commas; at times 'bar'")
    types = np.array(lexicon.numbers(["ban", ",", "bar", "der", "tilo", "#"]))
    x = dict(zip(FEATURES, features(items, types, lexicon).T, strict=True))
    assert x["named"].tolist() == [1, 1, 1, 0, 0, 0] and x["place"].tolist() == [1, 0.5, 0, 0, 0, 0]
    assert x["hedged"].tolist() == [0, 0, 1, 0, 0, 0] and (x["constant"] == 1).all()
    n = np.bincount(lexicon.units(tokens).types, minlength=len(lexicon.names))
    assert 0 < n[types[0]] <= (tokens == FIRST + WORDS.index("ban")).sum()
    assert x["frequency"][0] == pytest.approx(np.log(1 + 1e5 * n[types[0]] / n.sum())) and not x["frequency"][3:].any()
    # Centred by the corpus's words: without that, every two words would have a cosine near 1.
    words = [i for i, name in enumerate(lexicon.names) if name[0].isalpha()]
    vectors = Near(16).documents([lexicon.names[i] for i in words]).astype(float)
    away = vectors - n[words] @ vectors / n[words].sum()
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    of = dict(zip((lexicon.names[i] for i in words), away, strict=True))
    best = {name: max(v @ of["ban"], v @ of["bar"]) for name, v in of.items()}
    mean = sum(n[i] * best[lexicon.names[i]] for i in words) / n[words].sum()
    assert x["cosine"][3] == pytest.approx(1, abs=1e-6) and "baning" in of  # " ban" and "ing" are one word
    assert x["cosine"][4] == pytest.approx(max(best["tilo"], 0), abs=1e-6) and 0.05 < mean < 0.6
    of_marks = features(items, types, lexicon, marks=True)[:, FEATURES.index("cosine")]
    assert of_marks[3:5] == pytest.approx([1 - mean, max(best["tilo"] - mean, 0)], abs=1e-6) and of_marks[5] == 0
    assert x["cosine"][5] == 0
    assert not x["cosine"][:3].any()


def test_the_fit_is_the_mode_of_the_posterior():
    rng = np.random.default_rng(0)
    x = np.c_[rng.random((500, 2)), np.ones(500)]
    n = rng.integers(1, 20, 500).astype(float)
    y = rng.binomial(n.astype(int), 1 / (1 + np.exp(-x @ [3, -2, -1]))).astype(float)
    found = logistic(x, y, n, np.zeros(3))
    sides = LogisticRegression(C=1, fit_intercept=False, tol=1e-10, max_iter=1000)
    sides.fit(np.r_[x, x], np.r_[np.ones(500), np.zeros(500)], np.r_[y, n - y])
    np.testing.assert_allclose(found, sides.coef_[0], atol=1e-4)
    np.testing.assert_allclose(logistic(x[:0], y[:0], n[:0], np.arange(3.0)), np.arange(3.0))
    far = logistic(np.ones((1, 1)), np.array([1e9]), np.array([1e9]), np.array([-50.0]))
    assert np.isfinite(far).all() and far[0] > 5


def lesson(tokens, words, labels):
    """Latent i fires on the word `words[i]` of a corpus; each has a label."""
    rows, silent = [], []
    for latent, word in enumerate(words):
        fires = tokens == FIRST + WORDS.index(word)
        for context in range(len(tokens)):
            offsets = np.flatnonzero(fires[context]).tolist()
            if offsets:
                rows.append((latent, context, offsets, [1.0] * len(offsets)))
            else:
                silent.append((latent, context))
    types = {"latent": pl.UInt32, "context": pl.UInt32}
    lists = {"offsets": pl.List(pl.UInt8), "activations": pl.List(pl.Float32)}
    of = pl.DataFrame(rows, schema=types | lists, orient="row")
    rate = len(rows) / len(words) / len(tokens)
    frame = {"latent": range(len(words)), "label": labels, "firing_rate": [rate] * len(words)}
    labels = pl.DataFrame(frame, schema_overrides={"latent": pl.UInt32})
    return Lesson(labels, of, pl.DataFrame(silent, schema=types, orient="row"))


def fit_of(tokens, words, labels):
    judge = judge_of(tokens)
    return fitted(lesson(tokens, words, labels), judge.lexicon, judge.read, lambda contexts: tokens[contexts])


def test_labels_that_tell_the_truth_earn_trust_and_others_lose_it():
    tokens, words = corpus(), WORDS[:24]
    true = fit_of(tokens, words, [f"'{word}'" for word in words])
    wrong = fit_of(tokens, words, [f"'{word}'" for word in np.roll(words, 5)])
    assert (true.latents, true.units) == (24, 24 * len(lexicon_of(tokens).units(tokens).types))
    assert true.coefficients[0] + true.coefficients[2] * 8 > wrong.coefficients[0] + wrong.coefficients[2] * 8 + 3
    assert fit_of(tokens, words, [f"'{word}'" for word in words]) == true


def test_without_labels_that_can_be_read_the_prior_stays():
    tokens = corpus(40)
    assert fit_of(tokens, WORDS[:3], ["", "the", "\x01"]) == Fit(PRIOR)


def test_the_hash_follows_labels_and_windows():
    tokens, words = corpus(60), WORDS[:3]
    base = lesson(tokens, words, ["a", "b", "c"])
    others = [base._replace(labels=base.labels.reverse()), base._replace(silent=None), lesson(tokens, words, [*"abd"])]
    assert len({part.sha256 for part in (base, *others)}) == 4
    assert base.sha256 == lesson(tokens, words, ["a", "b", "c"]).sha256


# Judging --------------------------------------------------------------------------------------------------------


def auroc(judge, label, tokens, word):
    truth = (tokens == FIRST + WORDS.index(word)).any(axis=1)
    (answer,) = judge.judge([asked(label, tokens)])
    return roc_auc_score(truth, answer.evidence)


def test_a_label_that_names_the_word_scores_high_and_a_shuffled_one_is_at_chance():
    tokens, words = corpus(), WORDS[:30]
    judge = judge_of(tokens, fit_of(corpus(seed=1), words, [f"'{word}'" for word in words]))
    own = [auroc(judge, f"the word '{word}'; at times numbers", tokens, word) for word in words]
    others = zip(words, np.roll(words, 7), strict=True)
    null = [auroc(judge, f"the word '{other}'", tokens, word) for word, other in others]
    # Pieces are lost where "ing" follows.
    assert min(own) > 0.9
    assert abs(np.mean(null) - 0.5) < 2.5 * np.std(null) / np.sqrt(len(null))


def test_a_word_of_like_meaning_counts_and_a_hedged_one_counts_less():
    judge, window = judge_of(corpus()), lambda word: np.array([[FIRST + WORDS.index(word), 1]], np.uint32)
    of = {word: next(judge.judge([asked("'bar'; at times 'ban'", window(word))])).evidence[0] for word in WORDS[:9]}
    assert min(of["bar"], of["der"]) > 3 * max(of["desk"], of["den"]) and of["bar"] > 3 * of["ban"]


def test_answers_do_not_depend_on_what_else_is_asked():
    tokens = corpus()
    labels = [f"'{word}', numbers" for word in WORDS[:9]]
    together = list(judge_of(tokens).judge([asked(label, tokens, i) for i, label in enumerate(labels)]))
    (alone,) = judge_of(tokens).judge([asked(labels[6], tokens, 6)])
    np.testing.assert_array_equal(together[6].evidence, alone.evidence)
    half, rest = (next(judge_of(tokens).judge([asked(labels[6], part)])) for part in (tokens[:150], tokens[150:]))
    np.testing.assert_array_equal(np.r_[half.evidence, rest.evidence], alone.evidence)


def test_fuzzing_tells_marked_words_from_others():
    tokens, at = corpus(), FIRST + WORDS.index("ban")
    right = tokens == at
    chosen = right.any(axis=1)
    wrong = np.roll(right, 1, axis=1) & ~right
    masked = np.zeros_like(right)
    judge = judge_of(tokens)

    def contrast(marks, label="'ban'"):
        question = Question("fuzzing", 0, "", None, tokens[chosen], marks[chosen], None, masked[chosen], tokens[:9])
        return next(judge.judge([Question(**{**vars(question), "label": label})])).evidence

    joined = np.roll(tokens, -1, axis=1)[chosen] == FIRST + len(WORDS)
    good = ~(joined & right[chosen]).any(axis=1) & wrong[chosen].any(axis=1)
    assert good.sum() > 20 and (contrast(right)[good] > np.nan_to_num(contrast(wrong))[good]).mean() > 0.95


@pytest.mark.parametrize("label", ["", "\x00\x01\u202e", "the latent fires on", "…"])
def test_a_label_that_names_nothing_is_unsupported_with_a_reason(label):
    (answer,) = judge_of(corpus()).judge([asked(label, corpus(5))])
    assert answer.status == ["unsupported"] * 5 and "names no word" in answer.reason[0]
    assert np.isnan(answer.evidence).all()


OTHER_SCRIPTS = "'文件', 'हिन्दी', 'ภาษา', 'العربية'"


@pytest.mark.parametrize("label", ["'ban' " * 2000, "'ban', " + "x" * 10_000, OTHER_SCRIPTS, "'ban'"])
def test_any_other_label_is_judged_and_what_is_not_read_is_said(label):
    (answer,) = judge_of(corpus()).judge([asked(label, corpus(5))])
    assert np.isfinite(answer.evidence).all()
    cut = len(label) > 1000
    assert (answer.reason is not None and answer.reason[0].startswith("truncated: ")) == cut
    assert answer.status in (None, ["ok"] * 5)


def test_windows_without_units_and_bytes_that_are_no_text():
    vocabulary = Vocabulary(["<s>", " ", "�", " 文", "a"], [b"", b" ", b"\xe6", " 文".encode(), b"a"], special=[0])
    tokens = np.array([[0, 1, 1], [2, 2, 4], [3, 4, 0]], np.uint32)
    lexicon = Lexicon(lambda: vocabulary, lambda n: tokens, lambda: Of(Near(16)))
    (answer,) = LabelJudge(Near(16), lexicon).judge([asked("'文a', 'zzz'", tokens)])
    assert (
        answer.evidence[0] == 0 and answer.evidence[2] == answer.evidence.max() and np.isfinite(answer.evidence).all()
    )
