"""Where tables, laws, scores and prompts of a stranger lie, and what the program does with them; see `places`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from fuzz import seeds
from fuzz.places import Laid


def of_curves(folder: Path) -> Laid:
    """A table of published curves."""
    return folder / "curves.csv", [seeds.CSV.encode()]


def read_curves(folder: Path) -> object:
    """Read the table's curves, in both units."""
    from crossover.evidence.published import plain_curve, read_table

    curves = read_table(folder / "curves.csv")
    both = [one.levels(flag) for one in curves for flag in (False, True) if not flag or "bits_per_byte" in one.columns]
    return both, [plain_curve(one, "epochs" in one.columns) for one in curves]


def of_points(folder: Path) -> Laid:
    """A table of points of a scaling law."""
    return folder / "points.csv", [seeds.POINTS.encode()]


def read_points(folder: Path) -> object:
    """Read the points."""
    from crossover.evidence.scaling.table import read_point_table

    return read_point_table(folder / "points.csv")


def of_laws(folder: Path) -> Laid:
    """A book of laws, its draws cut to as few as are allowed."""
    from importlib.resources import files

    tree = json.loads(files("crossover.evidence.scaling").joinpath("published.json").read_text("utf-8"))
    for law in tree["laws"].values():
        law["draws"], law["residuals"] = law["draws"][:20], law["residuals"][:20]
    return folder / "laws.json", [json.dumps(tree).encode()]


def read_laws(folder: Path) -> object:
    """Read the laws."""
    from crossover.evidence.scaling.book import load_laws

    return load_laws(folder / "laws.json")


def of_calibration(folder: Path) -> Laid:
    """Calibrated thresholds."""
    from importlib.resources import files

    return folder / "calibration.json", [files("crossover.control").joinpath("calibration.json").read_bytes()]


def read_calibration(folder: Path) -> object:
    """Read them, by their own name and as a recipe does."""
    from crossover.control.calibration import load_calibration, read_thresholds

    load_calibration.cache_clear()
    return read_thresholds(str(folder / "calibration.json"))


def of_card(folder: Path) -> Laid:
    """A score card beside another one."""
    from evidence.synthetic import card_of

    card = {**card_of([300.0, 200.0, 250.0], [400, 300, 350], "ar", True), "split": "test", "headline": True,
            "conditions": {"draws": 32, "context": 64, "versions": {"torch": "2"}}}  # fmt: skip
    (folder / "other.json").write_text(json.dumps(card), "utf-8")
    return folder / "card.json", [json.dumps(card).encode()]


def read_card(folder: Path) -> object:
    """Hold the two against each other."""
    from crossover.evidence.cards import compare, lines_of

    allow = ("versions", "draws", "split", "procedure")
    return lines_of(compare(folder / "card.json", folder / "other.json", allow=allow, draws=20), "one", "other")


def of_tasks(folder: Path) -> Laid:
    """Scores of a downstream task beside other ones."""
    part = {"acc": [1.0, 0.0, 1.0], "gold_nats": [3.0, 4.0, 2.5], "gold_bytes": [4.0, 6.0, 5.0]}
    row = {"task": "blimp", "procedure": "ar", "items": 3, "answers": {"blimp": part},
           "measures": {"acc": {"value": 0.67}, "bits_per_byte": {"value": 1.1}},
           "card": {"limit": None, "seed": 0, "versions": {"lm_eval": "1"}}}  # fmt: skip
    (folder / "other.json").write_text(json.dumps(row), "utf-8")
    return folder / "tasks.json", [json.dumps(row).encode()]


def read_tasks(folder: Path) -> object:
    """Hold the two against each other."""
    from crossover.evidence.task_cards import compare_tasks, lines_of

    found = compare_tasks(folder / "tasks.json", folder / "other.json", allow=("procedure",))
    return lines_of(found, "one", "other")


def of_task_set(folder: Path) -> Laid:
    """An evaluation set, compressed."""
    rows = [json.dumps({"ctx": text, "endings": ["a", "b"], "label": 0}) + "\n" for text in seeds.TEXTS]
    return folder / "set.jsonl.gz", [gzip.compress("".join(rows).encode(), mtime=0)]


def read_task_set(folder: Path) -> object:
    """Read its rows."""
    from crossover.scoring.tasks.files import _all_rows

    return _all_rows(folder / "set.jsonl.gz")


def of_prompts(folder: Path) -> Laid:
    """Prompts to go on from."""
    rows = [json.dumps({"prompt": text}) for text in seeds.TEXTS]
    return folder / "prompts.jsonl", ["\n".join(rows).encode()]


def read_prompts(folder: Path) -> object:
    """Read the prompts."""
    from crossover.sampling.request import Request

    return Request(prompts_file=folder / "prompts.jsonl").prompts()
