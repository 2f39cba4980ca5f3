"""The commands `gc` and `doctor`: remove versions that are not needed, and check the installation."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from latentgloss.cli.output import json_option, open_workspace, print_json, print_table, size, unknown
from latentgloss.errors import LatentglossError

if TYPE_CHECKING:
    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.workspace import Workspace


PACKAGES = (
    "latentgloss",
    "numpy",
    "scipy",
    "polars",
    "pyarrow",
    "pydantic",
    "torch",
    "transformers",
    "safetensors",
    "lancedb",
    "sentence-transformers",
    "dagster",
)
"""Packages whose versions `doctor` reports."""
OPTIONAL = ("dagster",)
"""Packages that may be missing."""


@click.command()
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
@click.option(
    "--broken",
    nargs=2,
    metavar="STAGE PARTITION",
    help="Remove instead the versions of this partition that are damaged, so that the next run computes them again.",
)
@json_option
@click.pass_context
def gc(ctx: click.Context, dry_run: bool, broken: tuple[str, str] | None, as_json: bool) -> None:
    """Remove versions from the store that nothing needs.

    Use it to free disk space. A version is removed if it is complete, and neither current nor part of the lineage of a
    current version. Run it only while no run is in progress, because a run needs versions that are not current yet.
    With --broken, the damaged versions of one partition are removed instead: those with files that do not have their
    stored hashes.

    JSON: removed (stage, partition, fingerprint, bytes, why, keep), bytes and dry_run.

    \b
    Example:
      latentgloss gc --dry-run
    """
    from latentgloss.pipeline import gc as core
    from latentgloss.pipeline.graph import STAGES

    workspace = open_workspace(ctx)
    store = workspace.store
    if broken:
        stage, partition = broken
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
        stored = core.stored_partitions(store, stage)
        if partition not in stored:
            raise unknown(f"partition of {stage}", partition, stored)
        found = core.broken(store, stage, partition)
    else:
        found = core.unused(store)
    if not dry_run:
        # What a run made current since it was listed stays.
        remove = core.remove_broken if broken else core.remove_unused
        found = [item for item in found if remove(store, item)]
    freed = sum(item.bytes for item in found)
    if as_json:
        print_json({"removed": [vars(item) for item in found], "bytes": freed, "dry_run": dry_run})
        return
    print_table(
        ("STAGE", "PARTITION", "FINGERPRINT", "SIZE", "WHY"),
        ([i.stage, i.partition, i.fingerprint, size(i.bytes), i.why] for i in found),
    )
    click.echo(f"{len(found)} versions, {size(freed)}: " + ("would be removed" if dry_run else "removed"))


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check packages, settings, registry and store.

    Use it after installing, before a run, or when something does not run. It shows versions, devices and paths, and
    what would stop a run: names in the settings that do not exist, sources that cannot be read, SAEs whose files
    are missing or quantised, a key that is not set, a paid model without a budget, a device that this machine does
    not have. If something needs attention, the exit code is 1. It sends nothing and loads no weights; `latentgloss
    saes check` reads models and SAEs.

    JSON: python, platform, packages, devices, settings, registry (with its language models), store and problems.

    \b
    Example:
      latentgloss doctor
    """
    problems: list[str] = []
    report: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    report["packages"] = {name: _version(name) for name in PACKAGES}
    problems += [
        f"package {name} is not installed"
        for name, v in report["packages"].items()
        if v is None and name not in OPTIONAL
    ]
    report["devices"] = _devices()
    try:
        workspace = open_workspace(ctx)
        report |= {"settings": _settings_file(ctx), "registry": None, "store": _store(workspace, problems)}
        report["registry"] = _registry(workspace, problems)
        problems += _preflight(workspace, problems)
    except LatentglossError as e:
        problems.append(str(e))
    report["problems"] = problems
    if as_json:
        print_json(report)
    else:
        _print(report)
    if problems:
        head = "1 thing needs attention" if len(problems) == 1 else f"{len(problems)} things need attention"
        raise click.ClickException(f"{head}:\n- " + "\n- ".join(problems))
    if not as_json:
        click.echo("\nNothing needs attention. `latentgloss saes check` also reads the weights of models and SAEs.")


