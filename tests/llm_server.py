"""A real HTTP server that speaks chat completions and misbehaves as told. Standard library only.

What belongs here: the server, its faults, and its count of requests. `Server(answer)` starts it in a thread;
`answer(body)` says what to do with a request: a `Fault`, or the text to reply with.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class Fault:
    """How a request goes wrong. The first that is set wins."""

    status: int = 200
    """Other than 200: answered with this and an error in JSON."""
    message: str = "scripted"
    code: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    hang: bool = False
    """Reads the request and says nothing more."""
    reset: bool = False
    """Resets the connection; with `cut` in the middle of the answer's body."""
    cut: int | None = None
    """Closes the connection after so many bytes of the answer's body."""
    raw: bytes | None = None
    """The body of a 200 that is no answer."""
    trickle_s: float = 0.0
    """Sends the body `piece` bytes at a time, at this pace."""
    piece: int = 1
    answer: dict[str, Any] | None = None
    """What is cut, or sent slowly; None: `reply to …`."""


@dataclass
class Server:
    """Serves until closed; a context manager. `base_url` is what a registry entry needs."""

    answer: Callable[[dict[str, Any]], str | dict[str, Any] | Fault]
    name: Callable[[dict[str, Any]], Any] = lambda body: body["messages"][-1]["content"]
    """What requests are counted by, from their bodies."""
    delay_s: float = 0.0
    port: int = 0
    requests: Counter[Any] = field(default_factory=Counter)
    answered: Counter[Any] = field(default_factory=Counter)
    """Of those, the ones whose answer was sent whole."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keep_bodies: bool = False
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of every request, with `keep_bodies`."""
    keys: set[str] = field(default_factory=set)
    """What came as `Authorization`."""
    most: int = 0
    """Most requests seen at once."""
    request_seconds: float = 0.0
    """Added up over requests: how long each was here. Over the time from the first to the last: the mean at once."""
    hold: Callable[[], bool] | None = None
    """Answers nothing until this is true (or a minute is over)."""
    first: float = 0.0
    last: float = 0.0
    """When the first request came and the last one was answered; the first since this was set to 0."""

    def __post_init__(self) -> None:
        self._now = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=2**24, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()
        for writer in list(self._open):
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
        self.keys.add(headers.get("authorization", ""))
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
        name = self.name(body)
        self.requests[name] += 1
        if self.keep_bodies:
            self.bodies.append(body)
            self.headers.append(headers)
        self._now += 1
        self.most = max(self.most, self._now)
        began = time.monotonic()
        self.first = self.first or began
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            while self.hold is not None and not self.hold() and time.monotonic() < began + 60:
                await asyncio.sleep(0.01)
            kept = await self._respond(writer, name, body, self.answer(body))
        finally:
            self._now -= 1
            self.last = time.monotonic()
            self.request_seconds += self.last - began
        return kept

    async def _respond(
        self, writer: asyncio.StreamWriter, name: str, body: dict[str, Any], said: str | dict[str, Any] | Fault
    ) -> bool:
        """Writes the answer; returns whether the connection stays."""
        fault = said if isinstance(said, Fault) else Fault()
        if fault.hang:
            await asyncio.sleep(3600)
        if fault.reset and fault.cut is None:
            self._reset(writer)
            return False
        if fault.status != 200:
            content = {"error": {"message": fault.message, "type": "scripted", "code": fault.code}}
            self._write(writer, fault.status, json.dumps(content).encode(), fault.headers)
            return True
        text = said if not isinstance(said, Fault) else fault.answer or f"reply to {body['messages'][-1]['content']}"
        whole = json.dumps(text if isinstance(text, dict) else completion(text)).encode()
        data = whole if fault.raw is None else fault.raw
        if fault.cut is not None:
            self._write(writer, 200, data[: fault.cut], (), length=len(data))
            await writer.drain()
            if fault.reset:
                self._reset(writer)
            writer.close()
            return False
        if fault.trickle_s:
            self._write(writer, 200, b"", (), length=len(data))
            for i in range(0, len(data), fault.piece):
                writer.write(data[i : i + fault.piece])
                await writer.drain()
                await asyncio.sleep(fault.trickle_s)
            self.answered[name] += 1
            return True
        self.answered[name] += fault.raw is None  # counted before the client can have read it
        self._write(writer, 200, data, fault.headers)
        await writer.drain()
        return True

    @staticmethod
    def _reset(writer: asyncio.StreamWriter) -> None:
        """Without lingering the kernel sends a reset, where otherwise it takes leave."""
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    @staticmethod
    def _write(
        writer: asyncio.StreamWriter,
        status: int,
        data: bytes,
        headers: tuple[tuple[str, str], ...],
        length: int | None = None,
    ) -> None:
        size = len(data) if length is None else length
        lines = [
            f"HTTP/1.1 {status} {WORDS.get(status, 'Other')}",
            "content-type: application/json",
            f"content-length: {size}",
        ]
        lines += [f"{name}: {value}" for name, value in headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)


def completion(
    text: str | None, *, ended: str = "stop", prompt: int = 100, cached: int = 0, completion: int = 10, **message: Any
) -> dict[str, Any]:
    """A well-formed answer."""
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": ended, "message": {"role": "assistant", "content": text, **message}}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }
