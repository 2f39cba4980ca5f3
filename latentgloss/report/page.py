"""The whole report as a Markdown page: every row, a table per SAE.

What belongs here: the page's text, a pure function of rows of `schema.REPORT`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

COLUMNS = (
    "scorer",
    "negatives",
    "explainer",
    "judge",
    "embedder",
    "profile",
    "metric",
    "n_explained",
    "n_asked",
    "n_scored",
    "n_judged",
    "coverage",
)
INTERVALS = ("median", "specificity", "gain")
NOTES = """\
- **n_asked**: eligible latents that the scorer was to score. **n_scored**: those with a score.
- **n_judged**: contexts judged and counted per latent, a median. **coverage**: share of judgements that counted.
- **median**: over scored latents, with its 95 % bootstrap interval. **corrected**: 0 is an uninformed judge, 1 perfect.
- **specificity**: median over latents of the score minus the mean score with other latents' explanations.
- **gain**: median paired difference to `token_table` over all latents asked, a failure counting as chance.
"""


def markdown(report: pl.DataFrame, source: str) -> str:
    """The page. `report`: rows of `schema.REPORT`; `source`: where they come from, named at the top."""
    lines = ["# Scores", "", f"From {source}.", "", NOTES]
    for (partition,), rows in report.group_by("partition", maintain_order=True):
        first = rows.row(0, named=True)
        lines += [
            f"## {partition}{' (control)' if first['control'] else ''}",
            "",
            f"{first['n_latents']:,} latents, {first['n_alive']:,} alive, {first['n_eligible']:,} eligible.",
            "",
            f"| {' | '.join((*COLUMNS, 'corrected', *INTERVALS))} |",
            "|" + "---|" * (len(COLUMNS) + 1 + len(INTERVALS)),
        ]
        ordered = rows.sort("scorer", "metric", "negatives", "explainer", "judge", "embedder")
        for row in ordered.iter_rows(named=True):
            cells = [_cell(row[name]) for name in (*COLUMNS, "corrected")]
            lines.append(f"| {' | '.join([*cells, *(_interval(row, name) for name in INTERVALS)])} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _interval(row: dict[str, Any], name: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return ""
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
