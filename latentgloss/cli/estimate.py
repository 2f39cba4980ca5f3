"""`estimate` and `spent`: what language models will be asked, before anything is spent, and what they have taken."""

from __future__ import annotations

import fnmatch
import sys
from typing import TYPE_CHECKING, Any

import click

from latentgloss.cli.output import json_option, open_workspace, print_json, print_table, unknown

if TYPE_CHECKING:
    from latentgloss.preview.estimate import Estimate


@click.command()
@click.argument("partitions", nargs=-1, metavar="[PARTITION]...")
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(min=0, min_open=True),
    help="Throughput, prompts and replies together. Default: what the registry declares.",
)
@click.option(
    "--latents",
    type=click.IntRange(min=0),
    default=None,
    help="Latents whose prompts are counted per stage and SAE; 0: all. Default: 256.",
)
@json_option
@click.pass_context
def estimate(
    ctx: click.Context,
    partitions: tuple[str, ...],
    tokens_per_second: float | None,
    latents: int | None,
    as_json: bool,
) -> None:
    """Requests, tokens, money and hours of what is stale or missing and asks a language model. Sends nothing.

    Prompts are made and counted with the model's tokenizer. Of more latents than --latents a seeded sample is counted,
    and an interval given. Tokens of replies are the most there can be, and beside them what this model's replies took
    so far. A partition is a SAE; `*` matches anything.

    JSON: an object with rows, total and warnings. A row has stage, model, partition, state, because, problem, latents,
    counted, requests, cached, prompt_tokens (with _low and _high), completion_tokens_most,
    completion_tokens_expected, repair_tokens_most, paid, usd_expected, usd_most, usd_most_repaired,
    tokens_per_second, hours, exact and notes. From prompt_tokens on, of requests that are not answered already.

    \b
    Example:
      latentgloss estimate 'smollm2/*' --tokens-per-second 2000
    """
    from latentgloss.preview import estimate as core

    workspace = open_workspace(ctx)
    known = set(workspace.registry.saes)
    for name in partitions:
        if not fnmatch.filter(known, name):
            raise unknown("SAE", name, known, "see `latentgloss saes list`")
    chosen = {s for s in known if any(fnmatch.fnmatch(s, p) for p in partitions)} if partitions else None
    most = core.MOST if latents is None else latents or sys.maxsize
    progress = _Progress()
    rows = list(
        core.estimate(workspace, chosen, most=most, tokens_per_second=tokens_per_second, progress=progress.advance)
    )
    progress.clear()
    total, warnings = core.total(rows), core.warnings(workspace, rows)
    if as_json:
        found = [{**vars(row), "exact": row.exact} for row in rows]
        print_json({"rows": found, "total": total, "warnings": warnings})
        return
    if not rows:
        click.echo("Nothing that is stale or missing asks a language model.")
        return
    _print(rows, total)
    for warning in warnings:
        click.echo(f"\n{warning}")


