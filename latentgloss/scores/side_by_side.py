"""Asking about blocks of latents concurrently: the one loop that the runner of every scorer uses.

What belongs here: starting blocks while earlier ones wait for replies, adding written blocks to the draft in order, and
adding up what the judges took. What is asked about a block, and how answers become numbers, is up to the stage
(`stages.py`, `intruder_stage.py`), which passes a function from a block to a `BlockTask`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from latentgloss import schema
from latentgloss.machine.concurrency import BLOCKS_UNDER_WAY, CONTEXTS_UNDER_WAY, Threads, run_in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Answer
    from latentgloss.store import Block

AHEAD = 2
"""Blocks that processes score while one is added to the draft."""
TAKEN = ("prompt_tokens", "completion_tokens", "cost_usd")
"""What answers take, as fields of `protocols.Answer`."""
Taken = dict[str, dict[str, float]]
"""Tokens and dollars that the answers of each judge took."""
Written = dict[str, "Block"]
"""Scored blocks whose files are in the folder of the draft, by name. Their fact `spent` is a `Taken`."""


@dataclass(frozen=True)
class BlockTask:
    """The scoring of one block of latents, not started yet."""

    contexts: int
    """Contexts that it asks about. Their number bounds how many blocks are under way."""
    score: Callable[..., Written]
    """Asks, scores and writes, called with `arguments`."""
    arguments: tuple[Any, ...]


def ask_about_blocks(
    run: StageRun[Any],
    blocks: Sequence[str],
    task_of: Callable[[str], BlockTask | None],
    *,
    asks: bool,
    processes: Executor | None = None,
) -> None:
    """Scores every block of a partition and adds each to the draft, in order.

    `task_of` prepares a block, or returns None if the draft has all of it already; it is called in this thread. Tasks
    run in `processes` if given, and must then be picklable. Otherwise they run on threads if a judge `asks` a language
    model, and else one after the other in this thread. What the judges took becomes the fact `spent` of the version, no
    matter which run paid for it.
    """

    def started(threads: Threads) -> Iterator[tuple[int, Callable[[], Written]]]:
        for block in blocks:
            task = task_of(block)
            if task is None:
                yield 0, dict
            elif processes is not None:
                yield task.contexts, processes.submit(task.score, *task.arguments).result
            elif asks:
                yield task.contexts, threads.submit(task.score, *task.arguments).result
            else:
                yield task.contexts, partial(task.score, *task.arguments)

    most = AHEAD if processes is not None else BLOCKS_UNDER_WAY if asks else 0
    with Threads() as threads:
        finished = run_in_order(started(threads), most, CONTEXTS_UNDER_WAY if asks else None)
        for done, written in enumerate(finished, 1):
            for name, block in written.items():
                run.draft.add(name, block)
            run.progress(done, len(blocks), "blocks of latents")
    taken = _taken_by_blocks(run.draft.blocks.values())
    if taken:
        run.facts["spent"] = taken
    run.check_readable(schema.JUDGEMENTS, "judge", "prompt")
    run.note_unanswered(schema.JUDGEMENTS)


def add_taken(taken: Taken, judge: str, answers: Iterable[Answer]) -> None:
    """Adds the tokens and dollars of a judge's answers to `taken`."""
    total = taken.setdefault(judge, dict.fromkeys(TAKEN, 0))
    for answer in answers:
        for name in TAKEN:
            total[name] += getattr(answer, name)


def facts_of(taken: Taken) -> dict[str, Any]:
    """The facts of a scored block: what each judge took, without judges that took nothing."""
    spent = {judge: amounts for judge, amounts in taken.items() if any(amounts.values())}
    return {"spent": spent} if spent else {}


def _taken_by_blocks(blocks: Iterable[Block]) -> Taken:
    """What each judge took for all blocks, in alphabetical order of the judges."""
    total: Taken = {}
    for block in blocks:
        for judge, taken in block.facts.get("spent", {}).items():
            before = total.setdefault(judge, dict.fromkeys(TAKEN, 0))
            total[judge] = {name: before[name] + taken[name] for name in TAKEN}
    return dict(sorted(total.items()))
