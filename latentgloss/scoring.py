"""Scoring side by side: what the runners of all scorers share.

What belongs here: blocks that are scored while others are, what becomes of each when it is, adding up what judges took;
and scorers that are run at the same time. What is asked and how answers become numbers is the stages' (`scores.py`,
`intruders.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss import schema
from latentgloss.ahead import abreast, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from latentgloss.blocks import Block
    from latentgloss.protocols import Answer
    from latentgloss.work import Outcome, Runner, Work
    from latentgloss.workspace import Workspace

TAKEN = ("prompt_tokens", "completion_tokens", "cost_usd")
Spent = dict[str, dict[str, float]]
"""Per judge, what its answers took."""


def spend(spent: Spent, judge: str, answers: Iterable[Answer]) -> None:
    """Adds what a judge's answers took."""
    taken = spent.setdefault(judge, dict.fromkeys(TAKEN, 0))
    for answer in answers:
        for name in TAKEN:
            taken[name] += getattr(answer, name)


Written = dict[str, "Block"]
"""Blocks that were scored and lie in the draft's folder, by name. Of their facts, `spent` is what judges took."""


def gather(
    work: Work,
    begun: Iterable[tuple[int, Callable[[], Written]]],
    total: int,
    *,
    most: int = 0,
    contexts: int | None = None,
) -> None:
    """Has blocks scored, up to `most` at once (`ahead.in_order`), and counts each in the draft when it is.

    What judges took for it becomes a fact of the version, whichever run paid: blocks that were there already count.
    """
    for done, written in enumerate(in_order(begun, most, contexts), 1):
        for name, block in written.items():
            work.draft.add(name, block)
        work.progress(done, total, "blocks of latents")
    spent: Spent = {}
    for block in work.draft.blocks.values():
        for judge, taken in block.facts.get("spent", {}).items():
            before = spent.setdefault(judge, dict.fromkeys(TAKEN, 0))
            spent[judge] = {name: before[name] + taken[name] for name in TAKEN}
    if spent:
        work.facts["spent"] = dict(sorted(spent.items()))
    work.note_unanswered(schema.JUDGEMENTS)


def facts_of(spent: Spent) -> dict[str, Any]:
    """What a block's file says of what it took; nothing where nothing was."""
    taken = {judge: of for judge, of in spent.items() if any(of.values())}
    return {"spent": taken} if taken else {}


def together(
    workspace: Workspace, runners: Mapping[str, Runner], partitions: Sequence[str], **options: Any
) -> Iterator[Outcome]:
    """Brings partitions of several stages up to date (`Workspace.materialise`); outcomes as they come.

    Stages whose judges ask a language model are scored side by side: where one of them waits, another asks. Those that
    only compute would get in each other's way, and follow one another.
    """
    asking = [name for name in runners if workspace.settings.asks(name)]
    computing = [name for name in runners if name not in asking]

    def of(names: list[str]) -> Iterator[Outcome]:
        for name in names:
            yield from workspace.materialise(name, partitions, runners[name], **options)

    return abreast([of(names) for names in (computing, *([name] for name in asking)) if names])