def _version(name: str) -> str | None:
    """The version of an installed package; None if it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # A checkout on the path can be imported without being installed.
        return "not installed, on the path" if importlib.util.find_spec(name) else None


def _devices() -> list[str]:
    """The devices that torch can use. If torch is missing or does not start, that is reported and is no error."""
    found = [f"cpu ({os.cpu_count()} cores)"]
    try:
        import torch

        found += [
            f"cuda:{i} ({torch.cuda.get_device_name(i)}, {size(torch.cuda.get_device_properties(i).total_memory)})"
            for i in range(torch.cuda.device_count())
        ]
        if torch.backends.mps.is_available():
            found.append("mps")
    except (ImportError, OSError, RuntimeError) as e:
        found.append(f"others unknown: torch cannot be used ({type(e).__name__}: {e})")
    return found


def _settings_file(ctx: click.Context) -> str:
    """Path of the settings file in use."""
    from latentgloss.config.settings import find

    return str(ctx.obj.resolve() if ctx.obj else find())


def _store(workspace: Workspace, problems: list[str]) -> dict[str, Any]:
    """The store's place and free space. Adds to `problems` if it cannot be written or less than 1 GiB is free."""
    root = workspace.settings.store_root
    existing = root
    while not existing.exists():
        existing = existing.parent
    writable = True
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as e:
        writable = False
        problems.append(f"the store {root} cannot be written ({e.strerror})")
    free = shutil.disk_usage(existing).free
    if free < 2**30:
        problems.append(f"the store {root} has only {size(free)} of free space")
    return {"root": str(root), "exists": root.is_dir(), "writable": writable, "free_bytes": free}


def _registry(workspace: Workspace, problems: list[str]) -> dict[str, Any]:
    """What the registry declares. Adds to `problems` the files that cannot be used."""
    registry = workspace.registry
    problems += [str(error) for error in registry.problems.values()]
    return {
        "root": str(registry.root),
        "models": len(registry.models),
        "saes": len(registry.saes),
        "language_models": {name: _served(spec) for name, spec in sorted(registry.language_models.items())},
        "problems": [str(path) for path in registry.problems],
    }


def _preflight(workspace: Workspace, known: list[str]) -> list[str]:
    """What would stop a run, without the problems that are known already."""
    from latentgloss.workspace.preflight import problems

    return [str(error) for error in problems(workspace) if str(error) not in known]


def _served(spec: LanguageModelSpec) -> str:
    """The model that a registry entry declares. What a server really serves cannot be checked from here."""
    known = [spec.engine, spec.model, *(x for x in (spec.revision, spec.quantisation, spec.dtype) if x)]
    undeclared = spec.engine == "openai_compatible" and spec.revision is None
    note = "revision not declared, so another model of this name would not be noticed"
    return ", ".join([*known, *([note] * undeclared)])


def _print(report: dict[str, Any]) -> None:
    """Prints the report as a table."""
    rows: list[tuple[str, str]] = [("python", f"{report['python']} on {report['platform']}")]
    rows += [(name, version or "not installed") for name, version in report["packages"].items()]
    rows += [("device", device) for device in report["devices"]]
    if "settings" in report:
        rows.append(("settings", report["settings"]))
    if report.get("registry"):
        registry = report["registry"]
        rows.append(("registry", f"{registry['root']}: models: {registry['models']}, SAEs: {registry['saes']}"))
        rows += [("language model", f"{name}: {served}") for name, served in registry["language_models"].items()]
    if report.get("store"):
        store = report["store"]
        state = "" if store["exists"] else ", not created yet"
        rows.append(("store", f"{store['root']}: {size(store['free_bytes'])} free{state}"))
    print_table(("WHAT", "FOUND"), rows)
