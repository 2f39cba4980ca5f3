"""The identity of the process that executes a run, as a tag of the run.

What belongs here: writing the tag when a step begins, and deciding from it whether that process is gone. Dagster's own
launcher does not notice a run whose process was killed, so that such a run would keep its slot for ever.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

TAG = "latentgloss/process"
"""The tag of a run that holds `identity()` of its process, as JSON."""


def identity(pid: int | None = None) -> dict[str, Any]:
    """Host, boot and start time of a process of this machine (default: this process), so that none is taken for it.

    Process ids are used again, so the start time belongs to the identity. It is None where the system has no `/proc`.
    """
    pid = os.getpid() if pid is None else pid
    return {"host": platform.node(), "boot": _boot(), "pid": pid, "started": _started(pid)}


def written() -> str:
    """The value of the tag for this process."""
    return json.dumps(identity())


def is_gone(tag: str) -> bool:
    """Whether the process that wrote a tag has ended. False if it was on another host, which cannot be seen here."""
    found: dict[str, Any] = json.loads(tag)
    here = identity(int(found["pid"]))
    if found["host"] != here["host"]:
        return False
    return bool(found["boot"] != here["boot"] or not _exists(here["pid"]) or found["started"] != here["started"])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) != "Z"


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/<pid>/stat` after the name, which is in parentheses; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _state(pid: int) -> str | None:
    """The state of a process; `Z` is one that has ended and whose parent has not asked for its result."""
    return next(iter(_stat(pid)), None)


def _started(pid: int) -> str | None:
    """Start time of a process, in ticks since the machine started."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else None


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
