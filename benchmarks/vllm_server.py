"""A real vLLM server as a child process: started, waited for, ended with everything it started.

What belongs here: its command line and its life. Used by the tests marked `vllm` and by `language_models.py`; which
Python has vLLM is told by `environments.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

CONTEXT_LENGTH = 2048
_OURS = ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What is not handed on. vLLM binds its threads to cores and leaves one free: of two cores it takes one, and a second
thread there, as OMP_NUM_THREADS=2 asks for, waits in a loop for the first: many times slower."""
KV_CACHE_GIB = 2
"""Memory for keys and values; a CPU's default is most of what the machine has."""


def environment(**more: str) -> dict[str, str]:
    """Of processes in which vLLM runs on a CPU, without network and without our own settings."""
    taken = {key: value for key, value in os.environ.items() if key not in _OURS}
    given = {"VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB), "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    return {**taken, **given, **more}


class VllmServer:
    """Serves until closed; a context manager. The log stays where it was asked for."""

    def __init__(
        self,
        python: Path,
        model: Path,
        log: Path,
        *,
        name: str = "smollm2",
        in_flight: int = 32,
        block_size: int = 32,
        wait_s: float = 240,
        can_forget: bool = False,
    ) -> None:
        self.python, self.model, self.log, self.name, self.in_flight = python, model, log, name, in_flight
        self.block_size, self.wait_s = block_size, wait_s
        self.environment = environment(**({"VLLM_SERVER_DEV_MODE": "1"} if can_forget else {}))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def command(self) -> list[str]:
        # `vllm serve` asks for the version of a package called `vllm`, which is called otherwise here.
        return [
            str(self.python),
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(self.model),
            "--served-model-name",
            self.name,
            "--dtype",
            "bfloat16",
            "--seed",
            "0",
            "--enforce-eager",
            "--max-model-len",
            str(CONTEXT_LENGTH),
            "--max-num-seqs",
            str(self.in_flight),
            "--max-logprobs",
            "20",
            "--enable-prefix-caching",
            "--block-size",
            str(self.block_size),
            "--enable-prompt-tokens-details",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]

    def __enter__(self) -> VllmServer:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def _wait(self) -> None:
        assert self._process
        until = time.monotonic() + self.wait_s
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                return
            time.sleep(0.5)
        raise RuntimeError(f"no vLLM server in {self.wait_s:g} s:\n{self.log.read_text(errors='replace')[-4000:]}")

    def forget(self) -> None:
        """Empties the prefix cache; for servers that can."""
        url = f"http://127.0.0.1:{self.port}/reset_prefix_cache"
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30).close()

    def counters(self) -> dict[str, float]:
        """What `/metrics` has by name, summed over labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, value = line.split("{")[0].split(" ")[0], float(line.rsplit(" ", 1)[1])
                found[name] = found.get(name, 0.0) + value
        return found

    def close(self) -> None:
        """Ends the server and the engine that it runs in a process of its own."""
        if self._process is None:
            return
        for sign, wait_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)

    def __exit__(self, *_: object) -> None:
        self.close()
