"""The command `replies forget`: has the next run ask again where a language model gave no usable reply."""

from __future__ import annotations

import fnmatch

import click

from latentgloss.cli.output import json_option, open_workspace, print_json, print_table, unknown


@click.group()
def replies() -> None:
    """Replies of language models."""


@replies.command()
@click.argument("partitions", nargs=-1, metavar="[PARTITION]...")
@click.option("--model", "models", multiple=True, help="Only this language model; may be given several times.")
@click.option("--dry-run", is_flag=True, help="List what would be asked about again, and change nothing.")
@json_option
@click.pass_context
def forget(
    ctx: click.Context, partitions: tuple[str, ...], models: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Have the next run ask again where a language model gave no usable reply.

    Use it after a server was mended whose replies could not be read. It finds rows of the current versions whose reply
    could not be read, rows without a reply, and explanations with a control token in them. The stages that hold them
    become stale, and the next run asks again about these rows alone. No reply is deleted, and all others are used
    again. A refusal is an answer and is not asked for again. PARTITION is the name of an SAE; `*` matches anything;
    without one, all SAEs are meant.

    JSON: found (stage, partition, model, rows, reason) and dry_run.

    \b
    Example:
      latentgloss replies forget --model qwen3-8b --dry-run
    """
    from dataclasses import asdict

    from latentgloss.workspace import forgetting

    workspace = open_workspace(ctx)
    known = set(workspace.registry.saes)
    for name in partitions:
        if not fnmatch.filter(known, name):
            raise unknown("SAE", name, known, "see `latentgloss saes list`")
    for name in models:
        if name not in workspace.registry.language_models:
            raise unknown("language model", name, workspace.registry.language_models)
    chosen = {s for s in known if any(fnmatch.fnmatch(s, p) for p in partitions)} if partitions else known
    found = list(forgetting.unusable(workspace, chosen, models))
    if not dry_run:
        forgetting.forget(workspace.store, found)
    if as_json:
        shown = [{k: v for k, v in asdict(item).items() if k not in ("fingerprint", "blocks")} for item in found]
        print_json({"found": shown, "dry_run": dry_run})
        return
    if not found:
        click.echo("Every row that asks a language model has a usable reply.")
        return
    print_table(
        ("STAGE", "PARTITION", "MODEL", "ROWS", "REASON"),
        ([i.stage, i.partition, i.model, f"{i.rows:,}", i.reason] for i in found),
    )
    rows = sum(item.rows for item in found)
    click.echo(f"{rows:,} rows: the next run " + ("would ask again" if dry_run else "asks again") + " about them.")
