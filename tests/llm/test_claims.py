"""Several processes that ask the same: each request is sent once, by whoever comes first; the dead hold nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from llm_clients import ask, client_of, echo, texts
from llm_server import Fault, Server

from latentgloss.config.entries import Prices
from latentgloss.llm.claims import FILE, Claims
from latentgloss.llm.database import Database
from latentgloss.llm.ledger import Ledger
from latentgloss.llm.reply_cache import ReplyCache

if TYPE_CHECKING:
    from pathlib import Path

_SPAWN = multiprocessing.get_context("spawn")
COUNT = 400


def _ask(store: Path, url: str, seed: int | None, started: Any, replies: Any) -> None:
    """Asks for numbers 0 to COUNT, in order or shuffled, and hands over the replies by number."""
    numbers = list(range(COUNT))
    if seed is not None:
        random.Random(seed).shuffle(numbers)
    with client_of(url, store, in_flight=8, paid=True, prices=Prices(prompt=1, completion=1), usd=1e3) as client:
        started.wait(30)
        found = texts(client.complete(ask(n) for n in numbers))
    replies.put(sorted(zip(numbers, found, strict=True)))


@pytest.mark.parametrize("shuffled", [False, True])
def test_processes_that_ask_the_same_pay_once(tmp_path: Path, shuffled: bool) -> None:
    started, replies = _SPAWN.Barrier(3), _SPAWN.Queue()
    with Server(echo, delay_s=0.01) as server:
        askers = [
            _SPAWN.Process(target=_ask, args=(tmp_path, server.base_url, seed if shuffled else None, started, replies))
            for seed in range(3)
        ]
        for asker in askers:
            asker.start()
        found = [replies.get(timeout=60) for _ in askers]
        for asker in askers:
            asker.join(60)
        assert [asker.exitcode for asker in askers] == [0] * 3
        assert found == [[(n, f"reply to {n}") for n in range(COUNT)]] * 3
        assert len(server.requests) == COUNT and set(server.requests.values()) == {1}
        assert server.most > 8, "one process waited for another instead of asking for something else"
    with contextlib.closing(Database(tmp_path)) as database:
        assert len(ReplyCache(database)) == COUNT
        (total,) = Ledger(database).totals()
        assert (total["answered"], total["unanswered"], total["prompt_tokens"]) == (COUNT, 0, 100 * COUNT)
        assert database.rows("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.kill
def test_what_a_killed_process_had_under_way_is_asked_for_by_those_who_wait(tmp_path: Path) -> None:
    hanging = threading.Event()

    def answer(body: dict[str, Any]) -> str | Fault:
        # The first is answered: a paid server is asked alone until it has said once what it bills.
        first = sum(server.requests.values()) == 1
        return Fault(hang=True) if hanging.is_set() and not first else echo(body)

    with Server(answer) as server, client_of(server, tmp_path, in_flight=8) as client:
        hanging.set()
        started, nobody = _SPAWN.Barrier(1), _SPAWN.Queue()
        child = _SPAWN.Process(target=_ask, args=(tmp_path, server.base_url, None, started, nobody))
        child.start()
        while sum(server.requests.values()) < 9:
            assert child.is_alive()
            time.sleep(0.01)
        hanging.clear()
        replies = client.complete(ask(n) for n in range(16))
        threading.Timer(1.0, os.kill, (child.pid, signal.SIGKILL)).start()
        began = time.monotonic()
        assert texts(replies) == [f"reply to {n}" for n in range(16)]
        assert 0.9 < time.monotonic() - began < 8
        child.join(10)
        assert [server.requests[str(n)] for n in range(16)] == [1] + [2] * 8 + [1] * 7


def test_two_clients_of_one_process_pay_once(tmp_path: Path) -> None:
    with (
        Server(echo, delay_s=0.05) as server,
        client_of(server, tmp_path, in_flight=4) as one,
        client_of(server, tmp_path, in_flight=4) as other,
    ):
        found: dict[str, list[str]] = {}

        def run(name: str, client: Any) -> None:
            found[name] = texts(client.complete(ask(n) for n in range(20)))

        threads = [threading.Thread(target=run, args=item) for item in (("one", one), ("other", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found["one"] == found["other"] == [f"reply to {n}" for n in range(20)]
        assert set(server.requests.values()) == {1}


def test_whoever_stops_waiting_for_another_process_leaves(tmp_path: Path) -> None:
    """`complete` closed early does not wait for what somebody else asks for."""
    with Server(echo) as server, client_of(server, tmp_path, in_flight=2) as client:
        held = [Claims(client.replies.database.path.parent) for _ in range(4)]
        keys = [_key(client, n) for n in range(4)]
        assert all(claims.take(key) for claims, key in zip(held, keys, strict=True))
        replies = client.complete(ask(n) for n in (9, 0, 1, 2, 3))
        assert next(replies).text == "reply to 9"
        began = time.monotonic()
        replies.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 1.5
        for claims, key in zip(held, keys, strict=True):
            claims.release(key)
        assert texts(client.complete([ask(0)])) == ["reply to 0"]
        assert server.requests["1"] == 0


def _key(client: Any, n: int) -> bytes:
    from latentgloss.llm.reply_cache import request_key

    return request_key(client._model_sha256, ask(n))


def _hold(folder: Path, key: bytes, taken: Any, done: Any) -> None:
    claims = Claims(folder)
    assert claims.take(key)
    taken.set()
    done.wait(30)


def test_a_claim_is_one_processs_until_it_is_given_back_or_the_process_ends(tmp_path: Path) -> None:
    key, other = b"k" * 32, b"o" * 32
    claims, taken, done = Claims(tmp_path), _SPAWN.Event(), _SPAWN.Event()
    holder = _SPAWN.Process(target=_hold, args=(tmp_path, key, taken, done))
    holder.start()
    assert taken.wait(30)
    assert not claims.take(key)
    assert claims.take(other) and not claims.take(other)
    assert not claims.take(key), "another request's claim opened the file, and did not close it"
    claims.release(other)
    assert claims.take(other)
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join(10)
    assert claims.take(key)
    claims.release(key)
    claims.release(other)
    assert (tmp_path / FILE).stat().st_size == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_none_of_its_parents_claims(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    assert claims.take(b"k" * 32)
    child = os.fork()
    if child == 0:
        os._exit(1 if claims.take(b"k" * 32) else 0)
    assert os.waitpid(child, 0)[1] == 0
    assert not Claims(tmp_path).take(b"k" * 32)
    claims.release(b"k" * 32)


def test_without_locks_in_the_file_system_requests_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with Server(echo) as server, client_of(server, tmp_path) as client:
        assert texts(client.complete([ask(1), ask(2)])) == ["reply to 1", "reply to 2"]
