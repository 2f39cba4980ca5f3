"""A real vLLM server in a child process: starting it, waiting until it answers, ending it with all its processes.

What belongs here: the server's command line, its lifetime and its counters. The tests marked `vllm` and the benchmarks
of language models use it. The Python that has vLLM comes from `environments.py`.
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
"""Variables that the server does not inherit. vLLM binds its threads to cores and leaves one core free, so it uses one
of two cores. A second thread on that core (OMP_NUM_THREADS=2) would wait in a loop for the first, which is many times
slower."""
KV_CACHE_GIB = 2
"""Memory for keys and values. vLLM's default on a CPU is most of the machine's memory."""


def environment(**more: str) -> dict[str, str]:
    """The environment of a process in which vLLM runs on a CPU, without network and without our own settings."""
    taken = {key: value for key, value in os.environ.items() if key not in _OURS}
    given = {"VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB), "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    return {**taken, **given, **more}


class VllmServer:
    """A context manager that starts the server and ends it. The log file `log` is kept."""

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
        dtype: str = "bfloat16",
    ) -> None:
        self.python, self.model, self.log, self.name, self.in_flight = python, model, log, name, in_flight
        self.block_size, self.wait_s, self.dtype = block_size, wait_s, dtype
        self.environment = environment(**({"VLLM_SERVER_DEV_MODE": "1"} if can_forget else {}))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Address of the server's API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def command(self) -> list[str]:
        """The command that starts the server."""
        # `vllm serve` looks up the version of a package named `vllm`, but the package for CPUs has another name.
        return [
            str(self.python),
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(self.model),
            "--served-model-name",
            self.name,
            "--dtype",
            self.dtype,
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
        """Empties the prefix cache. The server must have been started with `can_forget`."""
        url = f"http://127.0.0.1:{self.port}/reset_prefix_cache"
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30).close()

    def counters(self) -> dict[str, float]:
        """The counters of `/metrics` by name, summed over labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, value = line.split("{")[0].split(" ")[0], float(line.rsplit(" ", 1)[1])
                found[name] = found.get(name, 0.0) + value
        return found

    def close(self) -> None:
        """Ends the server and the separate process of its engine."""
        if self._process is None:
            return
        for sign, wait_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)

    def __exit__(self, *_: object) -> None:
        self.close()
