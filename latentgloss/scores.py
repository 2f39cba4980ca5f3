"""Scores: how far an explanation can be trusted, judged on contexts nobody was shown.

What belongs here: which contexts are judged, the decision threshold, and the step from judgements to a score with
its interval. Reads `explanations`, `contexts`, `negatives`; writes `judgements` and `scores`. What answers is a
`protocols.Judge`; the numbers are in `statistics.py`; definitions in docs/methods.md.

Arms: each stratum of non-activating contexts is an arm with questions of its own, since what is judged together
shifts answers. Thresholds come from the select split (arm of the first stratum of `THRESHOLD_ARMS` there is).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema, statistics
from latentgloss.hashing import counter_hash
from latentgloss.protocols import Question
from latentgloss.schema import STRATA
from latentgloss.scorers import judge_named
from latentgloss.work import one_by_one

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentgloss.corpus import Corpus
    from latentgloss.protocols import Answer, Judge
    from latentgloss.store import Version
    from latentgloss.work import Work

SCORER, PROFILE, METRIC = "detection", "default", "balanced_accuracy"
NULL = "null:"
THRESHOLD_ARMS = tuple(dict.fromkeys(("random", *STRATA)))
PRIOR = 40
"""Explain contexts per class that give the prior threshold where select has fewer than 20 per class."""
_SHUFFLE = 0x5C0E5
"""Salt of the order in which contexts are put to a judge."""


def _score(work: Work) -> None:
    explanations = work.input("explanations")
    consumed = {
        "contexts": (work.input("sampled_contexts"), ("eligibility", "explain", "select", "test")),
        "negatives": (work.input("sampled_negatives"), ("explain", "select", "test")),
    }
    resolved = work.input("resolved_saes").content(("cache",))
    corpus = work.workspace.corpus(work.input("resolved_saes"))
    length = work.settings.contexts.length
    vocabulary = work.workspace.vocabulary(work.model.name)
    # Pinned, not of today's settings; and of all blocks, so that no latent's rows depend on its neighbours.
    strata = consumed["negatives"][0].manifest.recipe["settings"]["negatives"]["strata"]
    arms = sorted(strata, key=STRATA.index)
    judges = [judge_named(name, vocabulary) for name in work.settings.detection.judges]
    names = sorted(explanations.manifest.blocks)
    blocks = sorted({name.split("-")[0] for name in names})
    tables = (schema.JUDGEMENTS, schema.SCORES)
    for done, block in enumerate(blocks):
        contexts: pl.DataFrame | None = None
        nulls: dict[str, pl.DataFrame] = {}
        rows = [(name, explanations.read(schema.EXPLANATIONS, name)) for name in names if name.startswith(f"{block}-")]
        for name, explained in sorted(rows, key=lambda row: "null." not in row[0]):
            explainer = explained["explainer"][0]
            null_name = f"{block}-null.{explainer}"
            recipe = work.block_recipe(
                settings={"judges": [judge.identity() for judge in judges], "length": length, "arms": arms},
                explanations=explanations.content((), name),
                nulls=explanations.content((), null_name),
                resolved_saes=resolved,
                **{key: version.content(parts, block) for key, (version, parts) in consumed.items()},
            )
            if not work.draft.reuse(name, recipe, tables):
                if contexts is None:
                    contexts = to_judge(work.input("sampled_contexts"), work.input("sampled_negatives"), block)
                frames = [_judged(explained, contexts, arms, corpus, length, judge) for judge in judges]
                judgements = pl.concat([frame for frame, _ in frames])
                scores = pl.concat([frame for _, frame in frames])
                scores = with_specificity(scores, nulls.get(f"{NULL}{explainer}"))
                work.draft.put(name, recipe, tables, {"judgements": judgements, "scores": scores})
            if explainer.startswith(NULL):
                nulls[explainer] = work.draft.read(schema.SCORES, name)
        work.progress(done + 1, len(blocks), "blocks of latents")
    scored = work.draft.scan(schema.SCORES).group_by("explainer", "negatives", "status").len().collect()
    work.facts = {"scores": {f"{e} on {n}: {s}": count for e, n, s, count in scored.sort(pl.all()).iter_rows()}}


score_detection = one_by_one(_score)


def to_judge(contexts: Version, negatives: Version, block: str) -> pl.DataFrame:
    """Every context to be judged for a block: latent, split, context, stratum, decile, document, truth, place.

    Explain contexts are few and serve as prior for the threshold only. `place` orders a question: a hash, so that
    neither truth nor stratum can be told from the order.
    """
    columns = ["latent", "split", "context", "stratum", "decile", "document", "truth"]
    few = (pl.col("split") != "explain") | (pl.col("order") < PRIOR)
    positive = contexts.read(schema.CONTEXTS, block).filter(few).with_columns(
        stratum=pl.lit("activating"), truth=pl.lit(True)
    )  # fmt: skip
    negative = negatives.read(schema.NEGATIVES, block).filter(few).with_columns(
        decile=pl.lit(0, dtype=pl.UInt8), truth=pl.lit(False)
    )  # fmt: skip
    known = contexts.read(schema.ELIGIBILITY, block).select("latent", eligibility="status", why="reason")
    frame = pl.concat([positive.select(columns), negative.select(columns)]).join(known, on="latent", how="right")
    place = counter_hash(_SHUFFLE, frame["latent"].to_numpy(), frame["context"].fill_null(0).to_numpy())
    return frame.with_columns(place=place).sort("latent", "place")


def _judged(
    explained: pl.DataFrame, contexts: pl.DataFrame, arms: list[str], corpus: Corpus, length: int, judge: Judge
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Judgements and scores of one explainer's explanations of one block by one judge."""
    explainer = explained["explainer"][0]
    key = {"explainer": explainer, "scorer": SCORER, "judge": judge.name, "embedder": "", "profile": PROFILE}
    good = explained.filter(pl.col("status") == "ok").sort("latent")
    if good.is_empty():
        return schema.JUDGEMENTS.empty(), _unscored(explained, arms, key)
    asked = _asked(contexts, good["latent"], arms)
    tokens = corpus.contexts(asked["context"].to_numpy(), length)
    starts = np.flatnonzero(asked.select(pl.struct("latent", "arm", "split").rle_id()).to_series().diff().fill_null(1))
    texts = dict(zip(good["latent"], good.select("explanation", "program").iter_rows(), strict=True))

    def questions() -> Iterator[Question]:
        for start, stop in zip(starts, [*starts[1:], asked.height], strict=True):
            latent = asked["latent"][int(start)]
            text, program = texts[latent]
            yield Question("detection", latent, text, program, tokens[start:stop], None)

    answered = _with_answers(asked, list(judge.judge(questions())))
    taus = thresholds(answered)
    # Without a threshold evidence decides nothing: the judgement stays open and the latent unscored.
    answered = answered.join(taus, on="latent", how="left").with_columns(pl.col("threshold").fill_nan(None))
    answered = answered.with_columns(prediction=pl.coalesce("prediction", pl.col("evidence") >= pl.col("threshold")))
    scores = [_scores(answered.filter(pl.col("arm") == arm, split="test"), good["latent"], arm) for arm in arms]
    judgements = answered.rename({"arm": "negatives"}).with_columns(**{k: pl.lit(v) for k, v in key.items()})
    found = pl.concat(scores).with_columns(**{k: pl.lit(v) for k, v in key.items()})
    missing = _unscored(explained.filter(pl.col("status") != "ok"), arms, key)
    return (
        schema.JUDGEMENTS.conform(judgements.select(list(schema.JUDGEMENTS.schema))),
        pl.concat([schema.SCORES.conform(found), missing]).sort("latent", "negatives"),
    )


