"""What `lineage --verify` recomputes at each hop, from scratch and without trusting any remembered digest.

What belongs here: pure comparisons of what is found with what is stored; each returns `Check`s. The walk from hop to
hop is in `lineage.py`. Reads store files and sources; writes nothing.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss.errors import LatentglossError, StoreError
from latentgloss.pipeline.graph import STAGES
from latentgloss.schema import CONTEXTS
from latentgloss.store.blocks import parts_of
from latentgloss.store.digests import DigestCache, file_sha256, frame_sha256, json_sha256, text_sha256
from latentgloss.store.version import MANIFEST, fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from latentgloss.config.entries import ModelSpec
    from latentgloss.corpus.reader import Corpus
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import Question
    from latentgloss.schema import Table
    from latentgloss.store import Manifest, Store, Version
    from latentgloss.workspace import Workspace


@dataclass(frozen=True)
class Check:
    """One thing recomputed. `ok` None: it could not be recomputed here, `found` says why."""

    what: str
    ok: bool | None
    found: str = ""
    stored: str = ""

    def __str__(self) -> str:
        return f"{self.what}: found {self.found}" + (f", stored {self.stored}" if self.stored else "")


def equal(what: str, found: Any, stored: Any) -> Check:
    return Check(what, bool(found == stored), shown(found), shown(stored))


def none_of(what: str, offenders: Iterable[Any], ok: str = "") -> Check:
    """Holds if there are no offenders; names the first of them otherwise."""
    wrong = list(offenders)
    return Check(what, not wrong, f"{len(wrong)} that differ, first {wrong[:3]}" if wrong else ok)


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 100 else text[:97] + "…"


def manifest_checksum(manifest: Manifest) -> str:
    """The manifest's own checksum, as it was computed when it was written."""
    return json_sha256(asdict(manifest))


def manifest_checks(store: Store, version: Version) -> list[Check]:
    """A manifest against itself and against its pins: checksum, fingerprint, parts, data version, inputs."""
    m = version.manifest
    data = json.loads(store.files.path(f"{version.key}/{MANIFEST}").read_bytes())
    stored = data.pop("manifest_sha256")
    checks = [
        equal("manifest's checksum", json_sha256(data), stored),
        equal("hash of the recipe", fingerprint(m.recipe), m.fingerprint),
    ]
    computed = {
        part: json_sha256({name: block.parts[part] for name, block in sorted(m.blocks.items()) if part in block.parts})
        for part in sorted({part for block in m.blocks.values() for part in block.parts})
    }
    checks += [
        equal("parts from the blocks", computed, {part: m.parts.get(part) for part in computed}),
        equal("data version from the parts", json_sha256(m.parts), m.data_version),
    ]
    return checks + [_pin_check(store, pin) for pin in m.inputs] + _recipe_inputs(store, m)


def _pin_check(store: Store, pin: dict[str, str]) -> Check:
    what = f"pin of {pin['stage']} {pin['partition']}"
    try:
        pinned = store.version(pin["stage"], pin["partition"], pin["fingerprint"])
    except StoreError as e:
        return Check(what, False, e.found, pin["data_version"])
    return equal(what, pinned.manifest.data_version if pinned else "nothing", pin["data_version"])


def _recipe_inputs(store: Store, m: Manifest) -> list[Check]:
    """The recipe holds the content of exactly the versions that are pinned."""
    stage = STAGES.get(m.stage)
    if stage is None or stage.version != m.recipe["version"]:
        why = f"made by version {m.recipe['version']} of the stage; this is {stage.version if stage else 'unknown'}"
        return [Check("recipe's inputs", None, why)]
    checks = []
    settings = m.recipe["settings"]
    for upstream in stage.inputs:
        if not upstream.used(settings) or (upstream.optional and upstream.stage not in m.recipe["inputs"]):
            continue
        found: dict[str, str] = {}
        for pin in m.inputs:
            try:
                pinned = store.version(pin["stage"], pin["partition"], pin["fingerprint"])
            except StoreError:
                return []  # named by the check of that pin
            if pinned is not None and pin["stage"] == upstream.stage:
                found[pin["partition"]] = pinned.content(upstream.parts_used(settings))
        stored = m.recipe["inputs"].get(upstream.stage)
        one = next(iter(found.values())) if len(found) == 1 and isinstance(stored, str) else found
        checks.append(equal(f"recipe's input {upstream.stage}", one, stored))
    return checks


def file_check(version: Version, name: str) -> Check:
    """sha256 of a file of a version, read again now."""
    expected = version.manifest.files.get(name)
    path = version.files.path(f"{version.key}/{name}")
    what = f"file {version.key}/{name}"
    if expected is None:
        return Check(what, False, "no such file in the manifest")
    try:
        return equal(what, file_sha256(path), expected["sha256"])
    except OSError as e:
        return Check(what, False, e.strerror or str(e), expected["sha256"])


