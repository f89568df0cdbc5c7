"""The recipe: what is written is what happens, or an error says where, what was expected and what is near."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.errors import RecipeError
from crossover.recipe import Recipe, load, resolve, to_tree, to_yaml
from crossover.sections import BudgetRecipe, DataRecipe, TrainingRecipe
from crossover.trees import COMPONENTS, apply, differences, fingerprint, merge, read_tree

EVERYTHING = """\
name: all
seed: 3
data: {source: stdlib, unique_tokens: 200k, tokenizer: bpe(1024), context: 64}
model: {preset: 1m, residual_dropout: 0.1}
budget: {flops: 2e15}
mix: {slice_tokens: 512}
training:
  batch_tokens: 2048
  optimizer: adamw(0.002, weight_decay=0.3)
  learning_rate: {name: wsd, decay_fraction: 0.25}
controller:
  name: ramp
  from_epochs: 2
  to_epochs: 4
  before: autoregressive
  after: {autoregressive: 0.25, block(16): 0.75}
"""


@pytest.fixture
def write(tmp_path):
    """Write a file beside the others and return its path."""

    def write_file(text: str, name: str = "recipe.yaml"):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write_file


def said(path, *overrides: str, trust: bool = False) -> str:
    """Load a recipe that cannot be used and return what the person is told."""
    with pytest.raises(RecipeError) as caught:
        load(path, overrides, trust=trust)
    return str(caught.value)


def test_an_empty_recipe_is_the_default_one(write):
    assert load(write("")) == resolve({})
    assert load(write("# nothing\n")).budget == BudgetRecipe(tokens=1_000_000)


def test_overrides_know_the_components_that_stand_by_default():
    defaults = {
        "controller": Recipe.controller,
        **{f"data.{name}": getattr(DataRecipe, name) for name in ("source", "tokenizer")},
        **{f"training.{name}": getattr(TrainingRecipe, name) for name in ("optimizer", "learning_rate")},
    }
    assert defaults == COMPONENTS


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a\\b", "a\nb"])
def test_a_name_cannot_lead_out_of_the_folder_of_runs(name):
    with pytest.raises(RecipeError, match="recipe: name: "):
        resolve({"name": name})


def test_defaults_are_components_too():
    recipe = resolve({})
    components = [recipe.controller, recipe.data.source, recipe.data.tokenizer, recipe.training.optimizer]
    assert [type(item).component_name for item in components] == ["constant", "stdlib", "bpe", "adamw"]
    assert resolve({"training": {}}) == recipe


def test_a_resolved_recipe_resolves_to_itself(write):
    recipe = load(write(EVERYTHING))
    again = load(write(to_yaml(recipe), "again.yaml"))
    assert again == recipe
    assert to_tree(again) == to_tree(recipe)
    assert resolve(to_tree(resolve({}))) == resolve({})


def test_settings_arrive(write):
    recipe = load(write(EVERYTHING))
    assert recipe.data.unique_tokens == 200_000
    assert recipe.budget.currency == "flops"
    assert recipe.budget.amount == 2e15
    assert recipe.training.optimizer.weight_decay == 0.3
    assert recipe.training.learning_rate.decay_fraction == 0.25
    assert recipe.controller.after.share("block(16)") == 0.75


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {sorce: stdlib}", ["recipe.yaml, line 1: data.sorce: no such setting", "did you mean 'source'?"]),
        ("\n\nsede: 1", ["recipe.yaml, line 3: sede: no such setting", "did you mean 'seed'?"]),
        ("data:\n  context: long", ["line 2: data.context: ", "valid integer", "'long'"]),
        ("data:\n  context: true", ["line 2: data.context: ", "expected a number"]),
        ("data:\n  context: 1.5", ["line 2: data.context: "]),
        ("data:\n  context: 0", ["line 2: data.context: ", "greater than 0"]),
        ("data: stdlib", ["line 1: data: "]),
        ("seed: -1", ["line 1: seed: ", "greater than or equal to 0"]),
        ("model:\n  family: lama", ["line 2: model.family: ", "'llama'"]),
        ("training:\n  optimizer: adam", ["line 2: training.optimizer: no optimizer called 'adam'", "'adamw'"]),
        ("training:\n  optimizer: adamw(wait_decay=1)", ["line 2: training.optimizer.wait_decay: ", "'weight_decay'"]),
        (
            "training:\n  optimizer:\n    name: adamw\n    weight_decay: much",
            ["line 4: training.optimizer.weight_decay: "],
        ),
        ("controller: constant(maskd)", ["line 1: controller.mix: no objective called 'maskd'", "'masked'"]),
        ("controller: 'constant({masked: 0.5})'", ["line 1: controller.mix: ", "sum to 1, not 0.5"]),
        ("budget: {tokens: 1M, minutes: 5}", ["line 1: budget: ", "exactly one", "tokens and minutes given"]),
        ("budget: {}", ["budget: ", "exactly one", "none given"]),
        ("budget: {tokens: .inf}", ["budget.tokens: "]),
        ("budget: {tokens: .nan}", ["budget.tokens: "]),
        ("training: {batch_tokens: 1000}", ["training.batch_tokens: 1000", "data.context 128", "try 1024"]),
        ("mix: {slice_tokens: 768}", ["mix.slice_tokens: 768", "divide training.batch_tokens 2048"]),
        ("mix: {micro_batch_slices: 2}", ["mix.micro_batch_slices: 2 has no effect"]),
        ("scoring: {weights: ema}", ["scoring.weights: 'ema' needs training.ema_decay"]),
        ("data: {dev_share: 0}", ["data.dev_share"]),
        ("seed: 1\nseed: 2", ["line 2: ", "'seed' is given twice"]),
        ("data: [1", ["recipe.yaml, line 1: is not YAML"]),
        ("name: 2026-13-77", ["recipe.yaml: is not YAML"]),
        ("a: &a {b: *a}", ["recipe.yaml, line 1: is not YAML"]),
        ("- seed", ["expected `key: value` lines, not a list"]),
        ("1: 2", ["recipe.yaml"]),
        ("imports: crossover", ["imports: expected a list of modules"]),
    ],
)
def test_a_wrong_recipe_says_where_and_what_was_expected(write, text, expected):
    message = said(write(text))
    for part in expected:
        assert part in message
    assert "Traceback" not in message


def test_every_mistake_is_listed_at_once(write):
    message = said(write("sede: 1\ndata: {contxt: 8}\nmodel: {depth: deep}"))
    assert [line.split(": ")[1] for line in message.splitlines()] == ["data.contxt", "model.depth", "sede"]


def test_a_missing_or_unreadable_file_is_named(write, tmp_path):
    assert "nowhere.yaml: cannot be read" in said(tmp_path / "nowhere.yaml")
    assert "cannot be read" in said(tmp_path)
    binary = write("")
    binary.write_bytes(b"seed: \xff")
    assert "is not UTF-8 text (byte 6)" in said(binary)


def test_extends_lays_a_recipe_over_another(write):
    write("seed: 1\ndata: {context: 64}\nbudget: {tokens: 1M}\ncontroller: {name: constant, mix: masked}", "base.yaml")
    above = "data: {tokenizer: bytes}\nbudget: {minutes: 5}\ncontroller: constant(block(4))"
    child = load(write(f"extends: base.yaml\n{above}"))
    assert (child.seed, child.data.context, child.budget) == (1, 64, BudgetRecipe(minutes=5))
    assert child.data.tokenizer == resolve({"data": {"tokenizer": "bytes"}}).data.tokenizer
    assert child.controller.mix.describe() == "block(4)"


def test_extends_goes_one_level(write):
    write("seed: 1", "root.yaml")
    write("extends: root.yaml", "middle.yaml")
    message = said(write("extends: middle.yaml"))
    assert "middle.yaml, line 1: extends: only one level; extend the root instead" in message
    assert "gone.yaml: cannot be read" in said(write("extends: gone.yaml"))


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("seed=9", lambda recipe: recipe.seed, 9),
        ("data.context=256", lambda recipe: recipe.data.context, 256),
        ("data.unique_tokens=1.5M", lambda recipe: recipe.data.unique_tokens, 1_500_000),
        ("budget.minutes=3", lambda recipe: recipe.budget, BudgetRecipe(minutes=3)),
        ("training.optimizer.weight_decay=0.5", lambda recipe: recipe.training.optimizer.weight_decay, 0.5),
        ("training.optimizer.weight_decay=0.5", lambda recipe: recipe.training.optimizer.learning_rate, 0.002),
        ("training.learning_rate.decay_fraction=0.4", lambda recipe: recipe.training.learning_rate.decay_fraction, 0.4),
        ("controller.to_epochs=8", lambda recipe: recipe.controller.to_epochs, 8),
        ("controller=constant(masked)", lambda recipe: recipe.controller.mix.describe(), "masked"),
    ],
)
def test_overrides_come_last(write, override, read, expected):
    assert read(load(write(EVERYTHING), [override])) == expected


def test_an_override_reaches_into_a_component_that_the_recipe_leaves_at_its_default(write):
    changed = load(write("seed: 1"), ["training.optimizer.weight_decay=0.5", "controller.mix=masked"])
    default = resolve({"seed": 1})
    assert differences(to_tree(default), to_tree(changed)).keys() == {
        "training.optimizer.weight_decay",
        "controller.mix.autoregressive",
        "controller.mix.masked",
    }


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "'seed': expected key=value"),
        ("=3", "'=3': expected key=value"),
        ("data..context=3", "expected key=value"),
        ("seed=[", "seed: '[' is not a YAML value"),
        ("seed=[" + "\n" * 9999, "...' is not a YAML value"),
        ("data.contxt=3", "data.contxt: no such setting; did you mean 'context'?"),
        ("training.optimizer.wait_decay=3", "training.optimizer.wait_decay: no such setting"),
        ("name.first=3", "name: 'all' has no settings of its own"),
        ("seed.first=3", "seed: "),
        ("budget.tokns=3", "budget.tokns: no such setting; did you mean 'tokens'?"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(write, override, expected):
    message = said(write(EVERYTHING), override)
    assert expected in message
    assert ", line" not in message.split(": ")[0]


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from([("", 0), ("k", 3), ("M", 6), ("B", 9), ("T", 12)]))
def test_counts_may_carry_a_unit(number, unit):
    suffix, power = unit
    assert resolve({"seed": f"{number}{suffix}"}).seed == number * 10**power
    if power:
        assert resolve({"seed": f"{number / 1000:.3f}{suffix}"}).seed == number * 10 ** (power - 3)


@pytest.mark.parametrize(("written", "expected"), [("2e6", 2_000_000), ("1_000", 1000), (3.0, 3), ("0.5k", 500)])
def test_counts_may_be_written_in_other_ways(written, expected):
    assert resolve({"seed": written}).seed == expected


@pytest.mark.parametrize("written", ["1..5k", "k", "1.5", "-3", "1e999", "5 apples", math.inf, None, [1]])
def test_what_is_no_count_is_refused(written):
    with pytest.raises(RecipeError, match="seed: "):
        resolve({"seed": written})


def test_a_strangers_recipe_runs_nothing_unless_it_is_trusted(write, tmp_path, monkeypatch):
    (tmp_path / "strange_parts.py").write_text("import sys\nsys.strange_parts_ran = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write("imports: [strange_parts]")
    assert "imports: runs code from strange_parts; add --trust if you trust it" in said(path)
    assert "imports: runs code from strange_parts" in said(write("seed: 1"), "imports=[strange_parts]")
    assert not hasattr(sys, "strange_parts_ran")
    path = write("imports: [strange_parts]")
    assert load(path, trust=True).imports == ("strange_parts",)
    assert sys.__dict__.pop("strange_parts_ran")
    assert "imports: cannot import 'missing_parts'" in said(write("imports: [missing_parts]"), trust=True)


def test_a_recipe_cannot_be_changed_after_it_was_resolved():
    with pytest.raises(AttributeError):
        resolve({}).seed = 4  # type: ignore[misc]
    assert isinstance(resolve({}), Recipe)


def test_trees_merge_sections_and_replace_components():
    below = {"data": {"context": 8, "source": {"name": "files", "path": "a"}}, "budget": {"tokens": 5}}
    above = {"data": {"source": {"name": "stdlib"}}, "budget": {"flops": 7}}
    assert merge(below, above) == {"data": {"context": 8, "source": {"name": "stdlib"}}, "budget": {"flops": 7}}
    assert below["data"]["source"] == {"name": "files", "path": "a"}


def test_trees_compare_by_dotted_key_and_hash_by_content(write):
    one, two = {"a": {"b": 1, "c": 2}}, {"a": {"c": 2, "b": 3}, "d": 4}
    assert differences(one, two) == {"a.b": (1, 3), "d": (None, 4)}
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2, "b": 1})
    tree, lines = read_tree(write("a:\n  b: 1\nc: 2\n"))
    assert (tree, lines) == ({"a": {"b": 1}, "c": 2}, {"a": 1, "a.b": 2, "c": 3})
    apply(tree, "a.d=[1, x]")
    assert tree["a"] == {"b": 1, "d": [1, "x"]}


@pytest.mark.parametrize(("word", "meaning"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_on_and_off_are_words_although_yaml_reads_booleans(tmp_path, word, meaning):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"training: {{compile: {word}}}\n")
    assert load(path).training.compile == meaning
    assert load(path, [f"training.compile={word}"]).training.compile == meaning
