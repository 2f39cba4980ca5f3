"""Every behaviour of `server_behaviours.py`, tried over HTTP: what the table says is what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import server_behaviours
from llm_clients import client_of
from llm_server import Server

from latentgloss.errors import LanguageModelError
from latentgloss.explanations.explainers.replies import read_explanation
from latentgloss.llm.asking import Query, QueryResult, ask_all
from latentgloss.protocols import Message, Request
from latentgloss.scores.judges.reading import read_verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server_behaviours import Behaviour

ANSWERS = {"list": "[1, 0, 0, 1, 1]", "sentence": "EXPLANATION: The words nutoro and peva."}
READ = {"list": [True, False, False, True, True], "sentence": "The words nutoro and peva."}


def parse(form: str, reply: Any) -> Any:
    return read_verdicts(reply, 5).active if form == "list" else read_explanation(reply)


def queries(form: str, n: int, wanted: dict[str, Any]) -> Iterator[Query[Any]]:
    for i in range(n):
        messages = Message("system", f"Answer with a {form}."), Message("user", f"Number {i}")
        yield Query(
            Request(messages, 40, **wanted),
            lambda reply: parse(form, reply),
            lambda messages, reply, problem: (
                *messages,
                Message("assistant", reply or "-"),
                Message("user", f"That could not be read: {problem}"),
            ),
        )


def asked(behaviour: Behaviour, form: str, n: int, folder: Path) -> tuple[list[QueryResult[Any]] | str, Server]:
    """The results, or the message with which the run ended; and the server."""
    entry = {"in_flight": 8, "patience_s": 0.1, **behaviour.entry}
    with (
        Server(lambda body: behaviour.says(body, ANSWERS[form]), name=lambda body: str(body["messages"])) as server,
        client_of(server, folder, **entry) as client,
    ):
        try:
            return list(ask_all(client, queries(form, n, behaviour.wanted))), server
        except LanguageModelError as e:
            return str(e), server


CASES = [(b, form) for b in server_behaviours.BEHAVIOURS for form in b.forms]


@pytest.mark.parametrize(("behaviour", "form"), CASES, ids=[f"{b.name} ({form})" for b, form in CASES])
def test_what_happens_with_a_server(behaviour: Behaviour, form: str, tmp_path: Path) -> None:
    found, server = asked(behaviour, form, 60 if behaviour.happens == "ends" else 3, tmp_path)
    if behaviour.happens == "ends":
        assert isinstance(found, str) and behaviour.why in found and "run again" in found
        assert server.requests.total() <= behaviour.most
        return
    assert not isinstance(found, str), found
    bad = [result for result in found if result.status != "ok"]
    assert all(result.value == READ[form] for result in found if result.status == "ok")
    if behaviour.happens == "row":
        assert [result.status for result in found] == ["ok", behaviour.status, "ok"]
        assert behaviour.why in bad[0].reason
    else:
        assert not bad and (max(server.requests.values()) > 1) == behaviour.again


def test_the_table_has_a_row_for_each() -> None:
    rows = server_behaviours.rows()
    assert len(rows) == len({name for name, _ in rows}) == len(server_behaviours.BEHAVIOURS)
    assert all(name and happens for name, happens in rows)
