"""Points of scaling laws from what holds them: run folders, studies, folders of runs, and CSV files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crossover.errors import RunError
from crossover.evidence.arms import PLAIN_NAME
from crossover.evidence.curves import PROCEDURES, headline_mode
from crossover.evidence.definition import TAKEN
from crossover.evidence.display import mix_text
from crossover.evidence.files import plain
from crossover.evidence.match import controller_name
from crossover.evidence.record import RunRecord, read_run
from crossover.evidence.scaling.laws import Point
from crossover.evidence.scaling.table import read_point_table
from crossover.trees import fingerprint, without_views

Used = Literal["ends", "all"]
# Folders of a run that hold no run to be read; those of a study, its tuning trials among them, are `TAKEN`.
INSIDE_A_RUN = ("report", "checkpoints", "forks", "model", "best", "scores", "samples")
# Runs may lie this deep, such as folder/study/arm/budget-2e+11/seed-0.
DEEPEST = 6
# An end must have been measured within this share of the run's tokens.
AT_THE_END = 0.99


@dataclass(frozen=True)
class Measured:
    """Points by family, and how they were read.

    Args:
        points: Points of each family.
        modes: How the losses of each family were measured, in words.
        bounds: Families whose losses are upper bounds.
        plain: Families that are next-token training.
        used: "ends": one point a run, where it ended; "all": every evaluation after the warm-up.
        notes: What a reader should know, in sentences.
    """

    points: Mapping[str, tuple[Point, ...]]
    modes: Mapping[str, str]
    bounds: tuple[str, ...]
    plain: tuple[str, ...]
    used: Used
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """A run and what it stands for.

    Args:
        record: The run.
        study: The study that it belongs to, None without one.
        arm: Its arm, "" without a study.
    """

    record: RunRecord
    study: Path | None
    arm: str

    @property
    def kind(self) -> str:
        """The one objective of the whole run, "" where there are several."""
        controller = self.record.recipe.get("controller")
        if isinstance(controller, str):
            name, _, mix = controller.replace(" ", "").partition("(")
            return mix.removesuffix(")") if name == "constant" and ":" not in mix else ""
        if not isinstance(controller, Mapping) or controller.get("name") != "constant":
            return ""
        mix = controller.get("mix")
        return mix if isinstance(mix, str) else next(iter(mix)) if isinstance(mix, Mapping) and len(mix) == 1 else ""

    @property
    def parameters(self) -> float:
        """N: all parameters, embeddings included, as Muennighoff et al. and Prabhudesai et al. count them."""
        return float(self.record.manifest["parameters"])

    @property
    def unique_tokens(self) -> float:
        """U: distinct tokens that are trained on, without text that a controller holds out."""
        return float(self.record.manifest.get("train_tokens") or self.record.manifest["unique_tokens"])


def read_points(sources: Sequence[str | Path], *, used: Used = "ends") -> Measured:
    """Read the points of all sources.

    N counts all parameters, U the distinct training tokens, D the training tokens seen; losses are nats per token on
    dev, in the mode that the runs of a family declare. Families are kinds of training: "autoregressive", "masked",
    "block(16)"; runs of several objectives are named by their arm, and so are arms of one study that train one size
    on one text in the same way but for their settings.

    Args:
        sources: Study folders, run folders, folders of either, CSV files.
        used: "ends" for one point a run, where it ended: its learning rate has decayed. "all" for every evaluation
            after the warm-up: at a constant learning rate these are worse, by 0.1 nats and more in small models.

    Returns:
        The points.

    Raises:
        RunError: A source cannot be used, there is nothing measured, or tokenizers differ.
    """
    tables, runs, notes = [], [], []
    for path in dict.fromkeys(Path(source) for source in sources):
        if path.is_file():
            points, told = read_point_table(path)
            tables += points
            notes += told
        else:
            runs += _runs_of(path)
    runs = list({run.record.path.resolve(): run for run in runs}.values())
    ready, left_out = _usable(runs, used)
    ready, copies = _once(ready)
    notes += copies
    _refuse_other_tokenizers(ready)
    families = _families(ready)
    points, modes, bounds = _points(families, used, left_out)
    for point in tables:
        points.setdefault(point.family, []).append(point)
        modes.setdefault(point.family, "a table")
    if not any(points.values()):
        why = f": {'; '.join(left_out)}" if left_out else ""
        raise RunError(f"{', '.join(map(str, sources))}: nothing in it can be used{why}; let the runs finish")
    plain = [name for name in points if PLAIN_NAME.fullmatch(name) or _is_plain(families.get(name, ()))]
    notes += [*left_out, *_notes(families, used)]
    kept = {name: tuple(each) for name, each in points.items() if each}
    return Measured(kept, modes, bounds, tuple(plain), used, tuple(notes))


def _is_plain(runs: Sequence[_Run]) -> bool:
    return bool(runs) and all(run.kind == "autoregressive" for run in runs)


def _runs_of(source: Path) -> list[_Run]:
    """Read every run in and below a folder."""
    if not source.is_dir():
        raise RunError(f"{source}: no such file or folder; expected a study, a run, a folder of runs or a CSV file")
    folders = _folders(source, set())
    if not folders:
        raise RunError(f"{source}: holds no run (a folder with recipe.yaml), is no study and no CSV file")
    found = []
    for folder in folders:
        study = next((parent for parent in folder.absolute().parents if (parent / "study.yaml").exists()), None)
        arm = folder.absolute().relative_to(study).parts[0] if study is not None else ""
        found.append(_Run(read_run(folder), study, arm))
    return found


def _folders(folder: Path, seen: set[Path], depth: int = 0) -> list[Path]:
    """Find the run folders in and below a folder, each once: links may lead around in a circle."""
    if folder.resolve() in seen:
        return []
    seen.add(folder.resolve())
    is_run, is_study = (folder / "recipe.yaml").exists(), (folder / "study.yaml").exists()
    found = [folder] if is_run else []
    if depth < DEEPEST:
        passed_by = {*(INSIDE_A_RUN if is_run else ()), *(TAKEN if is_study else ())}
        inner = (item for item in sorted(folder.iterdir()) if item.is_dir() and not item.name.startswith("."))
        found += [path for item in inner if item.name not in passed_by for path in _folders(item, seen, depth + 1)]
    return found


def _once(runs: Sequence[_Run]) -> tuple[list[_Run], list[str]]:
    """Leave out copies: runs that agree in recipe, text and their last evaluation, whatever they are called."""
    first: dict[str, _Run] = {}
    copies = []
    for run in runs:
        record = run.record
        recipe = {key: value for key, value in without_views(record.recipe).items() if key != "name"}
        ends = [record.status.get("state"), record.ledger.get("data_tokens"), record.evals[-1]]
        key = fingerprint(plain({"recipe": recipe, "text": record.manifest.get("data_hash"), "ends": ends}))
        if first.setdefault(key, run) is not run:
            copies.append(f"{record.path} (of {first[key].record.path})")
    return list(first.values()), [f"copies of runs are left out: {_few(copies)}"] if copies else []


def _usable(runs: Sequence[_Run], used: Used) -> tuple[list[_Run], list[str]]:
    """Part runs that can give points from those that cannot, and say why."""
    ready: list[_Run] = []
    unfinished: list[str] = []
    for run in runs:
        record = run.record
        measured = any(row.get("split", "dev") == "dev" for row in record.evals)
        if not measured or "parameters" not in record.manifest or (used == "ends" and not record.finished):
            unfinished.append(str(record.path))
        else:
            ready.append(run)
    if not unfinished:
        return ready, []
    why = "not finished" if used == "ends" else "nothing measured yet"
    return ready, [f"runs left out, {why}: {_few(unfinished)}"]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _refuse_other_tokenizers(runs: Sequence[_Run]) -> None:
    first: dict[str, Path] = {}
    for run in runs:
        first.setdefault(str(run.record.manifest.get("tokenizer_hash")), run.record.path)
    if len(first) > 1:
        (one, there), (other, here) = list(first.items())[:2]
        raise RunError(
            f"tokenizers differ: {there} has {one}, {here} has {other}, and nats per token mean something else under "
            f"each. Name runs of one tokenizer, or train the others again with "
            f"data.tokenizer=file({there / 'model' / 'tokenizer.json'})"
        )


def _families(runs: Sequence[_Run]) -> dict[str, list[_Run]]:
    """Group runs by kind of training; arms of a study that share kind, size and text differ in their settings."""
    arms: dict[tuple[Path, str, float, float], set[str]] = {}
    for run in runs:
        if run.study is not None:
            arms.setdefault((run.study, run.kind, run.parameters, run.unique_tokens), set()).add(run.arm)
    shared = {key[:2] for key, names in arms.items() if len(names) > 1}
    families: dict[str, list[_Run]] = {}
    for run in runs:
        named = run.study is not None and (not run.kind or (run.study, run.kind) in shared)
        families.setdefault(run.arm if named else run.kind or _mixed(run.record.recipe), []).append(run)
    return families


def _mixed(recipe: Mapping[str, Any]) -> str:
    """Name a run of several objectives that belongs to no study."""
    controller = recipe.get("controller")
    if isinstance(controller, Mapping) and controller.get("name") == "constant":
        return mix_text(controller.get("mix"))
    return controller_name(recipe)


def _points(
    families: Mapping[str, Sequence[_Run]], used: Used, left_out: list[str]
) -> tuple[dict[str, list[Point]], dict[str, str], tuple[str, ...]]:
    """Read the points of each family in its one mode; `left_out` gathers why runs give none."""
    points: dict[str, list[Point]] = {}
    modes: dict[str, str] = {}
    bounds: list[str] = []
    for family, runs in families.items():
        try:
            procedure, exact = headline_mode([run.record for run in runs])
        except RunError as error:
            left_out.append(f"{family} left out: {error}")
            continue
        modes[family] = f"{procedure}: {PROCEDURES.get(procedure, 'exact' if exact else 'an upper bound')}"
        bounds += [] if exact else [family]
        points[family] = []
        for run in runs:
            rows = _rows(run, procedure, exact, used)
            points[family] += [_point(run, family, row) for row in rows]
            if not rows:
                left_out.append(f"{run.record.path} left out: no evaluation by '{procedure}' where it could be used")
    return points, modes, tuple(bounds)


def _rows(run: _Run, procedure: str, exact: bool, used: Used) -> list[Mapping[str, Any]]:
    record = run.record
    rows = [
        row
        for row in record.evals
        if row.get("split", "dev") == "dev" and row.get("procedure") == procedure and bool(row.get("exact")) == exact
    ]
    # A run that goes on may have rows of another release, which lack one of these.
    rows = [row for row in rows if row.get("loss_nats") is not None and row.get("data_tokens") is not None]
    rows.sort(key=lambda row: row["data_tokens"])
    if used == "ends":
        end = float(record.ledger.get("data_tokens") or 0)
        return [row for row in rows[-1:] if row["data_tokens"] >= AT_THE_END * end]
    # What a branch has from its trunk is the trunk's.
    begins = (record.manifest.get("branch") or {}).get("data_tokens") or 0
    first = max(float(_rate(record).get("warmup_tokens") or 0), float(begins))
    return [row for row in rows if row["data_tokens"] > first]


def _rate(record: RunRecord) -> Mapping[str, Any]:
    rate = (record.recipe.get("training") or {}).get("learning_rate")
    return rate if isinstance(rate, Mapping) else {}


def _point(run: _Run, family: str, row: Mapping[str, Any]) -> Point:
    record = run.record
    # Branches share their trunk, so they are resampled with it.
    group = f"{run.study}/{run.arm}" if run.study is not None else str(record.path)
    try:
        return Point(
            parameters=run.parameters,
            unique_tokens=run.unique_tokens,
            tokens=float(row["data_tokens"]),
            loss_nats=float(row["loss_nats"]),
            family=family,
            seed=int(record.recipe.get("seed", 0)),
            group=f"{group} ({run.parameters:.4g}, {run.unique_tokens:.4g})",
        )
    except RunError as error:
        raise RunError(f"{record.path}: evals.jsonl: {error}") from None


def _notes(families: Mapping[str, Sequence[_Run]], used: Used) -> list[str]:
    """Say what may set runs apart besides size, text and tokens."""
    runs = [run for group in families.values() for run in group]
    notes = []
    undecayed = [str(run.record.path) for run in runs if _rate(run.record).get("decay_fraction") == 0]
    if undecayed and used == "ends":
        notes.append(f"runs that end without a decay of the learning rate: {_few(undecayed)}")
    texts = Counter(str(run.record.manifest.get("data_source")) for run in runs)
    if len(texts) > 1:
        notes.append(f"runs read different texts ({_few(list(texts))}), so their losses differ by that too")
    held_out = {
        (row.get("procedure"), tuple(row.get("document_bytes") or ())) for run in runs for row in run.record.evals[-1:]
    }
    if len(held_out) > len({procedure for procedure, _ in held_out}):
        notes.append("runs were measured on different held-out documents, which adds noise to their losses")
    sparse = [
        family
        for family, group in families.items()
        if any(run.record.manifest.get("active_parameters", run.parameters) != run.parameters for run in group)
    ]
    if sparse:
        notes.append(f"{_few(sparse)}: sparse models, with all experts counted as parameters")
    return notes
