"""What a request may cost before it is sent, and what it did cost afterwards.

What belongs here: the upper bound of an attempt's cost, reserving it in the ledger, waiting while requests in flight
may still free a part of the budget, and the price of a reply. The arithmetic of the budget itself is in `ledger.py`.
Except for `most`, everything runs in the client's event loop.

- **The bound** is that of the body that is really sent (`engines/bounds.py`), with the parameters of the registry.
- **A server that bills more than that** is charged for what it bills, and each later request reserves as much more
  (`remarks.py`). To find out before much is in flight, a client sends the first requests of its life one at a time,
  until one is answered.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from latentgloss.errors import LanguageModelError
from latentgloss.llm.engines.bounds import more_prompt_tokens, most_reply_tokens
from latentgloss.llm.engines.openai_compatible import OpenAICompatible
from latentgloss.llm.ledger import Cost
from latentgloss.llm.remarks import Remarks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.llm.ledger import Ledger
    from latentgloss.protocols import Reply, Request

ALONE = 8
"""Attempts without any answer or bill after which requests are no longer sent one at a time."""


@dataclass(frozen=True)
class Reservation:
    """A paid attempt in the ledger."""

    entry: int
    most: Cost
    """The bound of its cost, without what the server has billed beyond such bounds before."""


class Payments:
    """Reserves and settles what the requests to one model cost. A model that is free reserves nothing."""

    def __init__(
        self, spec: LanguageModelSpec, ledger: Ledger, count: Callable[[Sequence[Request]], list[int]] | None
    ) -> None:
        """`count` counts prompt tokens with the model's tokenizer; without it, `most_prompt_tokens` bounds them."""
        self.spec, self.ledger, self._count = spec, ledger, count
        self.remarks = Remarks(spec.name, str(spec.parameters.get("model", spec.model)), ledger.database)
        self._body = OpenAICompatible(spec, key="").body
        self._unsettled = 0
        self._alone = ALONE
        self._settled = asyncio.Event()

    def begin(self) -> None:
        """Prepares for a new event loop. Raises LanguageModelError if the model is paid and there is no budget."""
        if self.spec.paid and not self.ledger.limited:
            raise LanguageModelError(
                f"{self.spec.name} is a paid model, and there is no budget",
                expected="[budget] with tokens or usd in latentgloss.toml",
                todo="set a budget (`latentgloss estimate` says how much is needed)",
            )
        self._unsettled, self._alone = 0, ALONE
        self._settled = asyncio.Event()

    def most(self, request: Request) -> Cost:
        """The most that one attempt at a paid request can cost. Raises LanguageModelError if nothing limits it."""
        if self._count is not None:
            (prompt,) = self._count([request])
        else:
            prompt = most_prompt_tokens(request)
        reply = most_reply_tokens(self._body(request))
        if reply is None:
            raise LanguageModelError(
                f"{self.spec.name}: nothing limits the length of a reply, so no budget could hold",
                expected="a positive number for max_tokens, or whatever limits a reply, in `parameters`",
                todo="correct or remove that entry of `parameters`",
            )
        assert self.spec.prices is not None
        return Cost.of(self.spec.prices, prompt + more_prompt_tokens(self.spec.parameters), 0, reply)

    async def reserve(
        self, request: Request, charged: tuple[str, str], raise_if_stopped: Callable[[], None]
    ) -> Reservation | None:
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
            if self._alone <= 0 or self._unsettled == 0:
                beyond = self._with_beyond(most)
                entry = self.ledger.send(self.spec.name, charged, beyond)
                if entry is not None:
                    self._unsettled += 1
                    return Reservation(entry, most)
                if self._unsettled == 0:
                    raise self._over_budget(beyond)
            await self._settled.wait()
            raise_if_stopped()

    def settle(self, reserved: Reservation | None, *, answered: bool, billed: bool) -> None:
        """Ends an attempt. Without an answer its entry stays if it may be `billed`, and is deleted otherwise."""
        if reserved is None:
            return
        if not answered:
            self.ledger.unanswered(reserved.entry, billed=billed)
        # A failure that is not billed says nothing about bills, but a server that only fails must not be waited for.
        self._alone = 0 if answered or billed else self._alone - 1
        self._unsettled -= 1
        self._settled.set()

    def priced(self, reply: Reply, reserved: Reservation | None) -> Reply:
        """The reply with its price. Tokens that the server does not report count as the most possible."""
        if reserved is None or self.spec.prices is None:
            return reply
        most, prompt, cached = reserved.most, reply.prompt_tokens, reply.cached_prompt_tokens
        completion = reply.completion_tokens
        if prompt == 0:
            prompt, cached = most.prompt_tokens, 0
            completion = max(completion, most.completion_tokens)
        elif completion == 0 and (reply.text or reply.note):
            completion = most.completion_tokens
        cost = Cost.of(self.spec.prices, prompt, cached, completion)
        return replace(
            reply,
            prompt_tokens=cost.prompt_tokens,
            cached_prompt_tokens=cost.cached_prompt_tokens,
            completion_tokens=cost.completion_tokens,
            cost_usd=cost.usd,
        )

    def _with_beyond(self, most: Cost) -> Cost:
        """A bound with what the server has billed beyond such bounds before."""
        prompt, completion = self.remarks.beyond()
        assert self.spec.prices is not None
        return Cost.of(self.spec.prices, most.prompt_tokens + prompt, 0, most.completion_tokens + completion)

    def _over_budget(self, most: Cost) -> LanguageModelError:
        spent = self.ledger.spent()
        return LanguageModelError(
            f"over budget: {spent.tokens:,} tokens and ${spent.usd:.4f} are spent, and the next request to "
            f"{self.spec.name} may take {most.tokens:,} tokens and ${most.usd:.4f}",
            expected=f"[budget] tokens = {self.ledger.tokens}, usd = {self.ledger.usd}",
            todo="raise the budget and run again: replies that arrived are kept and not requested again",
        )


def most_prompt_tokens(request: Request) -> int:
    """A bound on prompt tokens without a tokenizer: one token per two bytes, where text has three to five per token."""
    return sum(len(m.content.encode("utf-8", "replace")) // 2 + 16 for m in request.messages)


def allowed_reply_tokens(spec: LanguageModelSpec, request: Request) -> int:
    """The most tokens of reply that a request allows when it is sent to this model, for an estimate."""
    if spec.engine != "openai_compatible":
        return request.max_tokens
    return most_reply_tokens(OpenAICompatible(spec, key="").body(request)) or request.max_tokens
