"""When a run ends because no reply can be read, and what is asked again afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from llm_clients import client_of
from llm_server import Server, completion
from scripted_model import Scripted

from latentgloss.errors import LanguageModelError
from latentgloss.llm.asking import Query, UnparsableReply, ask_all, to_send
from latentgloss.llm.reply_cache import request_key
from latentgloss.llm.unreadable import FIRST, LATER, ReadingsByRun
from latentgloss.pipeline.accounting import charged_to
from latentgloss.protocols import Message, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def parse(reply: Reply) -> str:
    if not reply.text.startswith("good"):
        raise UnparsableReply("it is not good")
    return reply.text


def query(number: int, kind: str = "instructions") -> Query[str]:
    messages = Message("system", kind), Message("user", f"{number}")
    again = Message("user", "again")
    return Query(Request(messages, 10), parse, lambda messages, reply, problem: (*messages, again))


def queries(numbers: Iterable[int]) -> list[Query[str]]:
    return [query(number) for number in numbers]


def asked(body: dict[str, Any]) -> int:
    return int(body["messages"][1]["content"])


def test_none_of_the_first_queries_is_read(tmp_path: Path) -> None:
    with Server(lambda body: "bad reply") as server, client_of(server, tmp_path) as client:
        with pytest.raises(LanguageModelError, match=f"the first {FIRST} queries.*it is not good.*bad reply"):
            list(ask_all(client, queries(range(1000))))
        assert server.requests.total() <= 2 * FIRST


def test_fewer_queries_are_rows(tmp_path: Path) -> None:
    with Server(lambda body: "bad reply") as server, client_of(server, tmp_path) as client:
        found = list(ask_all(client, queries(range(FIRST - 1))))
    assert {result.status for result in found} == {"parse_failed"} and len(found) == FIRST - 1


def test_one_that_is_read_keeps_the_run_going_until_many_in_a_row_are_not() -> None:
    model = Scripted(lambda request: "good" if request.messages[1].content == f"{FIRST - 1}" else "bad")
    model.readings = ReadingsByRun("scripted")
    found = list(ask_all(model, queries(range(LATER))))
    assert [result.status for result in found].count("ok") == 1
    model.seen.clear()
    with pytest.raises(LanguageModelError, match=f"{LATER} queries in a row"):
        list(ask_all(model, queries(range(FIRST + 2 * LATER))))
    assert len(model.seen) < 2 * (FIRST + LATER) + 20


def test_what_cannot_be_read_ends_the_run_for_all_that_belongs_to_it() -> None:
    """For queries with the same instructions; others are read."""
    model = Scripted(lambda request: "bad" if request.messages[0].content == "instructions" else "good")
    model.readings = ReadingsByRun("scripted")
    with charged_to("detection_scores", "a", "run"):
        assert next(ask_all(model, [query(0, "other")])).status == "ok"
        with pytest.raises(LanguageModelError) as first:
            list(ask_all(model, queries(range(60))))
    before = len(model.seen)
    with charged_to("detection_scores", "b", "run"), pytest.raises(LanguageModelError) as second:
        list(ask_all(model, queries(range(60))))
    assert str(second.value) == str(first.value) and len(model.seen) == before
    with charged_to("detection_scores", "b", "another run"):
        assert len(list(ask_all(model, queries(range(3))))) == 3


def test_blocks_of_few_queries_add_up() -> None:
    """As judges ask: a call per block."""
    model = Scripted(lambda request: "bad")
    model.readings = ReadingsByRun("scripted")

    def judge() -> None:
        for block in range(100):
            list(ask_all(model, queries(range(3 * block, 3 * block + 3))))

    with charged_to("detection_scores", "a", "run"), pytest.raises(LanguageModelError, match="none of the first"):
        judge()
    assert len(model.seen) <= 2 * (FIRST + 3)


def test_a_mended_server_is_asked_again_about_what_could_not_be_read(tmp_path: Path) -> None:
    """And only about that, once in a run; the replies of the time stay in the cache."""
    mended = False
    hard = {3, 4}

    def answer(body: dict[str, Any]) -> str:
        return "bad" if asked(body) in hard or (not mended and asked(body) % 5 == 1) else "good"

    with Server(answer, name=asked) as server, client_of(server, tmp_path) as client:

        def run(name: str) -> list[str]:
            server.requests.clear()
            with charged_to("detection_scores", "a", name):
                first = [result.status for result in ask_all(client, queries(range(20)))]
                assert [result.status for result in ask_all(client, queries(range(20)))] == first
            return first

        def unread(*numbers: int) -> list[str]:
            return ["parse_failed" if number in numbers else "ok" for number in range(20)]

        assert run("first") == unread(1, 3, 4, 6, 11, 16)
        assert all(server.requests[number] == (2 if number in (1, 3, 4, 6, 11, 16) else 1) for number in range(20))
        mended = True
        kept = len(client.replies)
        assert run("second") == unread(3, 4)
        assert server.requests == {1: 1, 6: 1, 11: 1, 16: 1, 3: 2, 4: 2}
        assert len(client.replies) == kept + 8
        assert run("third") == unread(3, 4)
        assert server.requests == {3: 2, 4: 2}


def test_a_refusal_is_an_answer_and_kept(tmp_path: Path) -> None:
    """But a run in which everything is refused ends."""
    with Server(lambda body: completion("", ended="content_filter")) as server, client_of(server, tmp_path) as client:
        for run in range(2):
            with charged_to("explanations", "a", run):
                assert [r.status for r in ask_all(client, queries(range(3)))] == ["refused"] * 3
        assert server.requests.total() == 3
        with charged_to("explanations", "a", 2), pytest.raises(LanguageModelError, match=r"refused \(content filter"):
            list(ask_all(client, queries(range(100))))
        assert server.requests.total() <= FIRST + 3


def test_many_that_stay_unreadable_are_rows_and_do_not_end_a_later_run(tmp_path: Path) -> None:
    """A run that asks again about these alone."""
    hard = set(range(4, 5 * FIRST + 1, 4))
    assert len(hard) > FIRST

    def answer(body: dict[str, Any]) -> str:
        return "bad" if asked(body) in hard else "good"

    with Server(answer) as server, client_of(server, tmp_path) as client:
        for run in range(2):
            with charged_to("detection_scores", "a", run):
                numbers = range(1, 5 * FIRST + 1) if run == 0 else sorted(hard)
                found = list(ask_all(client, queries(numbers)))
            assert [r.status for r in found].count("parse_failed") == len(hard)


def test_a_model_that_repeats_itself_is_not_asked_again() -> None:
    """An engine in this process: the same request has the same reply."""
    model = Scripted(lambda request: Reply("ok", text="bad", from_cache=True))
    model.repeats = True
    assert next(ask_all(model, [query(1)])).status == "parse_failed"
    assert len(model.seen) == 2


def test_what_is_estimated_is_what_would_be_sent() -> None:
    known: dict[bytes, Reply] = {}

    def reply(request: Request) -> Reply | None:
        return known.get(request_key("", request))

    first = to_send(query(1), reply)
    assert first == query(1).request
    known[request_key("", first)] = Reply("ok", text="bad")
    repair = to_send(query(1), reply)
    assert repair is not None and repair.messages[-1].content == "again"
    known[request_key("", repair)] = Reply("ok", text="bad")
    second = to_send(query(1), reply)
    assert second is not None and (second.messages, second.attempt) == (first.messages, 1)
    assert to_send(query(1), reply, repeats=True) is None
    known[request_key("", second)] = Reply("ok", text="good")
    assert to_send(query(1), reply) is None
