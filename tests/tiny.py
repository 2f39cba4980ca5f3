"""A complete workspace in miniature: model, SAEs, corpus, registry, settings. Real parts, a few hundred kB.

What belongs here: `tiny_workspace`, which writes it, and `run_all`, which runs every stage over it. Everything is
drawn from one seed, so two calls give the same bytes.

- The text is a seeded grammar: 48 *signal* words that come often, 240 *fillers* that keep documents unlike each
  other, and one topic per document, so that words of a topic come together.
- The model is a Llama of three layers whose embeddings are large beside what its layers add: a direction of the
  residual stream is close to a token, and what a latent responds to is known.
- The SAEs' encoders are token directions. Per SAE: latents on one word, on two words, on a filler (rare), one that
  is always active (dense), and dead ones. They lie in two blocks of 256 ids.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.stage_run import Outcome, Runner
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = "tiny"
SPARSIFY = "tiny/layers.0/words"
"""SAE in the sparsify layout, at the first layer."""
SAELENS = "tiny/layers.1.mlp/mixed"
"""SAE in the SAELens layout, at the second layer's MLP; random directions, a control."""
SAES = (SPARSIFY, SAELENS)
D_MODEL, N_LAYERS, N_HEADS, D_MLP = 64, 3, 4, 128
N_LATENTS, K = 288, 6
STEP = 4
"""Every fourth latent of the sparsify SAE has a direction."""
DENSE = 2
"""The latent that is always active."""

RUNNERS = {
    "tokenized_corpus": "latentgloss.corpus.stages:tokenize_corpus",
    "resolved_saes": "latentgloss.saes.stages:resolve_saes",
    "activation_cache": "latentgloss.activations.stages:cache_activations",
    "sampled_contexts": "latentgloss.contexts.stages:sample_contexts",
    "sampled_negatives": "latentgloss.contexts.stages:sample_negatives",
    "explanations": "latentgloss.explanations.stages:explain",
    "detection_scores": "latentgloss.scores.stages:score_detection",
    "fuzzing_scores": "latentgloss.scores.stages:score_fuzzing",
    "intruder_scores": "latentgloss.scores.intruder_stage:score_intruder",
    "embedding_scores": "latentgloss.scores.stages:score_embedding",
    "context_embeddings": "latentgloss.embeddings.stages:embed_contexts",
    "explanation_embeddings": "latentgloss.embeddings.stages:embed_explanations",
    "search_index": "latentgloss.embeddings.stages:index_explanations",
    "score_report": "latentgloss.report.stages:report_scores",
}
"""Runner of each stage, as module:function."""

SETTINGS = """\
store = "data"

[contexts]
length = 16
explain = 60
select = 20
test = 30
min_explain = 20
min_test = 12
min_test_documents = 5

[negatives]
explain = 60
select = 20
test = 30

[embedding]
embedders = ["tiny"]

[search]
embedder = "tiny"

[report]
resamples = 200

[machine]
device = "cpu"
threads = 1
workers = 1
batch_tokens = 2048
model_cache = "cache"
"""
WORLD = (
    SETTINGS
    + """
[explanations]
nulls = 2
"""
)
"""Settings of a world unless a test names others. Most of what scoring takes is for nulls; two are as good as five."""

SPARSE = """\
store = "data"
[contexts]
length = 16
explain = 40
select = 0
test = 20
min_explain = 5
min_test = 5
min_test_documents = 2
[negatives]
strata = ["random"]
explain = 5
select = 0
test = 20
[explanations]
explainers = ["llm"]
model = "judge"
llm.contexts = 5
llm.sample = {sample}
[detection]
judges = ["llm:judge"]
llm.sample = {sample}
[fuzzing]
judges = ["llm:judge"]
llm.sample = {sample}
[machine]
device = "cpu"
threads = 1
workers = 1
"""
"""A language model `judge` is asked about few latents of a wide SAE."""


