"""What commands share: opening the workspace, choosing partitions, printing tables and JSON."""

from __future__ import annotations

import difflib
import json
import math
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from latentgloss.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from latentgloss.workspace import Workspace

    Command = Callable[..., Any]


CELL = 60
"""Widest cell of a column that is not the last."""

json_option: Callable[[Command], Command] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON with stable keys instead of a table."
)


def open_workspace(ctx: click.Context) -> Workspace:
    """The workspace of `--config`. Raises SettingsError."""
    from latentgloss.workspace import Workspace

    return Workspace.open(ctx.obj)


def unknown(what: str, name: str, known: Iterable[str], todo: str = "") -> InputError:
    """The error for a name that is not among the known ones, with the nearest of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    expected = "one of " + ", ".join(repr(n) for n in near) if near else "nothing: there is none"
    if len(names) > len(near):
        expected += f" (nearest of {len(names)})"
    return InputError(f"{what} {name!r} is unknown", expected=expected, todo=todo)


def known_sae(workspace: Workspace, partition: str, stages: Iterable[str]) -> str:
    """`partition`, if the registry declares it or one of the stages has it. Raises InputError with near names."""
    from latentgloss.config.entries import split_partition

    if partition in workspace.registry.saes:
        return partition
    stored: set[str] = set()
    try:
        split_partition(partition)
        stored = {key for stage in stages for key in workspace.store.partitions(stage)}
    except InputError:
        pass
    if partition in stored:
        return partition
    raise unknown("SAE", partition, {*workspace.registry.saes, *stored}, "see `latentgloss saes list`")


def clean(value: Any) -> Any:
    """`value` with what JSON cannot hold (NaN, infinities) as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def print_json(value: Any) -> None:
    click.echo(json.dumps(clean(value), indent=1))


def print_json_rows(rows: Iterable[dict[str, Any]]) -> None:
    """A JSON list, a row per line, printed as the rows come."""
    lead = "["
    for row in rows:
        click.echo(f"{lead}\n{json.dumps(clean(row))}", nl=False)
        lead = ","
    click.echo("[]" if lead == "[" else "\n]")


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns, numbers to the right. On a terminal the last column is cut to its width."""
    cells = [[plain(value) for value in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    last = len(header) - 1
    cells = [[c if i == last else _cut(c, CELL) for i, c in enumerate(row)] for row in cells]
    widths = [max([len(h), *(len(row[i]) for row in cells)]) for i, h in enumerate(header)]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in [list(header), *cells]:
        padded = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        line = "  ".join(padded).rstrip()
        click.echo(_cut(line, limit) if limit else line)


def plain(value: Any) -> str:
    """A cell. Text written by a model may hold control characters, which a terminal would obey."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == "-"
    return True
