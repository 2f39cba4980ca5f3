"""Who answered, and whether the whole prompt was read: kept, compared, and never scored where it was cut."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from llm_clients import ask, client_of, echo
from llm_server import Server, completion

from latentgloss.errors import LanguageModelError
from latentgloss.llm.asking import Query, ask_all
from latentgloss.llm.ledger import Cost
from latentgloss.llm.remarks import all_remarks, is_same_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from latentgloss.protocols import Reply, Request

COUNTED = 3081


def count(requests: Sequence[Request]) -> list[int]:
    """As a tokenizer would: the number that a prompt begins with."""
    return [int(request.messages[0].content.split()[0]) for request in requests]


def reading(read: int, **more: Any) -> dict[str, Any]:
    return {**completion("[1, 0]", prompt=read), **more}


def test_the_model_that_answered_is_kept_and_another_one_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = {**completion("x"), "model": "someone/other-model"}
    with Server(lambda _: said) as server, caplog.at_level(logging.WARNING), client_of(server, tmp_path) as client:
        assert [reply.model for reply in client.complete([ask(1), ask(2)])] == ["someone/other-model"] * 2
        (kept,) = client.complete([ask(1)])
        assert kept.from_cache and kept.model == "someone/other-model"
        (remark,) = all_remarks(client.ledger.database)
    assert (remark["model"], remark["kind"], remark["replies"]) == ("m", "another_model", 2)
    assert "'someone/other-model' answered, 'm' was asked for" in remark["example"]
    assert caplog.text.count("someone/other-model") == 1


@pytest.mark.parametrize("answered", ["m", "m-2026-01-01", None, "", 7, "\ud800"])
def test_a_model_that_is_or_may_be_the_one_asked_for_needs_no_remark(tmp_path: Path, answered: Any) -> None:
    said = {**completion("x"), "model": answered}
    with Server(lambda _: said) as server, client_of(server, tmp_path) as client:
        (reply,) = client.complete([ask(1)])
        assert reply.status == "ok" and reply.model == (answered if isinstance(answered, str) else "")
        assert bool(all_remarks(client.ledger.database)) == (answered == "\ud800")


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("gpt-x", "gpt-x", True),
        ("gpt-x", "GPT-X", True),
        ("gpt-x", "gpt-x-2026-01-01", True),
        ("gpt-x", "gpt-x-20260101", True),
        ("gpt-x", "gpt-x-0613", True),
        ("gpt-x", "gpt-x-latest", True),
        ("gpt-x-latest", "gpt-x-20260101", True),
        ("gpt-x", "gpt-x@20260101", True),
        ("vendor/gpt-x", "gpt-x-2026-01-01", True),
        ("gpt-x", "gpt-x-mini", False),
        ("gpt-x", "gpt-x-mini-2026-01-01", False),
        ("gpt-4", "gpt-4.1", False),
        ("gpt-4", "gpt-4o", False),
        ("llama-3", "llama-3-70b", False),
        ("gpt-x", "gpt-y", False),
        ("gpt-x-2026-01-01", "gpt-x-2026-05-05", False),
        ("gpt-x-2026-01-01", "gpt-x", False),
        ("vendor/gpt-x", "other/gpt-x", False),
        ("m", "someone/m-2", False),
    ],
)
def test_a_name_that_only_adds_a_date_is_the_same_model(asked: str, answered: str, same: bool) -> None:
    assert is_same_model(asked, answered) is same


@pytest.mark.parametrize("engine", ["openai_compatible", "transformers"])
def test_what_is_longer_than_the_context_is_not_sent(tmp_path: Path, engine: str) -> None:
    given: dict[str, Any] = {} if engine == "openai_compatible" else {"engine": engine, "base_url": None}

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        return completion(text, prompt=int(text.split()[0]))

    with Server(answer) as server, client_of(server, tmp_path, count=count, context_length=2048, **given) as client:
        if engine != "openai_compatible":
            from latentgloss.llm.engines.openai_compatible import OpenAICompatible

            served = client.spec.model_copy(update={"engine": "openai_compatible", "base_url": server.base_url})
            client._make_engine = lambda: OpenAICompatible(served)
        got = list(client.complete([ask("100 ok"), ask("2028 ok"), ask("2029 too long"), ask("3081 too long")]))
        assert [reply.status for reply in got] == ["ok" if "ok" in reply.text else "llm_error" for reply in got]
        assert [reply.status for reply in got].count("llm_error") == 2 and len(server.requests) == 2
        assert all(part in got[3].reason for part in ("3081", "20", "2048", "context_length"))


@pytest.mark.parametrize(
    ("read", "counted", "cut"),
    [
        (2050, 3081, True),
        (3019, 3081, True),
        (3020, 3081, False),  # .02 of 3081 is 61
        (3081, 3081, False),
        (3200, 3081, False),
        (67, 100, True),
        (68, 100, False),
        (0, 3081, False),  # not reported
    ],
)
def test_a_prompt_that_the_server_cut_is_told(tmp_path: Path, read: int, counted: int, cut: bool) -> None:
    with Server(lambda _: reading(read)) as server, client_of(server, tmp_path, count=count) as client:
        (reply,) = client.complete([ask(f"{counted} tokens")])
        assert reply.status == ("prompt_truncated" if cut else "ok") and reply.counted_prompt_tokens == counted
        assert not cut or f"{read} tokens of a prompt of {counted}" in reply.reason
        (again,) = client.complete([ask(f"{counted} tokens")])
        assert again.from_cache and again.status == reply.status and sum(server.requests.values()) == 1
        assert [r["kind"] for r in all_remarks(client.ledger.database)] == ["prompt_truncated"] * cut


def test_a_cut_prompt_is_never_read_nor_asked_again(tmp_path: Path) -> None:
    def parse(reply: Reply) -> str:
        raise AssertionError("it was read")

    query = Query(ask(f"{COUNTED} tokens"), parse, lambda *_: ())
    with Server(lambda _: reading(2050)) as server, client_of(server, tmp_path, count=count) as client:
        (result,) = ask_all(client, [query])
        assert (result.status, result.value) == ("prompt_truncated", None) and "2050" in result.reason
        assert sum(server.requests.values()) == 1


def test_replies_kept_before_prompts_were_counted_are_checked(tmp_path: Path) -> None:
    with Server(lambda _: reading(2050)) as server:
        with client_of(server, tmp_path) as client:
            assert next(client.complete([ask(f"{COUNTED} tokens")])).status == "ok"
        with client_of(server, tmp_path, count=count) as client:
            (reply,) = client.complete([ask(f"{COUNTED} tokens")])
            assert reply.from_cache and reply.status == "prompt_truncated"


def test_prompt_tokens_without_the_cached_ones_are_no_cut_prompt(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 81, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 3000}}
    with Server(lambda _: reading(1, usage=usage)) as server, client_of(server, tmp_path, count=count) as client:
        assert next(client.complete([ask(f"{COUNTED} tokens")])).status == "ok"


def test_a_free_server_whose_prompts_cannot_be_counted_is_asked_and_a_paid_one_is_not(tmp_path: Path) -> None:
    def broken(_: Sequence[Request]) -> list[int]:
        raise LanguageModelError("the tokenizer has no chat template")

    with Server(echo) as server, client_of(server, tmp_path, count=broken) as client:
        assert [reply.status for reply in client.complete([ask(1), ask(2)])] == ["ok"] * 2
    prices: Any = {"prompt": 1.0, "completion": 1.0}
    with Server(echo) as server, client_of(server, tmp_path, count=broken, paid=True, prices=prices, usd=1) as client:
        with pytest.raises(LanguageModelError, match="chat template"):
            list(client.complete([ask(3)]))
        assert not server.requests and client.ledger.spent().usd == Cost().usd