def content_check(version: Version, table: Table, block: str, frame: pl.DataFrame) -> Check:
    """Content hashes of one table of a block, against the manifest's."""
    stored = version.manifest.blocks[block].parts
    mine = {k: v for k, v in stored.items() if k == table.name or k.endswith(f":{table.name}")}
    return equal(f"content of {table.name}/{block}", parts_of(table, frame), mine)


def part_check(version: Version, name: str) -> Check:
    """Content hash of a file that is a part of its own (corpus)."""
    path = version.files.path(f"{version.key}/{name}")
    found = frame_sha256(pl.read_parquet(path)) if path.suffix == ".parquet" else file_sha256(path)
    return equal(f"content of {name}", found, version.manifest.parts.get(path.stem))


def resolved_checks(version: Version, resolved: dict[str, Any]) -> list[Check]:
    """`resolved.json` against the recipe and the parts of its manifest, and its corpus against the pin."""
    m = version.manifest
    external = {key: resolved.get(key) for key in m.recipe["external"]}
    cache = {key: value for key, value in external.items() if key != "latents"}
    corpus = next((pin for pin in m.inputs if pin["stage"] == "tokenized_corpus"), None)
    return [
        equal("what it depends on, as in the recipe", external, m.recipe["external"]),
        equal("corpus it names, as pinned", resolved["corpus"], corpus),
        equal(
            "part `cache`",
            json_sha256({**cache, "corpus": resolved["corpus"]["data_version"]}),
            m.parts.get("cache"),
        ),
        equal("part `latents`", json_sha256(external["latents"]), m.parts.get("latents")),
    ]


def sae_check(workspace: Workspace, partition: str, stored: Any) -> Check:
    """Digest of a SAE's files, or of a baseline's parameters."""
    from latentgloss.saes.opening import sae_digest

    what = "files of the SAE"
    try:
        spec = workspace.registry.sae(partition)
        return equal(what, sae_digest(spec), stored)
    except LatentglossError as e:
        return Check(what, False, e.found, shown(stored))


def model_check(workspace: Workspace, model: str, stored: Any) -> Check:
    """Digest of a model's files."""
    from latentgloss.models.identity import model_identity

    what = "files of the model"
    try:
        with tempfile.TemporaryDirectory() as folder:  # digests remembered elsewhere are not believed
            return equal(what, model_identity(workspace.registry.model(model), Path(folder)), stored)
    except LatentglossError as e:
        return Check(what, False, e.found, shown(stored))


def source_check(spec: ModelSpec, stored: Any) -> Check:
    """Identity of the corpus's source."""
    from latentgloss.corpus.sources import source_identity

    what = "source of the corpus"
    try:
        with tempfile.TemporaryDirectory() as folder:
            digests = DigestCache(Path(folder) / "digests")
            return equal(what, source_identity(spec.corpus.source, spec.folder, digests), stored)
    except LatentglossError as e:
        return Check(what, False, e.found, shown(stored))


def read_again(spec: ModelSpec, wanted: Iterable[int]) -> tuple[dict[int, tuple[str, str]], str]:
    """(name, text) of documents by their number, read from the source as the corpus did; and why reading ended."""
    from latentgloss.corpus.sources import iter_documents

    left = set(wanted)
    found: dict[int, tuple[str, str]] = {}
    if spec.corpus.source.startswith("hf:"):
        return found, "documents of a hub are not downloaded again"
    try:
        for number, document in enumerate(iter_documents(spec.corpus.source, spec.corpus.text_column, spec.folder)):
            if number in left:
                found[number] = (document.name, document.text)
                left.discard(number)
            if not left:
                break
    except LatentglossError as e:
        return found, e.found
    return found, "the source ends before it"


def document_check(row: dict[str, Any], again: tuple[str, str] | None, why: str) -> Check:
    stored = f"{row['name']} {row['content_sha256']}"
    what = "text read again from its source"
    if again is None:
        return Check(what, None if "not downloaded" in why else False, why, stored)
    return equal(what, f"{again[0]} {text_sha256(again[1])}", stored)


def tokens_check(workspace: Workspace, model: str, corpus: Corpus, texts: dict[int, tuple[str, str]]) -> Check:
    """Documents tokenised again, against the tokens at their spans (a document's end may fill no sequence)."""
    from latentgloss.models.tokenizer import encode, load_tokenizer

    what = "documents tokenised again"
    try:
        tokenizer = load_tokenizer(workspace.registry.model(model), workspace.model_cache)
    except LatentglossError as e:
        return Check(what, False, e.found)
    flat = corpus.tokens.reshape(-1)
    wrong = []
    for number, (name, text) in sorted(texts.items()):
        mine = np.flatnonzero(corpus.span_document == number)
        spans = [flat[corpus.span_start[i] : corpus.span_end[i]] for i in mine]
        stored = np.concatenate(spans) if spans else np.empty(0, np.uint32)
        (ids,) = encode(tokenizer, [text])
        if list(ids[: len(stored)]) != stored.tolist():
            wrong.append(name)
    return none_of(what, wrong, f"{len(texts)} documents")


