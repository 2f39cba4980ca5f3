"""Charts and tables of each asset for the Dagster UI, as Markdown with inline SVG.

What belongs here: choosing from the tables in the store what is shown. `drawing.py` draws it; nothing is measured.
Dagster keeps a picture in every event and loads many events at once, so a picture has a bounded size.
"""

import base64
from html import escape
from typing import Any

import numpy as np
import polars as pl

from assets.checks import counts, documents, tokens_of
from assets.drawing import bars, steps
from latentgloss import schema
from latentgloss.machine.printable import printable
from latentgloss.store import Version

TABLE_ROWS, TABLE_BYTES = 100, 30_000
"""Most rows of the report's table, and the bytes that it takes at most."""
CHARTS_BYTES = 30_000
"""Bytes that the charts and medians of scores take at most."""


def tokens_per_split(version: Version) -> str:
    """Tokens of each split, and documents by status."""
    found = counts(documents(version), "status")
    kept = ", ".join(f"{n:,} {_cell(status)}" for status, n in found.items())
    return _image("tokens per split", bars(tokens_of(version), "tokens")) + f"\n\nDocuments: {kept}."


def resolved(version: Version) -> str:
    """Everything that an SAE depends on, as a table."""
    rows = [f"| {_cell(k)} | {_cell(str(v)[:70])} |" for k, v in _flat(version.json("resolved.json"))]
    return "\n".join(["| depends on | value |", "|---|---|", *rows])


def densities(version: Version) -> str:
    """Distribution of the densities of alive latents."""
    latents = version.scan(schema.LATENTS).select("density", "count").collect()
    alive = latents.filter(pl.col("count") > 0)
    logs = np.log10(alive["density"].to_numpy())
    edges = np.linspace(-6, 0, 25)
    found = {"alive latents": np.histogram(np.clip(logs, -6, 0), edges)[0]}
    text = f"{len(alive):,} of {len(latents):,} latents are active at least once."
    return (
        _image("density of latents", steps(found, edges, "log10 of the share of tokens on which the latent is active"))
        + f"\n\n{text}"
    )


def eligibility(version: Version) -> str:
    """Latents by eligibility."""
    return _image("latents by eligibility", bars(counts(version.scan(schema.ELIGIBILITY), "status"), "latents"))


def strata(version: Version) -> str:
    """Sampled non-activating contexts by split and stratum."""
    found = counts(version.scan(schema.NEGATIVES), "split", "stratum")
    labelled = {f"{split}: {stratum}": n for (split, stratum), n in sorted(found.items())}
    return _image("non-activating contexts", bars(labelled, "contexts"))


def explanations(version: Version) -> str:
    """Explanations by explainer and status, and the first ones as a table."""
    found = counts(version.scan(schema.EXPLANATIONS), "explainer", "status")
    labelled = {f"{explainer}: {status}": n for (explainer, status), n in sorted(found.items())}
    ok = version.scan(schema.EXPLANATIONS).filter(pl.col("status") == "ok")
    sample = ok.select("latent", "explainer", "explanation").sort("latent", "explainer").head(8).collect()
    rows = [
        f"| {latent} | {_cell(explainer)} | {_cell(text[:300])} |" for latent, explainer, text in sample.iter_rows()
    ]
    table = "\n".join(["| latent | explainer | explanation |", "|---|---|---|", *rows])
    return _image("explanations by status", bars(labelled, "latents")) + f"\n\n{table}"


def scores(version: Version) -> str:
    """Distributions and medians of scores by explainer, one chart for each arm, metric, judge and embedder."""
    frame = version.scan(schema.SCORES).filter(pl.col("status") == "ok", pl.col("score").is_not_null()).collect()
    edges = np.linspace(0, 1, 41)
    others = sorted(set(frame["profile"]) - {schema.DEFAULT_PROFILE})
    parts = [f"**Profile {_cell(', '.join(others))}**"] if others else []
    left, undrawn, unnamed = CHARTS_BYTES, 0, 0
    for (negatives, metric, *by_whom), group in sorted(frame.group_by("negatives", "metric", "judge", "embedder")):
        by = {str(name): part["score"].to_numpy() for (name,), part in sorted(group.group_by("explainer"))}
        medians = ", ".join(f"{_cell(name)} {np.median(values):.3f}" for name, values in by.items())
        judged = "".join(
            f", {word} `{_cell(name)}`" for word, name in zip(("judge", "embedder"), by_whom, strict=True) if name
        )
        part = f"Negatives `{_cell(negatives)}`{judged}. Medians: {medians}."
        drawn = steps({name: np.histogram(values, edges)[0] for name, values in by.items()}, edges, str(metric))
        chart = f"{_image(f'{metric}, negatives {negatives}', drawn)}\n\n{part}"
        shown = next((text for text in (chart, part) if len(text.encode()) <= left), "")
        undrawn, unnamed = undrawn + (shown == part), unnamed + (not shown)
        left -= len(shown.encode())
        parts += [shown] if shown else []
    if undrawn or unnamed:
        where = _cell(version.files.path(f"{version.key}/{schema.SCORES.name}"))
        parts.append(f"{undrawn} more are shown as medians alone and {unnamed} are left out. All scores: {where}")
    return "\n\n".join(parts) or "There are no scores."


