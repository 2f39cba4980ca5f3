"""What would stop a run, found before anything runs: mistakes in settings and registry, keys, budget, device.

What belongs here: one check per kind of mistake (`CHECKS`). A check calls what the stages themselves call, so that both
refuse the same things with the same words. `latentgloss doctor` prints what is found. Computes nothing, sends nothing
and loads no weights; digests of files are remembered (`DigestCache`). Whether SAEs fit their models is checked by
`latentgloss saes check`.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from latentgloss.config.settings import LLM
from latentgloss.pipeline.failures import attempt
from latentgloss.pipeline.graph import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from latentgloss.config import Settings
    from latentgloss.config.entries import ModelSpec
    from latentgloss.errors import LatentglossError
    from latentgloss.workspace.workspace import Workspace

    Check = Callable[[Workspace], Iterator[Callable[[], object]]]


def problems(workspace: Workspace) -> list[LatentglossError]:
    """Everything that the checks find, each once."""
    found: dict[str, LatentglossError] = {}
    for check in CHECKS:
        for action in check(workspace):
            error = attempt(lambda action=action: action())  # type: ignore[misc]
            if error is not None:
                found.setdefault(str(error), error)
    return list(found.values())


def _names(workspace: Workspace) -> Iterator[Callable[[], object]]:
    """Explainers, judges, language models and embedders that the settings name, even if no SAE is declared yet."""
    from latentgloss.explanations.explainers import base_of
    from latentgloss.scores.table import SCORERS, identities

    settings, registry = workspace.settings, workspace.registry
    for explainer in settings.explanations.explainers:
        yield lambda explainer=explainer: base_of(explainer)  # type: ignore[misc]
    named = (settings.explanations.model, settings.explanations.best_of_k.judge)
    for model in dict.fromkeys(name for name in (*named, *_asked(settings)) if name is not None):
        yield lambda model=model: registry.language_model(model)  # type: ignore[misc]
    embedders = (*settings.embedding.embedders, settings.search.embedder, settings.negatives.embedder)
    for embedder in dict.fromkeys(name for name in embedders if name is not None):
        yield lambda embedder=embedder: registry.embedder(embedder)  # type: ignore[misc]
    for scorer in SCORERS:
        yield lambda scorer=scorer: identities(workspace, settings, scorer)  # type: ignore[misc]


def _outside(workspace: Workspace) -> Iterator[Callable[[], object]]:
    """What each stage depends on outside the store: sources, files, explainers and judges as installed."""
    for stage in STAGES.values():
        if stage.name == "resolved_saes":  # `saes check` reads weights
            continue
        for partition in workspace.partitions(stage):
            yield lambda stage=stage, partition=partition: workspace.external(stage, partition)  # type: ignore[misc]


def _language_models(workspace: Workspace) -> Iterator[Callable[[], object]]:
    """Keys of the servers that are asked, and the budget of paid models."""
    from latentgloss.llm.engines.openai_compatible import OpenAICompatible
    from latentgloss.llm.payments import Payments

    for name in _asked(workspace.settings):
        spec = workspace.registry.language_models.get(name)
        if spec is None:  # found by `_names`
            continue
        yield lambda spec=spec: Payments(spec, workspace.ledger, None).begin()  # type: ignore[misc]
        if spec.engine == "openai_compatible":
            yield lambda spec=spec: OpenAICompatible(spec)  # type: ignore[misc]


def _device(workspace: Workspace) -> Iterator[Callable[[], object]]:
    """The device of the settings."""
    from latentgloss.models.devices import chosen_device

    name = workspace.settings.machine.device
    if name is not None:
        yield lambda: _if_torch(lambda: chosen_device(name))


def _models(workspace: Workspace) -> Iterator[Callable[[], object]]:
    """Whether each model can read its corpus, as far as its configuration and its tokenizer show."""
    from latentgloss.models.readiness import model_problems

    def read(spec: ModelSpec, found: list[LatentglossError]) -> None:
        _if_torch(lambda: found.extend(model_problems(spec, workspace.model_cache)))

    for spec in workspace.registry.models.values():
        found: list[LatentglossError] = []
        yield partial(read, spec, found)
        for error in found:  # there once the action above has run
            yield partial(_raise, error)


def _raise(error: LatentglossError) -> None:
    raise error


def _saes(workspace: Workspace) -> Iterator[Callable[[], object]]:
    """Whether the files of each SAE are there and hold weights that can be used, as far as their headers show."""
    from latentgloss.saes.opening import check_sae_files

    for spec in workspace.registry.saes.values():
        yield partial(_if_torch, partial(check_sae_files, spec))


def _if_torch(action: Callable[[], object]) -> None:
    """Runs a check that needs torch. Where torch cannot be used, `doctor` says that by itself."""
    with contextlib.suppress(ImportError):
        action()


CHECKS: tuple[Check, ...] = (_names, _outside, _language_models, _device, _models, _saes)
"""Each yields actions that raise if something is wrong. A new kind of mistake is one more function."""


def _asked(settings: Settings) -> list[str]:
    """Names of the language models that stages ask under these settings."""
    from latentgloss.explanations.explainers import EXPLAINERS
    from latentgloss.explanations.explainers.best_of_k import BestOfKExplainer
    from latentgloss.explanations.explainers.llm import LlmExplainer

    explanations = settings.explanations
    bases = {name.removeprefix("null:").partition(":")[0] for name in explanations.explainers}
    asking = [name for name in bases if issubclass(EXPLAINERS.get(name, object), LlmExplainer | BestOfKExplainer)]
    names = [explanations.model] if asking else []
    names += [explanations.best_of_k.judge] if "best_of_k" in bases else []
    for scorer in (settings.detection, settings.fuzzing, settings.intruder):
        names += [name.removeprefix(LLM) for name in scorer.judges if name.startswith(LLM)]
    return list(dict.fromkeys(name for name in names if name is not None))
