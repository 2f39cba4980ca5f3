"""Models in this process: as transformers generates, the same whatever the batch, held to what is demanded."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from repository import REGISTRY, model_cache
from transformers import AutoModelForCausalLM

from latentgloss.config import Settings
from latentgloss.config.entries import ModelSpec
from latentgloss.config.registry import Registry
from latentgloss.errors import LanguageModelError
from latentgloss.explanations.explainers.replies import LINE, read_line, reply_schema
from latentgloss.llm.engines.transformers import TransformersEngine, chat_tokens
from latentgloss.protocols import Message, Reply, Request
from latentgloss.scores.judges.reading import _schema as verdicts
from latentgloss.scores.judges.reading import read_verdicts
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPLATE = "{% for m in messages %}<s> {{ m['content'] }} {% endfor %}"
WARM = 8.0
"""Temperature at which the tiny model, whose next token is mostly the last one again, says different things."""
SIGNAL, FILLER = tiny.words()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.write_model(path)
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    return path


@pytest.fixture
def engine(folder: Path, tmp_path: Path) -> TransformersEngine:
    spec = ModelSpec(name="m", source=f"path:{folder}", dtype="float32")
    return TransformersEngine(spec, tmp_path, device="cpu")


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a tokenizer that can spell anything; some of the model's places stay without a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tmp_path_factory.mktemp("spelled")
    tiny.write_model(path)
    merges = [("E", "X"), ("a", "b"), ("Ġ", "1"), ("1", ","), ('"', ":"), ("Ã", "©"), ("EX", "P")]
    names = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(path / "tokenizer.json"))
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    return path


@pytest.fixture
def speller(spelled: Path, tmp_path: Path) -> TransformersEngine:
    return TransformersEngine(ModelSpec(name="m", source=f"path:{spelled}", dtype="float32"), tmp_path, device="cpu")


def ask(text: str, **given: Any) -> Request:
    return Request((Message("user", text),), **{"max_tokens": 10} | given)


def answers(engine: TransformersEngine, requests: Sequence[Request]) -> list[Any]:
    found = dict(engine.answer_all(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[i] for i in range(len(requests))]


def mixed(n: int, seed: int = 0) -> list[Request]:
    chance = random.Random(seed)
    texts = tiny.documents(n, seed)
    return [
        ask(
            " ".join(text.split()[: chance.randrange(1, 60)]),
            max_tokens=chance.randrange(1, 12),
            temperature=chance.choice([0.0, WARM]),
            top_p=chance.choice([1.0, 0.5]),
            seed=chance.randrange(3),
            logprobs=2,
            choice=chance.choice([None, None, (SIGNAL[0], f"{SIGNAL[0]} {SIGNAL[1]}", FILLER[3])]),
        )
        for text in texts
    ]


def test_greedy_replies_are_those_of_generate(engine: TransformersEngine, folder: Path) -> None:
    import torch

    model = AutoModelForCausalLM.from_pretrained(folder)
    for request in [ask(text) for text in tiny.documents(5)]:
        prompt = torch.tensor([chat_tokens(engine.tokenizer, request)])
        full = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=10)
        expected = engine.tokenizer.decode(full[0, prompt.shape[1] :], skip_special_tokens=True)
        (reply,) = answers(engine, [request])
        assert reply.text == expected
        assert reply.prompt_tokens == prompt.shape[1]


def test_replies_do_not_depend_on_company_or_order(engine: TransformersEngine) -> None:
    requests = mixed(24)
    together = answers(engine, requests)
    order = random.Random(1).sample(range(24), 24)
    shuffled = answers(engine, [requests[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(24)] == together
    assert [answers(engine, [request])[0] for request in requests] == together


def test_choices_are_kept_to_and_logprobs_are_the_model_s(engine: TransformersEngine) -> None:
    choices = (SIGNAL[0], f"{SIGNAL[0]} {SIGNAL[1]}", f"{FILLER[3]} {FILLER[4]} {FILLER[5]}")
    asked = [
        ask(t, choice=choices, temperature=5 * WARM, seed=s, logprobs=3) for s in range(8) for t in tiny.documents(4)
    ]
    replies: list[Reply] = answers(engine, asked)
    assert {reply.status for reply in replies} == {"ok"}
    assert {reply.text for reply in replies} <= set(choices) and len({reply.text for reply in replies}) > 1
    for reply in replies:
        assert len(reply.logprobs) == reply.completion_tokens == len(reply.text.split())
        for token in reply.logprobs:
            assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)
            assert token.logprob <= token.top[0][1] <= 0 and sum(math.exp(p) for _, p in token.top) < 1.0001


def test_seeds_draw_different_replies_again_and_again(engine: TransformersEngine) -> None:
    asked = [ask(SIGNAL[0], temperature=WARM, seed=seed) for seed in range(6)]
    first = [reply.text for reply in answers(engine, asked)]
    assert len(set(first)) > 3
    assert [reply.text for reply in answers(engine, asked)] == first


def test_a_reply_ends_at_a_stop_string(engine: TransformersEngine) -> None:
    (whole,) = answers(engine, [ask(SIGNAL[0], temperature=WARM, seed=1)])
    word = whole.text.split()[3]
    (cut,) = answers(engine, [ask(SIGNAL[0], temperature=WARM, seed=1, stop=(word,))])
    assert cut.status == "ok" and cut.text == whole.text.partition(word)[0]


def test_a_prompt_that_does_not_fit_fails_alone(engine: TransformersEngine) -> None:
    long = ask(" ".join(FILLER[:1] * 600))
    failure, reply = answers(engine, [long, ask(SIGNAL[0])])
    assert failure.kind == "rejected" and "512" in failure.reason
    assert reply.completion_tokens == 10


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "base")
    engine = TransformersEngine(ModelSpec(name="m", source=f"path:{tmp_path / 'base'}"), tmp_path)
    with pytest.raises(LanguageModelError, match="chat template"):
        answers(engine, [ask("x")])


def test_identity_follows_the_template(tmp_path: Path) -> None:
    identities = []
    for template in (TEMPLATE, TEMPLATE + " "):
        folder = tmp_path / str(len(identities))
        tiny.write_model(folder)
        (folder / "chat_template.jinja").write_text(template)
        identities.append(TransformersEngine(ModelSpec(name="m", source=f"path:{folder}"), tmp_path).identity())
    assert identities[0] != identities[1]


def test_a_model_of_the_registry_answers_from_the_workspace(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "registry" / "language_models").mkdir(parents=True)
    (tmp_path / "registry" / "language_models" / "t.toml").write_text(
        f'name = "t"\nengine = "transformers"\nmodel = "path:{folder}"\ndtype = "float32"\nin_flight = 4\n'
    )
    workspace = Workspace(Settings(folder=tmp_path))
    model = workspace.language_model("t")
    assert str(folder) not in json.dumps(model.identity())
    requests = mixed(30)
    replies = list(model.complete(requests))
    assert {reply.status for reply in replies} <= {"ok", "truncated"}
    assert [r.from_cache for r in model.complete(requests)] == [True] * 30
    assert model.count_tokens(requests) == [reply.prompt_tokens for reply in replies]
    model.close()
    workspace.replies.database.close()


HOT = 100.0
"""Temperature at which any token is as likely as any other: what is demanded must hold for any logits."""


@pytest.mark.parametrize(
    "regex",
    ["yes|no", "a{2,5}", r"[0-9]{3}-[a-f]{1,4}", r"é[ßüé]{2,4}\.", r'(ab)*/"[^"\n/]{0,3}"', r"EXPLANATION: [a-z ]+\."],
)
def test_replies_match_an_expression_for_any_logits(speller: TransformersEngine, regex: str) -> None:
    asked = [ask("x", regex=regex, temperature=HOT, seed=seed, max_tokens=60) for seed in range(7)]
    asked.append(ask("x", regex=regex, max_tokens=60))
    replies: list[Reply] = answers(speller, asked)
    whole = [reply.text for reply in replies if reply.status == "ok"]
    assert all(re.fullmatch(regex, text) for text in whole), whole
    assert len(set(whole)) > 1 and len(whole) > 4


def test_replies_fit_a_schema_for_any_logits(speller: TransformersEngine) -> None:
    entries: dict[str, Any] = {
        "kind": {"enum": ["a", "é"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 2}, "minItems": 1, "maxItems": 2},
    }
    short = {"type": "object", "properties": entries, "required": list(entries), "additionalProperties": False}
    asked = [ask("x", json_schema=short, temperature=HOT, seed=seed, max_tokens=90) for seed in range(8)]
    for reply in answers(speller, asked):
        found = json.loads(reply.text)
        assert list(found) == list(entries) and found["kind"] in ("a", "é") and found["n"] in range(100)
        assert len(found["words"]) in (1, 2) and all(len(word) <= 2 for word in found["words"])
    (cut,) = answers(speller, [ask("x", json_schema=reply_schema(), max_tokens=40)])
    assert cut.text.startswith('{"explanation": "')  # no white space without end


def test_verdicts_on_more_contexts_than_a_list_of_choices_holds_are_read(speller: TransformersEngine) -> None:
    asked = [ask("x", json_schema=verdicts(7), temperature=HOT, seed=s, max_tokens=60, logprobs=5) for s in range(8)]
    found = [read_verdicts(reply, 7, schema=True) for reply in answers(speller, asked)]
    assert len({tuple(one.active) for one in found}) > 4
    for one in found:
        assert one.probability is not None and len(one.probability) == 7
        assert all(math.isnan(p) or 0 <= p <= 1 for p in one.probability)  # NaN: an improbable token was drawn


def test_held_replies_do_not_depend_on_company_or_order(speller: TransformersEngine) -> None:
    chance = random.Random(0)
    demands: list[dict[str, Any]] = [
        {},
        {"regex": LINE},
        {"regex": "(ab|é)+"},
        {"json_schema": reply_schema()},
        {"choice": ("a", "ab")},
    ]
    requests = [
        ask(
            "xyz" * chance.randrange(1, 30),
            max_tokens=chance.randrange(1, 24),
            temperature=chance.choice([0.0, WARM]),
            top_p=chance.choice([1.0, 0.5]),
            seed=seed,
            logprobs=2,
            **demands[seed % len(demands)],
        )
        for seed in range(15)
    ]
    together = answers(speller, requests)
    order = random.Random(1).sample(range(15), 15)
    shuffled = answers(speller, [requests[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(15)] == together
    assert [answers(speller, [request])[0] for request in requests] == together


def test_a_reply_ends_where_the_match_is_complete_and_is_cut_where_it_is_not(speller: TransformersEngine) -> None:
    asked = [ask("x", regex="c{3}", max_tokens=n) for n in (2, 3, 9)]
    assert [(r.status, r.text) for r in answers(speller, asked)] == [("truncated", "cc"), ("ok", "ccc"), ("ok", "ccc")]


def test_probabilities_are_among_what_is_allowed(speller: TransformersEngine) -> None:
    (reply,) = answers(speller, [ask("x", regex="[cd]e", logprobs=5)])
    first, second = reply.logprobs
    assert {token for token, _ in first.top} == {"c", "d"}
    assert sum(math.exp(p) for _, p in first.top) == pytest.approx(1)
    assert second.top == (("e", 0.0),)


def test_what_cannot_be_held_to_fails_alone(speller: TransformersEngine) -> None:
    """An expression that is none, one that looks ahead, a schema with what the library does not know."""
    schemas: list[dict[str, Any]] = [{"type": "strange"}, {"not": {"type": "string"}}]
    refused = [*(ask("x", regex=regex) for regex in ("(a", "(?=a)a")), *(ask("x", json_schema=s) for s in schemas)]
    *failures, reply = answers(speller, [*refused, ask("x", regex="ok")])
    assert [failure.kind for failure in failures] == ["rejected"] * 4
    assert "unclosed group" in failures[0].reason and "strange" in failures[2].reason
    assert reply.status == "ok" and reply.text == "ok"


def test_a_tokenizer_that_cannot_be_held_is_refused_and_nothing_else_is(engine: TransformersEngine) -> None:
    with pytest.raises(LanguageModelError, match="fast tokenizer whose tokens are bytes"):
        answers(engine, [ask("x", regex="a")])
    assert answers(engine, [ask("x", choice=(SIGNAL[0],))])[0].text == SIGNAL[0]


def test_without_the_library_it_says_what_is_missing(
    speller: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(LanguageModelError, match="pip install llguidance"):
        answers(speller, [ask("x", regex="a")])
    assert answers(speller, [ask("x")])[0].completion_tokens == 10


@pytest.mark.demo
def test_the_real_model_answers_and_keeps_to_choices_in_any_company() -> None:
    """SmolLM2-135M-Instruct, in the dtype of the demo."""
    spec = Registry.open(REGISTRY).language_model("smollm2-instruct")
    engine = TransformersEngine(ModelSpec(name="m", source=spec.model, dtype=spec.dtype), model_cache(), device="cpu")
    capital = ask("What is the capital of France?", max_tokens=12)
    chosen = ask("Is Paris in France?", choice=("Yes", "No"), logprobs=4)
    drawn = [ask("Tell me a story.", temperature=0.8, seed=seed, logprobs=1) for seed in range(3)]
    alone = [answers(engine, [request])[0] for request in (capital, chosen, *drawn)]
    assert "Paris" in alone[0].text
    assert alone[1].text in ("Yes", "No")
    assert len({reply.text for reply in alone[2:]}) == 3
    filler = [ask(f"What is {n} times {n}?", max_tokens=3) for n in range(9)]
    company = answers(engine, [filler[0], drawn[2], *filler[1:], drawn[1], chosen, capital, drawn[0]])
    assert [company[-1], company[-4], company[1]] == [alone[2], alone[3], alone[4]]
    assert [company[-2], company[-3]] == [alone[0], alone[1]]


@pytest.mark.demo
def test_the_real_model_keeps_to_a_line_and_a_schema_in_any_company() -> None:
    """Although nothing in the prompts asks for either."""
    spec = Registry.open(REGISTRY).language_model("smollm2-instruct")
    engine = TransformersEngine(ModelSpec(name="m", source=spec.model, dtype=spec.dtype), model_cache(), device="cpu")
    line = ask("What is rain?", regex=LINE, max_tokens=100)
    warm = ask("What is rain?", regex=LINE, max_tokens=100, temperature=0.8, seed=1)
    entries = {"white": {"type": "boolean"}, "like": {"type": "string", "maxLength": 30}}  # without a limit it goes on
    short = {"type": "object", "properties": entries, "required": ["white", "like"], "additionalProperties": False}
    said = ask("What is snow?", json_schema=short, max_tokens=60)
    judged = ask("Which of them are words?", json_schema=verdicts(7), max_tokens=40, logprobs=5)
    requests = [line, warm, said, judged]
    alone = [answers(engine, [request])[0] for request in requests]
    assert read_line(alone[0]) != read_line(alone[1])
    assert list(json.loads(alone[2].text)) == ["white", "like"]
    assert len(read_verdicts(alone[3], 7, schema=True).active) == 7
    company = answers(engine, [judged, ask("What is ice?", max_tokens=3), *requests[::-1]])
    assert [*company[:1:-1], company[0]] == [*alone, alone[3]]
