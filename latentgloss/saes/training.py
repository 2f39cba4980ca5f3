"""Training: what an SAE's own files say about the model and place that it was trained on, compared with the registry.

What belongs here: reading these statements from `cfg.json` (and from `config.json` beside the folder, which sparsify
writes for a run), and comparing them. Weights are not read; nothing is written. A statement that makes the registry's
entry wrong is a problem, with which the forward pass refuses the SAE; one that changes results a little, or cannot be
compared, is a warning. `trust_registry` in the entry turns its problems into warnings.

Sources: the code of SAELens (`SAEMetadata`, and `LanguageModelSAERunnerConfig` before release 6), of sparsify
(`SparseCoderConfig`, `RunConfig`), and of TransformerLens (`from_pretrained`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latentgloss.config.entries import BASELINES, INPUT
from latentgloss.errors import SaeError
from latentgloss.saes.model_names import family, same_name

if TYPE_CHECKING:
    from pathlib import Path

    from latentgloss.config.entries import ModelSpec, SaeSpec
    from latentgloss.models.sites import Places


_FOLDER_IS_PLACE = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h|blocks)\.\d+(?:\.\w+)*")
_CORRECT = "correct `hookpoint` in the registry, or remove the SAE"


@dataclass(frozen=True)
class Model:
    """What is known of the model that the registry names."""

    spec: ModelSpec
    places: Places
    types: frozenset[str]
    """`model_type` of its configuration and of the text model in it."""
    centres: bool
    """Whether it has LayerNorms, which subtract a mean. TransformerLens centres weights of such models only."""


@dataclass(frozen=True)
class Training:
    """What an SAE's files say; None or empty where they say nothing."""

    hook: str | None = None
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """`model_from_pretrained_kwargs`: how the model was changed when it was loaded."""
    context: int | None = None
    """Tokens per sequence."""
    bos: bool | None = None
    head: int | None = None
    """The only attention head that is read."""
    transcoder: bool = False
    dataset: str | None = None


def read_training(spec: SaeSpec) -> Training:
    """What the files of an SAE say; nothing for a baseline, or if a file cannot be read (the reader says so)."""
    if spec.format in BASELINES:
        return Training()
    config = _object(spec.path / "cfg.json")
    run = _object(spec.path.parent / "config.json") if spec.format == "sparsify" else {}
    metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else {}

    def say(*names: str) -> Any:
        places = (metadata, config, run)
        return next((place[n] for n in names for place in places if place and place.get(n) is not None), None)

    options, context = say("model_from_pretrained_kwargs"), say("context_size", "ctx_len")
    folder = spec.path.name if _FOLDER_IS_PLACE.fullmatch(spec.path.name) else None
    return Training(
        hook=_text(say("hook_name", "hf_hook_name", "hook_point", "hookpoint")) or folder,
        model=_text(say("model_name", "model")),
        options=options if isinstance(options, dict) else {},
        context=context if isinstance(context, int) and context > 0 else None,
        bos=value if isinstance(value := say("prepend_bos"), bool) else None,
        head=value if isinstance(value := say("hook_head_index"), int) else None,
        transcoder=bool(config.get("transcode")),
        dataset=_text(say("dataset_path", "dataset")),
    )


def contradictions(sae: SaeSpec, model: Model) -> tuple[list[SaeError], list[SaeError]]:
    """(problems, warnings) of an SAE: what its files say and its registry entry denies.

    There is no problem if the entry says `trust_registry`.
    """
    problems, warnings = compare(read_training(sae), sae, model)
    if sae.trust_registry:
        return [], [*problems, *warnings]
    known = "if you know that the files are wrong, set `trust_registry = true` in the SAE's registry file"
    return [SaeError(e.found, expected=e.expected, todo=f"{e.todo}; {known}") for e in problems], warnings


def check_training(sae: SaeSpec, model: Model) -> None:
    """Raises SaeError, the first problem of `contradictions`."""
    for problem in contradictions(sae, model)[0]:
        raise SaeError(f"{sae.partition}: {problem.found}", expected=problem.expected, todo=problem.todo)


def compare(training: Training, sae: SaeSpec, model: Model) -> tuple[list[SaeError], list[SaeError]]:
    """(problems, warnings): where the files of an SAE contradict its registry entry, or cannot be compared with it."""
    problems: list[SaeError] = []
    warnings: list[SaeError] = []
    _compare_place(training, sae, model, problems, warnings)
    _compare_model(training, model, problems, warnings)
    _compare_options(training, sae, model, problems, warnings)
    corpus = model.spec.corpus
    if training.context is not None and training.context < corpus.sequence_length:
        warnings.append(
            SaeError(
                f"the SAE was trained on sequences of {training.context} tokens; the corpus has sequences of "
                f"{corpus.sequence_length}",
                todo=f"set sequence_length = {training.context} under [corpus] of the model, or expect a worse fit at "
                "later tokens",
            )
        )
    if training.bos is not None and training.bos != corpus.prepend_bos:
        warnings.append(
            SaeError(
                f"the SAE was trained {'with' if training.bos else 'without'} BOS in front of sequences",
                expected=f"prepend_bos = {_toml(training.bos)} under [corpus] of the model",
                todo="set it, or expect a worse fit at the first tokens",
            )
        )
    return problems, warnings


