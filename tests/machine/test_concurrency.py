"""What is begun before earlier things are done: order, bounds, and that nobody waits who could ask."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from llm_clients import client_of
from llm_server import Fault, Server
from scripted_model import reader

from latentgloss import schema
from latentgloss.machine.concurrency import Abandoned, Threads, interleave, run_in_order, until_abandoned
from latentgloss.pipeline.accounting import charged_to, purpose
from latentgloss.protocols import Message, Request
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WIDE = "tiny/layers.0/wide"
LATENTS, SAMPLE, IN_FLIGHT = 2048, 24, 20


# -- the pieces --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(0, 5), st.one_of(st.none(), st.integers(1, 20)))
def test_in_order_and_never_more_under_way_than_allowed(weights: list[int], most: int, weight: int | None) -> None:
    going: list[tuple[int, int]] = []

    def begun() -> Iterator[tuple[int, Callable[[], int]]]:
        for number, weighs in enumerate(weights):  # asked for another: so few are under way now
            assert len(going) <= most
            assert weight is None or len(going) <= 1 or sum(w for _, w in going) <= weight
            going.append((number, weighs))

            def end(number: int = number, weighs: int = weighs) -> int:
                going.remove((number, weighs))
                return number

            yield weighs, end

    assert list(run_in_order(begun(), most, weight)) == list(range(len(weights)))


def test_what_is_done_already_takes_nobodys_place() -> None:
    """Of a run that goes on where another was killed most blocks are there."""
    begun: list[int] = []

    def tasks() -> Iterator[tuple[int, Callable[[], int]]]:
        for number in range(20):
            begun.append(number)
            yield (0, lambda n=number: n) if number % 5 else (1, lambda n=number: n)  # type: ignore[misc]

    found = run_in_order(tasks(), most=3)
    assert next(found) == 0 and begun == list(range(16))  # 5, 10 and 15 are under way beside the first
    assert list(found) == list(range(1, 20))


def test_iterators_are_drawn_from_at_the_same_time() -> None:
    met = threading.Barrier(3, timeout=30)

    def one(name: str) -> Iterator[str]:
        met.wait()  # nobody passes who is alone
        yield name

    assert sorted(interleave([one("a"), one("b"), one("c")])) == ["a", "b", "c"]


def test_an_iterator_that_raises_stops_no_other() -> None:
    failed = threading.Event()

    def failing() -> Iterator[int]:
        yield 0
        failed.set()
        raise ZeroDivisionError

    def going() -> Iterator[int]:
        assert failed.wait(30)
        yield from range(1, 4)

    running = interleave([failing(), going()])
    assert sorted(next(running) for _ in range(4)) == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        next(running)


def test_what_nobody_waits_for_any_more_is_abandoned() -> None:
    ended: list[str] = []

    def endless(name: str) -> Iterator[int]:
        try:
            with Threads(1) as threads:
                threads.submit(lambda: [time.sleep(0.001) for _ in until_abandoned(iter(int, 1))]).result()
            yield 1  # pragma: no cover
        except Abandoned:
            ended.append(name)
            raise

    def quick() -> Iterator[int]:
        yield 7

    running = interleave([endless("a"), quick(), endless("b")])
    assert next(running) == 7
    running.close()  # type: ignore[attr-defined]
    assert sorted(ended) == ["a", "b"]


def test_what_is_abandoned_is_closed_in_its_own_thread_without_waiting_for_garbage() -> None:
    closed: list[int] = []
    gives = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                gives.set()
                yield 1
        finally:
            closed.append(threading.get_ident())

    def waits(thread: list[int]) -> None:
        thread.append(threading.get_ident())
        for _ in until_abandoned(items()):
            time.sleep(0.001)

    threads_of: list[int] = []

    def beside_a_failure() -> None:
        with Threads() as threads:
            going = threads.submit(waits, threads_of)  # kept, with its error and all that hangs on it
            gives.wait(30)
            threads.submit(lambda: 1 // 0).result(30)
            going.result()

    with pytest.raises(ZeroDivisionError):
        beside_a_failure()
    assert closed == threads_of


def test_who_waits_for_a_reply_that_does_not_come_heeds_too(tmp_path: Path) -> None:
    def fails(server: Server) -> None:
        with Threads() as threads:
            threads.submit(lambda: list(client.complete([Request((Message("user", "hello"),), 5)])))
            while not server.requests:
                time.sleep(0.01)
            raise ZeroDivisionError

    with Server(lambda _: Fault(hang=True)) as server, client_of(server, tmp_path) as client:
        began = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            fails(server)
        # What is in flight is paid for and given ten seconds; a request has five minutes.
        assert time.monotonic() - began < 60
        assert client._calls == 0


def test_a_failed_task_has_the_others_abandoned_and_threads_charge_who_began_them() -> None:
    seen: Future[Any] = Future()

    def waits() -> None:
        try:
            for _ in until_abandoned(iter(int, 1)):
                time.sleep(0.001)
        except Abandoned as e:
            seen.set_result(e)
            raise

    def beside_a_failure() -> None:
        with Threads() as threads:
            threads.submit(waits)
            assert threads.submit(purpose).result(30) == ("a stage", "a partition")
            threads.submit(lambda: 1 // 0).result(30)

    with charged_to("a stage", "a partition"), pytest.raises(ZeroDivisionError):
        beside_a_failure()
    assert isinstance(seen.result(30), Abandoned)


# -- the stages that ask, of a sparse sample ---------------------------------------------------------------------------


def kind_of(message: str) -> str:
    """What is asked about."""
    judged = message.startswith("Description")
    return "fuzzing" if judged and "<<" in message else "detection" if judged else "explanations"


def answer(body: dict[str, Any]) -> str:
    messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
    return str(reader(Request(messages, body["max_tokens"])))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide SAE of which a few latents in each block are asked about; up to its contexts."""
    folder = tmp_path_factory.mktemp("sparse")
    tiny.write_sparse(folder, WIDE, LATENTS, SAMPLE)
    _entry(folder, "http://127.0.0.1:9/v1")
    workspace = Workspace.open(folder / "latentgloss.toml")
    before = ("tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives")
    assert not [o.error for o in tiny.run_all(workspace, before) if o.error]
    return folder


