"""A broken score card is an error with its path, and never a traceback or a number out of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossover.errors import RunError
from crossover.evidence.facts import find
from crossover.evidence.report import build_report
from crossover.evidence.view import arm_curves, read_view

Make = Callable[..., Path]
CARD = "scores/test-ar.json"
# The lists that a difference is made of; the rest of a card is shown where it is there.
NEEDED = ("procedure", "exact", "document_nats", "document_bytes", "document_tokens")


def facts_of(folder: Path) -> Mapping[str, Any]:
    """Work out all that a report says, without its figures."""
    view = read_view(folder)
    return find(view, arm_curves(view)).facts


@pytest.mark.parametrize(
    "text", ["", "{", '{"procedure": "ar", "exact"', "[]", "null", "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_card_that_is_no_json_object(tmp_path: Path, make_run: Make, text: str | bytes) -> None:
    run = make_run(tmp_path / "run")
    (run / CARD).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match=r"test-ar\.json: "):
        build_report(run)


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_card_that_lacks_what_a_difference_is_made_of(tmp_path: Path, make_run: Make, name: str, split: str) -> None:
    run = make_run(tmp_path / "run")
    path = run / "scores" / f"{split}-ar.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in card.items() if key != name}))
    with pytest.raises(RunError, match=rf"{split}-ar\.json: {name} is missing; restore"):
        build_report(run)


def test_a_card_that_lacks_what_is_only_shown_is_shown_without(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run")
    card = json.loads((run / CARD).read_text())
    (run / CARD).write_text(json.dumps({key: card[key] for key in NEEDED}))
    (shown,) = [row for row in facts_of(run)["cards"] if row["split"] == "test"]
    assert shown["bits_per_byte"] is None and shown["documents"] is None
    assert build_report(run).texts()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"document_nats": "many"}, "document_nats is 'many'"),
        ({"document_nats": [1.0, "2"]}, "document_nats is a list"),
        ({"document_bytes": [0, 0]}, "document_bytes is a list, expected a list of numbers, above 0 in all"),
        ({"document_bytes": [5]}, "are not equally long"),
        ({"bits_per_byte": {}}, "bits_per_byte is a dict"),
        ({"loss_nats": 10**400}, "loss_nats is a"),
        ({"exact": "yes"}, "exact is 'yes', expected true or false"),
        ({"conditions": []}, "conditions is a list, expected a mapping"),
    ],
)
def test_a_card_of_other_values(tmp_path: Path, make_run: Make, changed: Mapping[str, Any], said: str) -> None:
    run = make_run(tmp_path / "run")
    (run / CARD).write_text(json.dumps({**json.loads((run / CARD).read_text()), **changed}))
    with pytest.raises(RunError, match=r"test-ar\.json: ") as error:
        build_report(run)
    assert said in str(error.value)


def test_a_loss_that_was_not_finite_is_no_broken_card(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run")
    card = json.loads((run / CARD).read_text())
    nats = [None, *card["document_nats"][1:]]
    (run / CARD).write_text(json.dumps({**card, "document_nats": nats, "loss_nats": None, "bits_per_byte": None}))
    assert build_report(run).texts()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_stands_there_it_is_read_or_refused_with_the_path(tmp_path: Path, make_run: Make, data: Any) -> None:
    run = tmp_path / "run"
    if not run.exists():
        make_run(run)
        (run / CARD).rename(run / "sound.json")
    card = json.loads((run / "sound.json").read_text())
    name = data.draw(st.sampled_from(["test-ar", "dev-ar", "summary"]))
    kept = {path: path.read_text() for path in (run / "scores").iterdir()}
    key = data.draw(st.sampled_from([*card, "headline", "chosen_on"]))
    (run / "scores" / f"{name}.json").write_text(json.dumps({**card, key: data.draw(values)}))
    try:
        facts_of(run)
    except RunError as error:
        assert f"{name}.json" in str(error)
    finally:
        for path in (run / "scores").iterdir():
            path.write_text(kept[path]) if path in kept else path.unlink()
