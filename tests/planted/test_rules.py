"""Planted rules: what they fire on, by hand; that model and SAE give exactly that; that windows tell what they can."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import tiny

from latentgloss import schema
from latentgloss.activations.pairs import round_to_bfloat16
from latentgloss.planted import rules, world
from latentgloss.planted.labels import Seen
from latentgloss.planted.meaning import strength
from latentgloss.planted.model import MUTATIONS, SINK_NORM, write_mutated
from latentgloss.planted.rules import rule_of
from latentgloss.planted.text import documents
from latentgloss.planted.words import ANY, FILLERS, SINK


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A workspace with the SAE and all its damaged kin, cached."""
    folder = tmp_path_factory.mktemp("planted_rules")
    workspace = world.planted_workspace(folder, n_documents=300)
    for mutation in MUTATIONS:
        write_mutated(folder / "saes" / "rules", folder / "saes" / mutation, mutation)
        world.declare(folder, f"planted/layers.1/{mutation}", weights=mutation)
    for layer in (0, 2):
        world.declare(folder, f"planted/layers.{layer}/rules")
    workspace = type(workspace).open(folder / "latentgloss.toml")
    assert not [o.error for o in tiny.run_all(workspace, list(tiny.RUNNERS)[:3]) if o.error]
    return workspace


def told(kind: str, text: str, which: str = "true", *, cut: bool = False) -> list[float]:
    """What a rule's label says of each word of a text."""
    label = getattr(rule_of(kind), which)
    return label.means(Seen(np.array([[rules.ids()[w] for w in text.split()]]), rules.ids(), cut=cut))[0].tolist()


def words(kind: str, at: int = 0) -> list[str]:
    """Words of the text that is strewn for a rule, one piece's."""
    return list(list(rule_of(kind).pieces)[at])


