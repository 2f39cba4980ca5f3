"""Decides when a run ends because the replies of a language model cannot be used.

What belongs here: what has been read of a model's replies in this run, and when that is reason enough to end it.
Whether a single reply can be read is up to explainers and judges. Nothing is read or written here.

- **First queries.** Until one query of a kind has been read, at most `FIRST` of them are under way at a time. If none
  of `FIRST` queries can be read, the run ends.
- **Later.** If `LATER` queries of a kind in a row cannot be read, the run ends, because the server has changed.
- **A kind** of queries are those with the same instructions, such as all prompts of one judge for detection.
- Queries whose replies an earlier run could not use are neither counted here nor a reason to end the run.

A query that has no reply (`llm_error`) is not counted; `health.py` decides about such servers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentgloss.errors import LanguageModelError
from latentgloss.pipeline.accounting import run_of_now

if TYPE_CHECKING:
    from collections.abc import Hashable

    from latentgloss.protocols import LanguageModel


FIRST = 20
"""Queries of a kind of which at least one must be read."""
LATER = 100
"""Queries of a kind in a row of which at least one must be read, once one was read before."""
UNREAD = frozenset({"parse_failed", "prompt_truncated"})
"""Statuses of queries whose reply cannot be read. If a run finds such a reply in the cache, it asks again."""
UNUSABLE = UNREAD | {"refused"}
"""Statuses of queries whose reply arrived and cannot be used. A refusal is an answer, and is not asked for again."""
QUOTED = 300
"""Most characters of a reply that a message quotes."""


@dataclass
class _Kind:
    """What is known in this run about one kind of queries."""

    read: bool = False
    """Whether any was read."""
    open: int = 0
    """Queries under way, over all callers."""
    unread: int = 0
    """Queries in a row that could not be read."""


@dataclass
class Readings:
    """What has been read of a model's replies in one run. May be used from any thread."""

    name: str
    """Name of the language model."""
    ends: bool = True
    """Whether the run ends if nothing can be read."""
    stopped: LanguageModelError | None = None
    """The error that ended the run."""
    unusable: set[bytes] = field(default_factory=set)
    """Keys of queries that this run asked and whose replies cannot be used. They are not asked again in this run."""
    _kinds: dict[Hashable, _Kind] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def raise_if_stopped(self) -> None:
        """Raises the error that ended the run, if it has ended."""
        if self.stopped is not None:
            raise self.stopped

    def may_take(self, kind: Hashable, mine: int) -> bool:
        """Whether one more query of this kind may be sent now.

        `mine`: queries that the caller itself has under way. A caller without any may always send one.
        """
        with self._lock:
            known = self._kinds.setdefault(kind, _Kind())
            return not self.ends or known.read or not mine or known.open + known.unread < FIRST

    def take(self, kind: Hashable) -> None:
        """One more query of this kind is under way."""
        with self._lock:
            self._kinds.setdefault(kind, _Kind()).open += 1

    def leave(self, kind: Hashable, queries: int) -> None:
        """So many queries are no longer under way, and nothing is known about them."""
        with self._lock:
            self._kinds[kind].open -= queries

    def finish(self, kind: Hashable, status: str, reason: str, reply: str, *, counts: bool) -> None:
        """Records the status of a query that is no longer under way.

        `counts`: whether it says something about the server as it is now. Raises LanguageModelError if the run ends.
        """
        with self._lock:
            known = self._kinds[kind]
            known.open -= 1
            if status == "ok":
                known.read, known.unread = True, 0
            elif self.ends and status in UNUSABLE and counts:
                known.unread += 1
                if known.unread >= (LATER if known.read else FIRST) and self.stopped is None:
                    queries = f"{known.unread} queries in a row" if known.read else f"the first {known.unread} queries"
                    self.stopped = none_could_be_read(self.name, queries, status, reason, reply)
        self.raise_if_stopped()


def none_could_be_read(name: str, queries: str, status: str, reason: str, reply: str) -> LanguageModelError:
    """The error for queries of which none could be read, with status, reason and reply of the last one."""
    shown = " ".join(reply.split())
    shown = shown if len(shown) <= QUOTED else shown[:QUOTED] + "…"
    todo = "correct the registry entry or the server (`latentgloss try` shows one prompt and its reply)"
    if status == "refused":
        todo = "use another model, or ask the vendor why it refuses"
    elif "thinking" in reason:
        todo = "raise `reasoning_tokens` in the registry entry, or switch thinking off with its `parameters`"
    return LanguageModelError(
        f"{name}: none of {queries} could be read; the last one: {status} ({reason}), the reply: {shown or '(empty)'}",
        expected="replies in the form that the prompt asks for",
        todo=f"{todo}, then run again: replies that could not be read are asked for again, the others are kept",
    )


class ReadingsByRun:
    """The readings of a model in the run that the calling thread belongs to; outside of runs, each call has its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._run: Hashable = None
        self._readings = Readings(name)
        self._lock = threading.Lock()

    def __call__(self) -> Readings:
        """The readings of this run. They begin anew with another run."""
        run = run_of_now()
        if run is None:
            return Readings(self.name)
        with self._lock:
            if run != self._run:
                self._run, self._readings = run, Readings(self.name)
            return self._readings


def readings_of(model: LanguageModel) -> Readings:
    """What this run has read of the model's replies. A model that keeps no `readings` never ends a run."""
    keeps = getattr(model, "readings", None)
    return Readings(model.name, ends=False) if keeps is None else keeps()