def words() -> tuple[list[str], list[str]]:
    """(signal words, fillers): pronounceable, distinct, the same on every call."""
    rng = np.random.default_rng(7)
    found: dict[str, None] = {}
    while len(found) < 288:
        syllables = rng.integers(2, 4)
        found["".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(syllables))] = None
    everything = list(found)
    return everything[:48], everything[48:]


def documents(n: int, seed: int = 0) -> list[str]:
    """`n` documents of 30 to 60 words; each has a topic of six signal words that make up a third of it."""
    signal, filler = words()
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(n):
        topic = 6 * int(rng.integers(0, 8))
        length = int(rng.integers(30, 61))
        kind = rng.random(length)
        topical, other = rng.integers(topic, topic + 6, length), rng.integers(0, 48, length)
        plain = rng.integers(0, len(filler), length)
        chosen = [
            signal[topical[i]] if kind[i] < 0.33 else signal[other[i]] if kind[i] < 0.45 else filler[plain[i]]
            for i in range(length)
        ]
        texts.append(" ".join(chosen))
    return texts


def tiny_workspace(tmp_path: Path, n_documents: int = 400, settings: str = WORLD) -> Workspace:
    """Writes everything a run needs below `tmp_path` and opens it. Nothing is computed."""
    write_corpus(tmp_path / "corpus" / "documents.jsonl", documents(n_documents))
    embeddings = write_model(tmp_path / "model")
    write_sparsify(tmp_path / "saes" / "words", embeddings)
    write_saelens(tmp_path / "saes" / "mixed")
    registry = tmp_path / "registry"
    _text(
        registry / "models" / "tiny.toml",
        'name = "tiny"\nsource = "path:../../model"\ndtype = "float32"\n\n[corpus]\n'
        'source = "path:../../corpus/documents.jsonl"\nsequence_length = 64\n',
    )
    write_embedder(tmp_path / "embedder")
    _text(
        registry / "embedders" / "tiny.toml",
        'name = "tiny"\nsource = "path:../../embedder"\nmax_tokens = 64\ndtype = "float32"\n',
    )
    register(tmp_path, SPARSIFY, "sparsify")
    register(tmp_path, SAELENS, "saelens", extra="latents = {start = 0, stop = 24}\ncontrol = true\n")
    _text(tmp_path / "latentgloss.toml", settings)
    return Workspace.open(tmp_path / "latentgloss.toml")


def register(tmp_path: Path, partition: str, format: str, *, folder: str | None = None, extra: str = "") -> Path:
    """Writes the registry file of an SAE whose weights are in `saes/<folder>` (default: its name)."""
    model, hookpoint, name = partition.split("/")
    path = tmp_path / "registry" / "saes" / f"{name}.toml"
    _text(
        path,
        f'model = "{model}"\nhookpoint = "{hookpoint}"\nname = "{name}"\nformat = "{format}"\n'
        f'source = "path:../../saes/{folder or name}"\n{extra}',
    )
    return path


