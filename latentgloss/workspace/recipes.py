"""Collects the recipe of a partition: everything that decides its content, from the current versions and files.

What belongs here: the versions of a partition's inputs, and the table `EXTERNAL` with one function per stage for what
the stage depends on outside the store: files, models, explainers and judges as installed. Reads manifests, registry and
declared files; writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.errors import MissingInput, StoreError
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.recipe import Recipe, asked_again, differences
from latentgloss.workspace.forgetting import to_ask_again

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from latentgloss.pipeline.stage import Input, Stage
    from latentgloss.store import Version
    from latentgloss.workspace.resources import Resources


def recipe_of(resources: Resources, stage: Stage, partition: str, external: Callable[[], dict[str, Any]]) -> Recipe:
    """The recipe of a partition. `external` returns what the stage depends on outside the store (`external_of`).

    Raises MissingInput if an input has no version, InputError if the partition is not in the registry, and whatever
    `external` raises.
    """
    consumed = stage.consumes(resources.settings)
    try:
        inputs, contents = _inputs(resources, stage, partition, consumed.inputs)
    except MissingInput:
        if not _all_removed(resources, stage, partition):
            raise
        # Made without any SAE, so that what was made from the removed ones is no longer the current version.
        inputs = {i.stage: {} for i in stage.inputs if not i.optional}
        contents = dict(inputs)
    content = {
        "stage": stage.name,
        "version": stage.version,
        "settings": consumed.settings,
        "inputs": contents,
        "external": external(),
    }
    try:
        asks = resources.settings.asks(stage.name)
        current = resources.store.current(stage.name, partition) if asks else None
    except StoreError:  # damaged, so it is made again
        current = None
    again = to_ask_again(resources.store, current)
    return Recipe(asked_again(content, current, forgotten=bool(again)), inputs, again)


def _inputs(
    resources: Resources, stage: Stage, partition: str, consumed: Iterable[tuple[Input, tuple[str, ...]]]
) -> tuple[dict[str, dict[str, Version]], dict[str, Any]]:
    """The current versions of a partition's inputs, and the hashes of what is read of them. Raises MissingInput."""
    inputs: dict[str, dict[str, Version]] = {}
    contents: dict[str, Any] = {}
    for upstream, parts in consumed:
        try:
            versions = _current_inputs(resources, stage, STAGES[upstream.stage], partition)
        except MissingInput:
            if upstream.optional:
                continue
            raise
        inputs[upstream.stage] = versions
        hashes = {key: version.content(parts) for key, version in versions.items()}
        contents[upstream.stage] = hashes[partition] if list(hashes) == [partition] else hashes
    optional = [i.stage for i in stage.inputs if i.optional]
    # A scorer without judges makes an empty version.
    if optional and not any(v.manifest.parts for name in optional for v in inputs.get(name, {}).values()):
        raise MissingInput(
            f"none of {', '.join(optional)} of {partition} has been materialised with any content",
            expected=f"at least one of them with content before {stage.name}",
            todo=f"materialise {optional[0]} first",
        )
    return inputs, contents


def _all_removed(resources: Resources, stage: Stage, partition: str) -> bool:
    """Whether a model's current version of the stage was made from SAEs, none of which the registry declares still."""
    registry = resources.registry
    over_saes = stage.grain == "model" and any(STAGES[i.stage].grain == "sae" for i in stage.inputs)
    if not over_saes or registry.may_declare_more():
        return False
    try:
        current = resources.store.current(stage.name, partition)
    except StoreError:  # it is damaged, so what it was made from is unknown
        return False
    return current is not None and not any(pin["partition"] in registry.saes for pin in current.manifest.inputs)


def _current_inputs(resources: Resources, stage: Stage, upstream: Stage, partition: str) -> dict[str, Version]:
    """The current versions of an upstream stage that a partition reads, by upstream partition. Raises MissingInput."""
    if stage.grain == upstream.grain:
        wanted = [partition]
    elif upstream.grain == "model":
        wanted = [resources.registry.sae(partition).model]
    else:
        wanted = [sae.partition for sae in resources.registry.saes_of(partition)]
    found = {key: resources.store.current(upstream.name, key) for key in wanted}
    complete = {key: version for key, version in found.items() if version is not None}
    if not complete or (len(wanted) == 1 and None in found.values()):
        raise MissingInput(
            f"{upstream.name} of {', '.join(wanted) or partition} has not been materialised",
            expected=f"{upstream.name} to be materialised before {stage.name}",
            todo=f"materialise {upstream.name} first",
        )
    return complete


