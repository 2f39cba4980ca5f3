"""What language models were asked and what it cost, store-wide, and the budget that ends it.

What belongs here: entries, totals, and the rule for a request that is about to be paid for. The entry is written
*before* the request is sent, with the most it can cost, and corrected when the reply arrives: several processes thus
share one budget, and what was in flight when a process was killed stays counted, since the vendor may bill it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from latentgloss.config.entries import Prices
    from latentgloss.llm.database import Database
    from latentgloss.protocols import Reply


GROUPS = ("model", "stage", "partition")
"""What entries can be added up by."""


@dataclass(frozen=True)
class Cost:
    """Tokens and their price."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def of(cls, prices: Prices, prompt: int, cached: int, completion: int) -> Cost:
        again = prices.prompt if prices.cached_prompt is None else prices.cached_prompt
        usd = (prompt - cached) * prices.prompt + cached * again + completion * prices.completion
        return cls(prompt, cached, completion, usd / 1e6)

    @classmethod
    def paid(cls, reply: Reply) -> Cost:
        return cls(reply.prompt_tokens, reply.cached_prompt_tokens, reply.completion_tokens, reply.cost_usd)


@dataclass(frozen=True)
class Spent:
    """Totals of paid models: answered, and sent without an answer (at the most that can have cost)."""

    tokens: int
    usd: float


class Ledger:
    """Entries in a store's database, and the budget over them. None: no limit in that unit."""

    def __init__(self, database: Database, *, tokens: int | None = None, usd: float | None = None) -> None:
        self.database, self.tokens, self.usd = database, tokens, usd

    @property
    def limited(self) -> bool:
        return self.tokens is not None or self.usd is not None

    def spent(self) -> Spent:
        found = self.database.rows("SELECT tokens, usd FROM account")
        return Spent(*found[0]) if found else Spent(0, 0.0)

    def send(self, model: str, charged: tuple[str, str], most: Cost) -> int | None:
        """Enters a request that is about to be paid for, at the most it can cost. None if the budget forbids it."""
        with self.database.transaction() as transaction:
            ((tokens, usd),) = transaction.execute("SELECT tokens, usd FROM account")
            if self.tokens is not None and tokens + most.tokens > self.tokens:
                return None
            if self.usd is not None and usd + most.usd > self.usd:
                return None
            return self._enter(transaction, model, charged, most, paid=True, state="sent")

    def answered(
        self, transaction: sqlite3.Connection, entry: int | None, model: str, charged: tuple[str, str], cost: Cost
    ) -> None:
        """Corrects a paid request's entry to what the reply cost; enters a free one (`entry` is None)."""
        if entry is None:
            self._enter(transaction, model, charged, cost, paid=False, state="answered")
            return
        transaction.execute(
            "UPDATE ledger SET state = 'answered', prompt_tokens = ?, cached_prompt_tokens = ?, "
            "completion_tokens = ?, usd = ? WHERE id = ?",
            (cost.prompt_tokens, cost.cached_prompt_tokens, cost.completion_tokens, cost.usd, entry),
        )

    def unanswered(self, entry: int | None, *, billed: bool) -> None:
        """No reply came. `billed`: it may have to be paid for all the same, and stays counted."""
        if entry is None:
            return
        with self.database.transaction() as transaction:
            if billed:
                transaction.execute("UPDATE ledger SET state = 'unanswered' WHERE id = ?", (entry,))
            else:
                transaction.execute("DELETE FROM ledger WHERE id = ?", (entry,))

    def totals(self, by: Sequence[str] = GROUPS) -> list[dict[str, Any]]:
        """Requests, tokens, money, and requests without an answer, by what of `GROUPS` is named; the rest is summed."""
        groups = ", ".join(name for name in GROUPS if name in by)
        found = self.database.rows(
            f"SELECT {groups}, max(paid), sum(state = 'answered'), sum(state != 'answered'), "
            f"sum(prompt_tokens), sum(cached_prompt_tokens), sum(completion_tokens), sum(usd) FROM ledger "
            f"GROUP BY {groups} ORDER BY {groups}"
        )
        names = (
            *(name for name in GROUPS if name in by),
            "paid",
            "answered",
            "unanswered",
            "prompt_tokens",
            "cached_prompt_tokens",
            "completion_tokens",
            "usd",
        )
        rows = [dict(zip(names, row, strict=True)) for row in found]
        return [{**row, "paid": bool(row["paid"])} for row in rows]

    @staticmethod
    def _enter(
        transaction: sqlite3.Connection,
        model: str,
        charged: tuple[str, str],
        cost: Cost,
        *,
        paid: bool,
        state: Literal["sent", "answered"],
    ) -> int:
        cursor = transaction.execute(
            "INSERT INTO ledger (at, model, stage, partition, paid, state, prompt_tokens, cached_prompt_tokens, "
            "completion_tokens, usd) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                time.time(),
                model,
                *charged,
                paid,
                state,
                cost.prompt_tokens,
                cost.cached_prompt_tokens,
                cost.completion_tokens,
                cost.usd,
            ),
        )
        return int(cursor.lastrowid or 0)
