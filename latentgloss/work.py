"""One partition of one stage while it is computed, and what becomes of it.

What belongs here: what a stage's runner is handed (`Work`), and the rule that what goes wrong with one partition is
that partition's failure and nobody else's. `workspace.py` makes works and runs them over partitions.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latentgloss.errors import LatentglossError, MissingInput
from latentgloss.files import disk_full, is_disk_full
from latentgloss.llm.ledger import charged_to
from latentgloss.recipes import ATTEMPT, UNANSWERED
from latentgloss.stages import among

if TYPE_CHECKING:
    import polars as pl

    from latentgloss.recipes import Recipe
    from latentgloss.registry import ModelSpec, SaeSpec
    from latentgloss.schema import Table
    from latentgloss.stages import Stage
    from latentgloss.store import Draft, Version
    from latentgloss.workspace import Workspace


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


class Work:
    """One partition of one stage being computed: its inputs, its draft, its progress. `run`: see `charged_to`."""

    def __init__(
        self,
        workspace: Workspace,
        stage: Stage,
        partition: str,
        recipe: Recipe,
        *,
        run: Hashable = None,
        progress: Callable[[str], Callable[[int, int | None, str], None]] | None = None,
    ) -> None:
        self.workspace, self.stage, self.partition, self.recipe, self.run = workspace, stage, partition, recipe, run
        self.settings = workspace.settings
        self.began = time.monotonic()
        self.facts: dict[str, Any] = {}
        self.error: LatentglossError | None = None
        self.progress = progress(f"{stage.name} {partition}") if progress else (lambda done, total, unit: None)
        self._context = workspace.store.draft(stage.name, partition, recipe.content)
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
        return self.workspace.registry.model(name)

    @property
    def sae(self) -> SaeSpec:
        return self.workspace.registry.sae(self.partition)

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
        return charged_to(self.stage.name, self.partition, self.run)

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
            return Outcome(name, self.partition, "computed", version, None, seconds, len(draft.computed),
                           len(draft.reused), facts)  # fmt: skip
        except Exception as e:
            error = as_error(e)
            self.workspace.store.fail(name, self.partition, self.recipe.fingerprint, error)
            return Outcome(name, self.partition, "failed", error=error, seconds=seconds)
        finally:
            self.close()

    def close(self) -> None:
        """Releases the partition's lock."""
        if self._draft is not None:
            self._draft = None
            self._context.__exit__(None, None, None)


Runner = Callable[[Sequence[Work]], Iterator[Work]]
"""Computes works and yields each when it is done, with `work.error` set if it failed."""


def one_by_one(compute: Callable[[Work], None]) -> Runner:
    """A runner that computes one partition after the other."""

    def run(works: Sequence[Work]) -> Iterator[Work]:
        for work in works:
            work.start()
            with work.charged():
                work.error = attempt(lambda work=work: compute(work))  # type: ignore[misc]
            yield work

    return run


def attempt(action: Callable[[], None]) -> LatentglossError | None:
    """Runs `action`; what it raises becomes an error for one partition instead of ending the run."""
    try:
        action()
    except Exception as e:
        return as_error(e)
    return None


def _unanswered(frame: pl.LazyFrame) -> int:
    """Rows whose language model gave no reply."""
    import polars as pl

    if "status" not in frame.collect_schema():
        return 0
    return int(frame.filter(pl.col("status") == "llm_error").select(pl.len()).collect().item())


def as_error(error: Exception) -> LatentglossError:
    """Any exception as one of ours, with the place it came from if it was not foreseen."""
    if isinstance(error, LatentglossError):
        return error
    if is_disk_full(error):
        return disk_full(Path(getattr(error, "filename", None) or ".").absolute())
    if isinstance(error, OSError) and error.filename:
        return LatentglossError(f"{error.filename}: {error.strerror}", todo="make the file readable and run again")
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which is not imported for its name's sake
        return LatentglossError(
            f"the GPU's memory is full ({str(error).splitlines()[0]})",
            todo="lower `batch_tokens` (of embedding, `embedding_batch`) under [machine], or see what else uses the "
            "GPU; then run again",
        )
    where = "".join(traceback.format_exception(error)[-3:])
    return LatentglossError(f"{type(error).__name__}: {error}", todo=f"please report this; it was raised at\n{where}")
