"""A workspace: one settings file, its registry and its store; and what follows from the three.

What belongs here: recipes (what decides the content of a stage for a partition), states (fresh, stale, missing,
failed), and running a stage over partitions so that one failure never stops the others. What a stage computes is
in the module of its noun; it is handed to `materialise`.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latentgloss import settings as settings_module
from latentgloss.errors import LatentglossError, MissingInput
from latentgloss.files import LocalFiles, disk_full, is_disk_full
from latentgloss.hashing import DigestCache
from latentgloss.registry import ModelSpec, Registry, SaeSpec
from latentgloss.stages import STAGES, Stage
from latentgloss.store import Draft, Store, Version, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from latentgloss.corpus import Corpus
    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.saes.coder import SparseCoder
    from latentgloss.settings import Settings
    from latentgloss.subject import Subject

Progress = "Callable[[int, int | None, str], None]"
"""Called as progress(done, total or None, unit) while long work runs."""


@dataclass(frozen=True)
class Recipe:
    """What decides the content of a stage for a partition, and the pinned versions it was derived from."""

    content: dict[str, Any]
    inputs: dict[str, dict[str, Version]]
    """Per input stage, per partition."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.content)


@dataclass(frozen=True)
class State:
    """Where one partition of one stage stands."""

    asset: str
    partition: str
    state: Literal["fresh", "stale", "missing", "failed"]
    because: str


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


class Workspace:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(LocalFiles(settings.store_root))
        self._subjects: dict[str, Subject] = {}
        self._vocabularies: dict[str, Vocabulary] = {}

    @classmethod
    def open(cls, path: Path | None = None) -> Workspace:
        """From a settings file, by default the one `settings.find` finds. Raises SettingsError."""
        return cls(settings_module.load(path))

    @cached_property
    def registry(self) -> Registry:
        return Registry.open(self.settings.registry_root)

    @cached_property
    def digests(self) -> DigestCache:
        return DigestCache(self.model_cache / "digests.json")

    @property
    def model_cache(self) -> Path:
        return self.settings.folder / self.settings.machine.model_cache.expanduser()

    # -- what stages read that is not in the store ---------------------------------------------------------

    def subject(self, model: str) -> Subject:
        """The subject model, loaded once per process. Raises SubjectError."""
        if model not in self._subjects:
            from latentgloss.subject import load_subject

            if self.settings.machine.threads is not None:
                import torch

                torch.set_num_threads(self.settings.machine.threads)
            self._subjects.clear()  # one at a time: two models rarely fit one device
            self._subjects[model] = load_subject(
                self.registry.model(model), self.model_cache, device=self.settings.machine.device
            )
        return self._subjects[model]

    def vocabulary(self, model: str) -> Vocabulary:
        """What each token id reads as, by the model's tokenizer. Raises SubjectError."""
        if model not in self._vocabularies:
            from latentgloss.explainers.windows import Vocabulary
            from latentgloss.subject_files import load_tokenizer

            tokenizer = load_tokenizer(self.registry.model(model), self.model_cache)
            strings = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
            self._vocabularies[model] = Vocabulary(strings)
        return self._vocabularies[model]

    def sae(self, spec: SaeSpec) -> SparseCoder:
        """The SAE's weights. Raises SaeError."""
        from latentgloss.saes import read_sae

        return read_sae(spec.format, spec.path)

    def corpus(self, resolved: Version) -> Corpus:
        """The corpus that a `resolved_saes` version pins."""
        from latentgloss.corpus import Corpus

        pin = resolved.json("resolved.json")["corpus"]
        version = self.store.version(pin["stage"], pin["partition"], pin["fingerprint"])
        if version is None:
            raise MissingInput(
                f"corpus {pin['fingerprint']} of {pin['partition']} is gone from the store",
                expected="the version that resolved_saes pins",
                todo="materialise tokenized_corpus and resolved_saes again",
            )
        for name in version.manifest.files:
            version.path(name)
        return Corpus.open(self.store.files.path(version.key))

    # -- recipes ---------------------------------------------------------------------------------------------

    def partitions(self, stage: Stage) -> list[str]:
        """Every partition the registry declares for a stage."""
        return sorted(self.registry.models if stage.grain == "model" else self.registry.saes)

    def recipe(self, stage: Stage, partition: str) -> Recipe:
        """Everything that decides the content, from what is current now.

        Raises MissingInput if an input has no version, InputError if the partition is not in the registry, and
        whatever reading a declared file raises.
        """
        inputs: dict[str, dict[str, Version]] = {}
        contents: dict[str, Any] = {}
        for upstream in stage.inputs:
            versions = self._inputs(stage, STAGES[upstream.stage], partition)
            inputs[upstream.stage] = versions
            hashes = {key: version.content(upstream.parts) for key, version in versions.items()}
            contents[upstream.stage] = hashes[partition] if list(hashes) == [partition] else hashes
        content = {
            "stage": stage.name,
            "version": stage.version,
            "settings": stage.settings_used(self.settings),
            "inputs": contents,
            "external": self._external(stage, partition),
        }
        return Recipe(content, inputs)

    def _inputs(self, stage: Stage, upstream: Stage, partition: str) -> dict[str, Version]:
        if stage.grain == upstream.grain:
            wanted = [partition]
        elif upstream.grain == "model":
            wanted = [self.registry.sae(partition).model]
        else:
            wanted = [sae.partition for sae in self.registry.saes_of(partition)]
        found = {key: self.store.current(upstream.name, key) for key in wanted}
        complete = {key: version for key, version in found.items() if version is not None}
        if not complete or (len(wanted) == 1 and None in found.values()):
            raise MissingInput(
                f"{upstream.name} of {', '.join(wanted) or partition} has not been materialised",
                expected=f"it before {stage.name}",
                todo=f"materialise {upstream.name} first",
            )
        return complete

    def _external(self, stage: Stage, partition: str) -> dict[str, Any]:
        """What a stage depends on outside the store. Only the two stages at the edge have any."""
        if stage.name == "tokenized_corpus":
            from latentgloss.corpus_sources import source_identity
            from latentgloss.subject_files import tokenizer_identity

            model = self.registry.model(partition)
            return {
                "corpus": model.corpus.model_dump(mode="json"),
                "source": source_identity(model.corpus.source, model.folder, self.digests),
                "tokenizer": tokenizer_identity(model, self.model_cache),
            }
        if stage.name == "resolved_saes":
            from latentgloss.saes import sae_file_digest
            from latentgloss.subject_files import model_identity

            sae = self.registry.sae(partition)
            model = self.registry.model(sae.model)
            return {
                "sae": sae.declared(),
                "weights": sae_file_digest(sae.format, sae.path, self.digests.sha256),
                "model": model_identity(model, self.model_cache),
                "mask": model.mask.model_dump(mode="json"),
                "latents": sae.model_dump(mode="json", include={"latents"})["latents"],
            }
        return {}

    # -- states ----------------------------------------------------------------------------------------------

    def states(self, partitions: Iterable[str] | None = None) -> list[State]:
        """State of every stage for every declared partition (or those named), in stage order."""
        chosen = set(partitions) if partitions is not None else None
        known: dict[tuple[str, str], State] = {}
        for stage in STAGES.values():
            for partition in self.partitions(stage):
                known[stage.name, partition] = self._state(stage, partition, known)
        return [s for (_, partition), s in known.items() if chosen is None or partition in chosen]

    def _state(self, stage: Stage, partition: str, known: dict[tuple[str, str], State]) -> State:
        def state(name: Literal["fresh", "stale", "missing", "failed"], because: str = "") -> State:
            return State(stage.name, partition, name, because)

        try:
            current = self.store.current(stage.name, partition)
            failure = self.store.failure(stage.name, partition)
            recipe = self.recipe(stage, partition)
        except MissingInput as e:
            return state("missing", e.found)
        except LatentglossError as e:
            return state("failed", str(e))
        if failure and failure["fingerprint"] == recipe.fingerprint:
            return state("failed", failure["message"])
        if current is None:
            return state("missing", "never materialised")
        changes = differences(current.manifest.recipe, recipe.content)
        if changes:
            return state("stale", "; ".join(changes))
        for upstream, versions in recipe.inputs.items():
            for key in versions:
                above = known.get((upstream, key))
                if above and above.state != "fresh":
                    return state("stale", f"input {upstream} of {key} is {above.state}")
        return state("fresh")

    # -- running ---------------------------------------------------------------------------------------------

    def materialise(
        self,
        stage_name: str,
        partitions: Sequence[str],
        run: Callable[[Sequence[Work]], Iterator[Work]],
        *,
        run_id: str = "",
        progress: Callable[[str], Callable[[int, int | None, str], None]] | None = None,
    ) -> Iterator[Outcome]:
        """Brings partitions of a stage up to date, yielding each as soon as it is finished.

        `run` gets the works that are stale and yields each when done, with `work.error` set if it failed (see
        `one_by_one`). What is fresh computes nothing. No exception of one partition stops another.
        """
        stage = STAGES[stage_name]
        works: list[Work] = []
        for partition in partitions:
            began = time.monotonic()
            try:
                recipe = self.recipe(stage, partition)
                version = self.store.version(stage.name, partition, recipe.fingerprint)
                if version is not None:
                    self.store.point(version)
                    yield Outcome(stage.name, partition, "reused", version, seconds=time.monotonic() - began,
                                  blocks_reused=len(version.manifest.blocks), facts=version.manifest.facts)  # fmt: skip
                    continue
                works.append(Work(self, stage, partition, recipe, progress=progress))
            except LatentglossError as e:
                self.store.fail(stage.name, partition, "", e)
                yield Outcome(stage.name, partition, "failed", error=e)
        try:
            for work in run(works):
                yield work.finish(run_id)
        finally:
            for work in works:
                work.close()


