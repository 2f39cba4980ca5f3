"""The stage `activation_cache`: one forward pass per model serves every stale SAE of it.

What belongs here: which runs share a pass. Reads the corpus, the model and the weights of SAEs; writes the tables
`activations`, `masked` and `latents`. The pass itself is in `activations/forward_pass.py`.

Method: Paulo et al., arXiv 2410.13928, section 3 (collecting activations).
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from latentgloss.activations.forward_pass import ForwardPass
from latentgloss.pipeline.failures import attempt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from latentgloss.config.entries import SaeSpec
    from latentgloss.corpus.reader import Corpus
    from latentgloss.models.subject import Subject
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.saes.coder import SparseCoder
    from latentgloss.store import Version


class ActivationNeeds(Protocol):
    """What this stage needs that is not in the store."""

    @property
    def model_cache(self) -> Path:
        """Folder of converted models and their tokenizers."""

    def corpus(self, resolved: Version) -> Corpus:
        """The corpus that a version of `resolved_saes` pins."""

    def subject(self, model: str) -> Subject:
        """The model of a name."""

    def sae(self, spec: SaeSpec) -> SparseCoder:
        """The SAE of a registry entry, with its weights."""

    def check_resolved(self, resolved: Version) -> None:
        """Raises MissingInput if weights, model or mask changed since `resolved` was made."""


def cache_activations(runs: Sequence[StageRun[ActivationNeeds]]) -> Iterator[StageRun[Any]]:
    """Runner of `activation_cache`: one forward pass serves all runs of one model and corpus.

    A run that fails (a width that does not fit, a full disk) leaves the pass; the others continue.
    """
    keys: dict[str, tuple[str, str]] = {}
    for run in runs:
        run.error = attempt(lambda run=run: keys.update({run.partition: _model_and_corpus(run)}))  # type: ignore[misc]
        if run.error:
            yield run
    ready = [run for run in runs if run.partition in keys]
    for _, group in groupby(sorted(ready, key=lambda run: keys[run.partition]), key=lambda run: keys[run.partition]):
        sharing = list(group)
        error = attempt(lambda sharing=sharing: _pass(sharing))  # type: ignore[misc]
        for run in sharing:
            run.error = run.error or error
            yield run


def _model_and_corpus(run: StageRun[ActivationNeeds]) -> tuple[str, str]:
    """(model, fingerprint of the corpus) of a run."""
    return run.model.name, run.input("resolved_saes").json("resolved.json")["corpus"]["fingerprint"]


def _pass(runs: list[StageRun[ActivationNeeds]]) -> None:
    """One forward pass for runs of one model and corpus."""
    from latentgloss.models.readiness import check_model_ready

    first = runs[0]
    check_model_ready(first.model, first.resources.model_cache)
    corpus, subject = first.resources.corpus(first.input("resolved_saes")), first.resources.subject(first.model.name)
    ForwardPass(runs, corpus, subject, _open_sae).run()


def _open_sae(run: StageRun[ActivationNeeds]) -> SparseCoder:
    """Opens the SAE of a run. Raises SaeError, and MissingInput if its files changed since `resolved_saes` was made."""
    coder = run.resources.sae(run.sae)
    run.resources.check_resolved(run.input("resolved_saes"))
    return coder
