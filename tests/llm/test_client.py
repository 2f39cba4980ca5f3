"""The client against a real server that misbehaves: nothing lost, nothing paid twice, order kept, memory flat."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from llm_clients import ask, client_of, echo, texts
from llm_server import Fault, Server, completion

from latentgloss.config.entries import Prices
from latentgloss.errors import LanguageModelError
from latentgloss.llm import health
from latentgloss.llm.database import Database
from latentgloss.llm.engines.base import Failure
from latentgloss.llm.reply_cache import ReplyCache
from latentgloss.pipeline.accounting import charged_to
from latentgloss.protocols import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_replies_come_in_order_and_are_sent_once(tmp_path: Path) -> None:
    chance = random.Random(0)

    def answer(body: dict[str, Any]) -> str:
        return echo(body)

    with Server(answer, delay_s=0.01) as server, client_of(server, tmp_path, in_flight=8) as client:
        asked = [ask(chance.randrange(40)) for _ in range(200)]
        assert texts(client.complete(asked)) == [f"reply to {r.messages[0].content}" for r in asked]
        assert set(server.requests.values()) == {1}
        assert 1 < server.most <= 8
        again = list(client.complete(asked))
        assert all(reply.from_cache for reply in again)
        assert set(server.requests.values()) == {1}


def test_another_process_finds_the_replies(tmp_path: Path) -> None:
    with Server(echo) as server:
        with client_of(server, tmp_path) as first:
            texts(first.complete([ask(1)]))
        with client_of(server, tmp_path, base_url="http://127.0.0.1:9/v1") as second:
            assert texts(second.complete([ask(1)])) == ["reply to 1"]
        with client_of(server, tmp_path, revision="2") as third:
            assert not next(third.complete([ask(1)])).from_cache


@pytest.mark.parametrize("seed", range(3))
def test_faults_change_no_reply_and_lose_none(tmp_path: Path, seed: int) -> None:
    """What a calm server would have said, each answered once, through every fault that passes."""
    chance, lock = random.Random(seed), threading.Lock()
    seen: dict[str, int] = {}
    faults = [
        Fault(status=429, headers=(("retry-after", "0.05"),)),
        Fault(status=429),
        Fault(status=500),
        Fault(status=503, headers=(("retry-after", "0.02"),)),
        Fault(reset=True),
        Fault(cut=30),
        Fault(cut=0),
        Fault(raw=b'{"choices": ['),
        Fault(raw=b"<html>bad gateway</html>"),
        Fault(raw=b'{"choices": []}'),
        Fault(raw=b"[]"),
        Fault(raw=b"null"),
        Fault(raw=b""),
        Fault(raw=b'{"choices": [1, 2]}'),
        Fault(raw=b'{"choices": [{"finish_reason": "stop", "message": {"content": 3}}]}'),
        Fault(raw=b'{"choices": [{"finish_reason": "abort", "message": {"content": "half"}}]}'),
    ]

    def answer(body: dict[str, Any]) -> str | Fault:
        text = body["messages"][-1]["content"]
        with lock:
            seen[text] = seen.get(text, 0) + 1
            if seen[text] <= 3 and chance.random() < 0.4:
                return chance.choice(faults)
        return echo(body)

    with Server(answer) as server, client_of(server, tmp_path, in_flight=32) as client:
        got = list(client.complete(ask(i) for i in range(400)))
        assert [(r.status, r.text) for r in got] == [("ok", f"reply to {i}") for i in range(400)]
        assert sum(server.requests.values()) > 500
        assert len(client.replies) == 400


def test_time_outs_are_tried_twice_and_then_a_reply_says_so(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str | Fault:
        text = body["messages"][-1]["content"]
        return Fault(hang=True) if text == "3" else Fault(trickle_s=0.03) if text == "5" else echo(body)

    with Server(answer) as server, client_of(server, tmp_path, timeout_s=0.4, patience_s=0.1) as client:
        got = list(client.complete(ask(i) for i in range(8)))
        assert [r.status for r in got] == ["ok", "ok", "ok", "llm_error", "ok", "llm_error", "ok", "ok"]
        assert server.requests["3"] == 2
        assert "0.4 s" in got[3].reason
        assert len(client.replies) == 6


def test_what_is_refused_is_not_repeated(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str | Fault:
        bad = body["messages"][-1]["content"] == "2"
        return Fault(status=400, message="context too long") if bad else echo(body)

    with Server(answer) as server, client_of(server, tmp_path) as client:
        got = list(client.complete(ask(i) for i in range(5)))
        assert got[2].status == "llm_error" and "context too long" in got[2].reason
        assert server.requests["2"] == 1
        assert next(client.complete([ask(2)])).status == "llm_error"
        assert server.requests["2"] == 2  # no fact about the request: asked again in the next run


def test_a_request_that_always_fails_is_a_row_not_the_end(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str | Fault:
        return Fault(status=500) if body["messages"][-1]["content"] == "2" else echo(body)

    with Server(answer) as server, client_of(server, tmp_path, patience_s=0.2) as client:
        got = list(client.complete(ask(i) for i in range(5)))
        assert [r.status for r in got] == ["ok", "ok", "llm_error", "ok", "ok"]
        assert "tried" in got[2].reason and server.requests["2"] >= 6


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=400), Fault(reset=True)])
def test_where_only_what_always_fails_is_left_the_server_is_not_taken_for_gone(tmp_path: Path, fault: Fault) -> None:
    """As in every run after the first, in which all others are in the cache."""

    def answer(body: dict[str, Any]) -> str | Fault:
        said = body["messages"][-1]["content"]
        return fault if said.isdecimal() and int(said) >= 6 else echo(body)

    for asked in (range(30), range(30), range(6, 30)):
        with Server(answer) as server, client_of(server, tmp_path, patience_s=0.2) as client:
            got = list(client.complete(ask(i) for i in asked))
            assert [r.status for r in got] == ["ok" if i < 6 else "llm_error" for i in asked]
            assert sum(n for text, n in server.answered.items() if not text.isdecimal()) <= 2, "and hardly asked else"


def test_a_server_nobody_asked_for_an_hour_gets_the_patience_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two SAEs a run may compute for long."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: clock.now))
    server = health.Health(patience_s=180.0)
    server.good()
    tries = health.Tries(first=3600.0, failed=health.TRIES)
    for clock.now, again in ((3610.0, True), (3779.0, True), (3781.0, False)):
        found = server.verdict(Failure("failed", "status 500"), tries)
        assert found is not None and found.doubtful and found.again is again


@pytest.mark.parametrize("how", ["refused", "500", "reset", "401", "404", "quota", "all 400", "tomorrow"])
def test_a_server_that_is_gone_ends_the_run_and_says_so(tmp_path: Path, how: str) -> None:
    gone = threading.Event()
    fault = {
        "500": Fault(status=500),
        "reset": Fault(reset=True),
        "401": Fault(status=401, message="bad key"),
        "404": Fault(status=404, message="no such model"),
        "quota": Fault(status=429, code="insufficient_quota"),
        "tomorrow": Fault(status=429, headers=(("retry-after", "40000"),)),
    }

    def answer(body: dict[str, Any]) -> str | Fault:
        return fault[how] if gone.is_set() else echo(body)

    with Server(answer) as server, client_of(server, tmp_path, patience_s=0.2, in_flight=4) as client:
        if how == "all 400":
            fault[how] = Fault(status=400, message="unknown parameter")
            gone.set()
            with pytest.raises(LanguageModelError, match="refuses every request"):
                list(client.complete(ask(i) for i in range(100)))
            return
        replies = client.complete(ask(i) for i in range(1000))
        first = [next(replies).text for _ in range(20)]
        if how == "refused":
            server.close()
        gone.set()
        with pytest.raises(LanguageModelError) as caught:
            first += texts(replies)
        assert "run again" in str(caught.value)
        assert len(client.replies) >= len(first) >= 20
        if how != "refused":  # the same client goes on once the server is back, and pays for nothing again
            gone.clear()
            while client._jobs:  # what was under way when the run ended
                time.sleep(0.01)
            before = dict(server.answered)
            assert texts(client.complete(ask(i) for i in range(200))) == [f"reply to {i}" for i in range(200)]
            assert all(server.answered[text] == n for text, n in before.items())


def test_requests_are_read_only_as_far_ahead_as_can_be_in_flight(tmp_path: Path) -> None:
    read = 0

    def requests() -> Iterator[Request]:
        nonlocal read
        for read in range(1, 10_001):
            yield ask(read)

    with Server(echo) as server, client_of(server, tmp_path, in_flight=4) as client:
        replies = client.complete(requests())
        for n in range(1, 50):
            next(replies)
            assert read <= n + 16
        replies.close()
        time.sleep(0.3)
        assert sum(server.requests.values()) <= 50 + 16


def test_what_was_sent_arrives_in_the_cache_though_nobody_waits(tmp_path: Path) -> None:
    with Server(echo, delay_s=0.2) as server:
        with client_of(server, tmp_path, in_flight=4) as client:
            replies = client.complete(ask(i) for i in range(100))
            next(replies)
            replies.close()  # as does an exception in the consumer, KeyboardInterrupt included
        with contextlib.closing(Database(tmp_path)) as database:
            assert len(ReplyCache(database)) == sum(server.answered.values()) >= 4


def test_requests_from_several_threads_share_slots_and_replies(tmp_path: Path) -> None:
    with Server(echo, delay_s=0.02) as server, client_of(server, tmp_path, in_flight=5) as client:
        results: dict[int, list[str]] = {}

        def run(n: int) -> None:
            results[n] = texts(client.complete(ask(i) for i in range(50)))

        threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert set(server.requests.values()) == {1}
        assert server.most <= 5
        assert all(found == [f"reply to {i}" for i in range(50)] for found in results.values())


def test_an_error_in_the_requests_reaches_the_caller(tmp_path: Path) -> None:
    def requests() -> Iterator[Request]:
        yield ask(1)
        raise ZeroDivisionError

    with Server(echo) as server, client_of(server, tmp_path) as client, pytest.raises(ZeroDivisionError):
        list(client.complete(requests()))


@pytest.mark.parametrize(
    ("said", "status", "text"),
    [
        (completion("half", ended="length"), "truncated", "half"),
        (completion(None, ended="length"), "truncated", ""),
        (completion(""), "ok", ""),
        (completion(None, refusal="I will not"), "refused", ""),
        (completion("x", ended="content_filter"), "refused", "x"),
        (completion("y" * 3_000_000), "ok", "y" * 3_000_000),
        (completion("\ud800 \x00 ü"), "ok", "\ud800 \x00 ü"),
    ],
)
def test_what_a_model_may_answer(tmp_path: Path, said: Any, status: str, text: str) -> None:
    with Server(lambda _: said) as server, client_of(server, tmp_path) as client:
        (reply,) = client.complete([ask(1)])
        assert (reply.status, reply.text) == (status, text)
        (again,) = client.complete([ask(1)])
        assert again == replace(reply, from_cache=True)


def test_parameters_reach_the_server_in_its_own_words(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    logprobs = completion("a")
    logprobs["choices"][0]["logprobs"] = {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "top_logprobs": [{"token": "b", "logprob": -1.0}, {"token": "a", "logprob": -0.5}],
            }
        ]
    }
    capabilities = ("choice", "json_schema", "regex", "logprobs", "seed")
    with (
        Server(lambda _: logprobs, keep_bodies=True) as server,
        client_of(
            server,
            tmp_path,
            capabilities=capabilities,
            dialect="vllm",
            parameters={"chat_template_kwargs": {"x": 1}},
            leave_out=("top_p",),
        ) as client,
    ):
        asked = [
            ask(1, choice=("a", "b"), seed=7, stop=("\n",), temperature=0.5),
            ask(2, json_schema=schema),
            ask(3, logprobs=2),
            ask(4, regex="a+"),
        ]
        *_, last, _ = client.complete(asked)
        one, two, three, four = sorted(server.bodies, key=lambda b: b["messages"][0]["content"])
        assert one["structured_outputs"] == {"choice": ["a", "b"]}
        assert (one["seed"], one["stop"], one["temperature"], one["max_tokens"]) == (7, ["\n"], 0.5, 20)
        assert one["chat_template_kwargs"] == {"x": 1} and "top_p" not in one
        assert two["response_format"]["json_schema"]["schema"] == schema
        assert four["structured_outputs"] == {"regex": "a+"}
        assert (three["logprobs"], three["top_logprobs"]) == (True, 2)
        assert last.logprobs[0].top == (("a", -0.5), ("b", -1.0))


def test_what_a_model_lacks_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with Server(echo, keep_bodies=True) as server, client_of(server, tmp_path) as client:
        asked = [ask(1, choice=("a",)), ask(2, json_schema={}), ask(3, logprobs=1), ask(4, seed=3), ask(4, seed=4)]
        got = list(client.complete(asked))
        assert [r.status for r in got] == ["unsupported"] * 3 + ["ok"] * 2
        assert "choice" in got[0].reason
        # Seeds that are not sent still tell two samples apart.
        assert server.requests == {"4": 2} and "seed" not in server.bodies[0]


@pytest.mark.parametrize("wanted", [{"logprobs": 1}, {"choice": ("reply to 2", "no")}])
def test_a_declared_capability_that_the_server_lacks_ends_the_run(tmp_path: Path, wanted: dict[str, Any]) -> None:
    with (
        Server(echo) as server,
        client_of(server, tmp_path, capabilities=tuple(wanted), dialect="vllm") as client,
        pytest.raises(LanguageModelError, match="registry"),
    ):
        list(client.complete([ask(1, **wanted)]))


def test_a_server_that_is_gone_is_not_tried_anew_by_what_belongs_to_the_same_run(tmp_path: Path) -> None:
    """SAE after SAE would wait for it as long as the first did."""
    gone = threading.Event()

    def answer(body: dict[str, Any]) -> str | Fault:
        return Fault(status=500) if gone.is_set() else echo(body)

    def ask_for(partition: str, run: object, *numbers: int) -> list[str]:
        with charged_to("explanations", partition, run):
            return texts(client.complete(ask(i) for i in numbers))

    with Server(answer) as server, client_of(server, tmp_path, patience_s=0.2, in_flight=4) as client:
        run = object()
        assert ask_for("a", run, 1) == ["reply to 1"]
        gone.set()
        with pytest.raises(LanguageModelError) as first:
            ask_for("b", run, *range(2, 9))
        tried = server.requests.total()
        with pytest.raises(LanguageModelError) as second:
            ask_for("c", run, 20)
        assert str(second.value) == str(first.value) and server.requests.total() == tried
        assert ask_for("d", run, 1) == ["reply to 1"], "what is known is not asked for"
        gone.clear()
        assert ask_for("c", object(), 20) == ["reply to 20"], "another run tries"


KEY = "sk-very-secret-0123456789"


def test_the_key_is_sent_and_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    monkeypatch.setenv("SOME_KEY", KEY)
    said: list[str] = []

    def answer(body: dict[str, Any]) -> str | Fault:
        text = body["messages"][-1]["content"]
        if text == "2":
            return Fault(status=400, message=f"bad request by {KEY}")
        return Fault(status=401, message=f"Incorrect API key {KEY}") if text == "3" else echo(body)

    with Server(answer) as server, client_of(server, tmp_path, api_key_env="SOME_KEY") as client:
        said += [repr(reply) for reply in client.complete([ask(1), ask(2)])]
        with pytest.raises(LanguageModelError) as caught:
            list(client.complete([ask(3)]))
        error: BaseException | None = caught.value
        while error is not None:
            said += [str(error), repr(error), repr(vars(error))]
            error = error.__cause__ or error.__context__
        said += [repr(client), repr(client.spec), repr(client.identity()), repr(client._engine), caplog.text]
        assert server.keys == {f"Bearer {KEY}"}
    assert len(said) > 8 and not any(KEY in text for text in said)
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", "  {}\t", "\ufeff{}\n", "\n\n{}\x00\n"])
def test_what_stands_around_a_key_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, around: str) -> None:
    monkeypatch.setattr("os.environ", {"SOME_KEY": around.format(KEY)})  # the real one takes no NUL
    with Server(echo) as server, client_of(server, tmp_path, api_key_env="SOME_KEY") as client:
        assert texts(client.complete([ask(1)])) == ["reply to 1"]
        assert server.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("sk-first-part\nsecond-part", "a line break"),
        ("Bearer sk-first-part", "white space"),
        ("sk-first\x1bpart", "a control character"),
        ("sk-first-pärt", "not ASCII"),
        (" \n", "empty"),
    ],
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, named: str
) -> None:
    monkeypatch.setenv("SOME_KEY", wrong)
    with Server(echo) as server, client_of(server, tmp_path, api_key_env="SOME_KEY") as client:
        with pytest.raises(LanguageModelError, match=rf"SOME_KEY.*{named}.*Expected.*What to do") as caught:
            list(client.complete([ask(1)]))
        assert not server.requests
    assert not any(part in repr(caught.value) for part in ("first", "second"))


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_no_redirect_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-ours")
    with Server(echo, keep_bodies=True) as elsewhere:
        place = f"{elsewhere.base_url}/chat/completions".replace("://", f"://user:{KEY[:9]}@") + f"?key={KEY}"
        moved = Fault(status=status, headers=(("location", place),))
        with (
            Server(lambda _: moved) as server,
            client_of(server, tmp_path, api_key_env="SOME_KEY", in_flight=1) as client,
            pytest.raises(
                LanguageModelError, match=r"redirects to http.*Expected: .*What to do: set base_url"
            ) as caught,
        ):
            list(client.complete([ask(i) for i in range(5)]))
        assert str(elsewhere.port) in str(caught.value) and server.base_url in str(caught.value)
        assert KEY[:9] not in str(caught.value)
        assert sum(server.requests.values()) == 1 and not elsewhere.requests and not elsewhere.keys
        assert not client.replies


def test_errors_inside_an_answer_do_not_show_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY + "\n")
    refusal = completion(None, refusal=f"not for {KEY}") | {"model": KEY, "usage": {"prompt_tokens": KEY}}
    echoed = completion(f"who is {KEY}?")
    said = {"error": {"code": 400, "message": f"header Authorization: Bearer {KEY}"}}
    answers = {"1": refusal, "2": Fault(raw=json.dumps(said).encode()), "3": echoed}
    with (
        Server(lambda body: answers[body["messages"][-1]["content"]]) as server,
        client_of(server, tmp_path, api_key_env="SOME_KEY") as client,
    ):
        got = list(client.complete([ask(1), ask(2), ask(3)]))
    assert [reply.status for reply in got] == ["refused", "llm_error", "ok"] and "header" in got[1].reason
    assert got[2].text == "who is [key]?"
    assert not any(KEY in repr(reply) for reply in got)
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_key_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with Server(echo) as server, client_of(server, tmp_path, api_key_env="SOME_KEY") as client:
        with pytest.raises(LanguageModelError, match="SOME_KEY"):
            list(client.complete([ask(1)]))
        assert not server.requests


PRICES = Prices(prompt=10.0, cached_prompt=1.0, completion=20.0)


def test_a_paid_model_without_a_budget_sends_nothing(tmp_path: Path) -> None:
    with Server(echo) as server:
        with (
            client_of(server, tmp_path, paid=True, prices=PRICES) as client,
            pytest.raises(LanguageModelError, match="no budget"),
        ):
            list(client.complete([ask(1)]))
        assert not server.requests
        with client_of(server, tmp_path, paid=True, prices=PRICES, usd=1.0) as client:
            (reply,) = client.complete([ask(1)])
            assert reply.cost_usd == pytest.approx((100 * 10 + 10 * 20) / 1e6)
        with client_of(server, tmp_path, paid=True, prices=PRICES) as client:
            assert [r.from_cache for r in client.complete([ask(1)])] == [True]  # what is kept costs nothing


def test_cached_prompts_are_priced_as_such(tmp_path: Path) -> None:
    said = completion("x", prompt=1000, cached=900, completion=1)
    with Server(lambda _: said) as server, client_of(server, tmp_path, paid=True, prices=PRICES, usd=1.0) as client:
        (reply,) = client.complete([ask(1)])
        assert reply.cost_usd == pytest.approx((100 * 10 + 900 * 1 + 1 * 20) / 1e6)


@pytest.mark.parametrize("limit", [{"tokens": 110 * 30}, {"usd": 0.0012 * 30}])
def test_the_budget_is_reached_never_passed_and_can_be_raised(tmp_path: Path, limit: dict[str, Any]) -> None:
    with Server(echo, delay_s=0.005) as server:
        with client_of(server, tmp_path, paid=True, prices=PRICES, in_flight=16, **limit) as client:
            got: list[Reply] = []
            with pytest.raises(LanguageModelError, match="over budget"):
                got.extend(client.complete(ask(f"{i:0190d}") for i in range(100)))
            spent = client.ledger.spent()
            assert 28 <= len(got) <= len(client.replies) <= 30
            assert spent.tokens == 110 * len(client.replies) == 110 * sum(server.answered.values())
        more = {name: value * 10 for name, value in limit.items()}
        with client_of(server, tmp_path, paid=True, prices=PRICES, in_flight=16, **more) as client:
            assert len(list(client.complete(ask(f"{i:0190d}") for i in range(100)))) == 100
        assert set(server.requests.values()) == {1}


def test_what_may_have_been_billed_stays_counted(tmp_path: Path) -> None:
    tries = itertools.count()

    def answer(body: dict[str, Any]) -> str | Fault:
        return [Fault(reset=True), Fault(status=500), echo(body)][next(tries)]

    with Server(answer) as server, client_of(server, tmp_path, paid=True, prices=PRICES, usd=1.0) as client:
        list(client.complete([ask("a" * 100)]))
        (total,) = client.ledger.totals()
        assert (total["answered"], total["unanswered"]) == (1, 1)  # the 500 is not billed, the reset may be
        assert client.ledger.spent().tokens == 110 + (100 // 2 + 16 + 20)


def test_memory_is_flat_in_the_number_of_requests(tmp_path: Path) -> None:
    import tracemalloc

    peaks = {}
    with Server(echo) as server:
        for n in (100, 500):
            with client_of(server, tmp_path / str(n), in_flight=8) as client:
                list(client.complete([ask("warm")]))
                server.requests.clear()
                tracemalloc.start()
                for _ in client.complete(ask(f"{i} {'x' * 2000}") for i in range(n)):
                    server.requests.clear()
                    server.answered.clear()
                peaks[n] = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
    assert peaks[500] < 1.3 * peaks[100] + 200_000