def _compare_place(
    training: Training, sae: SaeSpec, model: Model, problems: list[SaeError], warnings: list[SaeError]
) -> None:
    hookpoint = sae.hookpoint
    if training.head is not None:
        problems.append(SaeError(f"the SAE reads attention head {training.head} alone", todo="remove it"))
    if training.transcoder and not hookpoint.endswith(INPUT):
        problems.append(
            SaeError(
                f"the files hold a transcoder, which reads the input of a module; {hookpoint} is an output",
                expected=f"hookpoint = {hookpoint + INPUT!r}",
                todo=_CORRECT,
            )
        )
    if training.hook is None:
        return
    named = training.hook + INPUT if training.transcoder and not training.hook.endswith(INPUT) else training.hook
    right = model.places.hookpoints(named)
    if not right:
        warnings.append(
            SaeError(
                f"the SAE was trained at {training.hook!r}, which is no place of {model.spec.name} that is known by "
                f"this name, so it cannot be compared with {hookpoint!r}",
                todo="check that both are the same place",
            )
        )
    elif hookpoint not in right:
        before = ""
        if _is_before_norm(hookpoint, right[0]):
            before = "; what that module makes is normalised before it is added to the residual stream in this model"
        problems.append(
            SaeError(
                f"the SAE was trained at {training.hook!r}, which is {right[0]!r} in this model; the registry says "
                f"{hookpoint!r}{before}",
                expected=" or ".join(f"hookpoint = {name!r}" for name in right),
                todo=_CORRECT,
            )
        )


def _is_before_norm(hookpoint: str, right: str) -> bool:
    """Whether `right` is the norm after the module `hookpoint` of the same layer."""
    layer, _, name = right.rpartition(".")
    return hookpoint.startswith(f"{layer}.") and name.startswith("post_") and "norm" in name


def _compare_model(training: Training, model: Model, problems: list[SaeError], warnings: list[SaeError]) -> None:
    if training.model is None:
        return
    wrong = SaeError(
        f"the SAE was trained on the model {training.model!r}; the registry says {model.spec.name!r} "
        f"({model.spec.source}, of the kind {' / '.join(sorted(model.types))})",
        expected="the model that the SAE was trained on",
        todo="correct `model` of this SAE or `source` of the model in the registry",
    )
    known = family(training.model)
    if known and model.types and not known & model.types:
        problems.append(wrong)
        return
    kind, _, rest = model.spec.source.partition(":")
    same = same_name(training.model, {model.spec.name, rest.partition("@")[0].rstrip("/").rpartition("/")[2]})
    if same == "other" and kind == "hf":
        problems.append(wrong)
    elif same == "variant" or (same == "other" and not known):
        warnings.append(wrong)


_CHANGES_NOTHING = {
    *("device", "n_devices", "move_to_device", "default_padding_side", "center_unembed", "fold_value_biases"),
    *(
        "device_map",
        "attn_implementation",
        "low_cpu_mem_usage",
        "first_n_layers",
        "local_files_only",
        "trust_remote_code",
    ),
    *("token", "cache_dir", "use_safetensors", "tokenizer", "hf_model", "n_ctx", "default_prepend_bos"),
}
"""Options of a model that leave the activations that an SAE can read here as they are, or are compared elsewhere."""
_RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "hook_embed")


def _compare_options(
    training: Training, sae: SaeSpec, model: Model, problems: list[SaeError], warnings: list[SaeError]
) -> None:
    residual = training.hook is None or any(part in training.hook for part in _RESIDUAL) or "hook" not in training.hook
    for name, value in training.options.items():
        if name in _CHANGES_NOTHING or value in (None, False):
            continue
        why, wrong = "it is not known whether it changes activations", False
        if name == "center_writing_weights":
            wrong = residual and model.centres
            why = "TransformerLens then subtracts the mean from everything written to the residual stream"
            if not model.centres:
                why = "TransformerLens leaves it out for models with RMSNorm, so it should change nothing"
            elif not residual:
                why = "it does not change what is read here"
        elif name in ("fold_ln", "refactor_factored_attn_matrices"):
            wrong = not residual
            why = "it changes values inside the layer" if wrong else "it does not change the residual stream"
        elif name in ("revision", "checkpoint_index", "checkpoint_value"):
            here = model.spec.source.partition("@")[2]
            if name == "revision" and here == value:
                continue
            wrong, why = True, f"the registry's model is of revision {here or 'unknown'}"
        elif name in ("dtype", "torch_dtype"):
            if str(value).removeprefix("torch.") == model.spec.dtype:
                continue
            why = f"the registry runs the model in {model.spec.dtype}"
        (problems if wrong else warnings).append(
            SaeError(
                f"the SAE was trained on a model loaded with {name} = {value!r}: {why}",
                expected="the activations on which the SAE was trained",
                todo="use an SAE trained without it" if wrong else "nothing, unless the SAE fits badly",
            )
        )


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}  # reading a named pipe would wait for ever
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _toml(value: bool) -> str:
    return "true" if value else "false"
