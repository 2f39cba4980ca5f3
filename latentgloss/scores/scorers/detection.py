"""Detection: is the latent active in this context? Activating contexts against one stratum of other contexts at a time.

What belongs here: which contexts are asked about, in which arm and in which order. Each stratum of non-activating
contexts is an arm with questions of its own, because contexts that are judged together influence each other's answers.
Thresholds come from one arm: that of the first stratum of `THRESHOLD_ARMS` that the latent has. Definitions:
docs/methods.md, Detection.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from latentgloss import schema
from latentgloss.schema import STRATA
from latentgloss.scores.scorers.base import COLUMNS, ORDER, PRIOR, Asked, Plan
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.scores.scorers.base import ScoreNeeds


THRESHOLD_ARMS = tuple(dict.fromkeys(("random", *STRATA)))
"""Strata in the order in which they are preferred for thresholds."""
_SHUFFLE = 0x5C0E5
"""Salt of the order of contexts in a question."""


def plan(run: StageRun[ScoreNeeds], corpus: Corpus, splits: tuple[str, ...]) -> Plan:
    """Plans one arm per stratum of `sampled_negatives`; embedders that judge are not asked about what they chose."""
    embedders = run.settings.judging_embedders("detection")
    alone = len(embedders) == len(set(run.settings.detection.judges))
    return _fair(run, _all_arms(run, corpus, splits), embedders, alone=alone)


def _all_arms(run: StageRun[ScoreNeeds], corpus: Corpus, splits: tuple[str, ...]) -> Plan:
    contexts, negatives = run.input("sampled_contexts"), run.input("sampled_negatives")
    length = run.settings.contexts.length
    # From the pinned version, not from today's settings, and the same for all blocks, so that the rows of a latent do
    # not depend on other latents.
    strata = negatives.manifest.recipe["settings"]["negatives"]["strata"]
    arms = sorted(strata, key=STRATA.index)

    def ask(block: str) -> Asked:
        both = candidates(contexts.read(schema.CONTEXTS, block), negatives.read(schema.NEGATIVES, block), splits)
        rows = asked(both, arms)
        tokens = corpus.contexts(rows["context"].to_numpy(), length)
        known = population(contexts.read(schema.ELIGIBILITY, block), negatives.read(schema.STRATA_SHARES, block))
        return Asked(rows, tokens, population=known, profile=run.settings.profile)

    return Plan(arms, {"arms": arms, "splits": list(splits)}, ask)


def plan_of_vectors(run: StageRun[ScoreNeeds], corpus: Corpus, splits: tuple[str, ...]) -> Plan:
    """As `plan`, for a scorer all of whose judges are embedders."""
    made, embedders = _all_arms(run, corpus, splits), run.settings.embedding.embedders
    return _fair(run, made, embedders, alone=True)


def _fair(run: StageRun[ScoreNeeds], made: Plan, embedders: Sequence[str], *, alone: bool) -> Plan:
    """The plan without the stratum `similar` for embedders that chose it, because that would be unfair.

    `alone`: these embedders are the only judges, so an arm that is unfair to all of them is left out.
    """
    chosen = run.input("sampled_negatives").manifest.recipe["external"].get("embedder", {}).get("identity")
    own = [name for name in embedders if run.resources.embedder(name).identity() == chosen]
    if "similar" not in made.arms or not own:
        return made
    unfair = {name: ["similar"] for name in own}
    arms = [arm for arm in made.arms if arm != "similar" or not alone or len(own) < len(embedders)]
    identity = {"unfair": unfair} if arms == made.arms else {"arms": arms}
    return Plan(arms, made.identity | identity, lambda block: replace(made.ask(block), unfair=unfair))


def population(eligibility: pl.DataFrame, strata: pl.DataFrame) -> pl.DataFrame:
    """Firing rate of each eligible latent, and the share of each stratum among its non-activating test windows.

    Columns latent, stratum, share and firing_rate. `eligibility` and `strata`: rows of `schema.ELIGIBILITY` and
    `schema.STRATA_SHARES`.
    """
    rates = eligibility.filter(status="eligible").select("latent", "firing_rate")
    return strata.filter(split="test").select("latent", "stratum", "share").join(rates, on="latent")


def candidates(contexts: pl.DataFrame, negatives: pl.DataFrame, splits: tuple[str, ...]) -> pl.DataFrame:
    """Every context of a block that is to be judged, activating or not.

    `contexts` and `negatives`: rows of those tables. Returns the columns latent, split, context, stratum, decile,
    document, truth and place. Explain contexts serve as prior for the threshold alone, so only the first `PRIOR` per
    class are taken. `place` orders a question. It is a hash, so that the order reveals neither truth nor stratum.
    """
    columns = ["latent", "split", "context", "stratum", "decile", "document", "truth"]
    few = pl.col("split").is_in(splits), (pl.col("split") != "explain") | (pl.col("order") < PRIOR)
    positive = contexts.filter(few).with_columns(stratum=pl.lit("activating"), truth=pl.lit(True))
    negative = negatives.filter(few).with_columns(decile=pl.lit(0, dtype=pl.UInt8), truth=pl.lit(False))
    frame = pl.concat([positive.select(columns), negative.select(columns)])
    place = counter_hash(_SHUFFLE, frame["latent"].to_numpy(), frame["context"].to_numpy())
    return frame.with_columns(place=place)


def asked(candidates: pl.DataFrame, arms: list[str]) -> pl.DataFrame:
    """One row per context and arm, as `Asked.rows`. Contexts of select and explain are asked about in one arm only."""
    rank = pl.col("stratum").replace_strict({arm: i for i, arm in enumerate(THRESHOLD_ARMS)}, default=None)
    # Chosen per latent: a latent that is active almost everywhere has no random negatives and takes the next arm.
    tuning = (
        candidates.filter(pl.col("split") != "test", ~pl.col("truth"))
        .group_by("latent")
        .agg(tuning=rank.min().replace_strict(dict(enumerate(THRESHOLD_ARMS)), return_dtype=pl.String))
    )
    chosen = candidates.join(tuning, on="latent", how="left")
    frames = [
        chosen.filter(
            pl.col("stratum").is_in(["activating", arm]), (pl.col("split") == "test") | (pl.col("tuning") == arm)
        ).with_columns(arm=pl.lit(arm))
        for arm in arms
    ]
    everything = pl.concat(frames).with_columns(part=pl.lit(0, pl.UInt8), status=pl.lit("ok"), reason=pl.lit(""))
    return everything.sort(ORDER).select(COLUMNS)
