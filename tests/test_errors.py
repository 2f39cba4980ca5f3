"""No error shows a key or a password, in whatever form a library quotes it."""

from __future__ import annotations

import base64
import json
import pickle
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from latentgloss import errors
from latentgloss.errors import LatentglossError, hide, without_secrets
from latentgloss.pipeline.failures import as_error
from latentgloss.store import Store
from latentgloss.store.local import LocalFiles

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret/with+signs=="


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_HIDDEN", set())
    hide(SECRET + "\n")


@pytest.mark.parametrize(
    "quoted",
    [
        SECRET,
        SECRET + "\n",
        f"Illegal header value b'Bearer {SECRET}\\n'",
        repr({"Authorization": f"Bearer {SECRET}\n"}),
        repr([(b"authorization", f"Bearer {SECRET}\n".encode())]),
        json.dumps({"headers": {"authorization": f"Bearer {SECRET}\n"}}),
        f"http://host/v1?x={quote(SECRET, safe='')}",
        base64.b64encode(f"{SECRET}".encode()).decode(),
        SECRET.replace("/", "\\/"),
        f"{SECRET!r} in {SECRET}{SECRET}",
    ],
)
def test_a_secret_that_was_read_is_in_no_error(tmp_path: Path, quoted: str) -> None:
    raised = LatentglossError(f"it said {quoted}", expected=quoted, todo=f"do not show {quoted}")
    foreign = as_error(RuntimeError(f"it said {quoted}"))
    Store(LocalFiles(tmp_path)).fail("stage", "partition", "f", foreign)
    shown = [str(e) for e in (raised, foreign, pickle.loads(pickle.dumps(raised)))]
    shown += [repr(vars(raised)), *(path.read_text() for path in tmp_path.rglob("*.json"))]
    assert len(shown) == 5
    hidden = (
        SECRET,
        SECRET.replace("/", "\\/"),
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
        json.dumps(SECRET)[1:-1],
    )
    assert not any(form in text for form in hidden for text in shown), shown
    assert all("it said" in text for text in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pass@host:80/x failed", "http://[hidden]@host:80/x failed"),
        ("postgres://me:p@ss@db/x", "postgres://[hidden]@db/x"),
        ("Authorization: Bearer abc.def-123", "Authorization: [hidden]"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "{'authorization': '[hidden]'}"),
        ("(b'X-Api-Key', b'abcdef')", "(b'X-Api-Key', b'[hidden]')"),
        ("api_key=abc123, then", "api_key=[hidden], then"),
        ("the header Bearer abcdefgh12", "the header Bearer [hidden]"),
        ("GET https://h/p?key=abc&x=1&access_token=t%20u", "GET https://h/p?key=[hidden]&x=1&access_token=[hidden]"),
        ("Incorrect API key provided: sk-abcdefghijklmnop123.", "Incorrect API key provided: [key]."),
        ("token hf_abcdefghijklmnopqrstuv is old", "token [key] is old"),
    ],
)
def test_what_has_the_form_of_a_secret_is_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "m/h@input/s: 3 of 5 latents (https://docs.example/x?page=2)",
        "export EXAMPLE_API_KEY=… in the environment of the run",
        "api_key_env is the name of an environment variable, not the key itself",
        "unknown key: 'tokens'; the keys are a, b",
        "a basic question about tokens = 5 and bearer bonds",
        "path:/data/saes@2/x, hf:org/name@main",
        "sk-learn and hf_hub are missing",
        "unknown key 'api_key', did you mean 'api_key_env'?",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_short_values_are_no_secrets() -> None:
    hide("none")
    hide("")
    assert without_secrets("none of them") == "none of them"
