"""Reading a TOML file into a pydantic model, with errors that say how to correct the file.

Settings and registry share this module. An unknown key is rejected with the nearest known key as a suggestion. All
mistakes of a file are reported together, each with its key.
"""

from __future__ import annotations

import difflib
import tomllib
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from latentgloss.errors import LatentglossError

if TYPE_CHECKING:
    from pathlib import Path


class Strict(BaseModel):
    """Base class of everything that is read from a TOML file. Instances are frozen; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path, error: type[LatentglossError]) -> dict[str, Any]:
    """The content of a TOML file. Raises `error` if the file is missing, not UTF-8 or not valid TOML."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as e:
        raise error(f"{path} cannot be read ({e.strerror})", todo="create it or correct the path") from e
    except UnicodeDecodeError as e:
        raise error(
            f"{path} is not UTF-8 (byte {e.start})", expected="a TOML file in UTF-8", todo="save it as UTF-8"
        ) from e
    except tomllib.TOMLDecodeError as e:
        raise error(f"{path} is not valid TOML ({e})", todo="correct the line that it names") from e


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
    if item["type"] != "extra_forbidden":
        given = "" if item["type"] == "missing" or not key else f" (found {item['input']!r})"
        return f"{key or 'the file'}: {item['msg']}{given}"
    known = _fields_at(model, item["loc"][:-1])
    near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key {key!r}, {hint}"


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