def _entry(folder: Path, url: str, in_flight: int = 1) -> None:
    path = folder / "registry" / "language_models" / "judge.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'name = "judge"\nengine = "openai_compatible"\nmodel = "judge"\nbase_url = "{url}"\nin_flight = {in_flight}\n'
    )


def test_latents_of_all_blocks_are_asked_about_at_once(sparse: Path) -> None:
    """The server answers nobody before so many are there, though no block has more than a few."""
    with Server(answer) as server:
        server.hold = lambda: server.most >= IN_FLIGHT
        _entry(sparse, server.base_url, IN_FLIGHT)
        workspace = Workspace.open(sparse / "latentgloss.toml")
        assert not [o.error for o in tiny.run_all(workspace, ["explanations"]) if o.error]
        assert server.most == IN_FLIGHT
    rows = workspace.store.current("explanations", WIDE).read(schema.EXPLANATIONS)  # type: ignore[union-attr]
    sampled = rows.filter(status="ok")
    assert sampled.height == SAMPLE
    assert sampled.group_by(pl.col("latent") // schema.BLOCK).len()["len"].max() < IN_FLIGHT // 2  # type: ignore[operator]


def test_scorers_ask_at_the_same_time(sparse: Path) -> None:
    """The server answers neither before both have asked."""
    scorers = ("detection", "fuzzing")
    with Server(answer) as server:
        _entry(sparse, server.base_url, 5000)
        workspace = Workspace.open(sparse / "latentgloss.toml")
        if workspace.store.current("explanations", WIDE) is None:
            tiny.run_all(workspace, ["explanations"])
        server.hold = lambda: {kind_of(message) for message in server.requests} >= set(scorers)
        runners = {f"{name}_scores": tiny.runner(f"{name}_scores") for name in scorers}
        outcomes = list(workspace.materialise_together(runners, [WIDE]))
        assert {(o.stage, o.status) for o in outcomes} == {(name, "computed") for name in runners}
        assert server.hold()
        asked = [kind_of(message) for message in server.requests]
    for name in scorers:
        scores = workspace.store.current(f"{name}_scores", WIDE).read(schema.SCORES)  # type: ignore[union-attr]
        asked_about = scores.filter(pl.col("status").is_in(["ok", "unscored"]))
        assert asked_about["latent"].n_unique() == SAMPLE
        # Each request is entered under the stage that asked, whichever thread sent it.
        (total,) = (t for t in workspace.ledger.totals() if t["stage"] == f"{name}_scores")
        assert total["answered"] == asked.count(name)
