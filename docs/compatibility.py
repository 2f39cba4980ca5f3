"""Writes docs/compatibility.md: what happens with each architecture and each behaviour of servers that was tried.

Loads and runs every architecture.

python docs/compatibility.py            write the page (half a minute of CPU time)
python docs/compatibility.py --check    only compare; exit 1 if the page is out of date

`make test` compares too (tests/models/test_architectures.py), so a page that is out of date fails there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # this checkout instead of an installed package, and its test world

from architectures import CONFIGS, DTYPES, REFUSED, ROUNDING, outcome  # noqa: E402
from server_behaviours import rows as behaviours  # noqa: E402
from transformers.utils import logging  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from architectures import Outcome

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
# Compatibility

What was tried and what happens with it. `make docs` writes this page from what it finds (`docs/compatibility.py`), and
`make test` finds the same again; do not edit it.
"""

SUBJECTS = """\
## Subject models

Every architecture below was built tiny with random weights, saved, and loaded as a subject model on a CPU. Then the
output and the input of every module were compared with those in transformers' own forward pass
(`tests/architectures.py`).

- *Equal* in float32: the same bits. In bfloat16: the same bits too, except for models that use latentgloss's own
  attention, on CPUs with bfloat16 instructions (`latentgloss/models/cpu_attention.py`). There, the difference is
  rounding, and below {rounding:.0%} of the largest norm at the hookpoint.
- A hookpoint has the same bits alone as together with all other hookpoints of the model.
- Other tokens later in a sequence change nothing before them. latentgloss tries this with every model that it loads, on
  every device, and refuses a model whose activations depend on later tokens, or that does not run on token ids alone.
- *Runs again*: modules that run several times in a forward pass. Activations at such a hookpoint are those of the first
  run.

An architecture that is not in the table is not refused for it. The same trial decides when it is loaded.

| `model_type` | class in transformers | {dtypes} | runs again |
|---|---|{bars}---|
{rows}
"""

SERVERS = """\
## Servers of language models

A server on this machine behaved in each of these ways, while the real client asked it 60 questions over HTTP
(`tests/server_behaviours.py`, `tests/llm/test_servers.py`). No vendor's server was asked.

| what the server does | what happens |
|---|---|
{rows}
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section() for section in SECTIONS)])


def subjects() -> str:
    """The section on subject models."""
    return SUBJECTS.format(
        rounding=ROUNDING,
        dtypes=" | ".join(DTYPES),
        bars="---|" * len(DTYPES),
        rows="\n".join(_row(outcome(model_type)) for model_type in CONFIGS),
    )


def servers() -> str:
    """The section on servers of language models."""
    return SERVERS.format(rows="\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in behaviours()))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


SECTIONS: list[Callable[[], str]] = [subjects, servers]
"""The sections of the page, in order; each returns a heading, its text and its table."""


def _row(found: Outcome) -> str:
    again = ", ".join(f"`{path}`" for path in found.runs_again)
    cells = " | ".join(_cell(found, dtype) for dtype in DTYPES)
    return f"| `{found.model_type}` | `{found.model_class}` | {cells} | {again} |"


def _cell(found: Outcome, dtype: str) -> str:
    """What happens with an architecture in a dtype."""
    if dtype in found.refused:
        return f"refused: {REFUSED.get(found.model_type) or found.refused[dtype]}"
    wrong = [fault for fault in found.faults if fault.startswith(dtype)]
    return f"differs: {wrong[0]}" if wrong else "equal"


def main(arguments: list[str]) -> int:
    """Writes the page, or compares it with `--check`; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    logging.disable_progress_bar()
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
