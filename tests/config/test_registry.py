"""The registry: what is declared, what is refused and why, and that one bad file leaves the others alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgloss.config.entries import split_partition
from latentgloss.config.registry import Registry
from latentgloss.errors import InputError, RegistryError

MODEL = 'name = "tiny"\nsource = "path:../../model"\n'
SAE = 'model = "tiny"\nhookpoint = "layers.1.mlp@input"\nname = "a"\nformat = "sparsify"\nsource = "path:w"\n'


@pytest.fixture
def root(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "saes" / "deep").mkdir(parents=True)
    (tmp_path / "models" / "tiny.toml").write_text(MODEL)
    (tmp_path / "saes" / "deep" / "a.toml").write_text(SAE)
    return tmp_path


def problem(root, name, text):
    (root / "saes" / name).write_text(text)
    registry = Registry.open(root)
    assert list(registry.saes) == ["tiny/layers.1.mlp@input/a"], "the good one is still there"
    ((path, error),) = registry.problems.items()
    assert path.name == name
    return str(error)


def test_a_sae_is_a_partition(root):
    registry = Registry.open(root)
    sae = registry.sae("tiny/layers.1.mlp@input/a")
    assert sae.path == (root / "saes" / "deep" / "w").resolve()
    assert registry.saes_of("tiny") == [sae]
    assert not registry.problems


def test_a_typo_is_named_with_the_nearest_key(root):
    assert "'hookpiont', did you mean 'hookpoint'" in problem(root, "b.toml", SAE.replace("hookpoint", "hookpiont"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a..b", "a b", "ä", "a@input", "x\\n"])
def test_names_that_are_no_names_are_refused(root, name):
    assert "b.toml" in problem(root, "b.toml", SAE.replace('name = "a"', f'name = "{name}"'))


def test_input_is_only_a_suffix(root):
    assert "suffix" in problem(root, "b.toml", SAE.replace("mlp@input", "mlp@input.x"))


def test_an_unknown_model_is_named_with_those_there_are(root):
    text = problem(root, "b.toml", SAE.replace('model = "tiny"', 'model = "huge"'))
    assert "'huge' is not declared" in text
    assert "['tiny']" in text


@pytest.mark.parametrize("text", ["name = ", "\udcff"])
def test_what_is_no_toml_is_refused(root, text):
    (root / "saes" / "b.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "b.toml" in str(next(iter(Registry.open(root).problems.values())))


def test_the_same_sae_twice_is_refused(root):
    assert "declared twice" in problem(root, "z.toml", SAE)


def test_an_unknown_partition_lists_those_there_are(root):
    with pytest.raises(InputError, match=r"tiny/layers.1.mlp@input/a"):
        Registry.open(root).sae("tiny/layers.9/a")


def test_no_registry_is_an_error(tmp_path):
    with pytest.raises(RegistryError, match="is not a folder"):
        Registry.open(tmp_path / "none")


@given(st.text(max_size=20))
def test_a_partition_never_leaves_its_folder(key):
    try:
        parts = split_partition(key)
    except InputError:
        return
    assert "/".join(parts) == key
    assert all(part and not part.startswith(".") and ".." not in part and "\\" not in part for part in parts)


SERVED = 'name = "m"\nengine = "openai_compatible"\nmodel = "org/m"\nbase_url = "http://host:8000/v1"\n'


def language_model(root, text):
    folder = root / "language_models"
    folder.mkdir(exist_ok=True)
    (folder / "m.toml").write_text(text)
    return Registry.open(root)


def test_a_language_model_s_identity_has_no_address_key_or_price(root):
    text = SERVED + 'revision = "abc"\nquantisation = "fp8"\n'
    more = (
        'api_key_env = "KEY"\npaid = true\nin_flight = 3\nprices = {prompt = 1.0, completion = 2.0}\n'
        'capabilities = ["logprobs"]\n'
    )
    plain = language_model(root, text).language_model("m").declared()
    assert plain == {"engine": "openai_compatible", "model": "org/m", "quantisation": "fp8", "revision": "abc"}
    assert language_model(root, text.replace("host", "other") + more).language_model("m").declared() == plain
    other = language_model(root, text + "parameters = {reasoning_effort = 'low'}\n").language_model("m")
    assert other.declared() != plain


SECRET = "sk-0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SERVED.replace("base_url", "#"), "needs base_url"),
        (SERVED + "paid = true\n", "prices"),
        (SERVED + 'capabilities = ["choice"]\n', "vllm"),
        (SERVED + 'capabilities = ["regex"]\n', "vllm"),
        (SERVED + 'capabilities = ["telepathy"]\n', "capabilities"),
        (SERVED.replace("openai_compatible", "transformers"), "only allowed with engine"),
        (SERVED + f'api_key = "{SECRET}"\n', "did you mean 'api_key_env'"),
        (SERVED + f'api_key_env = "{SECRET}"\n', "not the key itself"),
        (SERVED.replace("host", f"me:{SECRET}@host"), "without user or password"),
        (SERVED + "in_flight = 0\n", "in_flight"),
    ],
)
def test_a_language_model_that_cannot_be_is_refused_without_quoting_secrets(root, text, says):
    registry = language_model(root, text)
    with pytest.raises(RegistryError) as caught:
        registry.language_model("m")
    assert says in str(caught.value) and SECRET not in str(caught.value) + repr(caught.value)
    with pytest.raises(InputError, match=r"other\.toml"):
        registry.language_model("other")
