"""One partition of one stage while it is computed, and its outcome.

What belongs here: the object that a stage's runner receives (`StageRun`), and the rule that an exception fails only its
own partition. `workspace/materialise.py` creates stage runs and passes them to the runner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from latentgloss.errors import LanguageModelError, LatentglossError, MissingInput
from latentgloss.pipeline.accounting import charged_to
from latentgloss.pipeline.failures import as_error, attempt
from latentgloss.pipeline.recipe import ATTEMPT, UNANSWERED
from latentgloss.pipeline.stage import among

if TYPE_CHECKING:
    import polars as pl

    from latentgloss.config import Registry, Settings
    from latentgloss.config.entries import ModelSpec, SaeSpec
    from latentgloss.pipeline.recipe import Recipe
    from latentgloss.pipeline.stage import Stage
    from latentgloss.schema import Table
    from latentgloss.store import Draft, Store, Version


UNREAD = ("parse_failed", "prompt_truncated")
"""Statuses of rows for which a language model gave a reply that cannot be read."""
UNUSABLE = ("llm_error", *UNREAD)
"""These, and the status of rows for which it gave no reply."""
FEWEST = 3
"""Queries of which at least one must be read for a partition to have a result."""


@dataclass
class Outcome:
    """The outcome of one partition in a run."""

    stage: str
    partition: str
    status: Literal["computed", "reused", "failed"]
    version: Version | None = None
    """None if it failed."""
    error: LatentglossError | None = None
    """None unless it failed."""
    seconds: float = 0.0
    """Wall-clock time from `StageRun.start`, or for a reused version the time to find it."""
    blocks_computed: int = 0
    blocks_reused: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    """Information about the result that is not part of its content, such as counts and seconds."""


R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
Progress = Callable[[str], Callable[[int, int | None, str], None]]
"""Takes a label and returns a function that is called as progress(done, total or None, unit)."""


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
        """`resources`: what the stage needs from outside the store, as declared in its noun's `stages.py`.

        `account`: identifies the run whose partitions are computed together (`run` of `accounting.charged_to`).
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
        """The unfinished version that the stage writes to; first use takes the partition's lock."""
        if self._draft is None:
            self._draft = self._context.__enter__()
        return self._draft

    @property
    def model(self) -> ModelSpec:
        """Registry entry of the partition's model (for an SAE, its model). Raises InputError."""
        name = self.partition if self.stage.grain == "model" else self.sae.model
        return self.registry.model(name)

    @property
    def sae(self) -> SaeSpec:
        """Registry entry of the partition's SAE; for stages of grain `sae`. Raises InputError."""
        return self.registry.sae(self.partition)

    def input(self, stage: str) -> Version:
        """The pinned version of an input stage, for the same partition or for its model."""
        (version,) = self.recipe.inputs[stage].values()
        return version

    def check_windows(self) -> None:
        """Raises MissingInput if contexts were cut or drawn with settings other than the current ones.

        Results from such contexts would be recorded under settings that did not produce them.
        """
        current = {f"contexts.{name}": getattr(self.settings.contexts, name) for name in ("length", "pool")}
        for versions in self.recipe.inputs.values():
            for version in versions.values():
                made = version.manifest.recipe["settings"]
                if version.manifest.stage not in ("sampled_contexts", "sampled_negatives"):
                    continue
                changed = {k: among(made, k) for k, v in current.items() if among(made, k) != v}
                if changed:
                    raise MissingInput(
                        f"{version.manifest.stage} of {self.partition} was made with "
                        + ", ".join(f"{k} = {v}" for k, v in changed.items()),
                        expected=", ".join(f"{k} = {current[k]}" for k in changed),
                        todo=f"materialise {version.manifest.stage} again, then this stage",
                    )

    def block_recipe(self, settings: dict[str, Any] | None = None, **consumed: Any) -> dict[str, Any]:
        """Recipe of one block: the stage, the settings that decide it, and hashes of the rows it reads (`consumed`).

        `settings` defaults to all that the stage uses.
        """
        return {
            "stage": self.stage.name,
            "version": self.stage.version,
            "settings": self.stage.settings_used(self.settings) if settings is None else settings,
            **consumed,
        }

    def reuse(self, name: str, recipe: dict[str, Any], tables: tuple[Table, ...]) -> bool:
        """Like `Draft.reuse`, but drops a block with missing replies if this run asks for them again.

        Of a version that a killed or failed run left unfinished, it drops every block without a usable reply: if the
        run ended because no reply could be read, such blocks were finished before it ended.
        """
        draft = self.draft
        unfinished = all(self.store.files.exists(f"{draft.key}/{table.name}/{name}.parquet") for table in tables)
        if not draft.reuse(name, recipe, tables):
            return False
        if not self.settings.asks(self.stage.name):
            return True
        if unfinished:
            statuses: tuple[str, ...] = UNUSABLE
        elif name not in self.recipe.again:
            statuses = ("llm_error",) if ATTEMPT in self.recipe.content else ()
        else:
            draft.drop(name)
            return False
        if not any(_rows_with(draft.own.read(t, name).lazy(), statuses) for t in tables if statuses):
            return True
        draft.drop(name)
        return False

    def note_unanswered(self, table: Table) -> None:
        """Counts rows for which a language model gave no reply and records the number as a fact.

        The rows stay in the table; the next run asks for them again.
        """
        n = _rows_with(self.draft.scan(table), ("llm_error",)) if self.settings.asks(self.stage.name) else 0
        if n:
            self.facts[UNANSWERED] = n

    def check_readable(self, table: Table, by: str, query: str) -> None:
        """Raises LanguageModelError if none of the replies to an explainer or judge could be read.

        `by`: the column that names the explainer or judge; `query`: the column that tells its queries apart. Fewer than
        `FEWEST` queries prove nothing: their rows say why there is no result.
        """
        import polars as pl

        if not self.settings.asks(self.stage.name):
            return
        asked = self.draft.scan(table).filter(pl.col("status").is_in(("ok", *UNUSABLE)), pl.col(query).is_not_null())
        each = asked.group_by(by).agg(unread=pl.col("status").is_in(UNREAD).all())
        names = each.filter("unread").collect()[by].to_list()
        unread = asked.filter(pl.col(by).is_in(names)).group_by(by)
        for row in unread.agg(queries=pl.col(query).n_unique(), reason=pl.col("reason").first()).collect().to_dicts():
            if row["queries"] >= FEWEST:
                raise LanguageModelError(
                    f"{row[by]}: none of the {row['queries']:,} replies for {self.stage.name} of {self.partition} "
                    f"could be read; one of them: {row['reason']}",
                    expected="replies in the form that the prompt asks for",
                    todo="correct the registry entry or the server (`latentgloss try` shows one prompt and its reply), "
                    "then run again: what could not be read is asked for again",
                )

    def attempt(self, action: Callable[[], None]) -> None:
        """Runs `action` for this partition. The first error is kept, whatever succeeds later in any thread."""
        error = attempt(action)
        self.error = self.error or error

    def charged(self) -> AbstractContextManager[None]:
        """Charges requests to language models inside the block to this run."""
        return charged_to(self.stage.name, self.partition, self.account)

    def start(self) -> None:
        """Starts the clock and the progress display."""
        self.began = time.monotonic()
        self.progress(0, None, "")

    def finish(self, run_id: str) -> Outcome:
        """Commits the draft, or records the failure in the store, and returns the outcome."""
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
"""Computes stage runs and yields each when it is done, with its `error` set if it failed."""


def one_by_one(compute: Callable[[StageRun[R]], None]) -> Runner[R]:
    """A runner that computes the partitions one after another."""

    def runner(runs: Sequence[StageRun[R]]) -> Iterator[StageRun[R]]:
        for run in runs:
            run.start()
            with run.charged():
                run.error = attempt(lambda run=run: compute(run))  # type: ignore[misc]
            yield run

    return runner


def _rows_with(frame: pl.LazyFrame, statuses: tuple[str, ...]) -> int:
    """Number of rows with one of these statuses; 0 for a table without statuses."""
    import polars as pl

    if "status" not in frame.collect_schema():
        return 0
    return int(frame.filter(pl.col("status").is_in(statuses)).select(pl.len()).collect().item())