def _asked(contexts: pl.DataFrame, latents: pl.Series, arms: list[str]) -> pl.DataFrame:
    """One row per context and arm, in the order of the questions. Select and explain are asked in one arm only."""
    chosen = contexts.filter(pl.col("latent").is_in(latents.implode()), pl.col("context").is_not_null())
    rank = pl.col("stratum").replace_strict({arm: i for i, arm in enumerate(THRESHOLD_ARMS)}, default=None)
    # Per latent: one that is active almost everywhere has no random negatives, and takes the next arm.
    tuning = (
        chosen.filter(pl.col("split") != "test", ~pl.col("truth"))
        .group_by("latent")
        .agg(tuning=rank.min().replace_strict(dict(enumerate(THRESHOLD_ARMS)), return_dtype=pl.String))
    )
    chosen = chosen.join(tuning, on="latent", how="left")
    frames = [
        chosen.filter(
            pl.col("stratum").is_in(["activating", arm]), (pl.col("split") == "test") | (pl.col("tuning") == arm)
        ).with_columns(arm=pl.lit(arm))
        for arm in arms
    ]
    return pl.concat(frames).sort("latent", "arm", "split", "place", "context")


def _with_answers(asked: pl.DataFrame, answers: list[Answer]) -> pl.DataFrame:
    """The judges' answers beside what was asked. Evidence that is not a number is no evidence."""
    n = [len(answer.evidence) for answer in answers]
    evidence = pl.Series(np.concatenate([a.evidence for a in answers]), dtype=pl.Float32).fill_nan(None)
    optional: dict[str, pl.Series] = {}
    for name, dtype in (("prediction", pl.Boolean), ("probability", pl.Float32)):
        values: list[Any] = []
        for answer, size in zip(answers, n, strict=True):
            given = getattr(answer, name)
            values += [None] * size if given is None else given.tolist()
        optional[name] = pl.Series(values, dtype=dtype)
    status = [s for a, size in zip(answers, n, strict=True) for s in (a.status or ["ok"] * size)]
    reason = [s for a, size in zip(answers, n, strict=True) for s in (a.reason or [""] * size)]
    prompts = [[None] * size if a.prompt is None else a.prompt.tolist() for a, size in zip(answers, n, strict=True)]
    frame = asked.with_columns(
        evidence=evidence,
        **optional,
        prompt=pl.Series([p for several in prompts for p in several], dtype=pl.Int64),
        status=pl.Series(status, dtype=pl.String),
        reason=pl.Series(reason, dtype=pl.String),
    )
    # What failed says nothing, whatever number came with it.
    answers_of = pl.col("evidence", "prediction", "probability")
    return frame.with_columns(pl.when(pl.col("status") == "ok").then(answers_of))


