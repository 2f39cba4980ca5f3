"""Models that think and models without a system role: what is sent, counted, reserved, and part of an identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import tiny
from llm_clients import client_of, echo, spec_of
from llm_server import Server
from pydantic import ValidationError

from latentgloss.config.entries import REASONING_TOKENS, LanguageModelSpec, Prices
from latentgloss.config.settings import MachineSettings
from latentgloss.errors import LanguageModelError
from latentgloss.llm.as_sent import as_sent, in_user_turn
from latentgloss.llm.database import Database
from latentgloss.llm.engines.transformers import chat_tokens
from latentgloss.llm.ledger import Ledger
from latentgloss.llm.opening import capabilities_of, open_model
from latentgloss.llm.reply_cache import ReplyCache
from latentgloss.models.tokenizer import load_tokenizer
from latentgloss.protocols import Message, Request

if TYPE_CHECKING:
    from pathlib import Path

    from latentgloss.llm.client import Client

SYSTEM, USER, ASSISTANT = Message("system", "Be brief."), Message("user", "One?"), Message("assistant", "1")
REQUEST = Request((SYSTEM, USER, ASSISTANT, Message("user", "Two?")), 20)
NO_SYSTEM = """
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
[{{ m.role }}] {{ m.content }}
{% endfor -%}
"""


def test_an_entry_without_these_fields_sends_what_it_sent() -> None:
    spec = spec_of("http://host/v1")
    assert as_sent(spec, REQUEST) is REQUEST
    assert spec.declared() == {"engine": "openai_compatible", "model": "m"}


def test_the_system_text_is_put_into_the_first_user_message() -> None:
    folded = Message("user", "Be brief.\n\nOne?")
    sent = as_sent(spec_of("http://host/v1", system_role=False), REQUEST)
    assert sent.messages == (folded, *REQUEST.messages[2:]) and sent.max_tokens == 20
    assert in_user_turn((USER,)) == (USER,) and in_user_turn((SYSTEM,)) == (Message("user", "Be brief."),)


def test_what_reaches_the_server(tmp_path: Path) -> None:
    with (
        Server(echo, keep_bodies=True) as server,
        client_of(server, tmp_path, system_role=False, reasoning_tokens=500) as client,
    ):
        assert next(client.complete([REQUEST])).status == "ok"
        (body,) = server.bodies
        assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]
        assert body["messages"][0]["content"] == "Be brief.\n\nOne?" and body["max_tokens"] == 520
        assert next(client.complete([REQUEST])).from_cache


def test_the_allowance_is_reserved(tmp_path: Path) -> None:
    """A budget that covers the answer, but not thinking."""
    prices = Prices(prompt=0.0, completion=1e6)
    with Server(echo) as server:
        for thinking, sent in ((0, 1), (1000, 1)):
            with client_of(
                server, tmp_path / str(thinking), usd=100, paid=True, prices=prices, reasoning_tokens=thinking
            ) as client:
                if thinking:
                    with pytest.raises(LanguageModelError, match="over budget"):
                        next(client.complete([REQUEST]))
                else:
                    assert next(client.complete([REQUEST])).status == "ok"
                assert server.requests.total() == sent


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({}, 0),
        ({"capabilities": ["reasoning"]}, REASONING_TOKENS),
        ({"capabilities": ["reasoning"], "reasoning_tokens": 7}, 7),
        ({"reasoning_tokens": 7}, 7),
    ],
)
def test_thinking_is_declared_with_its_tokens(given: dict[str, Any], tokens: int) -> None:
    spec = spec_of("http://host/v1", **given)
    assert spec.reasoning_tokens == tokens and ("reasoning" in capabilities_of(spec)) == bool(tokens)
    assert spec.declared().get("reasoning_tokens", 0) == tokens
    local = LanguageModelSpec(name="m", engine="vllm", model="path:x", reasoning_tokens=tokens)
    assert ("reasoning" in capabilities_of(local)) == bool(tokens)


def test_thinking_without_tokens_is_refused() -> None:
    with pytest.raises(ValidationError, match="reasoning_tokens above 0"):
        spec_of("http://host/v1", capabilities=["reasoning"], reasoning_tokens=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose chat template takes no system message."""
    folder = tmp_path_factory.mktemp("model")
    tiny.write_model(folder)
    (folder / "chat_template.jinja").write_text(NO_SYSTEM)
    return folder


def opened(model: Path, store: Path, **given: Any) -> Client:
    spec = spec_of("http://127.0.0.1:9/v1", tokenizer=f"path:{model}", **given)
    database = Database(store)
    return open_model(spec, ReplyCache(database), Ledger(database), store, MachineSettings())


def test_a_template_that_takes_no_system_message_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(LanguageModelError, match=r"refuses the system message.*not supported.*system_role = false"):
        opened(model, tmp_path).count_tokens([REQUEST])
    counted = opened(model, tmp_path, system_role=False).count_tokens([REQUEST])
    assert counted is not None and counted[0] > 4
    local = LanguageModelSpec(name="m", engine="transformers", model=f"path:{model}")
    database = Database(tmp_path)
    for entry, fits in ((local, False), (local.model_copy(update={"system_role": False}), True)):
        client = open_model(entry, ReplyCache(database), Ledger(database), tmp_path, MachineSettings())
        assert ("system_role" in client.identity()) == fits
        if fits:
            assert client.count_tokens([REQUEST]) == counted
        else:
            with pytest.raises(LanguageModelError, match="system_role = false"):
                client.count_tokens([REQUEST])


def test_a_template_that_takes_no_messages_at_all_is_named(model: Path, tmp_path: Path) -> None:
    from latentgloss.config.entries import ModelSpec

    tokenizer = load_tokenizer(ModelSpec(name="m", source=f"path:{model}"), tmp_path)
    tokenizer.chat_template = "{{ raise_exception('no') if messages }}"
    with pytest.raises(LanguageModelError, match=r"refuses the messages.*another chat template"):
        chat_tokens(tokenizer, REQUEST)
    tokenizer.chat_template = "{{ messages[0].content + 1 }}"
    with pytest.raises(LanguageModelError, match="TypeError"):
        chat_tokens(tokenizer, REQUEST)
