"""`try`: one latent, one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from latentgloss.cli.output import json_option, known_sae, open_workspace, plain, print_json

if TYPE_CHECKING:
    from latentgloss.preview.one_latent import Trial


@click.command(name="try")
@click.argument("partition")
@click.argument("latent", type=click.IntRange(min=0))
@click.option("--explainer", help="Explain with this one; with --judge: whose explanation is judged.")
@click.option("--judge", help="Judge with this language model.")
@click.option(
    "--scorer",
    type=click.Choice(["detection", "fuzzing", "intruder"]),
    default="detection",
    show_default=True,
    help="What --judge is asked.",
)
@click.option("--text", help="With --judge: an explanation of your own.")
@click.option(
    "--prompt",
    "--number",
    "number",
    type=click.IntRange(min=0),
    default=0,
    help="With --judge: which of its prompts, or of its trials (intruder), from 0.",
)
@click.option("--dry", is_flag=True, help="Show the prompt and send nothing.")
@json_option
@click.pass_context
def try_(
    ctx: click.Context,
    partition: str,
    latent: int,
    explainer: str | None,
    judge: str | None,
    scorer: str,
    text: str | None,
    number: int,
    dry: bool,
    as_json: bool,
) -> None:
    """What a language model is shown about one latent, what it replies, and what is read of it. Nothing is stored.

    With --dry no model is needed. JSON: an object with partition, what was asked (latent, explainer, model; or scorer,
    judge, explanation, trial, …), prompt_sha256, messages, status, reason, reply, value, truth, prompt_tokens,
    completion_tokens and cost_usd; status is empty if nothing was sent.

    \b
    Example:
      latentgloss try smollm2/layers.9/resid 12 --explainer llm --dry
      latentgloss try smollm2/layers.9/resid 12 --judge NAME --scorer fuzzing --explainer pattern
      latentgloss try smollm2/layers.9/resid 12 --judge NAME --scorer intruder --number 3
    """
    from latentgloss.preview.one_latent import try_explainer, try_judge

    if judge is None and explainer is None:
        raise click.UsageError("name an --explainer or a --judge")
    if judge is None and (text is not None or number):
        raise click.UsageError("--text and --prompt belong to --judge")
    if judge is not None and scorer == "intruder" and (text is not None or explainer is not None):
        raise click.UsageError("intruder detection judges a latent without an explanation")
    workspace = open_workspace(ctx)
    known_sae(workspace, partition, ["sampled_contexts"])
    if judge is None:
        tried = try_explainer(workspace, partition, latent, explainer or "", dry=dry)
    else:
        tried = try_judge(
            workspace, partition, latent, judge, scorer=scorer, explainer=explainer, text=text, number=number, dry=dry
        )
    if as_json:
        found = {**vars(tried), "messages": [vars(message) for message in tried.messages]}
        print_json({"partition": partition, **found.pop("about"), **found})
    else:
        _print(tried)
    if tried.status not in ("", "ok"):
        raise click.ClickException(f"{tried.status}: {tried.reason}")


def _print(tried: Trial) -> None:
    for message in tried.messages:
        click.echo(f"=== {message.role}")
        _echo(message.content)
    if not tried.status:
        click.echo("=== (nothing was sent)")
        return
    second = "second " if tried.repaired else ""
    spent = f"{tried.prompt_tokens} + {tried.completion_tokens} tokens, {tried.cost_usd:.6f} USD"
    click.echo(f"=== {second}reply ({spent})")
    _echo(tried.reply)
    if tried.status == "ok":
        click.echo("=== read")
        _echo(tried.value if isinstance(tried.value, str) else _verdicts(tried))


def _verdicts(tried: Trial) -> str:
    if isinstance(tried.truth, int):
        return f"{plain(tried.value)} (the intruder is {plain(tried.truth)})"
    said = tried.value or []
    right = sum(a == b for a, b in zip(said, tried.truth, strict=True))
    lines = [f"{i}. {plain(a)} (it is {plain(b)})" for i, (a, b) in enumerate(zip(said, tried.truth, strict=True), 1)]
    return "\n".join([*lines, f"{right} of {len(said)} right"])


def _echo(text: str) -> None:
    for line in text.split("\n"):
        click.echo(plain(line))
