"""Detection: is the latent active in this context? Activating contexts against one stratum of others at a time.

What belongs here: which contexts are asked about, in which arm, in which order. Each stratum of non-activating contexts
is an arm with questions of its own, since what is judged together shifts answers. Thresholds come from one arm, that of
the first stratum of `THRESHOLD_ARMS` there is.
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
    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.scores.scorers.base import ScoreNeeds


THRESHOLD_ARMS = tuple(dict.fromkeys(("random", *STRATA)))
_SHUFFLE = 0x5C0E5
"""Salt of the order in which contexts are put to a judge."""


def plan(run: StageRun[ScoreNeeds], corpus: Corpus, splits: tuple[str, ...]) -> Plan:
    """One arm per stratum of `sampled_negatives`."""
    contexts, negatives = run.input("sampled_contexts"), run.input("sampled_negatives")
    length = run.settings.contexts.length
    # Pinned, not of today's settings; and of all blocks, so that no latent's rows depend on its neighbours.
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
    """As `plan`, but the stratum `similar` is not put to the embedder that chose it: no fair question."""
    made = plan(run, corpus, splits)
    chosen = run.input("sampled_negatives").manifest.recipe["external"].get("embedder", {}).get("identity")
    embedders = run.settings.embedding.embedders
    own = [name for name in embedders if run.resources.embedder(name).identity() == chosen]
    if "similar" not in made.arms or not own:
        return made
    unfair = {name: ["similar"] for name in own}
    arms = [arm for arm in made.arms if arm != "similar" or len(own) < len(embedders)]
    identity = {"unfair": unfair} if arms == made.arms else {"arms": arms}
    return Plan(arms, made.identity | identity, lambda block: replace(made.ask(block), unfair=unfair))


def population(eligibility: pl.DataFrame, strata: pl.DataFrame) -> pl.DataFrame:
    """Of each eligible latent and stratum: share of the stratum among non-activating test windows, firing rate."""
    rates = eligibility.filter(status="eligible").select("latent", "firing_rate")
    return strata.filter(split="test").select("latent", "stratum", "share").join(rates, on="latent")


def candidates(contexts: pl.DataFrame, negatives: pl.DataFrame, splits: tuple[str, ...]) -> pl.DataFrame:
    """Every context to be judged of a block: latent, split, context, stratum, decile, document, truth, place.

    Explain contexts are few and serve as prior for the threshold only. `place` orders a question: a hash, so that
    neither truth nor stratum can be told from the order.
    """
    columns = ["latent", "split", "context", "stratum", "decile", "document", "truth"]
    few = pl.col("split").is_in(splits), (pl.col("split") != "explain") | (pl.col("order") < PRIOR)
    positive = contexts.filter(few).with_columns(stratum=pl.lit("activating"), truth=pl.lit(True))
    negative = negatives.filter(few).with_columns(decile=pl.lit(0, dtype=pl.UInt8), truth=pl.lit(False))
    frame = pl.concat([positive.select(columns), negative.select(columns)])
    place = counter_hash(_SHUFFLE, frame["latent"].to_numpy(), frame["context"].to_numpy())
    return frame.with_columns(place=place)


def asked(candidates: pl.DataFrame, arms: list[str]) -> pl.DataFrame:
    """One row per context and arm, in the order of the questions. Select and explain are asked in one arm only."""
    rank = pl.col("stratum").replace_strict({arm: i for i, arm in enumerate(THRESHOLD_ARMS)}, default=None)
    # Per latent: one that is active almost everywhere has no random negatives, and takes the next arm.
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
