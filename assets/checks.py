"""What is counted after a partition is finished. A check warns; what must not go on is refused by the core."""

from typing import Any

import polars as pl

from latentgloss import schema
from latentgloss.store import Version

Result = tuple[bool, dict[str, Any]]


def every_split_has_tokens(version: Version) -> Result:
    """Nothing can be scored on a split without text."""
    tokens = tokens_of(version)
    return all(tokens[split] > 0 for split in schema.SPLITS), tokens


def most_latents_alive(version: Version) -> Result:
    """More dead latents than live ones point to a wrong hookpoint, a wrong scale, or too little text."""
    latents = version.scan(schema.LATENTS).select("count").collect()
    alive = int((latents["count"] > 0).sum())
    return 2 * alive > len(latents), {"alive": alive, "latents": len(latents)}


def any_latent_eligible(version: Version) -> Result:
    """Without an eligible latent nothing is explained: the corpus is too small for this SAE."""
    found = counts(version.scan(schema.ELIGIBILITY), "status")
    return found.get("eligible", 0) > 0, found


def explanations_succeed(version: Version) -> Result:
    """At most one in twenty explanations of latents that are fit for it fails."""
    never_tried = ("ok", "dead", "rare", "dense", "one_document", "not_sampled")
    found = counts(version.scan(schema.EXPLANATIONS), "status")
    failed = sum(n for status, n in found.items() if status not in never_tried)
    tried = failed + found.get("ok", 0)
    return tried > 0 and 20 * failed <= tried, found


def judgements_cover(version: Version) -> Result:
    """Nearly all judgements of scored latents could be counted."""
    rows = version.scan(schema.SCORES).filter(pl.col("status").is_in(["ok", "unscored"])).collect()
    coverage = float(rows["coverage"].mean() or 0.0) if len(rows) else 0.0  # type: ignore[arg-type]
    return coverage >= 0.95, {"mean coverage": coverage, "scores": len(rows)}


def questions_answered(version: Version) -> Result:
    """Nearly everything that was asked was answered."""
    found = counts(version.scan(schema.JUDGEMENTS), "status")
    put = sum(n for status, n in found.items() if status != "no_donor")
    return put > 0 and found.get("ok", 0) >= 0.95 * put, found


def donors_found(version: Version) -> Result:
    """At most one context in ten has no donor of wrong marks: the others stand for what is asked."""
    found = counts(version.scan(schema.JUDGEMENTS), "status")
    without, everything = found.get("no_donor", 0), sum(found.values())
    return 10 * without <= everything, {"no donor": without, "judgements": everything}


def trials_made(version: Version) -> Result:
    """At least half of the trials could be made, and nearly all of those answered; without judges there are none."""
    made, told = counts(version.scan(schema.TRIALS), "status"), counts(version.scan(schema.JUDGEMENTS), "status")
    enough = 2 * made.get("ok", 0) >= sum(made.values()) and told.get("ok", 0) >= 0.95 * sum(told.values())
    return enough, {"trials": made, "judgements": told}


def documents(version: Version) -> pl.LazyFrame:
    """The documents of a corpus, which is one folder and not cut into blocks."""
    return pl.scan_parquet(version.path("documents.parquet"))


def tokens_of(version: Version) -> dict[str, int]:
    """Tokens of kept documents per split."""
    kept = documents(version).group_by("split").agg(pl.col("n_tokens").sum()).collect()
    found = dict(kept.iter_rows())
    return {split: int(found.get(split, 0)) for split in schema.SPLITS}


def counts(frame: pl.LazyFrame, *columns: str) -> dict[Any, int]:
    """Rows per value of a column (per tuple, if there are several), most frequent first."""
    found = frame.group_by(columns).len().sort("len", *columns, descending=[True, *(False for _ in columns)]).collect()
    return {(row[0] if len(columns) == 1 else row[:-1]): int(row[-1]) for row in found.iter_rows()}
