"""Studies of published claims: each says its claim and what would refute it, and every command in it can be given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from crossover.errors import RecipeError
from crossover.evidence.definition import read_study

STUDIES = Path(__file__).parents[2] / "studies"
CLAIMS = {
    "crossing_unique_tokens": {"autoregressive", "autoregressive_published", "masked", "mix_half"},
    "crossing_size": {"autoregressive", "autoregressive_published", "masked"},
    "crossing_quality": {"autoregressive", "autoregressive_published", "masked"},
    "crossing_sparse": {"autoregressive", "autoregressive_published", "masked"},
    "noise": {"autoregressive", "masked", "inputs_90", "dropout_90", "weights_90"},
    "factors": {"autoregressive", "orders_16", "masked", "masked_causal", "fixed_masks_1", "fixed_masks_16"},
    "rising_loss": {"autoregressive", "autoregressive_published", "masked"},
}


def header(name: str) -> str:
    lines = (STUDIES / f"{name}.yaml").read_text("utf-8").split("\nname:")[0].splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in lines)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_has_its_source_its_arms_seeds_and_what_would_refute_it(name):
    text = " ".join(header(name).split())
    for needed in (r"arXiv 2\d{3}\.\d{5}", "Published:", "onfirmed", "efuted", "Expected", "two cores", "one GPU"):
        assert re.search(needed, text), needed
    study = read_study(STUDIES / f"{name}.yaml")
    assert CLAIMS[name] <= set(study.arms) and len(study.seeds) >= 3


@pytest.mark.parametrize("name", CLAIMS)
def test_every_command_of_a_study_resolves(name):
    commands = re.findall(r"^crossover study (\S+) ?(.*)$", header(name).replace("\\\n", " "), re.M)
    assert commands
    for path, rest in commands:
        overrides = [word for word in shlex.split(rest) if "=" in word]
        assert read_study(STUDIES.parent / path, overrides).arms


def test_arms_of_one_controller_differ_in_what_is_declared_alone():
    study = read_study(STUDIES / "noise.yaml")
    assert study.tunable == ("model.residual_dropout", "model.parameter_noise")
    assert {key for given in study.settings.values() for key in given} == set(study.tunable)
    rates = [given.get("model.residual_dropout") for arm, given in study.settings.items() if arm.startswith("dropout")]
    assert rates == [0.1, 0.3, 0.5, 0.7, 0.9]


def test_an_override_of_what_an_arm_sets_is_refused_as_without_effect():
    with pytest.raises(RecipeError, match="has no effect on"):
        read_study(STUDIES / "noise.yaml", ["model.residual_dropout=0.2"])
