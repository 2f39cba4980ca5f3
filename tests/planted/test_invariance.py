"""Adding explainers, blocks or latents changes no existing number: the whole pipeline, run again over what is there."""

from __future__ import annotations

import polars as pl
import pytest
import tiny

from latentgloss import schema
from latentgloss.planted import judges, rules, world
from latentgloss.workspace import Workspace

SETTINGS = """\
[contexts]
explain = 60
select = 20
test = 30
min_explain = 20
min_test = 12

[negatives]
strata = ["neighbour", "same_document", "random"]
explain = 60
select = 20
test = 30

[explanations]
explainers = ["truth", "null:truth"]
nulls = 2

[detection]
judges = ["perfect"]

[fuzzing]
judges = ["perfect"]

"""
TABLES = {
    "sampled_contexts": (schema.ELIGIBILITY, schema.CONTEXTS),
    "sampled_negatives": (schema.NEGATIVES, schema.STRATA_SHARES),
    "explanations": (schema.EXPLANATIONS,),
    "detection_scores": (schema.JUDGEMENTS, schema.SCORES),
    "fuzzing_scores": (schema.JUDGEMENTS, schema.SCORES),
}
FIRST = [rule.latent for rule in rules.rules() if rule.instance in (0, 1)]
LATER = [rule.latent for rule in rules.rules() if rule.latent >= schema.BLOCK]
MORE = [latent + 1 for latent in FIRST] + [
    r.latent for r in rules.rules() if r.instance == 2 and r.latent < schema.BLOCK
]

Tables = dict[tuple[str, str], pl.DataFrame]


def computed(
    workspace: Workspace, latents: list[int], explainers: str = '"truth", "null:truth"', judge: str = ""
) -> Tables:
    """Everything from contexts to scores, of these latents and explainers."""
    folder = workspace.settings.folder
    world.declare(folder, world.SAE, extra=f"latents = {latents}\n")
    text = SETTINGS.replace('"truth", "null:truth"', explainers).replace('["perfect"]', f'["perfect"{judge}]')
    path = folder / "latentgloss.toml"
    path.write_text(text + world.MACHINE)
    workspace = Workspace.open(path)
    with judges.installed():
        stages = ["tokenized_corpus", "resolved_saes", "activation_cache", *TABLES]
        assert not [o.error for o in tiny.run_all(workspace, stages) if o.error]
    versions = {stage: workspace.store.current(stage, world.SAE) for stage in TABLES}
    return {
        (stage, table.name): versions[stage].read(table).sort(table.key)
        for stage, tables in TABLES.items()
        for table in tables
    }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return world.planted_workspace(tmp_path_factory.mktemp("invariance"), n_documents=600)


@pytest.fixture(scope="module")
def before(workspace):
    found = computed(workspace, FIRST)
    scores = found["detection_scores", "scores"].filter(status="ok")
    assert scores.height > 80 and scores["specificity"].null_count() < scores.height
    return found


def same(before: Tables, after: Tables, *conditions: pl.Expr, leave: tuple[str, ...] = ()) -> None:
    """The rows of `before` are in `after`, number by number; at least one is new."""
    for key, frame in before.items():
        rows = after[key].filter(pl.col("latent").is_in(frame["latent"].unique().implode()))
        for column in ("explainer", "judge"):
            if column in frame.columns:
                rows = rows.filter(pl.col(column).is_in(frame[column].unique().implode()))
        old, new = (f.drop(*leave, strict=False) for f in (frame, rows))
        if "explainer" in frame.columns:
            old, new = (f.filter(*conditions) for f in (old, new))
        assert old.height > 20 and old.equals(new), key
    assert any(after[key].height > frame.height for key, frame in before.items())


def test_more_explainers_change_nothing(workspace, before):
    explainers = '"truth", "general", "specific", "anything", "null:truth", "null:general"'
    after = computed(workspace, FIRST, explainers)
    assert set(after["explanations", "explanations"]["explainer"]) > {"general", "null:general"}
    same(before, after)


def test_more_judges_change_nothing(workspace, before):
    same(before, computed(workspace, FIRST, judge=', "coin", "yes"'))


def test_another_block_changes_nothing(workspace, before):
    assert min(LATER) // schema.BLOCK > max(FIRST) // schema.BLOCK
    same(before, computed(workspace, FIRST + LATER))


def test_more_latents_of_the_block_change_nothing(workspace, before):
    """Not even null explanations: a newcomer is partner of nobody who was asked for before it."""
    assert {latent // schema.BLOCK for latent in MORE} & {latent // schema.BLOCK for latent in FIRST}
    after = computed(workspace, FIRST + MORE)
    nulls = after["explanations", "explanations"].filter(pl.col("source_latent").is_not_null())
    assert nulls.filter(pl.col("latent").is_in(FIRST))["source_latent"].is_in(FIRST).all()
    assert nulls["source_latent"].is_in(MORE).any()
    same(before, after)
