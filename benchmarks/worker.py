"""A process that answers commands, so that two environments can be measured in turn without restarting them.

Each command is one line with a JSON object: `{"command": name, …arguments}`. Each result is one line with a JSON
object after a prefix, because libraries print lines of their own. Both environments run this module, so it imports only
the standard library.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MARK = "reply: "


def serve(commands: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answers commands until the input ends. An exception ends the process; its traceback is in the log."""
    for line in sys.stdin:
        request = json.loads(line)
        result = commands[request.pop("command")](**request)
        result["peak_rss_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(f"\n{_MARK}{json.dumps(result)}", flush=True)


class Worker:
    """Starts a process that runs `serve` and sends it commands. A context manager, which ends the process."""

    def __init__(self, command: list[str], log: Path, threads: int) -> None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads)), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        self.log = log
        self._file = log.open("a")
        self._process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._file
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The result of one command. Raises RuntimeError with the end of the log if the command ended the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(_MARK):
                reply: dict[str, Any] = json.loads(line.removeprefix(_MARK))
                return reply
        raise RuntimeError(f"{command} failed:\n{self.log.read_text()[-3000:]}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._file.close()
