"""What was odd about a model's replies: counted in the store, logged once, and used by the budget.

What belongs here: the kinds of remarks, recognising them in a reply, and the tokens that a server has billed beyond
what it was allowed. These decide how much later requests reserve (`payments.py`), in every process of the store. Reads
and writes the table `remark` of the store's database, which is created with the first remark.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from latentgloss.errors import without_secrets

if TYPE_CHECKING:
    import sqlite3

    from latentgloss.llm.database import Database
    from latentgloss.llm.ledger import Cost
    from latentgloss.protocols import Reply

_log = logging.getLogger(__name__)

Kind = Literal["another_model", "beyond_limit", "prompt_truncated", "usage"]
SAYS: dict[str, str] = {
    "another_model": "was not answered by the model that was asked for, so its results may be another model's",
    "prompt_truncated": "did not read whole prompts; the rows say `prompt_truncated` and have no value",
    "beyond_limit": "billed more tokens than it was allowed; all are charged, and later requests reserve as many more",
    "usage": "reported tokens that contradict each other or cannot be; charged is the largest reading that can",
}
"""What each kind of remark means, after the model's name."""

BEYOND_S = 24 * 3600.0
"""How long a bill beyond what was allowed raises reservations. A server that was mended would be held back for ever."""

_SNAPSHOT = re.compile(r"(?:[-@:_.](?:latest|\d{4}[-_.]?\d\d[-_.]?\d\d|\d\d-\d\d(?:\d\d)?|\d{3,8}))?")
"""What may follow the name of a model: a date, the number of a release, or `latest`."""

_TABLE = """
CREATE TABLE IF NOT EXISTS remark (
    model TEXT NOT NULL,
    kind TEXT NOT NULL,
    replies INTEGER NOT NULL,
    example TEXT NOT NULL,  -- of the last of these replies
    prompt_tokens INTEGER NOT NULL,  -- most beyond what was allowed, over all these replies
    completion_tokens INTEGER NOT NULL,
    at REAL NOT NULL,  -- of the last of these replies, in seconds since 1970
    PRIMARY KEY (model, kind)
)
"""
_ADD = """
INSERT INTO remark VALUES (?, ?, 1, ?, ?, ?, ?) ON CONFLICT (model, kind) DO UPDATE SET
    replies = replies + 1, example = excluded.example, at = excluded.at,
    prompt_tokens = max(prompt_tokens, excluded.prompt_tokens),
    completion_tokens = max(completion_tokens, excluded.completion_tokens)
"""


@dataclass(frozen=True)
class Remark:
    """One kind of oddity in the replies of one model."""

    model: str
    kind: str
    replies: int
    """Replies to which it applies."""
    example: str
    """What it was in the last of them."""


class Remarks:
    """The remarks about one model, named as in the registry; `asked_for` is its name in requests."""

    def __init__(self, model: str, asked_for: str, database: Database) -> None:
        self.model, self.asked_for, self._database = model, asked_for, database
        self._logged: set[str] = set()
        self._exists = False

    def of_reply(self, transaction: sqlite3.Connection, reply: Reply, most: Cost | None) -> None:
        """Adds what is odd about a reply that has just arrived. `most`: what it was allowed to cost, if it is paid."""
        if reply.model and not is_same_model(self.asked_for, reply.model):
            self._add(transaction, "another_model", f"{reply.model!r} answered, {self.asked_for!r} was asked for")
        if reply.status == "prompt_truncated":
            self._add(transaction, "prompt_truncated", reply.reason)
        if reply.note:
            self._add(transaction, "usage", reply.note)
        if most is None:
            return
        prompt = max(reply.prompt_tokens - most.prompt_tokens, 0)
        completion = max(reply.completion_tokens - most.completion_tokens, 0)
        if prompt or completion:
            example = (
                f"{reply.prompt_tokens:,} tokens of prompt and {reply.completion_tokens:,} of reply, where at most "
                f"{most.prompt_tokens:,} and {most.completion_tokens:,} were expected"
            )
            self._add(transaction, "beyond_limit", example, prompt, completion)

    def beyond(self) -> tuple[int, int]:
        """The most tokens of prompt and of reply that a reply of this model has taken beyond what it was allowed.

        (0, 0) if there was none within `BEYOND_S`.
        """
        if not self._exists and not table_exists(self._database):
            return 0, 0
        self._exists = True
        query = (
            "SELECT prompt_tokens, completion_tokens FROM remark WHERE model = ? AND kind = 'beyond_limit' AND at > ?"
        )
        found = self._database.rows(query, self.model, time.time() - BEYOND_S)
        return (int(found[0][0]), int(found[0][1])) if found else (0, 0)

    def _add(
        self, transaction: sqlite3.Connection, kind: Kind, example: str, prompt: int = 0, completion: int = 0
    ) -> None:
        example = without_secrets(example).encode("utf-8", "replace").decode()[:300]
        transaction.execute(_TABLE)
        transaction.execute(_ADD, (self.model, kind, example, prompt, completion, time.time()))
        if kind not in self._logged:
            self._logged.add(kind)
            _log.warning("%s %s (%s)", self.model, SAYS[kind], example)


def is_same_model(asked_for: str, answered: str) -> bool:
    """Whether the name in a reply is the one that was asked for, or one that only says more about it.

    A server may add the date or number of a snapshot (`gpt-x` and `gpt-x-2026-01-01`, `gpt-x-0613`, `gpt-x-latest`), or
    leave out the vendor before a slash. `gpt-x-mini` is another model.
    """
    asked, found = asked_for.strip().lower(), answered.strip().lower()
    if "/" not in found:
        asked = asked.rpartition("/")[2]
    asked = asked.removesuffix("-latest").removesuffix(":latest")
    return found.startswith(asked) and _SNAPSHOT.fullmatch(found[len(asked) :]) is not None


def table_exists(database: Database) -> bool:
    """Whether any remark was ever made in this store."""
    return bool(database.rows("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'remark'"))


def all_remarks(database: Database) -> list[dict[str, Any]]:
    """Every remark of the store as a `Remark`'s fields and `says`, by model."""
    if not table_exists(database):
        return []
    rows = database.rows("SELECT model, kind, replies, example FROM remark ORDER BY model, kind")
    return [{**asdict(Remark(*row)), "says": SAYS.get(row[1], row[1])} for row in rows]