class _Progress:
    """A line on a terminal's stderr that says how far counting is."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()

    def advance(self, what: str, done: int, total: int) -> None:
        if self.shown and (done % 16 == 0 or done == total):
            click.echo(f"\r\x1b[K{what}: {done:,} of {total:,} latents counted", nl=False, err=True)

    def clear(self) -> None:
        if self.shown:
            click.echo("\r\x1b[K", nl=False, err=True)


HEADER = (
    "STAGE",
    "MODEL",
    "PARTITION",
    "LATENTS",
    "REQUESTS",
    "CACHED",
    "PROMPT TOKENS",
    "REPLY TOKENS",
    "USD",
    "HOURS",
)


def _print(rows: list[Estimate], total: dict[str, object]) -> None:
    counted = [row for row in rows if not row.problem]
    cells = [[row.stage, row.model, row.partition, *_numbers(vars(row))] for row in counted]
    print_table(HEADER, [*cells, ["total", "", "", *_numbers(total)]])
    click.echo("\nOf requests not answered already: tokens, and what they cost. ≤: at most, ~: as replies so far.")
    repaired = total["usd_most_repaired"]
    again = f", {repaired:,.2f} USD in all" if repaired else ""
    click.echo(f"If every reply had to be asked for twice: {total['repair_tokens_most']:,} tokens on top{again}.")
    for note in dict.fromkeys(note for row in counted for note in row.notes):
        of = [row for row in counted if note in row.notes]
        where = f"{of[0].stage} of {of[0].partition}" + (f" and {len(of) - 1} more" if len(of) > 1 else "")
        click.echo(f"- {where}: {note}")
    for row in rows:
        if row.problem:
            click.echo(f"- not counted: {row.stage} of {row.partition}: {row.problem}")


def _numbers(row: dict[str, object]) -> list[str]:
    prompt, high = row["prompt_tokens"], row["prompt_tokens_high"]
    assert isinstance(prompt, int) and isinstance(high, int)
    spread = f" ± {high - prompt:,}" if high > prompt else ""
    return [
        f"{row['latents']:,}",
        f"{row['requests']:,}",
        f"{row['cached']:,}",
        f"{prompt:,}{spread}",
        _both(row["completion_tokens_expected"], row["completion_tokens_most"], ",.0f"),
        _both(row["usd_expected"], row["usd_most"], ",.2f") if row["usd_most"] else "0",
        "-" if row["hours"] is None else f"{row['hours']:,.2f}",
    ]


def _both(expected: object, most: object, form: str) -> str:
    return (f"~{expected:{form}}, " if expected is not None else "") + f"≤{most:{form}}"


TAKEN = ("answered", "unanswered", "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "usd")


@click.command()
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["model", "stage", "partition"]),
    help="Add up by this; may be given several times. Default: all three.",
)
@json_option
@click.pass_context
def spent(ctx: click.Context, by: tuple[str, ...], as_json: bool) -> None:
    """What language models have taken in this store, over all runs, and what is left of the budget.

    Replies from the cache are free and not in it. UNANSWERED were sent and brought no reply that was kept: of a paid
    model they count at the most they can have cost, since the vendor may bill them. A row without a stage was asked
    outside of runs.

    JSON: an object with rows, total and budget. A row has model, stage, partition (those of --by), paid, answered,
    unanswered, prompt_tokens, cached_prompt_tokens, completion_tokens and usd; total has the last six. budget has, for
    tokens and for usd, limit (null: none), spent and left (null: no limit): of paid models alone.

    \b
    Example:
      latentgloss spent --by model
    """
    from latentgloss.llm.ledger import GROUPS

    ledger = open_workspace(ctx).ledger
    rows = ledger.totals(by or GROUPS)
    total = {name: sum(row[name] for row in rows) for name in TAKEN}
    already = ledger.spent()
    budget = {
        unit: {"limit": limit, "spent": spent, "left": None if limit is None else max(limit - spent, 0)}
        for unit, limit, spent in (("tokens", ledger.tokens, already.tokens), ("usd", ledger.usd, already.usd))
    }
    if as_json:
        print_json({"rows": rows, "total": total, "budget": budget})
        return
    if not rows:
        click.echo("No language model was asked in this store.")
    else:
        groups = [name for name in GROUPS if name in rows[0]]
        header = (*groups, "requests", "unanswered", "prompt tokens", "of them cached", "reply tokens", "usd")
        cells = [[*(row[name] for name in groups), *_taken(row)] for row in rows]
        print_table([name.upper() for name in header], [*cells, ["total", *[""] * (len(groups) - 1), *_taken(total)]])
        click.echo("")
    for unit, of in budget.items():
        form = ",.0f" if unit == "tokens" else ",.2f"
        if of["limit"] is not None:
            click.echo(
                f"Budget: {of['limit']:{form}} {unit}; paid models have taken {of['spent']:{form}}, "
                f"{of['left']:{form}} are left."
            )
    if not ledger.limited:
        click.echo("There is no budget: paid models are not asked.")


def _taken(row: dict[str, Any]) -> list[str]:
    return [*(f"{row[name]:,}" for name in TAKEN[:-1]), f"{row['usd']:,.2f}"]
