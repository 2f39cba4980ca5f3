"""The commands `saes list` and `saes check`: which SAEs are declared, and whether their files can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from latentgloss.cli.output import json_option, known_sae, open_workspace, print_json, print_table

if TYPE_CHECKING:
    from latentgloss.config.entries import SaeSpec
    from latentgloss.errors import LatentglossError
    from latentgloss.workspace import Workspace


@click.group()
def saes() -> None:
    """List and check the SAEs that the registry declares.

    The registry is a folder of TOML files, with one file per SAE in its subfolder saes/.

    \b
    Example:
      latentgloss saes list
    """


@saes.command("list")
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the SAEs that the registry declares.

    Use it to find the name of an SAE, which other commands call PARTITION. LATENTS says which latents are selected. Of
    every registry file that cannot be used, the reason is printed to stderr.

    JSON: saes (partition, format, source or null, latents, control) and problems (where, message, found, expected,
    todo).

    \b
    Example:
      latentgloss saes list
    """
    registry = open_workspace(ctx).registry
    rows = [
        {
            "partition": sae.partition,
            "format": sae.format,
            "source": sae.source,
            "latents": sae.model_dump(mode="json")["latents"],
            "control": sae.control,
        }
        for sae in sorted(registry.saes.values(), key=lambda sae: sae.partition)
    ]
    problems = [_problem(str(path), error) for path, error in registry.problems.items()]
    if as_json:
        print_json({"saes": rows, "problems": problems})
        return
    columns = ("partition", "format", "latents", "control", "source")
    print_table([name.upper() for name in columns], ([row[name] for name in columns] for row in rows))
    for error in registry.problems.values():
        click.echo(f"cannot be used: {error}", err=True)


@saes.command()
@click.argument("partitions", nargs=-1, metavar="[PARTITION]...")
@json_option
@click.pass_context
def check(ctx: click.Context, partitions: tuple[str, ...], as_json: bool) -> None:
    """Check whether SAEs can be read and fit their models.

    Use it after declaring an SAE, before a run. It reports all problems at once. The SAE's weights and the model's
    hookpoint are read. PARTITION is the name of an SAE; without one, all SAEs and all files of the registry are
    checked. The exit code is 1 if there is a problem.

    JSON: saes (partition, n_latents, d_in, width, problems) and problems (of registry files).

    \b
    Example:
      latentgloss saes check smollm2/layers.9/topk2048
    """
    workspace = open_workspace(ctx)
    chosen = [known_sae(workspace, p, []) for p in partitions] or sorted(workspace.registry.saes)
    rows = [_checked(workspace, workspace.registry.sae(partition)) for partition in chosen]
    # Broken registry files are not reported if the check is about named SAEs.
    problems = [] if partitions else [_problem(str(p), e) for p, e in workspace.registry.problems.items()]
    if as_json:
        print_json({"saes": rows, "problems": problems})
    else:
        print_table(
            ("PARTITION", "LATENTS", "WIDTH", "OK"),
            ([r["partition"], r["n_latents"], r["d_in"], not r["problems"]] for r in rows),
        )
        for row in rows:
            for problem in row["problems"]:
                click.echo(f"{row['partition']}: {problem['message']}")
        for problem in problems:
            click.echo(problem["message"])
    n = len(problems) + sum(bool(row["problems"]) for row in rows)
    if n:
        raise click.ClickException(f"{n} of {len(rows) + len(problems)} SAEs and registry files have problems.")


def _checked(workspace: Workspace, sae: SaeSpec) -> dict[str, Any]:
    """Reads one SAE and compares it with its model. A problem in one part does not prevent checking the others."""
    from latentgloss.contexts.latent_sample import selected_latents
    from latentgloss.errors import LatentglossError

    found: list[LatentglossError] = []
    coder = width = None
    try:
        coder = workspace.sae(sae)
        selected_latents(sae, coder.n_latents)
    except LatentglossError as e:
        found.append(e)
    try:
        width = workspace.subject(sae.model).width_at(sae.hookpoint)
        if coder is not None:
            coder.check_width(width, sae.hookpoint)
    except LatentglossError as e:
        found.append(e)
    return {
        "partition": sae.partition,
        "n_latents": coder.n_latents if coder else None,
        "d_in": coder.d_in if coder else None,
        "width": width,
        "problems": [_problem(sae.partition, e) for e in found],
    }


def _problem(where: str, error: LatentglossError) -> dict[str, str]:
    """An error as JSON. `where`: the SAE or the registry file."""
    parts = {"found": error.found, "expected": error.expected, "todo": error.todo}
    return {"where": where, "message": str(error), **parts}
