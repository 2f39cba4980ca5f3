"""Clients of a language model behind a server on this machine, and requests for them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from llm_server import Server

from latentgloss.config.entries import LanguageModelSpec
from latentgloss.llm.client import Client
from latentgloss.llm.database import Database
from latentgloss.llm.engines.openai_compatible import OpenAICompatible
from latentgloss.llm.ledger import Ledger
from latentgloss.llm.reply_cache import ReplyCache
from latentgloss.protocols import Message, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


def ask(text: object, **parameters: Any) -> Request:
    return Request((Message("user", str(text)),), max_tokens=20, **parameters)


def echo(body: dict[str, Any]) -> str:
    return f"reply to {body['messages'][-1]['content']}"


def spec_of(server: Server | str, **given: Any) -> LanguageModelSpec:
    url = server if isinstance(server, str) else server.base_url
    return LanguageModelSpec(**{"name": "m", "engine": "openai_compatible", "model": "m", "base_url": url} | given)


@contextlib.contextmanager
def client_of(
    server: Server | str,
    store: Path,
    *,
    tokens: int | None = None,
    usd: float | None = None,
    count: Callable[[Sequence[Request]], list[int]] | None = None,
    **given: Any,
) -> Iterator[Client]:
    spec, database = spec_of(server, **given), Database(store)
    ledger = Ledger(database, tokens=tokens, usd=usd)
    client = Client(spec, lambda: OpenAICompatible(spec), ReplyCache(database), ledger, count=count, backoff_s=0.01)
    try:
        yield client
    finally:
        client.close(grace_s=1.0)
        database.close()


def texts(replies: Iterator[Reply]) -> list[str]:
    return [reply.text for reply in replies]
