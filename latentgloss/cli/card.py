"""The command `show`: one latent on one screen. The demo's last screen prints the same cards, shorter."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import click

from latentgloss.cli.output import json_option, known_sae, open_workspace, plain, print_json

if TYPE_CHECKING:
    from latentgloss.workspace.card import Card, Score, Window

WIDEST = 120
"""Most columns that a card takes."""
MARKED = 0.3
"""Without colour, a token is marked if its activation exceeds this share of the context's maximum."""
SHADES = ((255, 244, 214), (255, 224, 150), (255, 190, 92), (255, 145, 60))
"""Backgrounds of tokens by activation, from weak to strong, in equal steps of the strongest of the card."""


@click.command()
@click.argument("partition")
@click.argument("latent", type=click.IntRange(min=0))
@click.option("--explainer", help="Whose explanation. Default: the first in the settings that explained the latent.")
@click.option("--contexts", type=click.IntRange(min=0, max=100), default=8, show_default=True, help="How many to show.")
@click.option("--full", is_flag=True, help="The whole explanation instead of its label.")
@click.option("--no-color", is_flag=True, help="Mark tokens with « » instead of shading them.")
@json_option
@click.pass_context
def show(
    ctx: click.Context,
    partition: str,
    latent: int,
    explainer: str | None,
    contexts: int,
    full: bool,
    no_color: bool,
    as_json: bool,
) -> None:
    """Show everything about one latent on one screen.

    PARTITION is the name of an SAE. The screen has the explanation's label, and how much of the latent's activation
    falls on what the label names; its scores with 95 % intervals, each beside the
    mean score of other latents' explanations (null); contexts in which the latent fires, with their decile (10 is the
    strongest); the output tokens that it promotes; the nearest latents by decoder cosine; and test contexts that the
    judge of detection got wrong. On a terminal, tokens are shaded by activation.

    JSON: an object with the same content; each context has its tokens and activations.

    \b
    Example:
      latentgloss show smollm2/layers.9/topk2048 43
    """
    from latentgloss.lineage.trace import check_latent
    from latentgloss.workspace.card import card_of

    workspace = open_workspace(ctx)
    known_sae(workspace, partition, ["explanations"])
    explained = workspace.store.current("explanations", partition)
    if explained is not None:
        check_latent(workspace, explained, latent)
    card = card_of(workspace, partition, latent, explainer=explainer, contexts=contexts)
    if as_json:
        print_json(asdict(card))
        return
    colour = sys.stdout.isatty() and not no_color and not os.environ.get("NO_COLOR")
    width = min(shutil.get_terminal_size().columns, WIDEST) if sys.stdout.isatty() else 100
    for line in lines(card, width, colour=colour, full=full):
        click.echo(line, color=colour)


def lines(card: Card, width: int, *, colour: bool, full: bool = False) -> list[str]:
    """A card as lines of at most `width` columns. `full`: with the whole explanation instead of its label."""
    found = [
        click.style(fit(f"{card.partition} latent {card.latent}", width), bold=True),
        *_wrapped(_said(card, full=full), width, None if full else 3),
        fit(_facts(card), width),
        "",
        *(fit(score_line(score), width) for score in card.scores),
    ]
    most = max((max(window.activations) for window in card.windows), default=0.0)
    for title, rows in (
        ("Fires", [(str(w.decile or "-").rjust(2), w) for w in card.windows]),
        ("Mistakes", [("missed" if m.truth else "false alarm", m.window) for m in card.mistakes]),
    ):
        names = max((len(name) for name, _ in rows), default=0)
        found += ["", title] if rows else []
        found += [f"  {name:<{names}}  {text(window, width - names - 4, most, colour=colour)}" for name, window in rows]
    if card.promotes:
        found += ["", fit("Promotes  " + "  ".join(repr(plain(token)) for token in card.promotes), width)]
    if card.neighbours:
        found += ["", "Nearest"]
        found += [fit(f"  {n.latent:>6}  {short(n.cosine):>4}  {n.says or '-'}", width) for n in card.neighbours]
    if card.missing:
        found += ["", fit(f"Not materialised yet: {', '.join(card.missing)}", width)]
    return found