def activation_checks(
    contexts: pl.DataFrame | None,
    negatives: pl.DataFrame | None,
    rows: pl.DataFrame,
    masked: pl.Series | None,
    length: int,
) -> list[Check]:
    """Contexts against the cache's rows of the latent: equal where activating, none where not."""
    rows = rows.with_columns(context=pl.col("position") // length)
    checks = []
    if contexts is not None:
        said = (
            contexts.select("context", "offsets", "activations")
            .explode("offsets", "activations")
            .select("context", position=pl.col("context") * length + pl.col("offsets"), activation="activations")
            .sort("position")
        )
        cached = rows.filter(pl.col("context").is_in(contexts["context"].implode())).sort("position")
        same = said.rows() == cached.select("context", "position", "activation").rows()
        checks.append(Check("activations of the contexts, as cached", same, f"{cached.height} rows", f"{said.height}"))
        if masked is not None:
            top = (
                cached.filter(~pl.col("position").is_in(masked.implode()))
                .group_by("context")
                .agg(pl.col("activation").max())
            )
            joined = contexts.select("context", "max_activation").join(top, on="context", how="left")
            wrong = joined.filter(pl.col("activation").ne_missing(pl.col("max_activation")))
            checks.append(none_of("maximum over unmasked tokens", wrong["context"].to_list(), "equal"))
    if negatives is not None:
        firing = rows.filter(pl.col("context").is_in(negatives["context"].implode()))
        checks.append(none_of("no activation in the non-activating contexts", firing["context"].to_list(), "none"))
    return checks


@dataclass(frozen=True)
class Marked:
    """What decides the marks of fuzzing: contexts of the latent (`schema.CONTEXTS`), masked positions, seed."""

    contexts: pl.DataFrame
    masked: pl.Series
    seed: int

    def question(self, executed: pl.DataFrame, program: str, corpus: Corpus, length: int) -> tuple[Question, Check]:
        """The rows of `executed` as one question with marks derived anew; and whether the same rows have donors."""
        from latentgloss.protocols import Question
        from latentgloss.schema import SPLITS
        from latentgloss.scores.scorers import fuzzing

        sampled = fuzzing.few(self.contexts, SPLITS)
        windows = sampled["context"].to_numpy().astype(np.int64)
        masked = np.isin(windows[:, None] * length + np.arange(length), self.masked.to_numpy())
        found = fuzzing.versions(sampled, masked, self.seed)
        key = ["context", "stratum"]
        both = executed.select(key).join(
            found.rows.select(*key, "status").with_row_index("row"), on=key, how="left", maintain_order="left"
        )
        again = none_of("contexts with marks have donors", both.filter(pl.col("status") != "ok")["context"].to_list())
        rows = both["row"].fill_null(0).to_numpy()
        (reference,) = fuzzing.references(sampled, corpus, length).values()
        tokens = corpus.contexts(executed["context"].to_numpy(), length)
        return Question(
            "fuzzing", 0, "", program, tokens, found.marks[rows], None, found.masked[rows], reference
        ), again


def evidence_checks(
    scores: pl.DataFrame | None,
    judgements: pl.DataFrame,
    program: str | None,
    vocabulary: Vocabulary,
    corpus: Corpus,
    length: int,
    marked: Marked | None = None,
) -> list[Check]:
    """Judgements of the executing judge, executed again, and predictions against the threshold."""
    from latentgloss.protocols import Question
    from latentgloss.scores.judges.opening import judge_named

    executed = judgements.filter(pl.col("judge") == "executed", pl.col("evidence").is_not_null())
    if executed.is_empty() or program is None:
        return []
    tokens = corpus.contexts(executed["context"].to_numpy(), length)
    question, checks = Question("detection", 0, "", program, tokens, None), []
    try:
        if marked is not None:
            question, donors = marked.question(executed, program, corpus, length)
            checks.append(donors)
        (answer,) = judge_named("executed", vocabulary).judge([question])
    except (LatentglossError, ValueError, KeyError, TypeError) as e:
        return [Check("evidence executed again", False, f"the program does not run ({e})")]
    differ = executed["context"].to_numpy()[answer.evidence != executed["evidence"].to_numpy()]
    checks.append(none_of("evidence executed again", differ.tolist(), f"{executed.height} judgements"))
    if scores is not None:
        taus = scores.select("judge", "negatives", "threshold").drop_nulls()
        wrong = executed.join(taus, on=["judge", "negatives"]).filter(
            (pl.col("evidence") >= pl.col("threshold")) != pl.col("prediction")
        )
        checks.append(none_of("predictions from evidence and threshold", wrong["context"].to_list(), "equal"))
    return checks


def round_trip_check(told: dict[str, Any], vocabulary: Vocabulary) -> Check:
    """A pattern's sentence, read back, is its program: the text says all that is executed, and nothing else."""
    from latentgloss.explanations.explainers.pattern.rules import Pattern
    from latentgloss.explanations.explainers.pattern.sentence import parse_text

    what = "program read back from the sentence"
    try:
        program = Pattern.from_json(told["program"], vocabulary)
        return equal(what, parse_text(told["explanation"], vocabulary).to_json(), program.to_json())
    except LatentglossError as e:
        return Check(what, False, e.found)


def membership_checks(
    judgements: pl.DataFrame, contexts: pl.DataFrame | None, negatives: pl.DataFrame | None
) -> list[Check]:
    """Every judgement is of a sampled context of its split, with that context's truth, stratum, decile, document."""
    key = ["split", "context", "stratum", "decile", "document"]
    # In fuzzing an activating context is judged with its own marks and with a donor's.
    donor = pl.col("stratum") == "donor"
    worn = judgements.filter(donor).with_columns(stratum=pl.lit("activating"))
    of_stratum = judgements["truth"] == (judgements["stratum"] == "activating")
    checks = [none_of("truth is as the stratum says", judgements.filter(~of_stratum)["context"].to_list(), "all")]
    judgements = judgements.filter(~donor)
    if contexts is not None:
        sampled = contexts.with_columns(stratum=pl.lit("activating")).select(key)
        active = pl.concat([judgements.filter(pl.col("truth")), worn])
        stray = active.join(sampled, on=key, how="anti")
        checks.append(none_of("activating contexts judged are sampled ones", stray["context"].to_list(), "all"))
    if negatives is not None:
        sampled = negatives.with_columns(decile=pl.lit(0, dtype=pl.UInt8)).select(key)
        stray = judgements.filter(~pl.col("truth")).join(sampled, on=key, how="anti")
        checks.append(none_of("non-activating contexts judged are sampled ones", stray["context"].to_list(), "all"))
    return checks


def trial_checks(trials: pl.DataFrame, judgements: pl.DataFrame, contexts: Sequence[pl.DataFrame]) -> list[Check]:
    """Trials of one latent (`schema.TRIALS`) against what was judged, and sampled contexts of those that intrude."""
    shown = trials.filter(status="ok").explode("contexts").rename({"contexts": "context"})
    shown = shown.with_columns(at=pl.int_range(1, pl.len() + 1).over("trial"))
    shown = shown.with_columns(truth=pl.col("at") != pl.col("place"))
    judged = judgements.select("context", "truth").unique()
    stray = judged.join(shown, on=["context", "truth"], how="anti")
    lost = shown.join(judged, on=["context", "truth"], how="anti")
    intruders = shown.filter(~pl.col("truth")).select("context", latent="intruder_latent")
    sampled = pl.concat([CONTEXTS.empty(), *contexts]).filter(split="test")
    unknown = intruders.join(sampled, on=["latent", "context"], how="anti")
    return [
        none_of("windows judged are those of the trials", [*stray["context"], *lost["context"]], "all"),
        none_of("intruders are sampled windows of their latents", unknown["context"].to_list(), "all"),
    ]


def split_checks(contexts: Iterable[int], split: str, corpus: Corpus, length: int) -> list[Check]:
    """Windows, and every document they touch, are of the split they are said to be of."""
    from latentgloss.schema import SPLITS

    ids = np.unique(np.fromiter(contexts, dtype=np.int64))
    wrong = ids[corpus.split_of_context(length)[ids] != SPLITS.index(split)]
    touched = touched_documents(ids, corpus, length)
    table = corpus.documents.filter(pl.col("document").is_in(touched)).collect()
    strays = table.filter(pl.col("split") != split)["document"].to_list()
    return [
        none_of(f"windows of {split} lie in sequences of {split}", wrong.tolist(), f"{len(ids)} windows"),
        none_of(f"documents of {split} windows are of {split}", strays, f"{len(touched)} documents"),
    ]


def touched_documents(contexts: np.ndarray, corpus: Corpus, length: int) -> list[int]:
    """Every document with a token in one of the windows, ascending."""
    positions = np.asarray(contexts, dtype=np.int64)[:, None] * length + np.arange(length)
    found = np.unique(corpus.document_of_position(positions))
    return [int(d) for d in found if d >= 0]
