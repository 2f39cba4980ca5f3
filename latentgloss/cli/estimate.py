"""The commands `estimate` and `spent`: what language models will cost, and what they have cost so far."""

from __future__ import annotations

import fnmatch
import sys
from typing import TYPE_CHECKING, Any

import click

from latentgloss.cli.output import Number, json_option, open_workspace, plain, print_json, print_table, unknown

if TYPE_CHECKING:
    from latentgloss.preview.estimate import Estimate


@click.command()
@click.argument("partitions", nargs=-1, metavar="[PARTITION]...")
@click.option(
    "--tokens-per-second",
    type=Number(min=0, min_open=True),
    help="Tokens per second of prompts and replies together, for the column HOURS. Default: the registry entry's.",
)
@click.option(
    "--latents",
    type=click.IntRange(min=0),
    default=None,
    help="Latents whose prompts are counted per stage and SAE; 0 counts all of them. Default: 256.",
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
    """Estimate what language models will cost, before a run.

    It shows requests, tokens, USD and hours of every stage that asks a language model and is stale or missing, and
    sends nothing. PARTITION is the name of an SAE; `*` matches anything; without one, all SAEs are estimated.

    Prompts are made as the run will make them, and counted with the model's tokenizer. If a stage asks about more
    latents than --latents, a seeded sample of that many is counted, and the rest is extrapolated with an interval.
    REPLY TOKENS and USD show what to expect from this model's replies so far (~), and the most there can be (≤).

    JSON: an object with rows, total and warnings. A row has stage, model, partition, state, because, problem, latents,
    counted, requests, cached, prompt_tokens (also with _low and _high), completion_tokens_most,
    completion_tokens_expected, repair_tokens_most, paid, usd_expected, usd_most, usd_most_repaired, tokens_per_second,
    hours, notes and exact. From prompt_tokens on, requests that the reply cache answers are left out.

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
    """The progress of counting, as one line on stderr if that is a terminal."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()

    def advance(self, what: str, done: int, total: int) -> None:
        """Shows how many latents are counted, for every 16th and the last."""
        if self.shown and (done % 16 == 0 or done == total):
            click.echo(f"\r\x1b[K{what}: {done:,} of {total:,} latents counted", nl=False, err=True)

    def clear(self) -> None:
        """Removes the line."""
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
    """Prints what was counted, and then what could not be counted and why."""
    counted = [row for row in rows if not row.problem]
    if counted:
        _print_counted(counted, total)
    missing = [row for row in rows if row.problem]
    if missing:
        left_out = "; the total leaves them out" if counted else ""
        click.echo(f"Not counted ({len(missing)} of {len(rows)}{left_out}):")
    for row in missing:
        click.echo(f"- {row.stage} of {row.partition}: {row.problem}")


def _print_counted(counted: list[Estimate], total: dict[str, object]) -> None:
    """Prints the table, what its numbers leave out, and the assumptions."""
    cells = [[row.stage, row.model, row.partition, *_numbers(vars(row))] for row in counted]
    print_table(HEADER, [*cells, ["total", "", "", *_numbers(total)]])
    click.echo("\nTokens and USD are those of requests that the reply cache does not answer.")
    click.echo("≤: at most. ~: expected from the replies so far.")
    repaired = total["usd_most_repaired"]
    in_total = f", {repaired:,.2f} USD in total" if repaired else ""
    click.echo(f"If every request had to be sent twice: {total['repair_tokens_most']:,} more tokens{in_total}.")
    for note in dict.fromkeys(note for row in counted for note in row.notes):
        noted = [row for row in counted if note in row.notes]
        where = f"{noted[0].stage} of {noted[0].partition}" + (f" and {len(noted) - 1} more" if len(noted) > 1 else "")
        click.echo(f"- {where}: {note}")


def _numbers(row: dict[str, object]) -> list[str]:
    """The cells of a row from LATENTS on."""
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
    """The expected number, if known, and the greatest possible one."""
    return (f"~{expected:{form}}, " if expected is not None else "") + f"≤{most:{form}}"


TAKEN = ("answered", "unanswered", "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "usd")
"""The quantities of the ledger, in the order of their columns."""


@click.command()
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["model", "stage", "partition"]),
    help="Make one row per model, stage or partition; may be given several times. Default: all three.",
)
@json_option
@click.pass_context
def spent(ctx: click.Context, by: tuple[str, ...], as_json: bool) -> None:
    """Show what language models have cost so far.

    It adds up the requests of all runs in this store, and shows what is left of the budget. Replies from the reply
    cache are free and are not included. UNANSWERED requests were sent, but no reply to them was kept; of a paid model,
    each counts at the most it can have cost, because the vendor may bill it. A row without a stage is about requests
    outside runs.

    JSON: an object with rows, total and budget. A row has model, stage, partition (those of --by), paid, answered,
    unanswered, prompt_tokens, cached_prompt_tokens, completion_tokens and usd; total has the last six. budget has
    tokens and usd, each with limit (null: none), spent and left (null: no limit); these count paid models only.
    remarks are what was odd about replies: model, kind, replies (how many), example (of the last one) and says.

    \b
    Example:
      latentgloss spent --by model
    """
    from latentgloss.llm.ledger import GROUPS
    from latentgloss.llm.remarks import all_remarks

    ledger = open_workspace(ctx).ledger
    rows = ledger.totals(by or GROUPS)
    total = {name: sum(row[name] for row in rows) for name in TAKEN}
    already = ledger.spent()
    budget = {
        unit: {"limit": limit, "spent": spent, "left": None if limit is None else max(limit - spent, 0)}
        for unit, limit, spent in (("tokens", ledger.tokens, already.tokens), ("usd", ledger.usd, already.usd))
    }
    remarks = all_remarks(ledger.database)
    if as_json:
        print_json({"rows": rows, "total": total, "budget": budget, "remarks": remarks})
        return
    if not rows:
        click.echo("No language model was asked in this store.")
    else:
        groups = [name for name in GROUPS if name in rows[0]]
        header = (*groups, "requests", "unanswered", "prompt tokens", "of them cached", "reply tokens", "usd")
        cells = [[*(row[name] for name in groups), *_taken(row)] for row in rows]
        print_table([name.upper() for name in header], [*cells, ["total", *[""] * (len(groups) - 1), *_taken(total)]])
        click.echo("")
    for remark in remarks:
        click.echo(
            f"{remark['model']} {remark['says']} (replies: {remark['replies']:,}; the last: "
            f"{plain(remark['example'])})."
        )
    _print_budget(budget)


def _print_budget(budget: dict[str, dict[str, Any]]) -> None:
    """Prints what is left in each unit of the budget."""
    for unit, sums in budget.items():
        form = ",.0f" if unit == "tokens" else ",.2f"
        if sums["limit"] is not None:
            click.echo(
                f"Budget: {sums['limit']:{form}} {unit}; paid models have taken {sums['spent']:{form}}, "
                f"{sums['left']:{form}} are left."
            )
    if all(sums["limit"] is None for sums in budget.values()):
        click.echo("There is no budget, so paid models are not asked.")


def _taken(row: dict[str, Any]) -> list[str]:
    """The cells of a row from REQUESTS on."""
    return [*(f"{row[name]:,}" for name in TAKEN[:-1]), f"{row['usd']:,.2f}"]
