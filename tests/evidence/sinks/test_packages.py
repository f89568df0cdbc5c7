"""The real packages, where they are installed (`pip install -e '.[tensorboard,wandb,trackio]'`); nothing is sent."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossover.errors import RunError
from crossover.evidence.run import RunFolder
from crossover.evidence.sinks.tee import Tee, require_sinks
from crossover.evidence.sinks.wandb import allowed_name
from crossover.registry import component_of

# What other packages warn of is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")
RECIPE = {"name": "tiny", "seed": 0}
NAME = "train/losses/block(16)"


def record(path: Path, sink: Any, *, cut: int, last: int, factor: float = 1.0, killed: bool = False) -> list[str]:
    """Record the steps after `cut` in a run folder that a sink shows; a killed run ends without a word."""
    said: list[str] = []
    require_sinks([sink])
    folder = RunFolder(path, terminal=False).create(RECIPE)
    tee = Tee(folder, path, RECIPE, (sink,), said.append)
    tee.manifest({"flops_per_token": {"block(16)": 1.0}, "data_hash": "d"})
    tee.cut_back(cut)
    for step in range(cut + 1, last + 1):
        tee.step({"step": step, "losses": {"block(16)": factor * step}, "mix": {"block(16)": 1.0}, "data_tokens": step})
        if step == 6:
            tee.flush()
    tee.decision({"step": last, "mix": {"block(16)": 1.0}, "reason": "curvature says so"})
    if killed:
        # What it told its sinks has arrived; what it would have said at its end has not.
        tee._each(lambda channel: channel.view.flush())
        folder.finish("interrupted")
        return said
    with folder, tee:
        pass
    return said


def test_names_at_weights_and_biases_have_letters_digits_and_underscores() -> None:
    assert allowed_name(NAME) == "train/losses/block_16"
    assert allowed_name("dev/order(confidence, 2)/bits_per_byte") == "dev/order_confidence_2/bits_per_byte"
    assert allowed_name("a/()") == "a/_"


def test_tensorboard_shows_a_resumed_run_once_and_keeps_its_sentences(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    # What TensorBoard's own server reads with.
    reading = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    sink, run = component_of("sink", "tensorboard"), tmp_path / "run"
    record(run, sink, cut=0, last=10, factor=5.0, killed=True)
    said = record(run, sink, cut=6, last=9)
    assert said == [f"tensorboard: tensorboard --logdir {run / 'sinks' / 'tensorboard'}"]
    files = reading.EventAccumulator(str(run / "sinks" / "tensorboard"))
    files.Reload()

    def points(tag: str) -> list[tuple[int, Any]]:
        return [(point.step, tensor_util.make_ndarray(point.tensor_proto).item()) for point in files.Tensors(tag)]

    # Steps 7 to 10 of the first start are void; there is no step 10 any more.
    assert points(NAME) == [(step, 5.0 * step) for step in range(1, 7)] + [(step, float(step)) for step in (7, 8, 9)]
    assert points("clock/data_tokens") == [(step, step) for step in range(1, 10)]
    assert points("decisions") == [(9, b"curvature says so (mix: block(16))")]
    assert [step for step, text in points("manifest") if b"data_hash: d" in text] == [0]


def test_tensorboard_is_written_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    code = f"""
import sys
from pathlib import Path
from crossover.evidence.sinks.tee import Tee
from crossover.evidence.sinks.view import Place
from crossover.registry import component_of
view = component_of("sink", "tensorboard").open(Place(Path({str(tmp_path)!r}), "a", {{}}, {{}}))
view.numbers(1, {{"a": 1.0}})
view.close(False)
assert not {{"torch", "transformers", "wandb", "trackio"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """Read the logged rows of an offline run: records in LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    content, at, parts, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if kind == 0:
            break
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        # 1 is a whole record, 4 the last part of one.
        if kind in (1, 4):
            found = wandb_internal_pb2.Record.FromString(parts)
            parts = b""
            if found.HasField("history"):
                rows.append({item.key or "/".join(item.nested_key): item.value_json for item in found.history.item})
    return rows


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A person without an account, behind a network that leads nowhere."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    yield


def test_wandb_offline_goes_on_with_the_same_run_of_theirs(
    tmp_path: Path, offline: None, capfd: pytest.CaptureFixture[str]
) -> None:
    sink, run = component_of("sink", {"name": "wandb", "project": "p", "mode": "offline"}), tmp_path / "run"
    record(run, sink, cut=0, last=10)
    name = json.loads((run / "sinks" / "wandb.json").read_text())["memory"]["id"]
    said = record(run, sink, cut=6, last=9)
    assert said == [f"wandb: offline; wandb sync {run / 'sinks' / 'wandb'}/offline-run-*-{name}"]
    files = sorted((run / "sinks" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) in (1, 2) and {file.name for file in files} == {f"run-{name}.wandb"}
    rows = [row for file in files for row in wandb_history(file)]
    assert all("step" in row for row in rows)
    points = [(int(row["step"]), float(row["train/losses/block_16"])) for row in rows if "mix/block_16" in row]
    # What comes again is the same point, so the curve over `step` is what it was.
    assert points == [(step, float(step)) for step in [*range(1, 11), *range(7, 10)]]
    assert any("decisions/text" in row and "curvature says so" in row["decisions/text"] for row in rows)
    assert any("decisions/table" in key for row in rows for key in row)
    assert "wandb" not in capfd.readouterr().out


def test_wandb_online_without_a_key_is_refused_with_what_to_do(tmp_path: Path, offline: None) -> None:
    with pytest.raises(RunError, match=r"no API key; run `wandb login`.*mode: offline"):
        require_sinks([component_of("sink", "wandb")])
    require_sinks([component_of("sink", "wandb(mode=offline)")])


def test_wandb_mode_of_the_environment_holds_where_the_recipe_is_silent(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said = record(tmp_path / "run", component_of("sink", "wandb"), cut=0, last=3)
    assert said == ["wandb: disabled"] and not list(tmp_path.rglob("*.wandb"))
    with pytest.raises(RunError, match="no API key"):
        require_sinks([component_of("sink", "wandb(mode=online)")])


def test_a_wandb_that_does_not_answer_is_switched_off_and_the_run_goes_on(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr("crossover.evidence.sinks.wandb.INIT_SECONDS", 2.0)
    said = record(tmp_path / "run", component_of("sink", "wandb"), cut=0, last=3)
    assert len(said) == 1 and said[0].startswith("warning: sink wandb failed and is switched off, the run goes on")
    assert len((tmp_path / "run" / "steps.jsonl").read_text().splitlines()) == 3


def test_trackio_goes_on_with_the_same_run_in_its_own_database(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    place = tmp_path_factory.mktemp("trackio")
    # Set back at the end: the sink sets it for the package, which reads it when it is imported.
    monkeypatch.setenv("TRACKIO_DIR", str(place / "db"))
    sink = component_of("sink", {"name": "trackio", "project": "p", "folder": str(place / "db")})
    record(place / "run", sink, cut=0, last=10)
    said = record(place / "run", sink, cut=6, last=9)
    assert said == [f'trackio: TRACKIO_DIR={place / "db"} trackio show --project "p"']
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    names = [row if isinstance(row, str) else row["name"] for row in storage.get_runs("p")]
    assert len(names) == 1 and names[0].startswith("tiny-")
    rows = storage.get_logs("p", names[0])
    points = sorted({(row["step"], row[NAME]) for row in rows if NAME in row})
    assert points == [(step, float(step)) for step in range(1, 11)]
    assert any("curvature says so" in str(row.get("decisions")) for row in rows)
    assert "rackio" not in capfd.readouterr().out
    with pytest.raises(RunError, match=r"folder: is .*other, but this process uses"):
        require_sinks([component_of("sink", {"name": "trackio", "folder": str(place / "other")})])
