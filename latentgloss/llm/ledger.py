"""The ledger: every request that was sent to a language model in this store, what it cost, and the budget.

What belongs here: entries, their totals, and the rule that admits a paid request. The entry of a paid request is
written *before* it is sent, with the most that it can cost, and corrected when the reply arrives. Several processes can
therefore share one budget, and a request that was in flight when its process was killed stays counted, because the
vendor may bill it. Reads and writes the tables `ledger` and `account` of the store's database (`database.py`).
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
"""Columns by which entries can be grouped."""


@dataclass(frozen=True)
class Cost:
    """Tokens and their price."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and the reply together."""
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def of(cls, prices: Prices, prompt: int, cached: int, completion: int) -> Cost:
        """The cost of `prompt` tokens, `cached` of them from the server's prefix cache, and `completion` tokens.

        Prices are in USD per million tokens. No cost is negative: what cannot be counts as 0, or as not cached.
        """
        prompt, completion = max(prompt, 0), max(completion, 0)
        cached = cached if 0 <= cached <= prompt else 0
        again = prices.prompt if prices.cached_prompt is None else prices.cached_prompt
        usd = (prompt - cached) * prices.prompt + cached * again + completion * prices.completion
        return cls(prompt, cached, completion, usd / 1e6)

    @classmethod
    def paid(cls, reply: Reply) -> Cost:
        """The cost of a reply that has a price already."""
        return cls(reply.prompt_tokens, reply.cached_prompt_tokens, reply.completion_tokens, reply.cost_usd)


@dataclass(frozen=True)
class Spent:
    """Totals over paid models. Requests without an answer count as the most that they can have cost."""

    tokens: int
    usd: float


class Ledger:
    """The entries in a store's database and the budget over them; None means no limit in that unit."""

    def __init__(self, database: Database, *, tokens: int | None = None, usd: float | None = None) -> None:
        self.database, self.tokens, self.usd = database, tokens, usd

    @property
    def limited(self) -> bool:
        """Whether there is a budget."""
        return self.tokens is not None or self.usd is not None

    def spent(self) -> Spent:
        """What all processes have spent in this store so far."""
        found = self.database.rows("SELECT tokens, usd FROM account")
        return Spent(*found[0]) if found else Spent(0, 0.0)

    def send(self, model: str, charged: tuple[str, str], most: Cost) -> int | None:
        """Enters a paid request before it is sent, with the most that it can cost, and returns the entry's id.

        Returns None, and enters nothing, if that would exceed the budget.
        """
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
        """Corrects a paid request's entry to what the reply cost. A free request (`entry` is None) is entered now."""
        if entry is None:
            self._enter(transaction, model, charged, cost, paid=False, state="answered")
            return
        transaction.execute(
            "UPDATE ledger SET state = 'answered', prompt_tokens = ?, cached_prompt_tokens = ?, "
            "completion_tokens = ?, usd = ? WHERE id = ?",
            (cost.prompt_tokens, cost.cached_prompt_tokens, cost.completion_tokens, cost.usd, entry),
        )

    def unanswered(self, entry: int | None, *, billed: bool) -> None:
        """Ends a request without a reply. If the vendor may have `billed` it, it stays counted; else it is deleted."""
        if entry is None:
            return
        with self.database.transaction() as transaction:
            if billed:
                transaction.execute("UPDATE ledger SET state = 'unanswered' WHERE id = ?", (entry,))
            else:
                transaction.execute("DELETE FROM ledger WHERE id = ?", (entry,))

    def totals(self, by: Sequence[str] = GROUPS) -> list[dict[str, Any]]:
        """Answered and unanswered requests, tokens and USD, grouped by the columns of `GROUPS` that `by` names."""
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
