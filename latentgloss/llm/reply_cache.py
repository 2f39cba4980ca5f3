"""The reply cache: every reply of a language model in this store, by its request, written as soon as it arrives.

What belongs here: the key of a request, the record of a reply, and looking one up. A reply belongs to a complete
request (model identity, messages, parameters), so it never becomes stale. The status `llm_error` says nothing about the
request and is not kept. Reads the table `reply` of the store's database (`database.py`) and adds rows to it.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from typing import TYPE_CHECKING, Any

from latentgloss.errors import StoreError
from latentgloss.protocols import Reply, Request, TokenLogprobs
from latentgloss.store.digests import canonical, text_sha256

if TYPE_CHECKING:
    import sqlite3

    from latentgloss.llm.database import Database


KEPT = frozenset({"ok", "truncated", "prompt_truncated", "refused"})
"""Statuses of replies that come from the model itself."""

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Request)}
_COUNTS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "counted_prompt_tokens", "cost_usd")


def request_key(identity_sha256: str, request: Request) -> bytes:
    """sha256 (32 bytes) of everything that decides the reply; `identity_sha256` is the hash of the model's identity.

    Parameters that have their default value are left out, so that adding a parameter to `Request` changes no key.
    """
    content: dict[str, Any] = {"model": identity_sha256, "messages": [[m.role, m.content] for m in request.messages]}
    for name, default in _DEFAULTS.items():
        value = getattr(request, name)
        if name != "messages" and value != default:
            content[name] = value
    return bytes.fromhex(text_sha256(canonical(content)))


class ReplyCache:
    """The replies in a store's database. `len` is their number."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, key: bytes) -> Reply | None:
        """The reply with this key, with `from_cache` set, or None. Raises StoreError if its record is damaged."""
        found = self.database.rows("SELECT body FROM reply WHERE key = ?", key)
        if not found:
            return None
        try:
            return decoded(found[0][0])
        except (zlib.error, ValueError, KeyError, TypeError) as e:
            raise StoreError(
                f"{self.database.path}: the reply to {key.hex()} is damaged ({e})",
                expected="the record as it was written",
                todo=f"delete it (DELETE FROM reply WHERE key = x'{key.hex()}'), and the request is sent again",
            ) from e

    def put(self, transaction: sqlite3.Connection, key: bytes, reply: Reply) -> None:
        """Writes a reply within a transaction of the database. If the key has a reply already, that one stays."""
        if reply.status in KEPT:
            transaction.execute("INSERT OR IGNORE INTO reply (key, body) VALUES (?, ?)", (key, _encoded(reply)))

    def __len__(self) -> int:
        found = self.database.rows("SELECT count(*) FROM reply")
        return int(found[0][0]) if found else 0


def _encoded(reply: Reply) -> bytes:
    """Deflated JSON, which is small and whose checksum reveals a damaged record."""
    content: dict[str, Any] = {"status": reply.status, "text": reply.text}
    content |= {name: value for name in ("reason", "note", "model", *_COUNTS) if (value := getattr(reply, name))}
    if reply.logprobs:
        content["logprobs"] = [[t.token, t.logprob, t.top] for t in reply.logprobs]
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 1)


def decoded(body: bytes) -> Reply:
    """The reply in a record of the database. Raises ValueError, KeyError, TypeError or zlib.error if it is damaged."""
    content = json.loads(zlib.decompress(body))
    logprobs = tuple(
        TokenLogprobs(token, logprob, tuple((t, p) for t, p in top))
        for token, logprob, top in content.pop("logprobs", ())
    )
    return Reply(**content, logprobs=logprobs, from_cache=True)
