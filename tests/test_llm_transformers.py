"""Models in this process: as transformers generates, the same whatever the batch, choices always among the choices."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from transformers import AutoModelForCausalLM

from latentgloss.errors import LanguageModelError
from latentgloss.llm.transformers_engine import TransformersEngine, chat_tokens
from latentgloss.protocols import Message, Reply, Request
from latentgloss.registry import ModelSpec, Registry
from latentgloss.settings import Settings
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
    assert next(model.complete([ask("x", json_schema={"type": "object"})])).status == "unsupported"
    model.close()
    workspace.replies.database.close()


@pytest.mark.demo
def test_the_real_model_answers_and_keeps_to_choices_in_any_company(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct in bfloat16."""
    spec = Registry.open(Path(__file__).parent.parent / "registry").language_model("smollm2-instruct")
    engine = TransformersEngine(ModelSpec(name="m", source=spec.model), tmp_path, device="cpu")
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
