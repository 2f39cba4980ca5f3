"""A server that refuses a form of request: found out by a short request in that form, and named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from llm_clients import client_of
from llm_server import Fault, Server

from latentgloss.errors import LanguageModelError
from latentgloss.llm.probing import MOST_TOKENS, form, plainer, probe
from latentgloss.protocols import Message, Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CAN: dict[str, Any] = {
    "choice": ("yes", "no"),
    "regex": "yes|no",
    "json_schema": SCHEMA,
    "logprobs": 5,
    "seed": 3,
}


def ask(number: int, **wanted: Any) -> Request:
    return Request((Message("system", "Be brief."), Message("user", f"number {number}")), 20, **wanted)


def refusing(part: Callable[[dict[str, Any]], bool]) -> Callable[[dict[str, Any]], Any]:
    return lambda body: Fault(status=400, message="no such field") if part(body) else "yes"


def fields(body: dict[str, Any]) -> set[str]:
    system = {"system"} if body["messages"][0]["role"] == "system" else set()
    system |= {"long"} if body["max_tokens"] > 10 and "plain" not in body["messages"][-1]["content"] else set()
    return system | body.keys() | set(body.get("structured_outputs", ()))


@pytest.mark.parametrize("wanted", [{}, *({name: value} for name, value in CAN.items()), CAN], ids=str)
def test_a_probe_has_the_form_of_the_request(wanted: dict[str, Any]) -> None:
    request = ask(1, **wanted, temperature=0.7, stop=("\n",))
    short = probe(request)
    assert form(short) == form(request) and short.max_tokens == 20 and short.temperature == 0.7
    *parts, (_, shorter) = plainer(request)
    assert all(form(less) != form(request) for _, less in parts) and len(parts) == 1 + len(wanted)
    assert form(shorter) == form(request) and shorter.max_tokens == MOST_TOKENS


@pytest.mark.parametrize(
    ("wanted", "field", "says"),
    [
        ("choice", "choice", 'take "choice" out'),
        ("regex", "regex", 'take "regex" out'),
        ("json_schema", "response_format", 'take "json_schema" out'),
        ("seed", "seed", 'take "seed" out'),
        ("", "system", "system_role = false"),
        ("", "long", "allow replies fewer than 20 tokens"),
    ],
)
def test_the_refused_part_is_named_though_other_requests_are_answered(
    wanted: str, field: str, says: str, tmp_path: Path
) -> None:
    """Even of few requests."""
    capabilities = tuple(name for name in (wanted,) if name)
    with (
        Server(refusing(lambda body: field in fields(body))) as server,
        client_of(server, tmp_path, capabilities=capabilities, dialect="vllm") as client,
    ):
        plain = Request((Message("user", "plain"),), 20)
        with pytest.raises(LanguageModelError, match="no such field") as caught:
            list(client.complete([plain, *(ask(i, **{n: CAN[n] for n in capabilities}) for i in range(3))]))
        assert says in str(caught.value) and server.requests.total() <= 4 + 3


def test_a_refusal_of_the_content_is_a_row_from_the_first_request_on(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Any:
        return Fault(status=400, message="too long") if "number" in body["messages"][1]["content"] else "yes"

    with Server(answer, name=lambda body: body["messages"][1]["content"]) as server:
        with client_of(server, tmp_path) as client:
            found = list(client.complete(ask(i) for i in range(30)))
        assert [reply.status for reply in found] == ["llm_error"] * 30
        assert sum(n for name, n in server.requests.items() if "number" not in name) == 1, "one probe for all of them"


def test_a_server_that_refuses_everything_is_asked_little(tmp_path: Path) -> None:
    with Server(refusing(lambda body: True)) as server, client_of(server, tmp_path, in_flight=4) as client:
        with pytest.raises(
            LanguageModelError, match=r"refuses every request .*no such field.*correct the registry entry"
        ):
            list(client.complete(ask(i, seed=None) for i in range(500)))
        assert server.requests.total() <= 4 + 3