def check_resolved(resolved: Version, external: dict[str, Any]) -> None:
    """Raises MissingInput if weights, model or mask differ from those that `resolved` was made from.

    Results are stored under hashes taken when `resolved_saes` was materialised, so they must be computed from the same
    files. `external`: what `resolved_saes` depends on now.
    """
    now = {key: value for key, value in external.items() if key != "latents"}  # does not decide the cache
    changed = differences({key: resolved.json("resolved.json")[key] for key in now}, now)
    if changed:
        raise MissingInput(
            f"{resolved.manifest.partition} changed since resolved_saes was materialised ({'; '.join(changed)})",
            expected="resolved_saes made from the current files and registry entry",
            todo="materialise resolved_saes, then this stage",
        )


# What stages depend on outside the store --------------------------------------------------------------------


def external_of(resources: Resources, stage: Stage, partition: str) -> dict[str, Any]:
    """What a stage depends on outside the store, JSON-compatible. Raises whatever reading a declared file raises."""
    find = EXTERNAL.get(stage.name)
    return find(resources, partition) if find else {}


def _of_corpus(resources: Resources, partition: str) -> dict[str, Any]:
    from latentgloss.corpus.duplicates import COMPARISON
    from latentgloss.corpus.sources import compared_as_before, source_identity
    from latentgloss.models.identity import tokenizer_identity

    model = resources.registry.model(partition)
    corpus = model.corpus
    same = compared_as_before(corpus.source, model.folder, corpus.text_column, resources.digests)
    return {
        "corpus": corpus.deciding(),
        "source": source_identity(corpus.source, model.folder, resources.digests),
        # Only where it can matter, so that other corpora stay fresh.
        **({} if same else {"comparison": COMPARISON}),
        "tokenizer": tokenizer_identity(model, resources.model_cache),
    }


def _of_sae(resources: Resources, partition: str) -> dict[str, Any]:
    from latentgloss.models.identity import subject_identity
    from latentgloss.saes.opening import sae_digest

    sae = resources.registry.sae(partition)
    model = resources.registry.model(sae.model)
    return {
        "sae": sae.declared(),
        "weights": sae_digest(sae, resources.digests.sha256),
        "model": subject_identity(model, resources.model_cache),
        "mask": model.mask.model_dump(mode="json"),
        "latents": sae.model_dump(mode="json", include={"latents"})["latents"],
    }


def _of_activations(resources: Resources, partition: str) -> dict[str, Any]:
    from latentgloss.models.identity import lens_identity
    from latentgloss.saes.opening import decoder_identity

    sae = resources.registry.sae(partition)
    return lens_identity(resources.registry.model(sae.model)) | decoder_identity(sae, resources.digests)


def _of_negatives(resources: Resources, partition: str) -> dict[str, Any]:
    return resources.harder_negatives()


def _of_explanations(resources: Resources, partition: str) -> dict[str, Any]:
    from latentgloss.explanations.explainers import identities

    return {"explainers": identities(resources.settings.explanations, resources.tools(partition))}


def _of_scores(stage: str) -> Callable[[Resources, str], dict[str, Any]]:
    def judges(resources: Resources, partition: str) -> dict[str, Any]:
        from latentgloss.scores.table import identities

        return {"judges": identities(resources, resources.settings, stage.removesuffix("_scores"))}

    return judges


def _of_vectors(resources: Resources, partition: str) -> dict[str, Any]:
    names = resources.settings.embedding.embedders
    return {"embedders": {name: resources.embedder(name).identity() for name in names}}


def _of_index(resources: Resources, partition: str) -> dict[str, Any]:
    return {"embedder": resources.embedder(resources.settings.search.embedder).identity()}


def _of_report(resources: Resources, partition: str) -> dict[str, Any]:
    return {"control": {sae.partition: sae.control for sae in resources.registry.saes_of(partition)}}


EXTERNAL: dict[str, Callable[[Resources, str], dict[str, Any]]] = {
    "tokenized_corpus": _of_corpus,
    "resolved_saes": _of_sae,
    "activation_cache": _of_activations,
    "sampled_negatives": _of_negatives,
    "explanations": _of_explanations,
    **{name: _of_scores(name) for name, stage in STAGES.items() if stage.noun == "scores"},
    "context_embeddings": _of_vectors,
    "explanation_embeddings": _of_vectors,
    "search_index": _of_index,
    "score_report": _of_report,
}
"""What each stage depends on outside the store, by stage name; a stage without an entry depends on nothing there."""
