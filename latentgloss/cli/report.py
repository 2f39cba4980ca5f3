"""`latentgloss report`: what the scores say, on one screen.

What belongs here: printing the first screen (also at the end of `make demo`) and writing every row of the report as a
Markdown page. What is chosen for the screen is `report/headline.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from latentgloss.cli.card import fit, short, text
from latentgloss.cli.output import json_option, open_workspace, print_json_rows, unknown
from latentgloss.errors import MissingInput

if TYPE_CHECKING:
    import polars as pl

    from latentgloss.report.headline import Headline, Summary
    from latentgloss.workspace import Workspace

WIDTH = 100
"""Characters of a line."""
NAME = 28
"""Characters of an SAE's name without its model."""
CONTEXTS = 2
"""Contexts of each latent that is shown."""


@click.command()
@click.argument("model", required=False)
@click.option(
    "--page", type=click.Path(path_type=Path, dir_okay=False), help="Also write every row to this Markdown file."
)
@json_option
@click.pass_context
def report(ctx: click.Context, model: str | None, page: Path | None, as_json: bool) -> None:
    """Summarise the scores of every SAE: medians with intervals, nulls and baselines.

    One row per SAE: how many of its latents are eligible and explained, and the median detection and fuzzing scores,
    each with its 95 % interval, beside the median with other latents' explanations (null) and with a plain table of
    tokens (table). Read a score beside those two: .5 is chance. MODEL limits the report to one subject model.

    \b
    Example:
      latentgloss report
      latentgloss report smollm2 --page report.md
    """
    workspace = open_workspace(ctx)
    if model is not None and model not in workspace.registry.models:
        raise unknown("model", model, workspace.registry.models, "see `latentgloss saes list`")
    models = [model] if model else sorted(workspace.registry.models)
    rows = report_rows(workspace, models)
    if rows.is_empty():
        made = any(workspace.store.current("score_report", name) for name in models)
        raise MissingInput(
            "no SAE of the registry has scores" if made else "there is no report yet",
            expected="the asset score_report of at least one model, over at least one SAE",
            todo="materialise it in the Dagster UI, or run `make demo`",
        )
    if page is not None:
        write_page(workspace, rows, page)
    if as_json:
        print_json_rows(rows.iter_rows(named=True))
        return
    for line in first_screen(workspace, rows):
        click.echo(line)
    if page is not None:
        click.echo(f"Every row: {page}")


def report_rows(workspace: Workspace, models: list[str]) -> pl.DataFrame:
    """The current reports of some models, as one table (`schema.REPORT`); empty if there are none."""
    import polars as pl

    from latentgloss import schema

    versions = (workspace.store.current("score_report", model) for model in models)
    return pl.concat([schema.REPORT.empty(), *(v.read(schema.REPORT) for v in versions if v is not None)])


def write_page(workspace: Workspace, rows: pl.DataFrame, path: Path) -> None:
    """Writes every row of the report as Markdown. Raises OSError if the file cannot be written."""
    from latentgloss.report.page import markdown

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(rows, str(workspace.store.files.root)), encoding="utf-8")


