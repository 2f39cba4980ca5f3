"""The class `Workspace`: one settings file with its registry and store, and the operations on them.

What belongs here: the methods that notebooks, commands and Dagster call. `resources.py` opens models, `recipes.py`
collects what decides a result, `states.py` compares recipes with the store, `materialise.py` runs stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.config import settings as settings_module
from latentgloss.machine.concurrency import interleave
from latentgloss.pipeline.graph import STAGES
from latentgloss.workspace.materialise import materialise
from latentgloss.workspace.recipes import check_resolved, external_of, recipe_of
from latentgloss.workspace.resources import Resources
from latentgloss.workspace.states import State, state_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from latentgloss.pipeline.recipe import Recipe
    from latentgloss.pipeline.stage import Stage
    from latentgloss.pipeline.stage_run import Outcome, Progress, Runner
    from latentgloss.store import Version


class Workspace(Resources):
    """Settings, registry and store opened together: partitions, recipes, states, and running stages."""

    @classmethod
    def open(cls, path: Path | None = None) -> Workspace:
        """Opens a settings file, by default the one that `settings.find` returns. Raises SettingsError."""
        return cls(settings_module.load(path))

    def partitions(self, stage: Stage) -> list[str]:
        """All partitions that the registry declares for a stage, sorted."""
        return sorted(self.registry.models if stage.grain == "model" else self.registry.saes)

    def external(self, stage: Stage, partition: str) -> dict[str, Any]:
        """What a stage depends on outside the store: files, and explainers and judges as installed. JSON-compatible.

        Raises whatever reading a declared file raises.
        """
        return external_of(self, stage, partition)

    def recipe(self, stage: Stage, partition: str) -> Recipe:
        """Everything that decides a partition's content, from the current versions, settings and files.

        Raises MissingInput if an input has no version, InputError if the partition is not in the registry, and
        whatever reading a declared file raises.
        """
        return recipe_of(self, stage, partition, lambda: self.external(stage, partition))

    def check_resolved(self, resolved: Version) -> None:
        """Raises MissingInput if weights, model or mask differ from those that `resolved` was made from."""
        check_resolved(resolved, self.external(STAGES["resolved_saes"], resolved.manifest.partition))

    def check(self, version: Version) -> None:
        """Raises StoreError if what a version records outside its folder is damaged: tables of vectors.

        Cheap, because a table is read only if its files changed since it was last found sound.
        """
        from latentgloss.embeddings.row_checks import check_tables

        if STAGES[version.manifest.stage].noun == "embeddings":
            check_tables(self.lance, version)

    def states(self, partitions: Iterable[str] | None = None) -> list[State]:
        """States of all stages for all declared partitions, or only for `partitions`, in the order of the stages."""
        chosen = set(partitions) if partitions is not None else None
        known: dict[tuple[str, str], State] = {}
        for stage in STAGES.values():
            for partition in self.partitions(stage):
                known[stage.name, partition] = state_of(
                    self.store,
                    stage,
                    partition,
                    lambda stage=stage, partition=partition: self.recipe(stage, partition),  # type: ignore[misc]
                    known,
                    self.check,
                )
        return [s for (_, partition), s in known.items() if chosen is None or partition in chosen]

    def materialise(
        self,
        stage_name: str,
        partitions: Sequence[str],
        runner: Runner[Workspace],
        *,
        run_id: str = "",
        progress: Progress | None = None,
    ) -> Iterator[Outcome]:
        """Brings partitions of a stage up to date and yields the outcome of each as soon as it is finished.

        Arguments as for `materialise.materialise`.
        """
        return materialise(self, STAGES[stage_name], partitions, runner, run_id=run_id, progress=progress)

    def materialise_together(
        self, runners: Mapping[str, Runner[Workspace]], partitions: Sequence[str], **options: Any
    ) -> Iterator[Outcome]:
        """Brings partitions of several stages up to date and yields outcomes as they arrive.

        Stages that ask a language model run concurrently, so that one sends requests while another waits. Stages that
        only compute run one after another, because they would compete for the processor. `options`: as for
        `materialise`.
        """
        asking = [name for name in runners if self.settings.asks(name)]
        computing = [name for name in runners if name not in asking]

        def run_in_turn(names: list[str]) -> Iterator[Outcome]:
            for name in names:
                yield from self.materialise(name, partitions, runners[name], **options)

        return interleave([run_in_turn(names) for names in (computing, *([name] for name in asking)) if names])