def write_corpus(path: Path, texts: list[str]) -> None:
    _text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_model(folder: Path, seed: int = 1) -> np.ndarray:
    """A random Llama with its tokenizer, in Hugging Face's layout; returns its embeddings [vocabulary, d]."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    signal, filler = words()
    vocabulary = ["<unk>", "<s>", "</s>", *signal, *filler]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    _json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(vocabulary),
            "hidden_size": D_MODEL,
            "intermediate_size": D_MLP,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "num_key_value_heads": N_HEADS,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "float32",
        },
    )
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 0.1) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    ones = np.ones(D_MODEL, dtype=np.float32)
    tensors = {"model.embed_tokens.weight": draw(len(vocabulary), D_MODEL, scale=1.0), "model.norm.weight": ones}
    for layer in range(N_LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("q", "k", "v", "o"):
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = draw(D_MODEL, D_MODEL)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = draw(D_MLP, D_MODEL)
        tensors[f"{prefix}.mlp.up_proj.weight"] = draw(D_MLP, D_MODEL)
        tensors[f"{prefix}.mlp.down_proj.weight"] = draw(D_MODEL, D_MLP)
        tensors[f"{prefix}.input_layernorm.weight"] = ones
        tensors[f"{prefix}.post_attention_layernorm.weight"] = ones
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors["model.embed_tokens.weight"]


def write_embedder(folder: Path, d: int = 32, seed: int = 4) -> None:
    """A random BERT of one layer as a sentence-transformers model: texts that share words are near each other."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    signal, filler = words()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"0123456789", *signal, *filler]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    shape = {"hidden_size": d, "intermediate_size": d, "num_hidden_layers": 1, "num_attention_heads": 2}
    _json(
        folder / "config.json",
        {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": len(vocabulary),
            **shape,
            "max_position_embeddings": 128,
            "type_vocab_size": 2,
            "pad_token_id": 0,
            "dtype": "float32",
        },
    )
    rng = np.random.default_rng(seed)

    def draw(*size: int, scale: float = 0.02) -> np.ndarray:
        return (scale * rng.standard_normal(size)).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": draw(len(vocabulary), d, scale=1.0),
        "embeddings.position_embeddings.weight": draw(128, d),
        "embeddings.token_type_embeddings.weight": draw(2, d),
    }
    layer = "encoder.layer.0"
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ):
        tensors |= {f"{layer}.{name}.weight": draw(d, d), f"{layer}.{name}.bias": np.zeros(d, np.float32)}
    tensors |= {"pooler.dense.weight": draw(d, d), "pooler.dense.bias": np.zeros(d, np.float32)}
    for name in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        tensors |= {
            f"{name}.LayerNorm.weight": np.ones(d, np.float32),
            f"{name}.LayerNorm.bias": np.zeros(d, np.float32),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _json(folder / "sentence_bert_config.json", {"max_seq_length": 128})
    _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": d, "pooling_mode_mean_tokens": True})
    module = "sentence_transformers.models"
    _json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
        ],
    )


