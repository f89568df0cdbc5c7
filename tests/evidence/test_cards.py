"""Numbers are compared if their cards say the same; what differs is named, and a planted difference is recovered."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.errors import RunError
from crossover.evidence.cards import CardComparison, compare, lines_of, read_cards
from crossover.streams import stream

CONDITIONS: dict[str, Any] = {
    "context": 128,
    "windows": 96,
    "precision": "float32",
    "positions": 32,
    "weights": "raw",
    "tokenizer_hash": "t1",
    "data_hash": "d1",
    "checkpoint_sha256": "c1",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}
SIZES = stream(0, "card-sizes").integers(200, 900, 60)
HARDNESS = np.exp(0.3 * stream(0, "card-hardness").standard_normal(60))


def card(
    bits: float = 2.0, *, noise: float = 0.01, seed: int = 0, sizes: np.ndarray = SIZES, procedure: str = "l2r",
    exact: bool = True, split: str = "test", headline: bool = True, **conditions: Any,
) -> dict[str, Any]:  # fmt: skip
    """A card whose documents have these bits per byte on average, hard documents being hard for every model."""
    level = bits * HARDNESS * (sizes.sum() / (HARDNESS * sizes).sum())
    nats = math.log(2) * sizes * (level + noise * stream(seed, "card-noise").standard_normal(60))
    stated = {**CONDITIONS, "split": split, **conditions}
    return {
        "procedure": procedure,
        "exact": exact,
        "conditions": {key: value for key, value in stated.items() if value is not None},
        "document_nats": nats.tolist(),
        "document_bytes": sizes.tolist(),
        "document_tokens": (sizes // 3).tolist(),
        "split": split,
        "headline": headline,
    }


def write(path: Path, **cards: dict[str, Any]) -> Path:
    (path / "scores").mkdir(parents=True)
    (path / "scores" / "summary.json").write_text(json.dumps({"headline": "l2r"}))
    for name, row in cards.items():
        (path / "scores" / f"{name.replace('_', '-')}.json").write_text(json.dumps(row))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def build(one: dict[str, Any], two: dict[str, Any]) -> tuple[Path, Path]:
        return write(tmp_path / "a", test_l2r=one), write(tmp_path / "b", test_l2r=two)

    return build


def only(found: tuple[CardComparison, ...]) -> CardComparison:
    assert len(found) == 1
    return found[0]


def test_a_planted_difference_is_recovered_by_pairing(pair: Callable[..., tuple[Path, Path]]) -> None:
    """0.02 bits between models, 0.6 bits between documents: only pairs show it."""
    one, two = pair(card(2.0, seed=1), card(2.02, seed=2, checkpoint_sha256="c2"))
    found = only(compare(one, two))
    assert found.paired and found.apart
    assert found.bits_interval[0] < 0.02 < found.bits_interval[1]
    assert found.bits_difference == pytest.approx(found.bits_per_byte[1] - found.bits_per_byte[0])
    # All documents have three bytes to a token, up to rounding.
    assert found.nats_difference == pytest.approx(found.bits_difference * math.log(2) * 3, rel=0.02)
    spread = np.std(np.array(card()["document_nats"]) / SIZES / math.log(2)) / math.sqrt(60)
    assert found.bits_interval[1] - found.bits_interval[0] < 0.2 * 4 * spread
    back = only(compare(two, one))
    assert back.bits_difference == pytest.approx(-found.bits_difference)
    assert back.bits_interval == pytest.approx((-found.bits_interval[1], -found.bits_interval[0]))


def test_the_interval_covers_what_was_planted(tmp_path: Path) -> None:
    hits = 0
    for seed in range(100):
        one = write(tmp_path / f"a{seed}", test_l2r=card(2.0, noise=0.1, seed=2 * seed))
        two = write(tmp_path / f"b{seed}", test_l2r=card(2.05, noise=0.1, seed=2 * seed + 1))
        low, high = only(compare(one, two, draws=400)).bits_interval
        hits += low <= 0.05 <= high
    # 95% of 100, less what a bootstrap over 60 documents lacks.
    assert 87 <= hits <= 100


def test_a_card_against_itself_shows_no_difference(pair: Callable[..., tuple[Path, Path]]) -> None:
    found = only(compare(*pair(card(), card())))
    assert found.bits_difference == 0 and found.bits_interval == (0, 0) and not found.apart
    assert "cannot be told apart" in "\n".join(lines_of([found], "a", "b"))


@pytest.mark.parametrize(
    ("field", "one", "two"),
    [
        ("context", 128, 256), ("windows", 96, 48), ("precision", "float32", "bfloat16"), ("positions", 32, 16),
        ("weights", "raw", "ema"), ("tokenizer_hash", "t1", "t2"), ("data_hash", "d1", "d2"),
        ("versions.torch", "2.13.0", "2.11.0"), ("split", "test", "dev"), ("draws", None, 32), ("text", "a", "b"),
    ],
)  # fmt: skip
def test_what_differs_is_named_with_both_values(
    pair: Callable[..., tuple[Path, Path]], field: str, one: Any, two: Any
) -> None:
    def made(value: Any) -> dict[str, Any]:
        outer, _, inner = field.partition(".")
        if field == "split":
            return card(split=value)
        changed: dict[str, Any] = {outer: {**CONDITIONS[outer], inner: value} if inner else value}
        return card(**changed)

    folders = pair(made(one), made(two))
    left, right = (value if value is not None else "not stated" for value in (one, two))
    with pytest.raises(RunError) as caught:
        compare(*folders)
    assert f"\n  {field}: {left} in the first, {right} in the second (test-l2r)\n" in str(caught.value)
    assert f"--allow {field}" in str(caught.value)
    found = only(compare(*folders, allow=[field]))
    assert found.allowed == {field: (left, right)}
    assert any(f"allowed to differ: {field}: {left} and {right}" in line for line in lines_of([found], "a", "b"))
    assert (found.nats_difference is None) == (field == "tokenizer_hash")


def test_every_field_is_named_at_once_and_one_allowed_is_not_all(pair: Callable[..., tuple[Path, Path]]) -> None:
    folders = pair(card(), card(context=64, weights="ema", versions={"python": "3.12.1", "torch": "2.11.0"}))
    with pytest.raises(RunError, match=r"(?s)4 thing\(s\).*context.*weights.*versions\.python.*versions\.torch"):
        compare(*folders)
    with pytest.raises(RunError) as caught:
        compare(*folders, allow=["versions", "context"])
    assert "weights: raw in the first, ema" in str(caught.value) and "torch" not in str(caught.value)
    assert set(only(compare(*folders, allow=["versions", "context", "weights"])).allowed) == {
        "context", "weights", "versions.python", "versions.torch",
    }  # fmt: skip


def test_other_documents_are_refused_and_where_allowed_not_paired(pair: Callable[..., tuple[Path, Path]]) -> None:
    folders = pair(card(seed=1), card(2.02, seed=2, sizes=SIZES + 1))
    with pytest.raises(RunError, match=r"documents: 60 documents, [\d,]+ bytes, hash \w+ in the first, 60 documents"):
        compare(*folders)
    found = only(compare(*folders, allow=["documents"]))
    assert not found.paired and not found.apart
    assert "not paired" in "\n".join(lines_of([found], "a", "b"))


@given(name=st.sampled_from(["precison", "tokenizer", "checkpoint_sha256", "", "version"]))
def test_an_unknown_field_is_refused(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = write(tmp_path_factory.mktemp("run") / "a", test_l2r=card())
    with pytest.raises(RunError, match=r"the cards have no such field; .*choices: .*precision.*versions\.torch"):
        compare(folder, folder, allow=[name])


def test_weights_differ_by_nature_and_are_reported(pair: Callable[..., tuple[Path, Path]]) -> None:
    two = card(checkpoint_sha256="c2", checkpoint="best/ar", checkpoint_step=7, weights_sha256="w2")
    found = only(compare(*pair(card(), two)))
    assert found.allowed == {}
    assert found.models[0] == {"checkpoint_sha256": "c1"} and found.models[1]["weights_sha256"] == "w2"
    assert "checkpoint_step=7" in lines_of([found], "a", "b")[-1]


def test_an_exact_number_and_a_bound_are_compared_only_on_demand(tmp_path: Path) -> None:
    one = write(tmp_path / "a", test_ar=card(2.0, procedure="ar", positions=None))
    bound = card(2.1, procedure="nelbo", exact=False, positions=None, draws=32, block=0)
    two = write(tmp_path / "b", test_nelbo=bound)
    with pytest.raises(RunError) as caught:
        compare(one, two)
    assert "procedure: ar in the first, nelbo in the second" in str(caught.value)
    assert "draws" not in str(caught.value), "what follows from the procedure is not a difference of its own"
    found = only(compare(one, two, allow=["procedure"]))
    assert found.exact == (True, False) and found.cards == ("test-ar", "test-nelbo")
    said = lines_of([found], "a", "b")
    assert "b 2.09" in said[0] and "(nelbo, an upper bound)" in said[0]
    assert said[1].endswith("the other number is an upper bound, so this is not proven")
    # The other way round nothing hangs on the bound: what it bounds is lower still.
    better = write(tmp_path / "c", test_nelbo={**bound, "document_nats": card(1.8)["document_nats"]})
    said = lines_of(compare(one, better, allow=["procedure"]), "a", "c")
    assert said[1].startswith("  c is better by") and "not proven" not in said[1]


def test_all_common_cards_are_compared_the_test_text_first(tmp_path: Path) -> None:
    cards = {"dev_ar": card(split="dev"), "test_ar": card(headline=False), "test_l2r": card()}
    one, two = write(tmp_path / "a", **cards), write(tmp_path / "b", **cards, test_nelbo=card())
    assert [item.cards[0] for item in compare(one, two)] == ["test-ar", "test-l2r", "dev-ar"]
    (one / "model").mkdir()
    (one / "model" / "config.json").write_text("{}")
    for place in (one / "model", one / "scores"):
        assert read_cards(place).keys() == {"dev-ar", "test-ar", "test-l2r"}
    assert only(compare(one / "scores" / "test-ar.json", two / "scores" / "test-ar.json")).cards == ("test-ar",) * 2


def test_broken_and_missing_cards_are_named(tmp_path: Path) -> None:
    good = write(tmp_path / "good", test_l2r=card())
    with pytest.raises(RunError, match=r"nowhere: holds no score cards; expected a run folder"):
        compare(tmp_path / "nowhere", good)
    with pytest.raises(RunError, match="holds no score cards"):
        compare(write(tmp_path / "empty"), good)
    with pytest.raises(RunError, match=r"summary\.json: is no score card: it lacks procedure"):
        compare(good / "scores" / "summary.json", good)
    silent, short = card(), card()
    silent["document_nats"][3] = None
    short["document_bytes"].pop()
    with pytest.raises(RunError, match="a document has no finite score"):
        compare(good, write(tmp_path / "silent", test_l2r=silent))
    with pytest.raises(RunError, match="are not equally long"):
        compare(good, write(tmp_path / "short", test_l2r=short))
