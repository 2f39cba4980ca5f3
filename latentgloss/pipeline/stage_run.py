"""One partition of one stage while it is computed, and what becomes of it.

What belongs here: what a stage's runner is handed (`StageRun`), and the rule that what goes wrong with one partition is
that partition's failure and nobody else's. `workspace.py` makes works and runs them over partitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from latentgloss.errors import LatentglossError, MissingInput
from latentgloss.pipeline.accounting import charged_to
from latentgloss.pipeline.failures import as_error, attempt
from latentgloss.pipeline.recipe import ATTEMPT, UNANSWERED
from latentgloss.pipeline.stage import among

if TYPE_CHECKING:
    import polars as pl

    from latentgloss.config import Registry, Settings
    from latentgloss.config.registry import ModelSpec, SaeSpec
    from latentgloss.pipeline.recipe import Recipe
    from latentgloss.pipeline.stage import Stage
    from latentgloss.schema import Table
    from latentgloss.store import Draft, Store, Version


@dataclass
class Outcome:
    """What became of one partition in a run."""

    stage: str
    partition: str
    status: Literal["computed", "reused", "failed"]
    version: Version | None = None
    error: LatentglossError | None = None
    seconds: float = 0.0
    blocks_computed: int = 0
    blocks_reused: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
Progress = Callable[[str], Callable[[int, int | None, str], None]]
"""From a label to a function that is called as progress(done, total or None, unit)."""


class StageRun(Generic[R_co]):
    """One partition of one stage while it is computed: its inputs, its draft, its progress."""

    def __init__(
        self,
        stage: Stage,
        partition: str,
        recipe: Recipe,
        resources: R_co,
        *,
        settings: Settings,
        registry: Registry,
        store: Store,
        account: Hashable = None,
        progress: Progress | None = None,
    ) -> None:
        """`resources`: what the stage needs that is not in the store, as its noun's `stages.py` declares it.

        `account`: what is asked for together (`accounting.charged_to`).
        """
        self.stage, self.partition, self.recipe, self.resources = stage, partition, recipe, resources
        self.settings, self.registry, self.store, self.account = settings, registry, store, account
        self.began = time.monotonic()
        self.facts: dict[str, Any] = {}
        self.error: LatentglossError | None = None
        self.progress = progress(f"{stage.name} {partition}") if progress else (lambda done, total, unit: None)
        self._context = store.draft(stage.name, partition, recipe.content)
        self._draft: Draft | None = None

    @property
    def draft(self) -> Draft:
        """The version in the making; the partition's lock is taken on first use."""
        if self._draft is None:
            self._draft = self._context.__enter__()
        return self._draft

    @property
    def model(self) -> ModelSpec:
        name = self.partition if self.stage.grain == "model" else self.sae.model
        return self.registry.model(name)

    @property
    def sae(self) -> SaeSpec:
        return self.registry.sae(self.partition)

    def input(self, stage: str) -> Version:
        """The pinned version of an input of the same partition (or of its model)."""
        (version,) = self.recipe.inputs[stage].values()
        return version

    def check_windows(self) -> None:
        """Raises MissingInput if contexts were cut or drawn by other settings than today's: their numbers would lie."""
        today = {f"contexts.{name}": getattr(self.settings.contexts, name) for name in ("length", "pool")}
        for versions in self.recipe.inputs.values():
            for version in versions.values():
                made = version.manifest.recipe["settings"]
                if version.manifest.stage not in ("sampled_contexts", "sampled_negatives"):
                    continue
                changed = {k: among(made, k) for k, v in today.items() if among(made, k) != v}
                if changed:
                    raise MissingInput(
                        f"{version.manifest.stage} of {self.partition} was made with "
                        + ", ".join(f"{k} = {v}" for k, v in changed.items()),
                        expected=", ".join(f"{k} = {today[k]}" for k in changed),
                        todo=f"materialise {version.manifest.stage} again, then this stage",
                    )

    def block_recipe(self, settings: dict[str, Any] | None = None, **consumed: Any) -> dict[str, Any]:
        """Recipe of one block: the stage, the settings that matter to it, and hashes of the rows it consumes."""
        return {
            "stage": self.stage.name,
            "version": self.stage.version,
            "settings": self.stage.settings_used(self.settings) if settings is None else settings,
            **consumed,
        }

    def reuse(self, name: str, recipe: dict[str, Any], tables: tuple[Table, ...]) -> bool:
        """As `Draft.reuse`, but for blocks of which replies are missing, when they are to be asked for again."""
        draft = self.draft
        if not draft.reuse(name, recipe, tables):
            return False
        if ATTEMPT not in self.recipe.content or not any(_unanswered(draft.own.read(t, name).lazy()) for t in tables):
            return True
        draft.drop(name)
        return False

    def note_unanswered(self, table: Table) -> None:
        """Counts rows that a language model gave no reply for. They are rows, and the next run asks again."""
        n = _unanswered(self.draft.scan(table)) if self.settings.asks(self.stage.name) else 0
        if n:
            self.facts[UNANSWERED] = n

    def attempt(self, action: Callable[[], None]) -> None:
        """Runs `action` for this partition. An error stays, whatever succeeds afterwards, in whichever thread."""
        error = attempt(action)
        self.error = self.error or error

    def charged(self) -> AbstractContextManager[None]:
        """In here language models are asked on its account."""
        return charged_to(self.stage.name, self.partition, self.account)

    def start(self) -> None:
        """Its turn has come: time and progress count from here."""
        self.began = time.monotonic()
        self.progress(0, None, "")

    def finish(self, run_id: str) -> Outcome:
        """Commits the draft, or records the failure."""
        name, seconds = self.stage.name, round(time.monotonic() - self.began, 3)
        try:
            if self.error is not None:
                raise self.error
            draft = self.draft
            pins = [v.pin for versions in self.recipe.inputs.values() for v in versions.values()]
            facts = {**self.facts, "seconds": seconds}
            version = draft.commit(inputs=pins, run_id=run_id, facts=facts)
            return Outcome(
                name, self.partition, "computed", version, None, seconds, len(draft.computed), len(draft.reused), facts
            )
        except Exception as e:
            error = as_error(e)
            self.store.fail(name, self.partition, self.recipe.fingerprint, error)
            return Outcome(name, self.partition, "failed", error=error, seconds=seconds)
        finally:
            self.close()

    def close(self) -> None:
        """Releases the partition's lock."""
        if self._draft is not None:
            self._draft = None
            self._context.__exit__(None, None, None)


Runner = Callable[[Sequence[StageRun[R]]], Iterator[StageRun[Any]]]
"""Computes works and yields each when it is done, with `work.error` set if it failed."""


def one_by_one(compute: Callable[[StageRun[R]], None]) -> Runner[R]:
    """A runner that computes one partition after the other."""

    def runner(runs: Sequence[StageRun[R]]) -> Iterator[StageRun[R]]:
        for run in runs:
            run.start()
            with run.charged():
                run.error = attempt(lambda run=run: compute(run))  # type: ignore[misc]
            yield run

    return runner


def _unanswered(frame: pl.LazyFrame) -> int:
    """Rows whose language model gave no reply."""
    import polars as pl

    if "status" not in frame.collect_schema():
        return 0
    return int(frame.filter(pl.col("status") == "llm_error").select(pl.len()).collect().item())
