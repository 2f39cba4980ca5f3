"""The commands `saes list` and `saes check`: which SAEs are declared, and whether their files can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from latentgloss.cli.output import json_option, known_sae, open_workspace, print_json, print_table
from latentgloss.machine.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentgloss.config.entries import SaeSpec
    from latentgloss.errors import LatentglossError, SaeError
    from latentgloss.models.subject import Subject
    from latentgloss.workspace import Workspace

T = TypeVar("T")


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

    Use it after declaring an SAE, before a run. It reports all problems at once. The SAE's weights and the model are
    read, and what the SAE's own files say about its training is compared with the registry. PARTITION is the name of
    an SAE; without one, all SAEs and all files of the registry are checked. The exit code is 1 if there is a problem. A
    warning names what is unusual but can be used.

    JSON: saes (partition, n_latents, d_in, width, problems, warnings) and problems (of registry files).

    \b
    Example:
      latentgloss saes check smollm2/layers.9/topk2048
    """
    workspace = open_workspace(ctx)
    chosen = [known_sae(workspace, p, []) for p in partitions] or sorted(workspace.registry.saes)
    checker = _Checker(workspace)
    rows = [checker.row(workspace.registry.sae(partition)) for partition in chosen]
    # Broken registry files are not reported if the check is about named SAEs.
    problems = [] if partitions else [_problem(str(p), e) for p, e in workspace.registry.problems.items()]
    if as_json:
        print_json({"saes": rows, "problems": problems})
    else:
        print_table(
            ("PARTITION", "LATENTS", "WIDTH", "OK"),
            ([r["partition"], r["n_latents"], r["d_in"], not r["problems"]] for r in rows),
        )
        told = [(p["where"], p["message"]) for row in rows for p in row["problems"]]
        told += [(p["where"], f"warning: {p['message']}") for row in rows for p in row["warnings"]]
        for where, message in dict.fromkeys(told):  # a model's problem is one of each of its SAEs
            click.echo(f"{printable(where)}: {printable(message, lines=True)}")
        for problem in problems:
            click.echo(printable(problem["message"], lines=True))
    n = len(problems) + sum(bool(row["problems"]) for row in rows)
    if n:
        raise click.ClickException(f"{n} of {len(rows) + len(problems)} SAEs and registry files have problems.")


class _Checker:
    """Checks SAEs one after another. A problem of one, whatever it is, does not prevent checking the others."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.models: dict[str, tuple[Subject | None, list[dict[str, str]]]] = {}
        """Of each model that was needed: the model, if it could be loaded, and its problems."""

    def row(self, sae: SaeSpec) -> dict[str, Any]:
        """One SAE's files, its model, and whether they fit each other."""
        from latentgloss.activations.quality import zero_rows_error
        from latentgloss.contexts.latent_sample import selected_latents

        found: list[LatentglossError] = []
        warnings: list[LatentglossError] = []
        width: int | None = None
        coder = _attempt(lambda: self.workspace.sae(sae), found)
        if coder is not None:
            _attempt(lambda: selected_latents(sae, coder.n_latents), found)
            error = zero_rows_error(coder)
            warnings += [error] if error else []
        subject, of_model = self._model(sae.model)
        if subject is not None:
            width = _attempt(lambda: subject.width_at(sae.hookpoint), found)
            if coder is not None and width is not None:
                _attempt(lambda: coder.check_width(width, sae.hookpoint), found)
            told = _attempt(lambda: self._training(sae, subject), found) or ([], [])
            found += told[0]
            warnings += told[1]
        return {
            "partition": sae.partition,
            "n_latents": coder.n_latents if coder else None,
            "d_in": coder.d_in if coder else None,
            "width": width,
            "problems": [*of_model, *(_problem(sae.partition, e) for e in found)],
            "warnings": [_problem(sae.partition, e) for e in warnings],
        }

    def _model(self, name: str) -> tuple[Subject | None, list[dict[str, str]]]:
        """The model of a name, loaded once, with what would prevent a run of it."""
        from latentgloss.models.devices import chosen_device
        from latentgloss.models.readiness import model_problems

        if name not in self.models:
            workspace = self.workspace
            found: list[LatentglossError] = []
            device = _attempt(lambda: chosen_device(workspace.settings.machine.device), found)
            spec = workspace.registry.model(name)
            found += _attempt(lambda: model_problems(spec, workspace.model_cache), found) or []
            subject = None if device is None else _attempt(lambda: workspace.subject(name), found)
            unique = {str(error): error for error in found}
            self.models[name] = subject, [_problem(name, error) for error in unique.values()]
        return self.models[name]

    def _training(self, sae: SaeSpec, subject: Subject) -> tuple[list[SaeError], list[SaeError]]:
        """What the SAE's own files say that does not fit the registry: (problems, warnings)."""
        from latentgloss.saes.training import Model, contradictions

        spec = self.workspace.registry.model(sae.model)
        model = Model(spec, subject.places, subject.model_types, subject.has_layer_norm)
        return contradictions(sae, model)


def _attempt(action: Callable[[], T], found: list[LatentglossError]) -> T | None:
    """What `action` returns; None if it fails, and then its error is added to `found`."""
    from latentgloss.pipeline.failures import as_error

    try:
        return action()
    except Exception as e:
        found.append(as_error(e))
        return None


def _problem(where: str, error: LatentglossError) -> dict[str, str]:
    """An error as JSON. `where`: the SAE, its model or the registry file."""
    parts = {"found": error.found, "expected": error.expected, "todo": error.todo}
    return {"where": where, "message": str(error), **parts}
