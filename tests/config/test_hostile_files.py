"""Files that no parser should meet: named among the problems, while the others are served."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from click.testing import CliRunner

from latentgloss.cli import cli
from latentgloss.config import entries
from latentgloss.config import settings as settings_module
from latentgloss.config.registry import Registry
from latentgloss.errors import LatentglossError, SettingsError
from latentgloss.saes.readers.config import read_config
from latentgloss.store import LocalFiles, Store, version
from latentgloss.store.digests import file_sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = 'name = "good"\nsource = "path:m"\n'
NAMED = 'name = "bad"\nsource = "path:m"\n'
CONTENTS: dict[str, bytes] = {
    "deep arrays": b"x = " + b"[" * 100_000,
    "deep tables": b"x = " + b"{a = " * 20_000,
    "closed arrays": b"x = " + b"[" * 60 + b"]" * 60,
    "dotted keys": NAMED.encode() + b"a" + b".a" * 200 + b" = 1",
    "5,000 digits": NAMED.encode() + b"rerandomise = " + b"1" * 5_000,
    "4,000 digits": NAMED.encode() + b"rerandomise = " + b"1" * 4_000,
    "2**63": NAMED.encode() + f"rerandomise = {2**63}".encode(),
    "nan": NAMED.encode() + b"[mask]\nsink_norm = nan",
    "invalid UTF-8": NAMED.encode() + b'x = "\xff"',
    "UTF-16": NAMED.encode("utf-16"),
    "NUL": b'name = "b\0d"\nsource = "path:m"\n',
    "empty": b"",
    "long unknown key": NAMED.encode() + b"k" * 100_000 + b" = 1",
    "long value": b'name = "' + b"n" * 100_000 + b'"\nsource = "path:m"\n',
}


def fifo(path: Path) -> None:
    os.mkfifo(path)


def to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def to_itself(path: Path) -> None:
    path.symlink_to(path)


def to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def holes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def folder(path: Path) -> None:
    path.mkdir()


NOT_FILES: list[Callable[[Path], None]] = [fifo, to_nothing, to_itself, to_zero, holes, folder]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for kind in ("models", "saes", "embedders", "language_models"):
        (tmp_path / kind).mkdir()
    (tmp_path / "models" / "good.toml").write_text(GOOD)
    return tmp_path


def only_problem(root: Path, path: Path) -> str:
    registry = Registry.open(root)
    assert list(registry.models) == ["good"]
    assert list(registry.problems) == [path]
    message = str(registry.problems[path])
    assert str(path) in message and len(message) < 1500 and message.isprintable()
    return message


@pytest.mark.parametrize("content", CONTENTS)
def test_a_hostile_file_is_named_and_the_others_are_served(root: Path, content: str) -> None:
    path = root / "models" / "bad.toml"
    path.write_bytes(CONTENTS[content])
    only_problem(root, path)


@pytest.mark.parametrize("make", NOT_FILES)
@pytest.mark.parametrize("kind", ["models", "saes", "embedders", "language_models"])
def test_what_is_no_file_is_named_and_not_waited_for(root: Path, make: Callable[[Path], None], kind: str) -> None:
    path = root / kind / "bad.toml"
    make(path)
    only_problem(root, path)


def test_a_byte_order_mark_is_read(root: Path) -> None:
    (root / "models" / "marked.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("good", "marked").encode())
    registry = Registry.open(root)
    assert not registry.problems and set(registry.models) == {"good", "marked"}


def test_what_is_large_but_right_is_read(root: Path) -> None:
    text = f"name = 'bad'\nsource = 'path:m'\nrerandomise = {2**63 - 1}\n"
    (root / "models" / "bad.toml").write_text(text)
    listed = f"latents = {list(range(5_000))}\n"
    (root / "saes" / "many.toml").write_text(sae() + listed)
    registry = Registry.open(root)
    assert not registry.problems
    assert registry.models["bad"].rerandomise == 2**63 - 1
    assert len(registry.saes["good/h/s"].latents) == 5_000


@pytest.mark.parametrize(
    "table", ["contexts = 5", "fuzzing = []", 'profile = "paper"\ncontexts = 5', "detection = 'x'"]
)
def test_a_setting_in_the_place_of_a_table_is_named(tmp_path: Path, table: str) -> None:
    path = tmp_path / "latentgloss.toml"
    path.write_text(table)
    with pytest.raises(SettingsError, match=table.split("\n")[-1].split()[0]):
        settings_module.load(path)


# Names ------------------------------------------------------------------------------------------------------

REFUSED = [
    "current.json", "Manifest.JSON", "failed.json", "a" * 201, "a" * 400, "a.", "a..b", "a ", " a", "a\tb", "a\x1bb",
    "a\u202eb", "\u0430", "..", ".", "", "a/b", "a\\b", "-a",
]  # fmt: skip
LEGAL = ["a", "a" * 200, "current", "current.json.2", "x.toml", "layers.0.mlp", "A-b_c.1", "0", "con"]


def sae(model: str = "good", hookpoint: str = "h", name: str = "s") -> str:
    values = {"model": model, "hookpoint": hookpoint, "name": name, "format": "sparsify", "source": "path:w"}
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_is_no_folder_is_refused(root: Path, name: str) -> None:
    path = root / "saes" / "bad.toml"
    for text in (sae(name=name), sae(hookpoint=name)):
        path.write_text(text)
        message = only_problem(root, path)
        assert "name" in message and "correct the file" in message
    path.unlink()
    path = root / "models" / "bad.toml"
    path.write_text(f'name = {json.dumps(name)}\nsource = "path:m"\n')
    only_problem(root, path)


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_name_stays_legal(root: Path, name: str) -> None:
    (root / "saes" / "fine.toml").write_text(sae(name=name, hookpoint=name))
    registry = Registry.open(root)
    assert not registry.problems and list(registry.saes) == [f"good/{name}/{name}"]


def test_names_that_differ_in_case_only_are_refused(root: Path) -> None:
    (root / "models" / "other.toml").write_text(GOOD.replace('"good"', '"Good"'))
    (root / "saes" / "a.toml").write_text(sae(name="A"))
    (root / "saes" / "b.toml").write_text(sae(name="a"))
    (root / "saes" / "c.toml").write_text(sae(name="b"))
    registry = Registry.open(root)
    assert list(registry.models) == ["good"] and list(registry.saes) == ["good/h/A", "good/h/b"]
    assert [path.name for path in registry.problems] == ["other.toml", "b.toml"]
    assert all("upper and lower case" in str(error) for error in registry.problems.values())


def test_reserved_names_are_the_files_of_the_store() -> None:
    assert set(entries.RESERVED) == {version.MANIFEST, version.CURRENT, version.FAILED}


# An entry in the place of the built-in embedder -------------------------------------------------------------


@pytest.mark.parametrize("file", ["minilm.toml", "mine.toml"])
def test_a_mistake_in_minilm_is_not_replaced_by_the_built_in_one(root: Path, file: str) -> None:
    path = root / "embedders" / file
    path.write_text('name = "minilm"\nsource = "path:m"\nmax_tokens = 3\n')
    only_problem(root, path)
    with pytest.raises(LatentglossError, match="minilm"):
        Registry.open(root).embedder("minilm")
    path.write_text('name = "minilm"\nsource = "path:m"\nmax_tokens = 300\n')
    assert Registry.open(root).embedder("minilm").max_tokens == 300
    path.write_text('name = "another"\nsource = "path:m"\nmax_tokens = 3\n')
    if file != "minilm.toml":
        assert Registry.open(root).embedder("minilm") == entries.MINILM


def test_another_embedder_with_a_mistake_leaves_the_built_in_one(root: Path) -> None:
    (root / "embedders" / "mine.toml").write_text("name = ")
    assert Registry.open(root).embedder("minilm") == entries.MINILM


# Commands ---------------------------------------------------------------------------------------------------


def run(config: Path, *args: str) -> Any:
    return CliRunner().invoke(cli, ["--config", str(config), *args])


@pytest.mark.parametrize("content", ["deep arrays", "5,000 digits"])
def test_commands_go_on_beside_a_hostile_file(tmp_path: Path, content: str) -> None:
    tiny.tiny_workspace(tmp_path, n_documents=5)
    (tmp_path / "registry" / "models" / "bad.toml").write_bytes(CONTENTS[content])
    os.mkfifo(tmp_path / "registry" / "saes" / "pipe.toml")
    result = run(tmp_path / "latentgloss.toml", "saes", "list", "--json")
    assert result.exit_code == 0, result.stderr
    assert tiny.SPARSIFY in result.stdout
    result = run(tmp_path / "latentgloss.toml", "doctor")
    assert result.exit_code == 1 and "bad.toml" in result.stderr and "pipe.toml" in result.stderr


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_a_folder_or_a_pipe_as_settings_is_named(tmp_path: Path, command: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for config, word in ((tmp_path, "is a folder"), (tmp_path / "pipe", "is a named pipe"), (tmp_path / "no", "no")):
        result = run(config, command)
        assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
        assert str(config) in result.stderr and word in result.stderr


@pytest.mark.parametrize("args", [["search", "x", "--min-score", "nan"], ["estimate", "--tokens-per-second", "nan"]])
def test_nan_is_wrong_usage(tmp_path: Path, args: list[str]) -> None:
    result = run(tmp_path / "latentgloss.toml", *args)
    assert result.exit_code == 2 and "nan" in result.stderr


def test_deep_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cfg.json"
    for content in ("[" * 200_000, '{"k": ' + "1" * 5_000 + "}"):
        path.write_text(content)
        with pytest.raises(LatentglossError, match=r"cfg\.json is not valid JSON"):
            read_config(path)


# The store's door -------------------------------------------------------------------------------------------

OUTSIDE = ["../../../outside", "..", "a/../../b", "/etc", "a//b", "a/./b", "a\\..\\b", "a\0b", "a\nb", "./a", "a/"]


@pytest.mark.parametrize("partition", OUTSIDE)
def test_no_partition_leaves_the_store(tmp_path: Path, partition: str) -> None:
    store = Store(LocalFiles(tmp_path / "in" / "side"))
    store.fail("explanations", partition, "f", ValueError("x"))
    for action in (
        lambda: store.current("explanations", partition),
        lambda: store.draft("explanations", partition, {}).__enter__(),
        lambda: store.version("explanations", partition, "f"),
        lambda: store.versions("explanations", partition),
        lambda: store.failure("explanations", partition),
        lambda: store.adopt("explanations", partition, "f"),
    ):
        with pytest.raises(LatentglossError, match="is not a key of the store"):
            action()
    assert list(tmp_path.iterdir()) == []


def test_materialising_a_path_writes_nothing(tmp_path: Path) -> None:
    workspace = tiny.tiny_workspace(tmp_path / "in" / "side", n_documents=5)
    before = sorted(tmp_path.rglob("*"))
    for stage in ("tokenized_corpus", "explanations"):
        for outcome in workspace.materialise(stage, ["../../../outside", "a/./b", "/etc"], tiny.runner(stage)):
            assert outcome.status == "failed" and outcome.error is not None
    assert sorted(tmp_path.rglob("*")) == before


def test_a_key_inside_the_store_is_a_path(tmp_path: Path) -> None:
    key = "explanations/m/layers.0.mlp@input/s/.lock"
    assert LocalFiles(tmp_path).path(key) == tmp_path / key


# More of the same kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('store = "a\\u0000b"', "store holds a NUL"),
        ('[embedding]\nembedders = ["ti\\u0000ny"]', "embedders.0 holds a NUL"),
        ("[budget]\nusd = inf", "budget.usd is inf"),
        ("[budget]\nusd = -1e999", "budget.usd is -inf"),
        (f"[contexts]\nexplain = {2**62}", "contexts.explain"),
        (f"[contexts]\nmin_test = {2**62}", "contexts.min_test"),
        (f"[negatives]\nrandom = 1\ntest = {2**62}", "negatives.test"),
        (f"[report]\nresamples = {2**62}", "report.resamples"),
        (f"[machine]\nthreads = {2**62}", "machine.threads"),
        (f"[detection]\nllm.sample = {2**62}", "detection.llm.sample"),
    ],
)
def test_values_that_nothing_can_use_are_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "latentgloss.toml"
    path.write_text(line)
    with pytest.raises(SettingsError) as e:
        settings_module.load(path)
    assert says in e.value.found


@pytest.mark.parametrize(
    "line", ['source = "path:a\\u0000b"', "[mask]\nsink_norm = inf", '[corpus]\ntext_column = "\\u0000"']
)
def test_values_of_the_registry_that_nothing_can_use_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "models").mkdir()
    bad = tmp_path / "models" / "bad.toml"
    bad.write_text('name = "bad"\n' + ("" if "source" in line else 'source = "path:m"\n') + line)
    (problem,) = Registry.open(tmp_path).problems.values()
    assert str(bad) in problem.found and problem.expected


@pytest.mark.parametrize("where", ["store", "registry", "model_cache", "sae", "corpus", "model", "variable"])
def test_the_home_of_a_user_whom_nobody_knows_is_named(tmp_path: Path, where: str, monkeypatch: Any) -> None:
    workspace = tiny.tiny_workspace(tmp_path, n_documents=5)
    settings, models, saes = (
        tmp_path / "latentgloss.toml",
        tmp_path / "registry" / "models",
        tmp_path / "registry" / "saes",
    )
    path, old = {
        "store": (settings, 'store = "data"'),
        "registry": (settings, 'store = "data"'),
        "model_cache": (settings, 'model_cache = "cache"'),
        "sae": (saes / "mixed.toml", "path:../../saes/mixed"),
        "corpus": (models / "tiny.toml", "path:../../corpus/documents.jsonl"),
        "model": (models / "tiny.toml", "path:../../model"),
        "variable": (settings, 'store = "data"'),
    }[where]
    named = "~no-such-user/x"
    new = {"sae": f"path:{named}", "corpus": f"path:{named}", "model": f"path:{named}"}.get(
        where, f'{where} = "{named}"'
    )
    if where == "variable":
        monkeypatch.setenv(settings_module.VARIABLE, named)
        with pytest.raises(SettingsError, match="home folder"):
            settings_module.load(None)
        return
    path.write_text(path.read_text().replace(old, new))
    found = run(settings, "doctor") if where != "sae" else run(settings, "saes", "check", tiny.SAELENS)
    assert found.exit_code == 1 and isinstance(found.exception, SystemExit)
    assert named in found.output and "home folder that this machine does not have" in found.output
    assert "report this" not in found.output
    assert workspace


@pytest.mark.parametrize("value", ["inf", "-inf", "1e999"])
def test_infinity_is_wrong_usage(tmp_path: Path, value: str) -> None:
    result = run(tmp_path / "latentgloss.toml", "estimate", "--tokens-per-second", value)
    assert result.exit_code == 2 and "inf" in result.stderr


def test_a_file_that_would_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    to_zero(tmp_path / "zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="not a regular file"):
            file_sha256(tmp_path / name)
