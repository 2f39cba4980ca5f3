"""The cosine judge: what centring takes away, and what it leaves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from latentgloss.protocols import Question
from latentgloss.scores.judges.cosine import ALONE, CosineJudge

D, N, LATENTS = 24, 240, 40


class Stored:
    def __init__(self, vectors):
        self.vectors = vectors

    def get(self, items):
        return np.array([self.vectors[i] for i in items], np.float32).reshape(-1, D)


class Named:
    name = "made up"

    def identity(self):
        return {"made up": 1}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    """Latents of a topic each; all explanations share a direction, which windows have more where no latent fires."""
    rng = np.random.default_rng(0)
    common = unit(rng.standard_normal((1, D)))[0]
    topics = rng.standard_normal((LATENTS, D)) / np.sqrt(D)
    truth = rng.random((LATENTS, N)) < 0.2
    hub = 1.5 * common * (1 - truth.mean(axis=0) * 5)[:, None]
    windows = unit(truth.T @ topics + hub + rng.standard_normal((N, D)) / np.sqrt(D))
    texts = {f"topic {i}": v for i, v in enumerate(unit(2 * common + topics))}
    judge = CosineJudge(Named(), Stored(texts), Stored(windows), lambda explainer: list(texts))
    return judge, truth


def areas(judge, truth, shift):
    contexts = np.arange(N, dtype=np.uint32)
    asked = [
        Question("embedding", i, f"topic {(i + shift) % LATENTS}", None, np.zeros((N, 4), np.uint32), None, contexts)
        for i in range(LATENTS)
    ]
    return np.array([roc_auc_score(truth[i], a.evidence) for i, a in enumerate(judge.judge(asked))])


def test_a_direction_that_all_explanations_share_moves_nulls_and_centring_takes_it_away(world):
    judge, truth = world
    centred = judge.for_explainer("any")
    for shift in (7, 19):
        before, after = (areas(each, truth, shift) for each in (judge, centred))
        spread = 3 * after.std() / np.sqrt(LATENTS)
        assert abs(before.mean() - 0.5) > 0.04
        assert abs(after.mean() - 0.5) < max(spread, 0.02)
    assert areas(centred, truth, 0).mean() > areas(judge, truth, 0).mean() + 0.05


def test_the_centre_is_part_of_the_identity(world):
    judge, _ = world
    ready = judge.for_explainer("any")
    assert "centre" not in judge.identity() and ready.identity() == judge.for_explainer("any").identity()
    other = CosineJudge(Named(), judge._explanations, judge._contexts, lambda explainer: ["topic 1", "topic 0"])
    assert other.for_explainer("any").identity() != ready.identity()
    assert ready.facts()["cosine:made up"]["explanations"] == LATENTS


def test_an_explanation_that_stands_alone_is_unsupported_with_a_reason(world):
    judge, _ = world
    alone = CosineJudge(Named(), judge._explanations, judge._contexts, lambda explainer: ["topic 3"])
    question = Question("embedding", 3, "topic 3", None, np.zeros((2, 4), np.uint32), None, np.array([0, 1], np.uint32))
    (answer,) = alone.for_explainer("any").judge([question])
    assert answer.status == ["unsupported"] * 2 and answer.reason == [ALONE] * 2 and np.isnan(answer.evidence).all()