def vectors(version: Version) -> str:
    """Numbers of texts and of distinct vectors for each embedder."""
    record = version.json("vectors.json")
    found: dict[str, float] = {}
    for name, entry in record.items():
        what = "contexts" if "contexts" in entry else "explanations"
        found |= {f"{name}: {what}": entry[what], f"{name}: vectors": entry["distinct"]}
    rows = [f"| {_cell(n)} | {e['dimension']} | {e.get('cut', 0):,} | {_cell(e['table'])} |" for n, e in record.items()]
    table = "\n".join(["| embedder | dimension | texts cut | table |", "|---|---|---|---|", *rows])
    return f"{_image('texts and distinct vectors', bars(found, 'texts'))}\n\n{table}"


def indexed(version: Version) -> str:
    """Explanations in the search index by SAE."""
    rows = version.json("index.json")["rows"]
    if not rows:
        return "The index holds no explanation of this model."
    return _image("indexed explanations", bars(rows, "explanations")) + "\n\nSearch with `latentgloss search TEXT`."


def report(version: Version) -> str:
    """The report as a table. If it is long, the rows with the highest medians, and where the others are."""
    frame = version.read(schema.REPORT).sort("partition", "scorer", "explainer", "negatives", "metric")
    if frame.is_empty():
        return "No SAE of this model has scores."
    others = bool(set(frame["profile"]) - {schema.DEFAULT_PROFILE})
    best = frame.sort("median", descending=True, nulls_last=True, maintain_order=True)
    shown: list[str] = []
    for chosen in (frame, best):
        shown = _fitting([_report_row(row, others) for row in chosen.head(TABLE_ROWS + 1).iter_rows(named=True)])
        if len(shown) == len(frame):
            break
    profile = ["profile"] if others else []
    counted = ("alive", "eligible", "explained", "scored")
    head = ("SAE", "scorer", "explainer", "negatives", *profile, *counted, "metric", "median", "95 %")
    table = "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *shown])
    if len(shown) == len(frame):
        return table
    where = _cell(version.files.path(f"{version.key}/report.parquet"))
    return f"{table}\n\nThe {len(shown):,} rows with the highest medians, of {len(frame):,}. All rows: {where}"


def _report_row(row: dict[str, Any], profile: bool) -> str:
    cells = [
        f"{_cell(row['partition'])}{' (control)' if row['control'] else ''}",
        *(_cell(row[name]) for name in ("scorer", "explainer", "negatives", *(["profile"] if profile else []))),
        *(str(row[name]) for name in ("n_alive", "n_eligible", "n_explained", "n_scored")),
        _cell(row["metric"]),
        _number(row["median"]),
        f"{_number(row['median_low'])} to {_number(row['median_high'])}",
    ]
    return f"| {' | '.join(cells)} |"


def _fitting(rows: list[str]) -> list[str]:
    """The first rows, as many as `TABLE_ROWS` and `TABLE_BYTES` allow."""
    fitting: list[str] = []
    size = 0
    for row in rows[:TABLE_ROWS]:
        size += len(row.encode()) + 1
        if size > TABLE_BYTES:
            break
        fitting.append(row)
    return fitting


def _image(title: str, svg: str) -> str:
    return f"![{_cell(title)}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def _cell(value: object) -> str:
    """Text escaped so that it stays in its cell of a Markdown table and is not read as markup.

    Explanations quote text from the corpus, which can contain anything, control characters too.
    """
    text = escape(" ".join(printable(value).split()), quote=False)
    return "".join(f"&#{ord(c)};" if c in "|`*_[]()!\\#~" else c for c in text)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else str(key))]
    return [(path, value)]