def first_screen(workspace: Workspace, rows: pl.DataFrame) -> list[str]:
    """Lines of at most `WIDTH` characters: a row per SAE, three latents, an LLM's explanation."""
    from latentgloss import schema
    from latentgloss.report.headline import headlines, shown_explainer

    explainer = shown_explainer(rows, workspace.settings.explanations.explainers)
    if explainer is None:
        return ["No explanation has been scored yet."]
    found = headlines(rows, explainer)
    judges = ", ".join(sorted({f"`{summary.judge}`" for row in found for summary in row.scores.values()})) or "none"
    lines = [
        f"{'':<{NAME + 2}}   latents        detection                  fuzzing",
        f"{'SAE':<{NAME + 2}}  eligible expl.  med. 95 %      null table  med. 95 %      null table",
    ]
    for model in dict.fromkeys(row.partition.partition("/")[0] for row in found):
        mine = [row for row in found if row.partition.startswith(f"{model}/")]
        lines.append(f"{model}{' (control)' if all(row.control for row in mine) else ''}")
        lines += [_row(row) for row in mine]
    lines += [
        "",
        f"med.: median balanced accuracy of `{explainer}` over latents, on windows that no explainer saw, with its",
        f"95 % interval (chance: .50), by the judge {judges}.",
        "null: other latents' explanations. table: rates per token instead.",
    ]
    profiles = {summary.profile for row in found for summary in row.scores.values()} - {schema.DEFAULT_PROFILE}
    lines += [f"Profile {', '.join(sorted(profiles))}: contexts and negatives as in that protocol."] if profiles else []
    for line in (_examples(workspace, found, explainer), _sentence(workspace, found)):
        lines += line
    return lines


def _row(row: Headline) -> str:
    name = row.partition.partition("/")[2]
    if len(name) > NAME:  # the end tells SAEs apart
        name = f"…{name[1 - NAME :]}"
    cells = "  ".join(_cells(row.scores.get(scorer)) for scorer in ("detection", "fuzzing"))
    return f"  {name:<{NAME}} {f'{row.n_eligible}/{row.n_latents}':>9} {row.n_explained:>5}  {cells}".rstrip()


def _cells(summary: Summary | None) -> str:
    """A median, its interval, the null and the baseline, as wide as their heads."""
    if summary is None:
        return " " * 25
    interval = f"{short(summary.low)}–{short(summary.high)}" if summary.low is not None else ""
    return f"{short(summary.median):>4} {interval:<9} {short(summary.null):>4} {short(summary.baseline):>5}"


def _examples(workspace: Workspace, found: list[Headline], explainer: str) -> list[str]:
    """Short cards of the best, the median and the worst latent of the first trained SAE."""
    from latentgloss import schema
    from latentgloss.config.entries import BASELINES
    from latentgloss.report.headline import best_median_worst
    from latentgloss.workspace.card import card_of

    trained = [r for r in found if not r.control and _format(workspace, r.partition) not in BASELINES]
    first = next((r for r in trained or found if "detection" in r.scores), None)
    scores = None if first is None else workspace.store.current("detection_scores", first.partition)
    if first is None or scores is None:
        return []
    lines: list[str] = []
    for place, row in best_median_worst(scores.read(schema.SCORES), explainer, first.scores["detection"]):
        card = card_of(workspace, first.partition, row["latent"], explainer=explainer, contexts=CONTEXTS, mistakes=0)
        lines += ["", f"{place}: {first.partition} latent {row['latent']}, detection {short(row['score'])}, "
                  f"null {short(row['null'])}"]  # fmt: skip
        lines.append(fit(f"  says   {card.label}", WIDTH))
        for number, window in enumerate(card.windows):
            lines.append(f"  {'' if number else 'fires':<7}{text(window, WIDTH - 9, 0.0, colour=False)}")
    return lines


def _format(workspace: Workspace, partition: str) -> str:
    sae = workspace.registry.saes.get(partition)
    return "" if sae is None else sae.format


def _sentence(workspace: Workspace, found: list[Headline]) -> list[str]:
    """What a language model said of one latent, if the settings name one."""
    import polars as pl

    from latentgloss import schema

    model = workspace.settings.explanations.model
    for row in found if model else []:
        version = workspace.store.current("explanations", row.partition)
        if version is None:
            continue
        replied = pl.col("reply").is_not_null() & (pl.col("status") == "ok")
        for reply in version.scan(schema.EXPLANATIONS).filter(replied).head(1).collect().iter_rows(named=True):
            return [
                "",
                f"{model} on {row.partition} latent {reply['latent']}:",
                fit(f"  says   {reply['explanation']}", WIDTH),
            ]
    return []
