"""Batches: everybody gets the reply to the own request, also when an engine fails in the middle."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest
from llm_clients import ask

from latentgloss.config.entries import LanguageModelSpec, ModelSpec
from latentgloss.errors import LanguageModelError
from latentgloss.llm.client import Client
from latentgloss.llm.database import Database
from latentgloss.llm.engines.base import Batches, Failure
from latentgloss.llm.ledger import Ledger
from latentgloss.llm.reply_cache import ReplyCache
from latentgloss.protocols import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from latentgloss.llm.engines.base import BatchEngine

SPEC = LanguageModelSpec(name="m", engine="transformers", model="path:x", in_flight=8)


@contextlib.contextmanager
def client_over(engine: BatchEngine, store: Path) -> Iterator[Client]:
    database = Database(store)
    client = Client(
        SPEC, lambda: Batches(engine, SPEC.in_flight), ReplyCache(database), Ledger(database), backoff_s=0.01
    )
    try:
        yield client
    finally:
        client.close()
        database.close()


class Stumbling:
    """Answers backwards; every third batch breaks off in the middle."""

    def __init__(self) -> None:
        self.batches = itertools.count(1)
        self.sizes: list[int] = []

    def answer_all(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Failure]]:
        self.sizes.append(len(requests))
        breaks = next(self.batches) % 3 == 0
        for place in reversed(range(len(requests))):
            if breaks and place == len(requests) // 2:
                raise RuntimeError("out of memory")
            text = requests[place].messages[0].content
            yield place, Failure("rejected", "no") if text == "13" else Reply("ok", text=f"reply to {text}")


def test_everybody_gets_the_reply_to_the_own_request(tmp_path: Path) -> None:
    engine = Stumbling()
    with client_over(engine, tmp_path) as client:
        replies = list(client.complete(ask(i) for i in range(100)))
    assert [r.status for r in replies] == ["llm_error" if i == 13 else "ok" for i in range(100)]
    assert all(r.text == f"reply to {i}" for i, r in enumerate(replies) if i != 13)
    assert max(engine.sizes) == 8 and len(engine.sizes) < 60


def test_an_engine_that_cannot_start_ends_the_run_at_once(tmp_path: Path) -> None:
    from latentgloss.llm.engines.vllm import VllmEngine

    spec = LanguageModelSpec(name="m", engine="vllm", model=f"path:{tmp_path}")
    engine = VllmEngine(spec, ModelSpec(name="m", source=spec.model, folder=tmp_path), tmp_path)
    with client_over(engine, tmp_path) as client, pytest.raises(LanguageModelError) as caught:
        list(client.complete(ask(i) for i in range(100)))
    assert caught.value.todo and "report this" not in str(caught.value)
