"""The command `try`: one prompt about one latent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from latentgloss.cli.output import json_option, known_sae, open_workspace, plain, print_json

if TYPE_CHECKING:
    from latentgloss.preview.one_latent import Trial


@click.command(name="try")
@click.argument("partition")
@click.argument("latent", type=click.IntRange(min=0))
@click.option("--explainer", help="Explain with this explainer. With --judge: judge the explanation it has stored.")
@click.option("--judge", help="Judge with this language model of the registry.")
@click.option(
    "--scorer",
    type=click.Choice(["detection", "fuzzing", "intruder"]),
    default="detection",
    show_default=True,
    help="With --judge: the scorer whose question the judge gets.",
)
@click.option("--text", help="With --judge: judge this explanation of your own.")
@click.option(
    "--prompt",
    "--number",
    "number",
    type=click.IntRange(min=0),
    default=0,
    help="With --judge: the number of its prompt (for intruder: of its trial), counted from 0.",
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
    """Try one prompt about one latent on a language model.

    Use it to read a prompt before you pay for a run, or to see why a reply could not be read. PARTITION is the name of
    an SAE, LATENT the number of a latent; name an explainer or a judge. The command shows the prompt, the reply and
    what is read of it, and stores no result. What a paid model costs counts against the budget. With --dry nothing is
    sent, and no model is needed. The exit code is 1 if the reply could not be read.

    JSON: an object with partition, latent, what identifies the prompt (explainer, model; or scorer, judge, explanation,
    trial, …), prompt_sha256, messages, status (empty if nothing was sent), reason, reply, repaired, value, truth,
    prompt_tokens, completion_tokens and cost_usd.

    \b
    Example:
      latentgloss try smollm2/layers.9/topk2048 12 --explainer llm --dry
      latentgloss try smollm2/layers.9/topk2048 12 --judge smollm2-instruct --scorer fuzzing --explainer pattern
      latentgloss try smollm2/layers.9/topk2048 12 --judge smollm2-instruct --text "Fires on 'import'." --prompt 1
    """
    from latentgloss.preview.one_latent import try_explainer, try_judge

    if judge is None and explainer is None:
        raise click.UsageError("name an --explainer or a --judge")
    if judge is None and (text is not None or number):
        raise click.UsageError("--text and --prompt can only be used with --judge")
    if judge is not None and scorer == "intruder" and (text is not None or explainer is not None):
        raise click.UsageError("intruder detection judges a latent without an explanation")
    workspace = open_workspace(ctx)
    known_sae(workspace, partition, ["sampled_contexts"])
    if judge is None:
        trial = try_explainer(workspace, partition, latent, explainer or "", dry=dry)
    else:
        trial = try_judge(
            workspace, partition, latent, judge, scorer=scorer, explainer=explainer, text=text, number=number, dry=dry
        )
    if as_json:
        found = {**vars(trial), "messages": [vars(message) for message in trial.messages]}
        print_json({"partition": partition, **found.pop("about"), **found})
    else:
        _print(trial)
    if trial.status not in ("", "ok"):
        raise click.ClickException(f"{trial.status}: {trial.reason}")


def _print(trial: Trial) -> None:
    """Prints the messages, the reply and what was read of it."""
    for message in trial.messages:
        click.echo(f"=== {message.role}")
        _echo(message.content)
    if not trial.status:
        click.echo("=== (nothing was sent)")
        return
    second = "second " if trial.repaired else ""
    spent = f"{trial.prompt_tokens} + {trial.completion_tokens} tokens, {trial.cost_usd:.6f} USD"
    click.echo(f"=== {second}reply ({spent})")
    _echo(trial.reply)
    if trial.status == "ok":
        click.echo("=== read")
        _echo(trial.value if isinstance(trial.value, str) else _verdicts(trial))


def _verdicts(trial: Trial) -> str:
    """Each answer of a judge with the right answer, and how many are right."""
    if isinstance(trial.truth, int):
        return f"{plain(trial.value)} (the intruder is {plain(trial.truth)})"
    verdicts = list(zip(trial.value or [], trial.truth, strict=True))
    right = sum(said == true for said, true in verdicts)
    lines = [f"{i}. {plain(said)} (it is {plain(true)})" for i, (said, true) in enumerate(verdicts, 1)]
    return "\n".join([*lines, f"{right} of {len(verdicts)} right"])


def _echo(text: str) -> None:
    """Prints text line by line without control characters."""
    for line in text.split("\n"):
        click.echo(plain(line))
