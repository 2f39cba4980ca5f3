"""Writes docs/data_dictionary.md from `latentgloss/schema/` and `latentgloss/pipeline/graph.py`.

python docs/data_dictionary.py            write the page
python docs/data_dictionary.py --check    only compare; exit 1 if the page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from latentgloss.pipeline.graph import STAGES
from latentgloss.schema import TABLES, Column, Table

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
# Data dictionary

Every table in the store: what a row is, and the type, unit and meaning of each column. `make docs` writes this page
from `latentgloss/schema/` and `latentgloss/pipeline/graph.py`; edit those files instead of this page.

A version of a stage is the folder `<store>/<stage>/<partition>/<fingerprint>/`. Each of its tables is a folder of
Parquet blocks, `<table>/<block>.parquet`, which can be read as one frame: `pl.scan_parquet("<…>/<table>/*.parquet")`.
The tables of `tokenized_corpus` are single files, `<table>.parquet`. The same folder contains the token array,
`tokens.npy`, and marks of the 13-grams that also occur in an earlier split, `shared_13grams.npy`.

The *key* of a table is the set of columns that together identify a row. A column can be empty only if its type says so.
Activations are in the model's own units, probabilities are in [0, 1], and losses are in nats. Positions are global
token indexes in the corpus.
"""


def page() -> str:
    """The whole page, in the order in which stages run."""
    written = {table.name for stage in STAGES.values() for table in stage.tables}
    if unwritten := sorted(TABLES.keys() - written):
        raise SystemExit(
            f"no stage declares the tables {unwritten}: add them to latentgloss/pipeline/graph.py or delete them"
        )
    parts = [HEAD]
    for stage in STAGES.values():
        if stage.tables:
            parts.append(f"## {stage.name}\n\n{stage.doc} One per {_GRAINS[stage.grain]}.\n")
            parts += map(_section, stage.tables)
    return "\n".join(parts)


_GRAINS = {"model": "model", "sae": "SAE"}


def _section(table: Table) -> str:
    keys = ", ".join(f"`{name}`" for name in table.key)
    part = f" Each value of `{table.part}` is versioned separately." if table.part else ""
    rows = "\n".join(_row(column) for column in table.columns)
    return (
        f"### {table.name}\n\n{table.doc} Key: {keys}.{part}\n\n"
        f"| column | type | unit | meaning |\n|---|---|---|---|\n{rows}\n"
    )


def _row(column: Column) -> str:
    kind = str(column.dtype() if isinstance(column.dtype, type) else column.dtype)
    empty = ", can be empty" if column.nullable else ""
    doc = column.doc.replace("|", "\\|")
    return f"| `{column.name}` | {kind}{empty} | {column.unit} | {doc} |"


def main(arguments: list[str]) -> int:
    """Writes the page, or compares it with `--check`; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    expected = page()
    if not arguments:
        PAGE.write_text(expected, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == expected:
        return 0
    print(f"{PAGE} is out of date. What to do: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
