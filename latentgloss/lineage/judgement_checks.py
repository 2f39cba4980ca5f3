"""What `lineage --verify` recomputes of explanations, judgements and trials.

What belongs here: pure comparisons of judgements with the sampled contexts they are of, of trials with what was judged,
and of the executing judge's evidence with that of executing the program again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss.errors import LatentglossError
from latentgloss.lineage.checks import Check, equal, none_of
from latentgloss.protocols import Question
from latentgloss.schema import CONTEXTS, SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentgloss.corpus.reader import Corpus
    from latentgloss.models.vocabulary import Vocabulary


def round_trip_check(row: dict[str, Any], vocabulary: Vocabulary) -> Check:
    """Checks that a pattern's sentence, parsed, gives its program, so that the text says exactly what is executed.

    `row`: of `schema.EXPLANATIONS`.
    """
    from latentgloss.explanations.explainers.pattern.rules import Pattern
    from latentgloss.explanations.explainers.pattern.sentence import parse_text

    what = "program read back from the sentence"
    try:
        program = Pattern.from_json(row["program"], vocabulary)
        return equal(what, parse_text(row["explanation"], vocabulary).to_json(), program.to_json())
    except LatentglossError as e:
        return Check(what, False, e.found)


@dataclass(frozen=True)
class FuzzingMarks:
    """Everything that decides the marks of fuzzing for one latent."""

    contexts: pl.DataFrame
    """The latent's rows of `schema.CONTEXTS`."""
    masked: pl.Series
    """Masked positions of the corpus."""
    seed: int
    """Setting `fuzzing.seed`."""

    def question(self, executed: pl.DataFrame, program: str, corpus: Corpus, length: int) -> tuple[Question, Check]:
        """The rows of `executed` as one question whose marks are derived again, and whether these rows have donors."""
        from latentgloss.scores.scorers import fuzzing

        sampled = fuzzing.few(self.contexts, SPLITS)
        windows = sampled["context"].to_numpy().astype(np.int64)
        masked = np.isin(windows[:, None] * length + np.arange(length), self.masked.to_numpy())
        found = fuzzing.versions(sampled, masked, self.seed)
        key = ["context", "stratum"]
        both = executed.select(key).join(
            found.rows.select(*key, "status").with_row_index("row"), on=key, how="left", maintain_order="left"
        )
        without_donor = both.filter(pl.col("status") != "ok")["context"].to_list()
        rows = both["row"].fill_null(0).to_numpy()
        (reference,) = fuzzing.references(sampled, corpus, length).values()
        tokens = corpus.contexts(executed["context"].to_numpy(), length)
        question = Question("fuzzing", 0, "", program, tokens, found.marks[rows], None, found.masked[rows], reference)
        return question, none_of("contexts with marks have donors", without_donor)


def execution_checks(
    scores: pl.DataFrame | None,
    judgements: pl.DataFrame,
    program: str | None,
    vocabulary: Vocabulary,
    corpus: Corpus,
    length: int,
    fuzzing: FuzzingMarks | None = None,
) -> list[Check]:
    """Executes the program again; compares evidence, and predictions with the thresholds of `scores`.

    `judgements`: of one latent and explanation, by any judges. `program`: the explanation's; None checks nothing.
    `fuzzing`: the marks, if the judgements are of fuzzing. `length`: tokens per context.
    """
    from latentgloss.scores.judges.opening import judge_named

    what = "evidence from executing the program again"
    executed = judgements.filter(pl.col("judge") == "executed", pl.col("evidence").is_not_null())
    if executed.is_empty() or program is None:
        return []
    tokens = corpus.contexts(executed["context"].to_numpy(), length)
    question, checks = Question("detection", 0, "", program, tokens, None), []
    try:
        if fuzzing is not None:
            question, donors = fuzzing.question(executed, program, corpus, length)
            checks.append(donors)
        (answer,) = judge_named("executed", vocabulary).judge([question])
    except (LatentglossError, ValueError, KeyError, TypeError) as e:
        return [Check(what, False, f"the program does not run ({e})")]
    differ = executed["context"].to_numpy()[answer.evidence != executed["evidence"].to_numpy()]
    checks.append(none_of(what, differ.tolist(), f"{executed.height} judgements"))
    if scores is not None:
        thresholds = scores.select("judge", "negatives", "threshold").drop_nulls()
        wrong = executed.join(thresholds, on=["judge", "negatives"]).filter(
            (pl.col("evidence") >= pl.col("threshold")) != pl.col("prediction")
        )
        checks.append(none_of("predictions from evidence and threshold", wrong["context"].to_list(), "equal"))
    return checks


def membership_checks(
    judgements: pl.DataFrame, contexts: pl.DataFrame | None, negatives: pl.DataFrame | None
) -> list[Check]:
    """Checks that every judged context was sampled, with the same split, truth, stratum, decile and document."""
    key = ["split", "context", "stratum", "decile", "document"]
    # In fuzzing an activating context is judged with its own marks and with a donor's.
    donor = pl.col("stratum") == "donor"
    with_donor_marks = judgements.filter(donor).with_columns(stratum=pl.lit("activating"))
    fitting = judgements["truth"] == (judgements["stratum"] == "activating")
    checks = [none_of("truth matches the stratum", judgements.filter(~fitting)["context"].to_list(), "all")]
    judgements = judgements.filter(~donor)
    if contexts is not None:
        sampled = contexts.with_columns(stratum=pl.lit("activating")).select(key)
        active = pl.concat([judgements.filter(pl.col("truth")), with_donor_marks])
        stray = active.join(sampled, on=key, how="anti")
        checks.append(none_of("activating contexts judged are sampled ones", stray["context"].to_list(), "all"))
    if negatives is not None:
        sampled = negatives.with_columns(decile=pl.lit(0, dtype=pl.UInt8)).select(key)
        stray = judgements.filter(~pl.col("truth")).join(sampled, on=key, how="anti")
        checks.append(none_of("non-activating contexts judged are sampled ones", stray["context"].to_list(), "all"))
    return checks


def trial_checks(trials: pl.DataFrame, judgements: pl.DataFrame, contexts: Sequence[pl.DataFrame]) -> list[Check]:
    """Compares the trials of one latent (`schema.TRIALS`) with its judgements and with the sampled contexts.

    `contexts`: tables of sampled contexts that include the intruding latents' rows.
    """
    shown = trials.filter(status="ok").explode("contexts").rename({"contexts": "context"})
    shown = shown.with_columns(at=pl.int_range(1, pl.len() + 1).over("trial"))
    shown = shown.with_columns(truth=pl.col("at") != pl.col("place"))
    judged = judgements.select("context", "truth").unique()
    stray = judged.join(shown, on=["context", "truth"], how="anti")
    unjudged = shown.join(judged, on=["context", "truth"], how="anti")
    intruders = shown.filter(~pl.col("truth")).select("context", latent="intruder_latent")
    sampled = pl.concat([CONTEXTS.empty(), *contexts]).filter(split="test")
    unknown = intruders.join(sampled, on=["latent", "context"], how="anti")
    return [
        none_of("windows judged are those of the trials", [*stray["context"], *unjudged["context"]], "all"),
        none_of("intruders are sampled windows of their latents", unknown["context"].to_list(), "all"),
    ]
