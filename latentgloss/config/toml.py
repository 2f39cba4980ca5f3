"""Reading a TOML file into a pydantic model, with errors that say how to correct the file.

Settings and registry share this module. An unknown key is rejected with the nearest known key as a suggestion. All
mistakes of a file are reported together, each with its key.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from pathlib import Path
from stat import S_ISDIR, S_ISFIFO, S_ISREG
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from latentgloss.errors import LatentglossError


class Strict(BaseModel):
    """Base class of everything that is read from a TOML file. Instances are frozen; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


Model = TypeVar("Model", bound=BaseModel)


DEPTH = 50
"""Deepest nesting of tables and arrays."""
LARGEST = 64 * 2**20
"""Most bytes of a file. A list of a million latents takes about 8 MiB."""


def read_toml(path: Path, error: type[LatentglossError]) -> dict[str, Any]:
    """The content of a TOML file; a byte order mark at its start is ignored.

    Raises `error` if the file is missing, is not a regular file, is not UTF-8 or is not valid TOML, or if a value is
    nested more than `DEPTH` deep, an integer does not fit into 64 bits, a number is not finite or a text holds NUL.
    """
    try:
        stat = path.stat()
        # Reading a named pipe would wait for its writer for ever.
        if not S_ISREG(stat.st_mode):
            raise error(f"{path} is {_kind(stat.st_mode)}", expected="a TOML file", todo="remove it, or name a file")
        if stat.st_size > LARGEST:
            raise error(f"{path} has {stat.st_size:,} bytes", expected=f"at most {LARGEST:,}", todo="shorten the file")
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as e:
        raise error(f"{path} cannot be read ({e.strerror})", todo="create it or correct the path") from e
    except UnicodeDecodeError as e:
        raise error(
            f"{path} is not UTF-8 (byte {e.start})", expected="a TOML file in UTF-8", todo="save it as UTF-8"
        ) from e
    except RecursionError as e:
        raise error(f"{path} is nested too deeply", expected=f"at most {DEPTH} levels", todo="correct the file") from e
    except ValueError as e:  # includes TOMLDecodeError
        raise error(f"{path} is not valid TOML ({_short(str(e))})", todo="correct the line that it names") from e
    _check_values(content, path, error)
    return content


def _kind(mode: int) -> str:
    return "a folder" if S_ISDIR(mode) else "a named pipe" if S_ISFIFO(mode) else "not a regular file"


def _check_values(content: dict[str, Any], path: Path, error: type[LatentglossError]) -> None:
    """Raises `error` for values that TOML's parser accepts and that nothing can use."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        key, value = waiting.pop()
        where = _short(".".join(key))
        if len(key) > DEPTH:
            raise error(f"{path}: {where} is nested too deeply", expected=f"at most {DEPTH} levels", todo="correct it")
        if isinstance(value, dict):
            waiting += [((*key, str(name)), item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [((*key, str(i)), item) for i, item in enumerate(value)]
        elif isinstance(value, str) and "\0" in value:
            raise error(f"{path}: {where} holds a NUL character", expected="text without it", todo="correct it")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise error(f"{path}: {where} is too large", expected="an integer of at most 64 bits", todo="correct it")
        elif isinstance(value, float) and not math.isfinite(value):
            raise error(f"{path}: {where} is {value}", expected="a number", todo="correct it")


def user_path(path: str | Path, error: type[LatentglossError]) -> Path:
    """A path in which `~` stands for a home folder. Raises `error` for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise error(
            f"{str(path)!r} begins with a home folder that this machine does not have",
            expected="~ for your own home folder",
            todo="write the path out",
        ) from e


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def validated(model: type[Model], data: dict[str, Any], where: str, error: type[LatentglossError]) -> Model:
    """`data` as an instance of `model`. Raises `error`, which names `where` and every mistake.

    For an unknown key, the error suggests the nearest known one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as e:
        problems = [_sentence(model, data, item) for item in e.errors()]
        raise error(f"{where}: " + "; ".join(problems), todo="correct the file and run again") from e


def _sentence(model: type[BaseModel], data: dict[str, Any], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f"{key!r} is missing"
    if item["type"] != "extra_forbidden":
        given = f" (found {_short(repr(item['input']))})" if key else ""
        return f"{key or 'the file'}: {item['msg']}{given}"
    known = _fields_at(model, item["loc"][:-1])
    near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
    key = _short(key)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key {key!r}, {hint}"


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