class Work:
    """One partition of one stage being computed: its inputs, its draft, its progress."""

    def __init__(
        self,
        workspace: Workspace,
        stage: Stage,
        partition: str,
        recipe: Recipe,
        *,
        progress: Callable[[str], Callable[[int, int | None, str], None]] | None = None,
    ) -> None:
        self.workspace, self.stage, self.partition, self.recipe = workspace, stage, partition, recipe
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

    def block_recipe(self, settings: dict[str, Any] | None = None, **consumed: Any) -> dict[str, Any]:
        """Recipe of one block: the stage, the settings that matter to it, and hashes of the rows it consumes."""
        return {
            "stage": self.stage.name,
            "version": self.stage.version,
            "settings": self.stage.settings_used(self.settings) if settings is None else settings,
            **consumed,
        }

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
        except LatentglossError as e:
            self.workspace.store.fail(name, self.partition, self.recipe.fingerprint, e)
            return Outcome(name, self.partition, "failed", error=e, seconds=seconds)
        finally:
            self.close()

    def close(self) -> None:
        """Releases the partition's lock."""
        if self._draft is not None:
            self._draft = None
            self._context.__exit__(None, None, None)


def one_by_one(compute: Callable[[Work], None]) -> Callable[[Sequence[Work]], Iterator[Work]]:
    """A runner for `Workspace.materialise` that computes one partition after the other."""

    def run(works: Sequence[Work]) -> Iterator[Work]:
        for work in works:
            work.began = time.monotonic()
            work.error = attempt(lambda work=work: compute(work))  # type: ignore[misc]
            yield work

    return run


def attempt(action: Callable[[], None]) -> LatentglossError | None:
    """Runs `action`; what it raises becomes an error for one partition instead of ending the run."""
    try:
        action()
    except LatentglossError as e:
        return e
    except Exception as e:
        if is_disk_full(e):
            return disk_full(Path(getattr(e, "filename", None) or ".").absolute())
        where = "".join(traceback.format_exception(e)[-3:])
        return LatentglossError(f"{type(e).__name__}: {e}", todo=f"please report this; it was raised at\n{where}")
    return None


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two recipes, in words: `settings.contexts.test: 100 -> 150`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        found: list[str] = []
        for key in keys:
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    if old == new:
        return []
    return [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