def write_sparsify(folder: Path, embeddings: np.ndarray) -> None:
    """A TopK SAE whose latents 0, 4, 8, … stand for one signal word, two signal words, or a filler."""
    from safetensors.numpy import save_file

    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    norm = float(np.linalg.norm(embeddings, axis=1).mean())
    encoder = np.zeros((N_LATENTS, D_MODEL), dtype=np.float32)
    bias = np.full(N_LATENTS, -100.0, dtype=np.float32)
    for number, latent in enumerate(range(0, N_LATENTS, STEP)):
        tokens = [3 + number] if number < 32 else [3 + number, 3 + (number + 17) % 48] if number < 48 else [3 + number]
        direction = unit[tokens].sum(axis=0)
        encoder[latent] = direction / np.linalg.norm(direction)
        bias[latent] = -norm * (0.55 if len(tokens) == 1 else 0.5)
    bias[DENSE] = 1.0
    decoder = encoder.copy()
    silent = ~encoder.any(axis=1)
    decoder[silent] = np.random.default_rng(5).standard_normal((int(silent.sum()), D_MODEL)).astype(np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    folder.mkdir(parents=True, exist_ok=True)
    _json(
        folder / "cfg.json",
        {"d_in": D_MODEL, "num_latents": N_LATENTS, "expansion_factor": 32, "k": K, "activation": "topk"},
    )
    save_file(
        {
            "encoder.weight": encoder,
            "encoder.bias": bias,
            "W_dec": decoder,
            "b_dec": np.zeros(D_MODEL, dtype=np.float32),
        },
        folder / "sae.safetensors",
    )


def write_saelens(folder: Path, seed: int = 3, n_latents: int = 64, d_in: int = D_MODEL) -> None:
    """A TopK SAE of random directions."""
    from safetensors.numpy import save_file

    encoder = np.random.default_rng(seed).standard_normal((d_in, n_latents)).astype(np.float32)
    encoder /= np.linalg.norm(encoder, axis=0)
    folder.mkdir(parents=True, exist_ok=True)
    _json(
        folder / "cfg.json",
        {
            "architecture": "topk",
            "d_in": d_in,
            "d_sae": n_latents,
            "k": 4,
            "dtype": "float32",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
        },
    )
    save_file(
        {
            "W_enc": encoder,
            "W_dec": np.ascontiguousarray(encoder.T),
            "b_enc": np.zeros(n_latents, dtype=np.float32),
            "b_dec": np.zeros(d_in, dtype=np.float32),
        },
        folder / "sae_weights.safetensors",
    )


def write_wide(folder: Path, partition: str, latents: int) -> None:
    """A SAE of so many latents that can all be explained: each stands for one word, as others far from it do."""
    from safetensors.numpy import save_file

    n = len(words()[0]) + len(words()[1])
    width = -(-latents // n) * n
    embeddings = write_model(folder / "model")[-n:]
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    encoder = np.ascontiguousarray(np.tile(unit, (width // n, 1)), dtype=np.float32)
    where = folder / "saes" / partition.split("/")[2]
    config = {"d_in": D_MODEL, "num_latents": width, "k": width // n, "activation": "topk", "expansion_factor": 1}
    _json(where / "cfg.json", config)
    save_file(
        {
            "encoder.weight": encoder,
            "encoder.bias": np.zeros(width, np.float32),
            "W_dec": encoder.copy(),
            "b_dec": np.zeros(D_MODEL, np.float32),
        },
        where / "sae.safetensors",
    )
    register(folder, partition, "sparsify", extra=f"latents = {{start = 0, stop = {latents}}}\n")


def write_sparse(folder: Path, partition: str, latents: int, sample: int) -> None:
    """A workspace of that one SAE, wide, of which `sample` latents are explained and judged by a model `judge`."""
    tiny_workspace(folder, settings=SPARSE.format(sample=sample))
    for path in (folder / "registry" / "saes").glob("*.toml"):
        path.unlink()
    write_wide(folder, partition, latents)


def runner(stage: str) -> Runner:
    """The function that computes a stage, for `Workspace.materialise`."""
    module, _, name = RUNNERS[stage].partition(":")
    function: Runner = getattr(importlib.import_module(module), name)
    return function


def run_all(workspace: Workspace, stages: Sequence[str] | None = None, *, run_id: str = "tiny") -> list[Outcome]:
    """Brings every partition of every stage (or of those named, in order) up to date; never raises for one of them."""
    outcomes: list[Outcome] = []
    for name in stages or RUNNERS:
        partitions = workspace.partitions(STAGES[name])
        outcomes += workspace.materialise(name, partitions, runner(name), run_id=run_id)
    return outcomes


def computed_workspace(folder: Path, settings: str = WORLD, stages: Sequence[str] | None = None) -> Workspace:
    """`tiny_workspace` with every stage computed under `WORLD`, then given these settings.

    What the settings leave as it was is in the store; a test computes the rest. The world is computed once per test
    session, in whichever process asks first, and copied from then on. A test of what computing does uses
    `tiny_workspace` and `run_all` instead. `stages`: the store holds these alone, and no vectors.
    """
    root = Path(os.environ["LATENTGLOSS_TEST_WORLDS"])
    made = root / "tiny"
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            scratch = root / "making"
            shutil.rmtree(scratch, ignore_errors=True)
            for outcome in run_all(tiny_workspace(scratch)):
                if outcome.error:
                    raise outcome.error
            scratch.rename(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    for kept in (folder / "data").iterdir() if stages is not None else ():
        if kept.name not in stages:
            shutil.rmtree(kept)
    _text(folder / "latentgloss.toml", settings)
    return Workspace.open(folder / "latentgloss.toml")


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _json(path: Path, value: Any) -> None:
    _text(path, json.dumps(value, indent=1))
