"""Writes docs/data_dictionary.md from `latentgloss/schema.py` and `stages.py`; `--check` only compares.

python docs/data_dictionary.py            write the page
python docs/data_dictionary.py --check    exit 1 if it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from latentgloss.pipeline.graph import STAGES
from latentgloss.schema import TABLES, Column, Table

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
# Data dictionary

Every table in the store: what a row is, its columns, their types and units. Written from `latentgloss/schema.py` by
`make docs`; edit that file, not this page.

A version of a stage is the folder `<store>/<stage>/<partition>/<fingerprint>/`. Its tables are folders of Parquet
blocks in it, `<table>/<block>.parquet`, and read as one frame: `pl.scan_parquet("<…>/<table>/*.parquet")`; those of
`tokenized_corpus` are one file each, `<table>.parquet`, beside the token array `tokens.npy` and the marks of 13-grams
that an earlier split holds too, `shared_13grams.npy`.

*Key*: the columns that name a row. A column may be empty only where its type says so. Activations are in the model's
own units, probabilities in [0, 1], losses in nats; positions are global token indexes in the corpus.
"""


def page() -> str:
    """The whole page, in the order in which stages run."""
    written = {table.name for stage in STAGES.values() for table in stage.tables}
    if unwritten := sorted(TABLES.keys() - written):
        raise SystemExit(f"no stage declares the tables {unwritten}; add them to latentgloss/stages.py or delete them")
    parts = [HEAD]
    for stage in STAGES.values():
        if stage.tables:
            parts.append(f"## {stage.name}\n\n{stage.doc} One per {_GRAINS[stage.grain]}.\n")
            parts += map(_section, stage.tables)
    return "\n".join(parts)


_GRAINS = {"model": "model", "sae": "SAE"}


def _section(table: Table) -> str:
    keys = ", ".join(f"`{name}`" for name in table.key)
    part = f" Versioned apart by `{table.part}`." if table.part else ""
    rows = "\n".join(_row(column) for column in table.columns)
    return (
        f"### {table.name}\n\n{table.doc} Key: {keys}.{part}\n\n"
        f"| column | type | unit | meaning |\n|---|---|---|---|\n{rows}\n"
    )


def _row(column: Column) -> str:
    kind = str(column.dtype() if isinstance(column.dtype, type) else column.dtype)
    empty = ", may be empty" if column.nullable else ""
    doc = column.doc.replace("|", "\\|")
    return f"| `{column.name}` | {kind}{empty} | {column.unit} | {doc} |"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    expected = page()
    if not arguments:
        PAGE.write_text(expected, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == expected:
        return 0
    print(f"{PAGE} does not say what latentgloss/schema.py says. What to do: make docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
