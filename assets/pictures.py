"""Charts and tables of each asset for the Dagster UI, as Markdown with inline SVG.

What belongs here: drawing bars and step lines from the tables in the store. Nothing is measured here.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import polars as pl

from assets.checks import counts, documents, tokens_of
from latentgloss import schema
from latentgloss.machine.printable import printable
from latentgloss.store import Version

COLOURS = ("#3b6ea5", "#d1733b", "#7a7a7a", "#4f9d69", "#8a5a9e", "#b3a02c")
WIDTH, HEIGHT = 560, 200


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
        f"| {latent} | {_cell(explainer)} | {_cell(text)[:300]} |" for latent, explainer, text in sample.iter_rows()
    ]
    table = "\n".join(["| latent | explainer | explanation |", "|---|---|---|", *rows])
    return _image("explanations by status", bars(labelled, "latents")) + f"\n\n{table}"


def scores(version: Version) -> str:
    """Distributions and medians of scores by explainer, one chart for each arm and metric."""
    frame = version.scan(schema.SCORES).filter(pl.col("status") == "ok", pl.col("score").is_not_null()).collect()
    edges = np.linspace(0, 1, 41)
    others = sorted(set(frame["profile"]) - {schema.DEFAULT_PROFILE})
    parts = [f"**Profile {_cell(', '.join(others))}**"] if others else []
    for (negatives, metric), group in sorted(frame.group_by("negatives", "metric")):
        by = {str(name): part["score"].to_numpy() for (name,), part in sorted(group.group_by("explainer"))}
        medians = ", ".join(f"{_cell(name)} {np.median(values):.3f}" for name, values in by.items())
        drawn = steps({name: np.histogram(values, edges)[0] for name, values in by.items()}, edges, str(metric))
        parts.append(
            f"{_image(f'{metric}, negatives {negatives}', drawn)}\n\nNegatives `{negatives}`. Medians: {medians}."
        )
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
    return _image("indexed explanations", bars(rows, "explanations")) + "\n\nSearch with `latentgloss search TEXT`."


def report(version: Version) -> str:
    """The report as a table."""
    frame = version.read(schema.REPORT).sort("partition", "scorer", "explainer", "negatives", "metric")
    profile = ["profile"] if set(frame["profile"]) - {schema.DEFAULT_PROFILE} else []
    head = (
        "SAE",
        "scorer",
        "explainer",
        "negatives",
        *profile,
        "alive",
        "eligible",
        "explained",
        "scored",
        "metric",
        "median",
        "95 %",
    )
    rows = [
        f"| {_cell(r['partition'])}{' (control)' if r['control'] else ''} "
        f"| {_cell(r['scorer'])} | {_cell(r['explainer'])} | {_cell(r['negatives'])} "
        f"{''.join(f'| {_cell(r[name])} ' for name in profile)}"
        f"| {r['n_alive']} | {r['n_eligible']} | {r['n_explained']} | {r['n_scored']} "
        f"| {_cell(r['metric'])} | {_number(r['median'])} | {_number(r['median_low'])} to {_number(r['median_high'])} |"
        for r in frame.iter_rows(named=True)
    ]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


# -- drawing ---------------------------------------------------------------------------------------------------


def bars(values: Mapping[Any, float], unit: str) -> str:
    """Horizontal bars as SVG, one per entry, each with its number. `unit` labels the axis."""
    largest = max([*values.values(), 1])
    left, row = 190, 22
    body = []
    for i, (label, value) in enumerate(values.items()):
        y, width = 8 + i * row, (WIDTH - left - 90) * value / largest
        body.append(_text(left - 8, y + 12, str(label), "end"))
        body.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="14" fill="{COLOURS[0]}"/>')
        body.append(_text(left + width + 6, y + 12, f"{value:,.0f}", "start"))
    height = 8 + len(values) * row + 20
    return _svg([*body, _text(left, height - 6, unit, "start")], height)


def steps(series: Mapping[str, np.ndarray], edges: np.ndarray, label: str) -> str:
    """Histograms over the same edges as step lines in an SVG, one colour each. Heights are shares of each series."""
    left, right, top, bottom = 20, WIDTH - 20, 26, HEIGHT - 34
    shares = {name: n / max(n.sum(), 1) for name, n in series.items()}
    highest = max([float(share.max()) for share in shares.values()] + [1e-9])
    xs = left + (right - left) * (edges - edges[0]) / (edges[-1] - edges[0])
    body = [f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="#888"/>']
    at = left
    for colour, (name, share) in zip(COLOURS * 4, shares.items(), strict=False):
        ys = bottom - (bottom - top) * share / highest
        points = " ".join(f"{x:.1f},{y:.1f}" for i, y in enumerate(ys) for x in (xs[i], xs[i + 1]))
        body.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.append(_text(at, 16, name, "start", colour))
        at += 12 + 7 * len(name)
    for i in np.linspace(0, len(edges) - 1, 5).astype(int):
        body.append(_text(xs[i], bottom + 14, f"{edges[i]:.3g}", "middle"))
    return _svg([*body, _text((left + right) / 2, HEIGHT - 4, label, "middle")], HEIGHT)


def _svg(body: Sequence[str], height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(printable(text))}</text>'


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
