"""What a request may cost before it is sent, and what it did cost afterwards.

What belongs here: the upper bound of an attempt's cost, reserving it in the ledger, waiting while requests in flight
may still free a part of the budget, and the price of a reply. The arithmetic of the budget itself is in `ledger.py`.
Except for `most`, everything runs in the client's event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from latentgloss.errors import LanguageModelError
from latentgloss.llm.ledger import Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.llm.ledger import Ledger
    from latentgloss.protocols import Reply, Request


class Payments:
    """Reserves and settles what the requests to one model cost. A model that is free reserves nothing."""

    def __init__(
        self, spec: LanguageModelSpec, ledger: Ledger, count: Callable[[Sequence[Request]], list[int]] | None
    ) -> None:
        """`count` counts prompt tokens with the model's tokenizer; without it, `most_prompt_tokens` bounds them."""
        self.spec, self.ledger, self._count = spec, ledger, count
        self._unsettled = 0
        self._settled = asyncio.Event()

    def begin(self) -> None:
        """Prepares for a new event loop. Raises LanguageModelError if the model is paid and there is no budget."""
        if self.spec.paid and not self.ledger.limited:
            raise LanguageModelError(
                f"{self.spec.name} is a paid model, and there is no budget",
                expected="[budget] with tokens or usd in latentgloss.toml",
                todo="set a budget (`latentgloss estimate` says how much is needed)",
            )
        self._unsettled = 0
        self._settled = asyncio.Event()

    def most(self, request: Request) -> Cost:
        """The most that one attempt at a paid request can cost."""
        if self._count is not None:
            (prompt,) = self._count([request])
        else:
            prompt = most_prompt_tokens(request)
        assert self.spec.prices is not None
        return Cost.of(self.spec.prices, prompt, 0, request.max_tokens)

    async def reserve(
        self, request: Request, charged: tuple[str, str], raise_if_stopped: Callable[[], None]
    ) -> int | None:
        """The ledger's entry for an attempt, which reserves the most that it can cost; None if the model is free.

        While the budget does not cover that, it waits for attempts in flight, which may cost less than they reserved.
        Raises LanguageModelError if the budget does not cover it and no attempt is in flight, or the error that
        `raise_if_stopped` raises.
        """
        if not self.spec.paid:
            return None
        most = self.most(request)
        while True:
            self._settled.clear()
            entry = self.ledger.send(self.spec.name, charged, most)
            if entry is not None:
                self._unsettled += 1
                return entry
            if self._unsettled == 0:
                spent = self.ledger.spent()
                raise LanguageModelError(
                    f"over budget: {spent.tokens:,} tokens and ${spent.usd:.4f} are spent, and the next request to "
                    f"{self.spec.name} may take {most.tokens:,} tokens and ${most.usd:.4f}",
                    expected=f"[budget] tokens = {self.ledger.tokens}, usd = {self.ledger.usd}",
                    todo="raise the budget and run again: replies that arrived are kept and not requested again",
                )
            await self._settled.wait()
            raise_if_stopped()

    def settle(self, entry: int | None, *, answered: bool, billed: bool) -> None:
        """Ends an attempt. Without an answer its entry stays if it may be `billed`, and is deleted otherwise."""
        if entry is None:
            return
        if not answered:
            self.ledger.unanswered(entry, billed=billed)
        self._unsettled -= 1
        self._settled.set()

    def priced(self, reply: Reply, request: Request) -> Reply:
        """The reply with its price. If the server does not report tokens, they count as the most possible."""
        if not self.spec.paid or self.spec.prices is None:
            return reply
        if reply.prompt_tokens == 0:
            most = self.most(request)
            return replace(
                reply, prompt_tokens=most.prompt_tokens, completion_tokens=most.completion_tokens, cost_usd=most.usd
            )
        cost = Cost.of(self.spec.prices, reply.prompt_tokens, reply.cached_prompt_tokens, reply.completion_tokens)
        return replace(reply, cost_usd=cost.usd)


def most_prompt_tokens(request: Request) -> int:
    """A bound on prompt tokens without a tokenizer: one token per two bytes, where text has three to five per token."""
    return sum(len(m.content.encode("utf-8", "replace")) // 2 + 16 for m in request.messages)
