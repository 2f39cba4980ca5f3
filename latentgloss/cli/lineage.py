"""`lineage`: where a score comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from latentgloss.cli.output import json_option, known_sae, open_workspace, plain, print_json
from latentgloss.cli.show import score_stages

if TYPE_CHECKING:
    from latentgloss.lineage.nodes import Node


SHOWN = 4
"""Nodes of one kind printed below one parent; the rest is counted. JSON has all."""
FACT = 120
"""Longest fact printed."""


@click.command()
@click.argument("partition")
@click.argument("latent", type=click.IntRange(min=0))
@click.option("--scorer", default="detection", show_default=True, help="Whose score.")
@click.option("--explainer", help="Of which explanation. Default: the first of the settings.")
@click.option("--verify", is_flag=True, help="Recompute every hash on the way, from scratch.")
@json_option
@click.pass_context
def lineage(
    ctx: click.Context,
    partition: str,
    latent: int,
    scorer: str,
    explainer: str | None,
    verify: bool,
    as_json: bool,
) -> None:
    """From a latent's scores back to explanation, contexts, activations, tokens, documents and weights.

    With --verify every line says whether the hop is as it was stored, and the exit code is 1 if one is not. JSON: a
    tree of objects with kind, id, sha256, facts and inputs; with --verify also checks (what, ok, found, stored).

    \b
    Example:
      latentgloss lineage smollm2/layers.9/resid 12 --explainer pattern --verify
    """
    from latentgloss.lineage.trace import trace

    workspace = open_workspace(ctx)
    (stage,) = score_stages(scorer)
    known_sae(workspace, partition, [stage])
    root = trace(workspace, partition, latent, scorer=scorer, explainer=explainer, verify=verify)
    if as_json:
        print_json(root.as_json())
    else:
        _print(root, 0, verify)
    broken = root.broken()
    if broken:
        lines = [f"{node.kind} {node.id}: {check}" for node in broken for check in node.failed]
        raise click.ClickException(f"{len(broken)} of the hops to this score do not verify:\n  " + "\n  ".join(lines))


def _print(node: Node, depth: int, verify: bool) -> None:
    mark = "" if not verify else "✗ " if node.failed else "✓ " if node.checks else "· "
    digest = f"  {node.sha256[:12]}" if node.sha256 else ""
    click.echo(f"{'  ' * depth}{mark}{node.kind} {plain(node.id)}{digest}{_facts(node)}")
    for check in node.failed:
        click.echo(f"{'  ' * (depth + 2)}{plain(check)}")
    shown: dict[str, int] = {}
    for child in node.inputs:
        if child.kind == "pin":  # the versions themselves stand where their rows are
            continue
        shown[child.kind] = shown.get(child.kind, 0) + 1
        if shown[child.kind] <= SHOWN or child.broken():
            _print(child, depth + 1, verify)
        elif shown[child.kind] == SHOWN + 1:
            n = sum(c.kind == child.kind for c in node.inputs)
            click.echo(f"{'  ' * (depth + 1)}… {n} of kind {child.kind}; --json has all")


def _facts(node: Node) -> str:
    if node.facts.get("again"):
        return "  (see above)"
    words = [f"{key} {plain(value)}" for key, value in node.facts.items() if isinstance(value, str | int | float)]
    return f"  ({', '.join(word if len(word) <= FACT else word[: FACT - 1] + '…' for word in words)})" if words else ""
