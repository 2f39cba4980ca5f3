"""The budget against servers that bill more than they say: reserved from what is sent, charged at what is billed.

Prices are those of the cases: 1 USD per 1,000 tokens of reply, and a budget of 5 USD.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from llm_clients import ask, client_of, echo, spec_of
from llm_server import Fault, Server, completion

from latentgloss.config.entries import Prices
from latentgloss.config.registry import Registry
from latentgloss.errors import LanguageModelError
from latentgloss.llm.payments import allowed_reply_tokens
from latentgloss.llm.remarks import all_remarks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from latentgloss.llm.client import Client

REPLY_ONLY = Prices(prompt=0.0, completion=1000.0)
BUDGET = 5.0


def says(text: str = "x", **usage: Any) -> dict[str, Any]:
    return {**completion(text), "usage": usage}


@contextlib.contextmanager
def paid(server: Server, store: Path, **given: Any) -> Iterator[Client]:
    with client_of(server, store, **{"paid": True, "prices": REPLY_ONLY, "usd": BUDGET} | given) as client:
        yield client


def spend(client: Client, n: int = 60) -> tuple[int, str]:
    """Replies until the requests or the budget are at their end, and the error."""
    got = 0
    try:
        for _ in client.complete(ask(i) for i in range(n)):
            got += 1
    except LanguageModelError as e:
        return got, str(e)
    return got, ""


@pytest.mark.parametrize(
    "usage",
    [
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "total_tokens": 2110,
            "completion_tokens_details": {"reasoning_tokens": 2000},
        },
        {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 2110},
        {"prompt_tokens": 100, "completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 2000}},
        {"prompt_tokens": 100, "completion_tokens": 2010, "total_tokens": 2110},
    ],
)
def test_thinking_billed_beyond_what_was_allowed_stops_at_the_budget(tmp_path: Path, usage: dict[str, Any]) -> None:
    with Server(lambda _: says(**usage)) as server, paid(server, tmp_path) as client:
        got, error = spend(client)
        billed = 2.01 * sum(server.requests.values())
        assert "over budget" in error and got == 2
        assert client.ledger.spent().usd == pytest.approx(billed) and billed <= BUDGET
        (reply,) = client.complete([ask(0)])
        assert (reply.completion_tokens, reply.cost_usd) == (2010, pytest.approx(2.01))
    with Server(lambda _: says(**usage)) as server, paid(server, tmp_path) as client:
        assert "over budget" in spend(client)[1] and not server.requests, "what it bills is known from the start"


def test_what_one_process_learns_about_bills_another_reserves(tmp_path: Path) -> None:
    said = says(prompt_tokens=100, completion_tokens=2010)
    with Server(lambda _: said) as server, paid(server, tmp_path) as first, paid(server, tmp_path) as second:
        next(second.complete([ask("a")]))
        next(first.complete([ask("b")]))
        assert "over budget" in spend(first)[1] and "over budget" in spend(second)[1]
        assert sum(server.requests.values()) == 2


@pytest.mark.parametrize(
    ("parameters", "most"),
    [
        ({"max_completion_tokens": 2400}, 2400),
        ({"max_new_tokens": 2400}, 2400),
        ({"n": 16, "max_tokens": 150}, 2400),
        ({"n": 16, "best_of": 120}, 2400),
        ({"options": {"num_predict": 2400}}, 2400),
        ({"reasoning": {"max_tokens": 2400}}, 2400),
    ],
)
def test_reserved_is_what_the_body_that_is_sent_allows(tmp_path: Path, parameters: dict[str, Any], most: int) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return says(prompt_tokens=100, completion_tokens=most, total_tokens=most + 100)

    with Server(answer) as server, paid(server, tmp_path, parameters=parameters) as client:
        got, error = spend(client)
        assert (got, sum(server.requests.values())) == (2, 2) and f"${most / 1000:.4f}" in error
        assert client.ledger.spent().usd == pytest.approx(2 * most / 1000)


@pytest.mark.parametrize("parameters", [{"max_completion_tokens": 8000}, {"n": 16, "max_tokens": 400}])
def test_what_the_budget_could_not_pay_is_not_sent(tmp_path: Path, parameters: dict[str, Any]) -> None:
    with Server(echo) as server, paid(server, tmp_path, parameters=parameters) as client:
        got, error = spend(client)
        assert got == 0 and "over budget" in error and not server.requests


@pytest.mark.parametrize("limit", [-1, 0, "much", 1e400])
def test_a_reply_without_limit_is_not_paid_for(tmp_path: Path, limit: Any) -> None:
    with Server(echo) as server, paid(server, tmp_path, parameters={"max_tokens": limit}) as client:
        with pytest.raises(LanguageModelError, match=r"nothing limits.*Expected.*What to do"):
            list(client.complete([ask(1)]))
        assert not server.requests


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 100, "completion_tokens": -100_000, "total_tokens": -99_900},
        {"prompt_tokens": 100, "completion_tokens": 0},
        {"prompt_tokens": 100, "completion_tokens": None},
        {"prompt_tokens": 100},
        {"prompt_tokens": -100, "completion_tokens": -3},
        {"prompt_tokens": 2**70, "completion_tokens": 2**70, "total_tokens": 2**71},
        {"prompt_tokens": "many", "completion_tokens": "few"},
        {"prompt_tokens": 1e308, "completion_tokens": [1]},
    ],
)
def test_what_cannot_be_a_bill_is_charged_at_the_most_and_ends(tmp_path: Path, usage: dict[str, Any]) -> None:
    with Server(lambda _: says(**usage)) as server, paid(server, tmp_path, usd=0.25) as client:
        got, error = spend(client)
        assert got == 12 and "over budget" in error  # .02 each
        assert client.ledger.spent().usd == pytest.approx(0.24)
        (total,) = client.ledger.totals(["model"])
        assert total["completion_tokens"] == 20 * 12 and total["prompt_tokens"] >= 16 * 12


def test_more_cached_tokens_than_the_prompt_has_are_no_credit(tmp_path: Path) -> None:
    said = says(prompt_tokens=100, completion_tokens=10, prompt_tokens_details={"cached_tokens": 10**6})
    prices = Prices(prompt=10.0, cached_prompt=1.0, completion=20.0)
    with Server(lambda _: said) as server, client_of(server, tmp_path, paid=True, prices=prices, usd=1.0) as client:
        (reply,) = client.complete([ask(1)])
        assert (reply.prompt_tokens, reply.cached_prompt_tokens) == (100, 0)
        assert client.ledger.spent().usd == reply.cost_usd == pytest.approx((100 * 10 + 10 * 20) / 1e6)


def test_an_integer_of_thousands_of_digits_in_the_usage_loses_no_reply(tmp_path: Path) -> None:
    raw = json.dumps(completion("x")).replace('"completion_tokens": 10', '"completion_tokens": ' + "9" * 5000)
    with Server(lambda _: Fault(raw=raw.encode())) as server, paid(server, tmp_path) as client:
        (reply,) = client.complete([ask(1)])
        assert (reply.status, reply.text, reply.completion_tokens) == ("ok", "x", 10)  # as total_tokens says
        assert sum(server.requests.values()) == 1


def test_of_several_choices_the_first_is_the_reply_and_all_are_charged(tmp_path: Path) -> None:
    said = says(prompt_tokens=100, completion_tokens=40)
    said["choices"] += completion("another")["choices"]
    with Server(lambda _: said) as server, paid(server, tmp_path, parameters={"n": 2}) as client:
        (reply,) = client.complete([ask(1)])
        assert (reply.text, reply.cost_usd) == ("x", pytest.approx(0.04)) and sum(server.requests.values()) == 1


def test_what_was_clamped_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = says(prompt_tokens=100, completion_tokens=-7, total_tokens=3000)
    with Server(lambda _: said) as server, paid(server, tmp_path) as client, caplog.at_level(logging.WARNING):
        replies = list(client.complete([ask(1)]))
        replies += client.complete([ask(1)])
        assert all("completion_tokens = -7" in reply.note for reply in replies)
        assert replies[1].from_cache and replies[0].completion_tokens == 2900
        (beyond, usage) = all_remarks(client.ledger.database)
        assert (beyond["kind"], usage["kind"], usage["replies"]) == ("beyond_limit", "usage", 1)
        assert "2,900 of reply" in beyond["example"] and "completion_tokens = -7" in usage["example"]
        assert caplog.text.count("contradict") == caplog.text.count("billed more") == 1


def test_a_plain_server_has_no_remarks(tmp_path: Path) -> None:
    with Server(echo, delay_s=0.02) as server, paid(server, tmp_path) as client:
        assert len(list(client.complete(ask(f"{i:0200d}") for i in range(20)))) == 20
        assert server.most > 1, "only the first is sent alone"
        assert all_remarks(client.ledger.database) == []


def test_the_estimate_allows_what_the_body_allows() -> None:
    spec = spec_of("http://h/v1", parameters={"max_completion_tokens": 8000, "n": 2})
    assert allowed_reply_tokens(spec, ask(1)) == 16_000
    assert allowed_reply_tokens(spec_of("http://h/v1"), ask(1)) == 20
    assert allowed_reply_tokens(spec_of("http://h/v1", parameters={"max_tokens": -1}), ask(1)) == 20


def test_an_error_beside_a_reply_is_not_the_reply(tmp_path: Path) -> None:
    said = {**completion("x"), "error": {"message": "a warning", "code": 400}}
    with Server(lambda _: said) as server, paid(server, tmp_path) as client:
        assert [reply.text for reply in client.complete([ask(1)])] == ["x"]


# -- errors in an answer with status 200 -------------------------------------------------------------------------------


def error(**content: Any) -> Fault:
    return Fault(raw=json.dumps(content).encode())


@pytest.mark.parametrize(
    "said",
    [
        error(error={"message": "No credits left", "code": 402}),
        error(error={"message": "No credits left", "code": "402", "metadata": {}}),
        error(error={"message": "No credits left", "type": "insufficient_quota", "code": None}),
        error(error={"message": "No credits left", "code": 429, "type": "insufficient_quota"}),
        error(object="error", message="No credits left", code=402),
        error(error={"message": "No credits left", "code": 402}, choices=[]),
        error(error={"message": "No credits left", "code": 402}, choices=[{"message": {"content": ""}}]),
        error(success=False, errors=[{"code": 402, "message": "No credits left"}]),
        Fault(raw=b'[{"error": {"code": 402, "message": "No credits left"}}]'),
        error(choices=[{"finish_reason": "error", "error": {"code": 402, "message": "No credits left"}}]),
        Fault(status=402, message="No credits left"),
    ],
)
def test_a_spent_account_stops_the_run_in_the_servers_words(tmp_path: Path, said: Fault) -> None:
    with Server(lambda _: said) as server, paid(server, tmp_path, in_flight=1) as client:
        got, message = spend(client)
        assert got == 0 and "No credits left" in message and "What to do" in message
        assert sum(server.requests.values()) == 1 and client.ledger.spent().usd == 0


@pytest.mark.parametrize(
    "said",
    [
        error(error={"message": "slow down", "code": 429}),
        error(error={"message": "slow down", "code": "rate_limit_exceeded"}),
        error(error={"message": "slow down", "code": 429, "retry_after": 0.01}),
    ],
)
def test_a_429_in_an_answer_is_a_pause(tmp_path: Path, said: Fault) -> None:
    tries = iter(range(1000))

    def answer(body: dict[str, Any]) -> str | Fault:
        return said if next(tries) < 8 else echo(body)  # more than a request may fail

    with Server(answer) as server, paid(server, tmp_path, in_flight=1) as client:
        (reply,) = client.complete([ask(1)])
        assert reply.status == "ok" and sum(server.requests.values()) == 9
        (total,) = client.ledger.totals()
        assert (total["answered"], total["unanswered"]) == (1, 0)


def test_other_errors_in_an_answer_are_what_their_codes_say(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str | Fault:
        text = body["messages"][-1]["content"]
        if text == "2":
            return error(error={"message": "too long", "code": 400})
        return error(error="the engine has died") if text == "3" else echo(body)

    with Server(answer) as server, paid(server, tmp_path, patience_s=0.1) as client:
        got = list(client.complete(ask(i) for i in range(6)))
        assert [r.status for r in got] == ["ok", "ok", "llm_error", "llm_error", "ok", "ok"]
        assert "too long" in got[2].reason and server.requests["2"] == 1
        assert "the engine has died" in got[3].reason and server.requests["3"] == 6
        assert client.ledger.spent().usd == pytest.approx(sum(r.cost_usd for r in got)), "an error costs nothing"


def test_an_error_after_a_billed_part_is_charged(tmp_path: Path) -> None:
    said = error(
        choices=[{"message": {"content": "half"}, "error": {"code": 400, "message": "broken"}}],
        usage={"prompt_tokens": 100, "completion_tokens": 9},
    )

    def answer(body: dict[str, Any]) -> str | Fault:
        return said if body["messages"][-1]["content"] == "2" else echo(body)

    with Server(answer) as server, paid(server, tmp_path) as client:
        assert [r.status for r in client.complete([ask(1), ask(2)])] == ["ok", "llm_error"]
        assert client.ledger.spent().usd == pytest.approx(0.01 + 0.02)


@pytest.mark.parametrize("parameters", ["messages = []", "stream = true"])
def test_parameters_cannot_replace_the_prompt(tmp_path: Path, parameters: str) -> None:
    folder = tmp_path / "language_models"
    folder.mkdir()
    path = folder / "m.toml"
    path.write_text(
        'name = "m"\nengine = "openai_compatible"\nmodel = "m"\nbase_url = "http://h/v1"\n'
        f"parameters = {{ {parameters} }}\n"
    )
    assert "cannot be set" in str(Registry.open(tmp_path).problems[path])
