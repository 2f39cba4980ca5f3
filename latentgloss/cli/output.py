"""What commands share: opening the workspace, checking names, printing tables and JSON."""

from __future__ import annotations

import difflib
import json
import math
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from latentgloss.errors import InputError
from latentgloss.machine.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from latentgloss.workspace import Workspace

    Command = Callable[..., Any]


CELL = 60
"""Most characters of a cell, except in the last column."""

json_option: Callable[[Command], Command] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON with stable keys, for use in programs."
)
"""The option `--json`, which every command has."""


class Number(click.FloatRange):
    """A finite number in a range. Unlike click's own type it refuses `nan`, which compares with no bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Ends with a usage error for anything else."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is not a number in this range.", param, ctx)
        return number


def open_workspace(ctx: click.Context) -> Workspace:
    """The workspace of the settings file that `--config` names, or of the default one. Raises SettingsError."""
    from latentgloss.workspace import Workspace

    return Workspace.open(ctx.obj)


def unknown(what: str, name: str, known: Iterable[str], todo: str = "") -> InputError:
    """The error for a name that is not known; it lists the known names that are most similar."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    expected = "one of " + ", ".join(repr(n) for n in near) if near else f"no name, because there is no {what} yet"
    if len(names) > len(near):
        expected += f" (the most similar of {len(names)})"
    return InputError(f"{what} {name!r} is unknown", expected=expected, todo=todo)


def known_sae(workspace: Workspace, partition: str, stages: Iterable[str]) -> str:
    """Returns `partition` if the registry declares this SAE or one of `stages` has a result for it.

    Raises InputError otherwise; the message lists similar names.
    """
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
    """`value` with None in place of NaN and infinities, which JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def print_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    click.echo(json.dumps(clean(value), indent=1))


def print_json_rows(rows: Iterable[dict[str, Any]]) -> None:
    """Prints a JSON list with one row per line. Each row is printed as soon as it is known."""
    lead = "["
    for row in rows:
        click.echo(f"{lead}\n{json.dumps(clean(row))}", nl=False)
        lead = ","
    click.echo("[]" if lead == "[" else "\n]")


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints aligned columns, with numbers to the right. On a terminal, lines are cut to its width."""
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
    """The text of a cell. Control characters are replaced, because a terminal would obey those in a model's text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    return printable(value)


def size(n_bytes: float) -> str:
    """A number of bytes with a unit, such as `1.5 MiB`."""
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