class _Padded:
    """Columns of judgements as arrays [latents, n], one row per latent that occurs, ascending."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame.sort("latent", maintain_order=True)
        self.latents, first, count = np.unique(self.frame["latent"].to_numpy(), return_index=True, return_counts=True)
        self.row = np.repeat(np.arange(len(count)), count)
        self.column = np.arange(self.frame.height) - np.repeat(first, count)
        self.shape = (len(count), int(count.max(initial=1)))
        self.asked = self("truth", fill=True, values=np.ones(self.frame.height, bool))

    def __call__(self, name: str, fill: Any = 0, values: np.ndarray | None = None) -> np.ndarray:
        given = self.frame[name].to_numpy() if values is None else values
        out = np.full(self.shape, fill if values is None else False, dtype=given.dtype)
        out[self.row, self.column] = given
        return out


def thresholds(answered: pl.DataFrame) -> pl.DataFrame:
    """latent, threshold: from select; where it has fewer than 20 per class, drawn towards that of explain."""
    found: dict[str, pl.DataFrame] = {}
    for split in ("select", "explain"):
        part = answered.filter(pl.col("split") == split)
        padded = _Padded(part)
        truth = padded("truth")
        valid = padded.asked & ~np.isnan(padded("evidence", np.nan))
        tau = statistics.youden_threshold(padded("evidence", np.nan), truth, valid)
        fewest = np.minimum((truth & valid).sum(1), (~truth & valid).sum(1))
        found[split] = pl.DataFrame({"latent": padded.latents, "tau": tau, "n": fewest}).with_columns(
            pl.col("latent").cast(pl.UInt32)
        )
    both = found["explain"].join(found["select"], on="latent", how="full", coalesce=True, suffix="_select")
    value = statistics.shrink(
        both["tau_select"].fill_null(np.nan).to_numpy(),
        both["n_select"].fill_null(0).to_numpy(),
        both["tau"].fill_null(np.nan).to_numpy(),
    )
    return both.select("latent").with_columns(threshold=value)


def _scores(judged: pl.DataFrame, latents: pl.Series, arm: str) -> pl.DataFrame:
    """Score rows of one arm: one per latent that has an explanation."""
    padded = _Padded(judged)
    truth = padded("truth")
    prediction = padded("prediction", values=judged_prediction(padded.frame))
    valid = padded.asked & padded("valid", values=padded.frame["prediction"].is_not_null().to_numpy())
    cluster, decile, evidence = padded("document"), padded("decile"), padded("evidence", np.nan)
    counts = statistics.confusion(truth, prediction, valid)
    rates = statistics.rate_intervals(truth, prediction, valid, cluster)
    area = statistics.auroc(truth, evidence, valid & ~np.isnan(evidence), cluster)
    accuracy = rates.balanced_accuracy
    recalls = statistics.recall_by_decile(truth, prediction, decile, valid)
    frame = pl.DataFrame(
        {
            "latent": padded.latents.astype(np.uint32),
            "metric": METRIC,
            "score": accuracy.value,
            "corrected": statistics.corrected(accuracy.value, statistics.uninformed(METRIC, truth.mean(1))),
            "ci_low": accuracy.low,
            "ci_high": accuracy.high,
            "n": valid.sum(1),
            "coverage": statistics.coverage(padded.asked, valid),
            "balanced_accuracy": accuracy.value,
            "tpr": counts.tpr,
            "tnr": counts.tnr,
            "f1": counts.f1,
            "auroc": area.value,
            "auroc_low": area.low,
            "auroc_high": area.high,
            **{f"recall_decile_{d}": recalls[:, d - 1] for d in range(1, 11)},
        }
    ).with_columns(pl.selectors.float().fill_nan(None))
    taus = judged.select("latent", "threshold").unique("latent").with_columns(pl.col("threshold").fill_nan(None))
    absent = pl.col("score").is_null()
    return (
        pl.DataFrame({"latent": latents})
        .join(frame, on="latent", how="left")
        .join(taus, on="latent", how="left")
        .with_columns(
            specificity=pl.lit(None, dtype=pl.Float64),
            negatives=pl.lit(arm),
            split=pl.lit("test"),
            metric=pl.lit(METRIC),
            n=pl.col("n").fill_null(0),
            coverage=pl.col("coverage").fill_null(0.0),
            status=pl.when(absent).then(pl.lit("unscored")).otherwise(pl.lit("ok")),
            reason=pl.when(absent)
            .then(pl.lit(f"no decided judgements of both classes in the arm {arm!r}"))
            .otherwise(pl.lit("")),
        )
    )


def judged_prediction(frame: pl.DataFrame) -> np.ndarray:
    """Predictions as bool; an absent one is False and must be masked by the caller."""
    found: np.ndarray = frame["prediction"].fill_null(False).to_numpy()
    return found


def _unscored(explained: pl.DataFrame, arms: list[str], key: dict[str, str]) -> pl.DataFrame:
    """Score rows of latents without an explanation: a failed explanation is never scored."""
    not_eligible = {"dead", "rare", "dense", "one_document"}
    return schema.SCORES.frame(
        {
            **key,
            "latent": latent,
            "negatives": arm,
            "split": "test",
            "status": status if status in not_eligible else "no_explanation",
            "reason": reason,
            "metric": METRIC,
            "n": 0,
            "coverage": 0.0,
        }
        for latent, status, reason in explained.select("latent", "status", "reason").iter_rows()
        for arm in arms
    )


def with_specificity(scores: pl.DataFrame, nulls: pl.DataFrame | None) -> pl.DataFrame:
    """Fills `specificity`: the score minus the same latent's mean score with other latents' explanations."""
    if nulls is None:
        return scores
    on = ["latent", "negatives", "judge"]
    mean = nulls.group_by(on).agg(null=pl.col("score").mean())
    return (
        scores.join(mean, on=on, how="left", maintain_order="left")
        .with_columns(specificity=pl.col("score") - pl.col("null"))
        .drop("null")
    )
