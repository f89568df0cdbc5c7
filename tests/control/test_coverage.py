"""The coverage signal: what it reads from rows, what it says of a mix, and that its forecast comes true."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.control.signals.coverage import Coverage
from crossover.control.signals.fold import Fold, fold_of
from crossover.control.signals.ordering import context_probabilities, expected_novelty
from crossover.control.signals.scene import Scene
from crossover.errors import RecipeError, RunError
from crossover.records import Mix
from crossover.registry import component_of, dump, names

GEARS = ("autoregressive", "block(16)", "masked")
SCENE = Scene(64, 100_000, GEARS, dict.fromkeys(GEARS, 1e6), Mix((("autoregressive", 0.25), ("masked", 0.75))))
CLOCK = {"step": 7, "data_tokens": 7_000, "epochs": 0.07, "mix": {"masked": 1.0}}
shares = st.lists(st.floats(0, 1), min_size=16, max_size=16)


def row(seen_K, new: float = 1.0, exposures: float = 4.0) -> dict:
    return {**CLOCK, "probe": "novelty", "seen_K": list(seen_K), "new": new, "exposures": exposures, "flops": 0}


def after(*rows: dict) -> dict:
    """Fold rows, and check what holds for every state."""
    signal, state = Coverage(), {}
    for record in rows:
        before = json.dumps(state)
        following = signal.update(state, record)
        assert json.dumps(state) == before, "the old state stays as it was"
        assert following == signal.update(state, record) == json.loads(json.dumps(following))
        state = following
    return dict(state)


def test_before_any_row_the_mix_is_known_and_all_is_new() -> None:
    found = Coverage().readings({}, SCENE)
    assert set(found) == {f"coverage.{name}" for name in ("balance", "entropy", "novelty")} | {
        f"coverage.novelty:{gear}" for gear in GEARS
    }
    for name in ("coverage.balance", "coverage.entropy"):
        assert (found[name].value, found[name].standard_error, found[name].ready) == (pytest.approx(0.75), 0, True)
    assert all(found[name].value == pytest.approx(1) and not found[name].ready for name in found if "novelty" in name)


@given(shares, st.floats(0, 50), st.floats(50, 100))
def test_novelty_is_a_share_with_the_error_of_a_share(seen_K, new: float, exposures: float) -> None:
    found = Coverage().readings(after(row(seen_K, new, exposures)), SCENE)
    novelty = found["coverage.novelty"]
    assert novelty.value == pytest.approx(new / exposures)
    assert novelty.standard_error == pytest.approx(math.sqrt(novelty.value * (1 - novelty.value) / exposures))
    for gear in GEARS:
        reading = found[f"coverage.novelty:{gear}"]
        assert reading.ready and reading.standard_error == 0 and -1e-9 <= reading.value <= 1 + 1e-9


def test_after_an_epoch_of_next_token_training_only_the_other_gears_have_something_new() -> None:
    seen_K = [float(bucket == 14) for bucket in range(16)]
    found = Coverage().readings(after(row(seen_K)), SCENE)
    assert found["coverage.novelty:autoregressive"].value == 0
    assert 0.6 < found["coverage.novelty:block(16)"].value < found["coverage.novelty:masked"].value < 1


@pytest.mark.parametrize("gear", GEARS)
@pytest.mark.parametrize("epochs", [1, 5, 40])
def test_what_one_gear_has_left_after_its_own_epochs_is_the_expected_novelty(gear: str, epochs: int) -> None:
    probability_K = context_probabilities(gear, SCENE.context)
    found = Coverage().readings(after(row(1 - (1 - probability_K) ** epochs)), SCENE)
    assert found[f"coverage.novelty:{gear}"].value == pytest.approx(expected_novelty(probability_K, epochs))


@pytest.mark.parametrize(
    "record", [{**CLOCK, "asked": True}, {**CLOCK, "probe": "loss"}, {**CLOCK, "probe": "gradient", "along_M": None}]
)
def test_rows_of_others_change_nothing(record: dict) -> None:
    state = after(row([0.5] * 16))
    assert Coverage().update(state, record) == state
    assert Coverage().update({}, record) == {}


def test_a_row_without_exposures_keeps_the_last_realised_novelty() -> None:
    none = row([0.75] * 16, 0.0, 0.0)
    found = Coverage().readings(after(row([0.5] * 16, 1.0, 4.0), none), SCENE)
    assert found["coverage.novelty"].value == 0.25
    assert found["coverage.novelty:masked"].value == pytest.approx(0.25)
    first = Coverage().readings(after(none), SCENE)
    assert not first["coverage.novelty"].ready and first["coverage.novelty:masked"].ready


def test_a_row_of_another_version_is_refused_by_its_step() -> None:
    with pytest.raises(RunError, match="step 7: novelty: expected 16 shares in seen_K, found 8"):
        Coverage().update({}, row([0.0] * 8))


def test_a_fold_keeps_each_signals_state_under_its_name() -> None:
    fold = fold_of(["coverage"])
    assert fold == Fold((Coverage(),)) and fold.probes == ("novelty",)
    state = fold.update({}, row([0.5] * 16))
    assert state == {"coverage": after(row([0.5] * 16))}
    assert fold.readings(state, SCENE) == Coverage().readings(state["coverage"], SCENE)
    assert fold.readings({}, SCENE) == Coverage().readings({}, SCENE)


def test_a_fold_of_nothing_says_nothing() -> None:
    fold = fold_of([])
    assert fold.probes == () and fold.update({}, row([0.5] * 16)) == {} and fold.readings({}, SCENE) == {}


def test_a_fold_refuses_what_would_be_ambiguous() -> None:
    with pytest.raises(ValueError, match="coverage named more than once"):
        fold_of(["coverage", "coverage"])
    with pytest.raises(RecipeError, match="did you mean 'coverage'"):
        fold_of(["coverge"])

    class Other:
        """Says the same as another signal."""

        probes = ()

        def update(self, state, record):
            return state

        def readings(self, state, scene):
            return Coverage().readings(state, scene)

    with pytest.raises(ValueError, match=r"signal 'Other' gives coverage\.balance"):
        Fold((Coverage(), Other())).readings({}, SCENE)


def test_the_signal_is_its_own_configuration() -> None:
    assert names("signal")["coverage"] is Coverage
    assert component_of("signal", dump(Coverage())) == Coverage()


def test_reading_needs_no_torch() -> None:
    code = "import sys, crossover.control.signals.coverage as _; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