def test_vocabulary_has_every_word_once_and_rules_come_in_two_blocks():
    assert len(set(rules.vocabulary())) == len(rules.vocabulary())
    made = rules.rules()
    assert [rule.latent for rule in made] == list(range(0, rules.n_latents(), rules.STEP))
    assert len({rule.latent // schema.BLOCK for rule in made}) == 2
    used = [w for rule in made for piece in rule.pieces for w in piece]
    assert set(used) <= {*rules.vocabulary(), ANY}


def test_what_rules_say_by_hand():
    f, g = FILLERS[50:52]
    (x,) = words("token")
    assert told("token", f"{f} {x} {x.capitalize()}") == [0, 1, 1]
    assert told("token", f"{f} {x} {x.capitalize()}", "specific") == [0, 1, 0]
    a, b = words("bigram")
    assert told("bigram", f"{b} {a} {b} {f} {b} {a} {f} {b}") == [0, 0, 1, 0, 0, 0, 0, 0]
    assert told("bigram", f"{b} {f} {a} {b}", cut=True) == [0.5, 0, 0, 1]
    (t,), (u, _) = words("unless"), words("unless", 2)
    assert told("unless", f"{f} {t} {u} {t} {u} {f} {t}") == [0, 1, 0, 0, 0, 0, 1]
    assert told("unless: the other", f"{f} {t} {u} {t} {u} {f} {t}") == [0, 0, 0, 1, 0, 0, 0]
    opening, *_, closing = words("quotes")
    assert told("quotes", f"{f} {opening} {f} {g} {closing} {f}") == [0, 0, 1, 1, 0, 0]
    assert told("quotes", f"{f} {g} {closing} {f} {opening} {g}", cut=True) == [1, 1, 0, 0, 0, 1]
    assert told("quotes", f"{f} {g} {closing} {f} {opening} {g}") == [0, 0, 0, 0, 0, 1]
    head, *_, end = words("list")
    items = f"{head} {f} , {g} , {f} , {g} {end}"
    assert told("list", f"{g} {items} {f}") == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert told("list", f"{g} , {f} , {g} {end} {f}", cut=True) == [0, 0, 1, 0, 0, 0, 0]  # the head is cut off
    assert told("list", f"{g} {items} {f}", "general") == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0]
    u, t = words("topic")
    assert told("topic", f"{t} {u} {f} {f} {f} {f} {t} {t}") == [0, 0, 0, 0, 0, 0, 1, 0]
    assert told("topic", f"{f} {t} {u} {f} {f} {f} {f} {t} {t}", cut=True) == [0, 0.5, 0, 0, 0, 0, 0, 1, 0]
    v, x = words("strengths: even", 1)
    assert told("strengths: even", f"{x} {v} {x} {v} {v} {v} {v} {x}") == [1, 0, 1, 0, 0, 0, 0, 1]
    assert told("strengths: graded", f"{x} {v} {x} {v} {v} {v} {v} {x}") == [1, 0, 2, 0, 0, 0, 0, 4]
    (x,), (y,) = words("top deciles"), words("top deciles", 1)
    assert told("top deciles", f"{x} {f} {y}") == [3, 0, 1]
    (t,), (u,) = words("distant"), words("distant", 1)
    far = " ".join([f] * 32)
    assert told("distant", f"{t} {u} {far} {t}")[-1] == 1 and told("distant", f"{t} {u} {far} {t}")[0] == 0
    assert told("distant", f"{u} {far[5:]} {t}")[-1] == 0, "32 words before are not more than 32"
    assert told("distant", f"{f} {t}", cut=True) == [0, 0.5], "no window tells"


def test_model_and_sae_give_exactly_what_the_rules_say(cached):
    cache = cached.store.current("activation_cache", world.SAE)
    corpus = cached.corpus(cached.store.current("resolved_saes", world.SAE))
    expected = rules.activations(np.asarray(corpus.tokens)).reshape(-1, len(rules.rules()))
    pairs = cache.read(schema.ACTIVATIONS)
    found = np.zeros((expected.shape[0], rules.n_latents()), dtype=np.float32)
    found[pairs["position"], pairs["latent"]] = pairs["activation"]
    fired = [rule.latent for rule in rules.rules()]
    assert not np.delete(found, fired, axis=1).any()
    assert ((found[:, fired] > 0) == (expected > 0)).all()
    assert np.abs(found[:, fired] - round_to_bfloat16(expected)).max() < 0.05


def test_sinks_are_masked_and_what_fires_on_them_alone_is_dead(cached):
    masked = cached.store.current("activation_cache", world.SAE).read(schema.MASKED)
    corpus = cached.corpus(cached.store.current("resolved_saes", world.SAE))
    at = np.flatnonzero(corpus.tokens.reshape(-1) == rules.ids()[SINK])
    assert len(at) > 10 and SINK_NORM > 100
    assert set(masked.filter(why="sink")["position"]) == set(at.tolist())


def test_damage_to_the_sae_and_wrong_layers_show_in_what_it_explains(cached):
    fvu = {
        sae: cached.store.current("activation_cache", sae).manifest.facts["sample_fvu"] for sae in cached.registry.saes
    }
    right = fvu.pop(world.SAE)
    assert right < 0.3 and len(fvu) == len(MUTATIONS) + 2
    assert min(fvu.values()) > 1.5 * right, fvu


def test_windows_tell_what_sequences_say_or_that_they_cannot():
    tokens = np.array([rules.ids()[w] for text in documents(60) for w in text.split()])
    tokens = tokens[: len(tokens) // 256 * 256].reshape(-1, 256)
    for rule in rules.rules():
        truth = rule.true.means(Seen(tokens, rules.ids(), cut=False)).reshape(-1, 32)
        said = strength(rule.true, tokens.reshape(-1, 32).astype(np.uint32))
        half = said % 1 != 0
        if rule.kind != "distant":
            assert half.mean() < 0.01
        # Where a sequence itself begins within quotes or a list, the model cannot know, and a window's end tells.
        inside = ~half & (np.arange(len(truth)) % 8 > 0)[:, None]
        assert (said[inside] == truth[inside]).all(), rule.name


def test_every_latent_becomes_what_its_rule_says(tmp_path):
    workspace = world.planted_workspace(tmp_path)
    assert not [o.error for o in tiny.run_all(workspace, list(tiny.RUNNERS)[:4]) if o.error]
    table = workspace.store.current("sampled_contexts", world.SAE).read(schema.ELIGIBILITY)
    status = dict(table.select("latent", "status").iter_rows())
    for rule in rules.rules():
        assert status.pop(rule.latent) == rule.status, rule.name
    assert set(status.values()) == {"dead"}
    reasons = dict(table.filter(pl.col("status") != "eligible").select("latent", "reason").iter_rows())
    assert reasons[rule_of("in one document").latent].startswith("0 activating")
    assert reasons[rule_of("in eight documents").latent].startswith("test contexts from")