def _said(card: Card, *, full: bool) -> str:
    if card.status != "ok":
        return f"no explanation by {card.explainer}: {card.status} ({card.reason})"
    return card.says if full else card.label


def _facts(card: Card) -> str:
    facts = [f"by {card.explainer}"]
    if card.coverage is not None:
        facts.append(f"covers {card.coverage:.0%} of the activation")
    if card.kind:
        facts.append(f"kind: {card.kind}")
    if card.density:
        facts.append(f"fires on 1 of {1 / card.density:,.0f} tokens")
    if card.max_activation:
        facts.append(f"up to {card.max_activation:.3g}")
    return ", ".join(facts)


def score_line(score: Score) -> str:
    """A score with its interval, beside the null, and what it was measured on."""
    lead = f"  {score.scorer:<10} {score.judge:<10}"
    if score.score is None:
        return f"{lead} -  {score.status}: {score.reason}"
    interval = "" if score.low is None or score.high is None else f" [{short(score.low)}, {short(score.high)}]"
    null = f"null {short(score.null)}" if score.null is not None else ""
    name = score.metric.replace("_", " ")
    return f"{lead} {short(score.score)}{interval:<13} {null:<9} {name} against {score.negatives}, n = {score.n}"


def text(window: Window, width: int, most: float, *, colour: bool) -> str:
    """At most `width` characters of a context around its strongest token. White space is folded.

    `most`: the activation that gets the strongest shade.
    """
    strongest = max(window.activations, default=0.0)
    cells: list[tuple[str, int]] = []
    for token, value in zip(window.tokens, window.activations, strict=True):
        if colour:
            level = 0 if value <= 0 or most <= 0 else min(int(value / most * len(SHADES)) + 1, len(SHADES))
        else:
            level = int(value > MARKED * strongest)
        cells += [(" " if c.isspace() else c, level) for c in plain(token)]
    cells = [cell for i, cell in enumerate(cells) if cell[0] != " " or i == 0 or cells[i - 1][0] != " "]
    first = max(range(len(cells)), key=lambda i: (cells[i][1], cells[i][0] != " ", -i), default=0)
    for room in range(width, 0, -1):  # marks and ellipses take place, too
        start = max(0, min(first - room // 2, len(cells) - room))
        line = _drawn(cells[start : start + room], colour=colour)
        line = ("…" if start else "") + line.strip() + ("…" if start + room < len(cells) else "")
        if len(click.unstyle(line)) <= width:
            return line
    return ""


def _drawn(cells: list[tuple[str, int]], *, colour: bool) -> str:
    """Characters with their levels: shaded, or in « » where the level is not 0."""
    parts = []
    for level, run in groupby(cells, key=lambda cell: cell[1]):
        part = "".join(c for c, _ in run)
        if level:
            part = click.style(part, fg="black", bg=SHADES[level - 1]) if colour else _marked(part)
        parts.append(part)
    return "".join(parts)


def _marked(part: str) -> str:
    """A run of tokens in « », with the white space around it outside."""
    core = part.strip()
    if not core:
        return part
    lead, trail = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
    return f"{lead}«{core}»{trail}"


def _wrapped(said: str, width: int, most: int | None) -> list[str]:
    """A text in at most `most` lines (None: all); what is cut off shows as an ellipsis."""
    import textwrap

    return textwrap.wrap(plain(said), width, max_lines=most, placeholder=" …") or [""]


def short(value: float | None) -> str:
    """Two decimals without the leading zero."""
    return "-" if value is None else f"{value:.2f}".replace("0.", ".", 1)


def fit(line: str, width: int) -> str:
    """One line of at most `width` characters; what is cut off shows as an ellipsis."""
    line = plain(line)
    return line if len(line) <= width else line[: width - 1] + "…"
