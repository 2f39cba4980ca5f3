"""Dagster as real processes: starting and killing them, asking the webserver, and waiting for what they do.

What belongs here: what the tests in `tests/real/` share. `ui_queries.py` runs the same queries in this process.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from graphql import print_ast
from repository import ROOT
from ui_queries import documents, errors

STATUS = """
query ($asset: [String!]!) {
  assetNodeOrError(assetKey: {path: $asset}) {
    ... on AssetNode {
      assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } }
    }
  }
}"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def running(name: str, *args: str, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process group of its own, ended with everything it started."""
    executable = Path(sys.executable).with_name(name)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(executable), *args], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            for how in (signal.SIGINT, signal.SIGKILL):
                try:
                    os.killpg(process.pid, how)
                    process.wait(timeout=30)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
            process.wait()


def graphql(port: int, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: dict[str, Any] = json.loads(reply.read())
    assert "errors" not in answer, answer
    return dict(answer["data"])


def ask(port: int, name: str, send: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a query of the UI (`ui_queries.documents`). Raises AssertionError if it holds an error."""
    answer = graphql(port, print_ast(documents()[name]), **send)
    failed = list(errors(answer))
    assert not failed, f"{name}: {failed[0]}"
    return answer


def partitions(port: int, asset: str, status: str = "materializedPartitions") -> list[str]:
    node = graphql(port, STATUS, asset=[asset])["assetNodeOrError"]
    return list(node["assetPartitionStatuses"][status])


def wait(
    what: str, until: Callable[[], bool], seconds: float, logs: list[Path], *alive: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if until():
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError, KeyError):
            pass  # the webserver is still starting
        dead = [p.args for p in alive if p.poll() is not None]
        if dead or time.monotonic() > deadline:
            tails = "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-6000:]}" for log in logs)
            pytest.fail(f"{what}: {f'{dead} ended' if dead else f'not within {seconds:.0f} s'}\n{tails}")
        time.sleep(2)


def quiet(port: int) -> bool:
    """Nothing is queued or running."""
    query = """
    query {
      runsOrError(filter: {statuses: [QUEUED, NOT_STARTED, STARTING, STARTED]}) { ... on Runs { results { id } } }
    }
    """
    return not graphql(port, query)["runsOrError"]["results"]


def processes_of(home: Path) -> list[int]:
    """The ids of all processes of an instance: those with this DAGSTER_HOME in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"DAGSTER_HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def kill_all(home: Path) -> None:
    """Kills webserver, daemon, code servers and runs of an instance, and returns when none is left."""
    deadline = time.monotonic() + 30
    while left := processes_of(home):
        assert time.monotonic() < deadline, left
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
