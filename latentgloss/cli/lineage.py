"""The command `lineage`: where a score comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from latentgloss.cli.output import json_option, known_sae, open_workspace, plain, print_json
from latentgloss.cli.show import score_stages

if TYPE_CHECKING:
    from latentgloss.lineage.nodes import Node


SHOWN = 4
"""Most nodes of one kind printed below one parent; the others are only counted. JSON has all of them."""
FACT = 120
"""Most characters printed of a fact."""


@click.command()
@click.argument("partition")
@click.argument("latent", type=click.IntRange(min=0))
@click.option("--scorer", default="detection", show_default=True, help="The scorer whose scores are traced.")
@click.option("--explainer", help="The explainer whose explanation was scored. Default: the first in the settings.")
@click.option("--verify", is_flag=True, help="Recompute every hash on the way, and compare it with the stored one.")
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
    """Trace a latent's scores back to their sources.

    Use it to see what a score rests on (explanation, contexts, activations, tokens, documents, weights), or to check
    that nothing on the way was changed. PARTITION is the name of an
    SAE, LATENT the number of a latent.

    With --verify, a line begins with ✓ if its hashes are as they were stored, with ✗ if one is not, and with · if
    there was nothing to recompute; the exit code is 1 if there is a ✗.

    JSON: a tree of objects with kind, id, sha256, facts and inputs; with --verify also checks (what, ok, found and
    stored).

    \b
    Example:
      latentgloss lineage smollm2/layers.9/topk2048 12 --explainer pattern --verify
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
        raise click.ClickException(
            f"{len(broken)} steps on the way to this score do not verify:\n  " + "\n  ".join(lines)
        )


def _print(node: Node, depth: int, verify: bool) -> None:
    """Prints a node and the nodes below it, indented by `depth`."""
    mark = "" if not verify else "✗ " if node.failed else "✓ " if node.checks else "· "
    digest = f"  {node.sha256[:12]}" if node.sha256 else ""
    click.echo(f"{'  ' * depth}{mark}{node.kind} {plain(node.id)}{digest}{_facts(node)}")
    for check in node.failed:
        click.echo(f"{'  ' * (depth + 2)}{plain(check)}")
    shown: dict[str, int] = {}
    for child in node.inputs:
        if child.kind == "pin":  # pinned versions are printed where their rows are
            continue
        shown[child.kind] = shown.get(child.kind, 0) + 1
        if shown[child.kind] <= SHOWN or child.broken():
            _print(child, depth + 1, verify)
        elif shown[child.kind] == SHOWN + 1:
            n = sum(c.kind == child.kind for c in node.inputs)
            click.echo(f"{'  ' * (depth + 1)}… {n} of kind {child.kind}; --json has all")


def _facts(node: Node) -> str:
    """A node's facts in brackets."""
    if node.facts.get("again"):
        return "  (see above)"
    words = [f"{key} {plain(value)}" for key, value in node.facts.items() if isinstance(value, str | int | float)]
    return f"  ({', '.join(word if len(word) <= FACT else word[: FACT - 1] + '…' for word in words)})" if words else ""
