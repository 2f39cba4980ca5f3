"""Asset checks: counts that are taken when a partition is finished.

A failed check is a warning and stops nothing; the core itself refuses to continue where that would be wrong.
"""

from typing import Any

import polars as pl

from latentgloss import schema
from latentgloss.store import Version

Result = tuple[bool, dict[str, Any]]
"""(passed, counts)."""


def every_split_has_tokens(version: Version) -> Result:
    """Every split has tokens. Without text in a split, no latent can be scored."""
    tokens = tokens_of(version)
    return all(tokens[split] > 0 for split in schema.SPLITS), tokens


def most_latents_alive(version: Version) -> Result:
    """More than half of the latents are alive. If not, the hookpoint or scale may be wrong, or the text too short."""
    latents = version.scan(schema.LATENTS).select("count").collect()
    alive = int((latents["count"] > 0).sum())
    return 2 * alive > len(latents), {"alive": alive, "latents": len(latents)}


def any_latent_eligible(version: Version) -> Result:
    """At least one latent is eligible. If not, nothing is explained, because the corpus is too small for this SAE."""
    found = counts(version.scan(schema.ELIGIBILITY), "status")
    return found.get("eligible", 0) > 0, found


def explanations_succeed(version: Version) -> Result:
    """At most one in twenty explanations of eligible latents failed, and at least one was attempted."""
    never_tried = ("ok", "dead", "rare", "dense", "one_document", "not_sampled")
    found = counts(version.scan(schema.EXPLANATIONS), "status")
    failed = sum(n for status, n in found.items() if status not in never_tried)
    tried = failed + found.get("ok", 0)
    return tried > 0 and 20 * failed <= tried, found


def judgements_cover(version: Version) -> Result:
    """On average over latents, at least 95 % of the judgements could be counted."""
    rows = version.scan(schema.SCORES).filter(pl.col("status").is_in(["ok", "unscored"])).collect()
    coverage = float(rows["coverage"].mean() or 0.0) if len(rows) else 0.0  # type: ignore[arg-type]
    return coverage >= 0.95, {"mean coverage": coverage, "scores": len(rows)}


def questions_answered(version: Version) -> Result:
    """At least 95 % of the questions that were asked were answered, and at least one was asked."""
    found = counts(version.scan(schema.JUDGEMENTS), "status")
    asked = sum(n for status, n in found.items() if status != "no_donor")
    return asked > 0 and found.get("ok", 0) >= 0.95 * asked, found


def donors_found(version: Version) -> Result:
    """At most one context in ten has no donor of wrong marks, so that the other contexts represent the sample."""
    found = counts(version.scan(schema.JUDGEMENTS), "status")
    without, everything = found.get("no_donor", 0), sum(found.values())
    return 10 * without <= everything, {"no donor": without, "judgements": everything}


def trials_made(version: Version) -> Result:
    """At least half of the trials could be made, and at least 95 % of them were answered. Passes without judges."""
    made, judged = counts(version.scan(schema.TRIALS), "status"), counts(version.scan(schema.JUDGEMENTS), "status")
    enough = 2 * made.get("ok", 0) >= sum(made.values()) and judged.get("ok", 0) >= 0.95 * sum(judged.values())
    return enough, {"trials": made, "judgements": judged}


def documents(version: Version) -> pl.LazyFrame:
    """The table of documents of a corpus. It is a single file, because a corpus is not divided into blocks."""
    return pl.scan_parquet(version.path("documents.parquet"))


def tokens_of(version: Version) -> dict[str, int]:
    """Number of tokens of the kept documents, by split."""
    kept = documents(version).group_by("split").agg(pl.col("n_tokens").sum()).collect()
    found = dict(kept.iter_rows())
    return {split: int(found.get(split, 0)) for split in schema.SPLITS}


def counts(frame: pl.LazyFrame, *columns: str) -> dict[Any, int]:
    """Number of rows per value of a column (per tuple of values if there are several), most frequent first."""
    found = frame.group_by(columns).len().sort("len", *columns, descending=[True, *(False for _ in columns)]).collect()
    return {(row[0] if len(columns) == 1 else row[:-1]): int(row[-1]) for row in found.iter_rows()}
