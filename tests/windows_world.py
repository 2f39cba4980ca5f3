"""A small world for tests of contexts and negatives: a corpus with shared and repeated text, and made-up latents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.activations.reader import ActivationReader
from latentgloss.contexts.blocks import Source
from latentgloss.contexts.firing import Cells
from latentgloss.contexts.windows import Windows, text_hashes
from latentgloss.corpus.reader import Corpus
from latentgloss.schema import GRAM
from latentgloss.statistics.counter_rng import counter_hash
from latentgloss.store.digests import frame_sha256, json_sha256
from latentgloss.workspace import Workspace

LENGTH, SEQUENCE = 16, 64
SEQUENCES = (40, 12, 50)
DEAD, MASKED_ONLY, DENSE, LOCAL, RARE = 0, 1, 2, 3, 13
"""Latents of one kind each; the rest fire at random."""


@dataclass(frozen=True)
class World:
    corpus: Corpus
    masked: np.ndarray
    activations: np.ndarray
    """Dense [positions, latents]: what the sparse tables are checked against."""

    @property
    def windows(self) -> Windows:
        return Windows.of(self.corpus, LENGTH)

    @property
    def pairs(self) -> pl.DataFrame:
        """Rows of `schema.ACTIVATIONS`, in no useful order."""
        position, latent = np.nonzero(self.activations)
        return pl.DataFrame(
            {
                "latent": latent.astype(np.uint32),
                "position": position.astype(np.uint32),
                "activation": self.activations[position, latent],
            }
        )

    def cells(self, latents: list[int] | None = None) -> Cells:
        chosen = np.arange(self.activations.shape[1]) if latents is None else np.asarray(latents)
        return Cells.of(chosen.astype(np.uint32), self.pairs, self.masked, self.windows)

    # What follows is worked out window by window, without the code under test.

    def texts(self) -> list[tuple[int, ...]]:
        return [tuple(w) for w in self.corpus.tokens.reshape(-1, LENGTH).tolist()]

    def splits(self) -> list[int]:
        return [int(s) for s in self.corpus.split_of_sequence for _ in range(SEQUENCE // LENGTH)]

    def documents(self, window: int) -> set[int]:
        positions = np.arange(window * LENGTH, (window + 1) * LENGTH)
        return set(self.corpus.document_of_position(positions).tolist()) - {-1}

    def shared(self, window: int) -> bool:
        flags = self.corpus.shared_13grams.reshape(-1, LENGTH)[window]
        return any(flags[offset] for offset in range(LENGTH - GRAM + 1))

    def peak(self, latent: int, window: int) -> float:
        here = slice(window * LENGTH, (window + 1) * LENGTH)
        values = self.activations[here, latent][~self.masked[here]]
        return max(values.tolist(), default=0.0)

    @property
    def source(self) -> Source:
        """Hands out cells of this world, one block after the other."""
        return _Whole(self.corpus, self.windows, self.masked, ActivationReader([]), [], 1, self)

    @property
    def neighbours(self) -> np.ndarray:
        """Twelve other latents of each (as many as there are), nearest first."""
        n = self.activations.shape[1]
        others = np.argsort(np.random.default_rng(n).random((n, n)) + 2 * np.eye(n), axis=1)
        return others[:, : min(12, n - 1)]

    def zero(self, latent: int, window: int) -> bool:
        return not self.activations[window * LENGTH : (window + 1) * LENGTH, latent].any()


@dataclass(frozen=True)
class _Whole(Source):
    """A source without files."""

    world: World

    def each(self, blocks, use):
        for index, block in enumerate(blocks):
            yield use(index, self.world.cells(block.tolist()))


def make_world(seed: int, n_latents: int = 14, folder: Path = Path("unused")) -> World:
    rng = np.random.default_rng(seed)
    n = sum(SEQUENCES)
    split = np.repeat(np.arange(3), SEQUENCES).astype(np.uint8)
    tokens = rng.integers(2, 60, (n, SEQUENCE)).astype(np.uint32)
    flat = tokens.reshape(-1, LENGTH)
    for _ in range(25):  # whole windows that occur again
        flat[rng.integers(len(flat))] = flat[rng.integers(len(flat))]
    for _ in range(15):  # passages that occur again, at other offsets
        (a, b), size = rng.integers(0, n, 2), int(rng.integers(GRAM, 40))
        x, y = rng.integers(1, SEQUENCE - size, 2)
        tokens[b, y : y + size] = tokens[a, x : x + size].copy()
    tokens[:, 0] = 0
    spans = _spans(rng, split)
    inside = np.zeros(n * SEQUENCE, dtype=bool)
    for _, start, end in spans:
        inside[start:end] = True
    tokens.reshape(-1)[~inside] = np.where(np.arange(n * SEQUENCE)[~inside] % SEQUENCE, 1, 0)
    document, start, end = (np.array(column, dtype=np.uint32) for column in zip(*spans, strict=True))
    corpus = Corpus(folder, tokens, _shared(tokens, split), split, document, start, end)

    masked = ~inside | (rng.random(n * SEQUENCE) < 0.02)
    density = 0.3 / (1 + np.arange(n_latents))
    density[RARE:] = 0.001
    activations = (rng.random((n * SEQUENCE, n_latents)) < density) * rng.integers(1, 9, (n * SEQUENCE, n_latents))
    activations[:, DEAD] = 0
    activations[~masked, MASKED_ONLY] = 0
    activations[:, DENSE] = masked | (rng.random(n * SEQUENCE) < 0.2)  # some windows are active on masked tokens only
    # One latent fires in the three longest documents of each split only.
    size = np.bincount(document, weights=end - start)
    first = np.full(len(size), n * SEQUENCE)
    np.minimum.at(first, document, start)
    at = np.append(np.repeat(split, SEQUENCE), 3)[first]
    longest = np.concatenate([(found := np.flatnonzero(at == s))[np.argsort(-size[found])[:3]] for s in range(3)])
    here = np.isin(corpus.document_of_position(np.arange(n * SEQUENCE)), longest)
    activations[:, LOCAL] = here * (rng.random(n * SEQUENCE) < 0.3) * rng.integers(1, 9, n * SEQUENCE)
    return World(corpus, masked, activations.astype(np.float32))


def _spans(rng: np.random.Generator, split: np.ndarray) -> list[tuple[int, int, int]]:
    """Documents of 3 to 120 tokens, joined by one separator, cut by BOS at every sequence; ids in no order."""
    ids = iter(rng.permutation(5000).tolist())
    spans: list[tuple[int, int, int]] = []
    left, document, previous = 0, 0, -1
    for sequence, number in enumerate(split.tolist()):
        if number != previous:
            left, previous = 0, number
        position, stop = sequence * SEQUENCE + 1, (sequence + 1) * SEQUENCE
        while position < stop:
            if left == 0:
                left, document = int(rng.integers(3, 120)), next(ids)
            end = min(position + left, stop)
            spans.append((document, position, end))
            left -= end - position
            position = end + (left == 0)
    return spans


def _shared(tokens: np.ndarray, split: np.ndarray) -> np.ndarray:
    shared = np.zeros(tokens.shape, dtype=bool)
    seen: dict[tuple[int, ...], int] = {}
    for row, number in zip(tokens.tolist(), split.tolist(), strict=True):
        for offset in range(1, SEQUENCE - GRAM + 1):
            seen.setdefault(tuple(row[offset : offset + GRAM]), number)
    for i, (row, number) in enumerate(zip(tokens.tolist(), split.tolist(), strict=True)):
        for offset in range(1, SEQUENCE - GRAM + 1):
            shared[i, offset] = seen[tuple(row[offset : offset + GRAM])] < number
    return shared


SAE = "m/layers.0/s"


def make_workspace(folder: Path, world: World, latents: object, settings: dict[str, dict[str, object]]) -> Workspace:
    """A workspace whose store holds `world` as corpus and activation cache; called again, with other choices."""
    (folder / "registry/models").mkdir(parents=True, exist_ok=True)
    (folder / "registry/saes").mkdir(exist_ok=True)
    (folder / "registry/models/m.toml").write_text('name = "m"\nsource = "path:m"\n')
    (folder / "registry/saes/s.toml").write_text(
        'model = "m"\nhookpoint = "layers.0"\nname = "s"\nformat = "sparsify"\nsource = "path:s"\n'
    )
    (folder / "latentgloss.toml").write_text(
        "\n".join(f"[{t}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in kv.items()) for t, kv in settings.items())
    )
    workspace = Workspace.open(folder / "latentgloss.toml")
    store = workspace.store
    with store.draft("tokenized_corpus", "m", {"made": "corpus"}) as draft:
        corpus = world.corpus
        for name, array in (("tokens.npy", corpus.tokens), ("shared_13grams.npy", corpus.shared_13grams)):
            with draft.file(name) as path, path.open("wb") as f:
                np.save(f, array)
        spans = {"document": corpus.span_document, "start": corpus.span_start, "end": corpus.span_end}
        split = np.array(schema.SPLITS)[corpus.split_of_sequence]
        sequences = {"sequence": np.arange(len(split), dtype=np.uint32), "split": split}
        for table, columns in (("spans", spans), ("sequences", sequences)):
            with draft.file(f"{table}.parquet") as path:
                pl.DataFrame(columns).write_parquet(path)
        draft.part("corpus", frame_sha256(pl.DataFrame(spans)))
        pin = draft.commit(inputs=[], run_id="", facts={}).pin
    with store.draft("resolved_saes", SAE, {"made": "resolved", "latents": latents}) as draft:
        resolved = {"corpus": pin, "n_latents": world.activations.shape[1], "latents": latents}
        with draft.file("resolved.json") as path:
            path.write_text(json.dumps(resolved))
        draft.part("cache", json_sha256(pin))
        draft.part("latents", json_sha256(latents))
        draft.commit(inputs=[], run_id="", facts={})
    with store.draft("activation_cache", SAE, {"made": "cache"}) as draft:
        half = world.corpus.tokens.size // 2
        masked = pl.DataFrame({"position": np.flatnonzero(world.masked).astype(np.uint32)}).with_columns(
            why=pl.lit("special")
        )
        for number, keep in enumerate((pl.col("position") < half, pl.col("position") >= half)):
            frames = {"activations": world.pairs.filter(keep).sort("latent", "position"), "masked": masked.filter(keep)}
            draft.put(f"shard-{number:06d}", {"shard": number}, (schema.ACTIVATIONS, schema.MASKED), frames)
        draft.put("000000", {"latents": "all"}, (schema.LATENTS,), {"latents": _latents(world)})
        draft.commit(inputs=[], run_id="", facts={})
    return workspace


def _latents(world: World) -> pl.DataFrame:
    """Table `latents`, of which neighbours alone are filled in."""
    lists = {c.name: [] for c in schema.LATENTS.columns if isinstance(c.dtype, pl.List)}
    numbers = {c.name: 0 for c in schema.LATENTS.columns if c.name not in lists}
    return schema.LATENTS.frame(
        {**numbers, **lists, "latent": latent, "neighbours": near, "neighbour_cosines": [0.5] * len(near)}
        for latent, near in enumerate(world.neighbours.tolist())
    )


class HashVectors:
    """Vectors of contexts, made of nothing but their texts: a third of all texts share four vectors."""

    def __init__(self, world: World) -> None:
        self.texts = text_hashes(world.corpus.tokens.reshape(-1, LENGTH))
        self.asked: set[int] = set()

    def get(self, items: np.ndarray) -> np.ndarray:
        self.asked |= set(np.asarray(items).tolist())
        text = self.texts[items]
        text = np.where(text % np.uint64(3) == 0, text % np.uint64(4), text)
        bits = counter_hash(5, text[:, None], np.arange(24))
        vectors = (bits >> np.uint64(11)) * 2.0**-53 - 0.3
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def wide(world: World, n_latents: int = 300) -> World:
    """The same with more latents: number 256 and beyond repeat the first, those between are dead."""
    activations = np.zeros((len(world.masked), n_latents), dtype=np.float32)
    known = world.activations.shape[1]
    activations[:, :known] = world.activations
    activations[:, schema.BLOCK : schema.BLOCK + known] = world.activations
    return World(world.corpus, world.masked, activations)
