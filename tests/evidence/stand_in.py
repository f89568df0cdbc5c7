"""A stand-in for `train` that plants losses instead of training, and a study of such runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

import tiny_runs
from crossover.evidence import study as study_module

# Slower than nothing, so that a test can stop it; "notes" counts how often each run was started.
TRAIN = """
import os, signal, sys, time, yaml
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
sys.path.insert(0, {here!r})
import synthetic
from pathlib import Path
from crossover.evidence.run import RunFolder
recipe, folder = yaml.safe_load(open(sys.argv[1])), Path(sys.argv[3])
with open({notes!r}, "a") as notes:
    notes.write(f"{{recipe['name']}} {{os.environ['OMP_NUM_THREADS']}}\\n")
masked = "masked" in recipe["controller"]["mix"]
if masked and os.path.exists({fail!r}):
    sys.exit("planted failure: out of luck")
with RunFolder(folder).create(recipe) as run:
    run.progress({{"step": 1, "loss_nats": 3.0, "budget_fraction": 0.5}})
    while os.path.exists({hang!r}):
        time.sleep(0.02)
dropout = recipe["model"]["residual_dropout"]
better = 0.5 if masked else 0.0
import shutil; shutil.rmtree(folder)
original = synthetic.recipe_of
synthetic.recipe_of = lambda name, seed, controller: recipe
synthetic.write_run(folder, seed=recipe["seed"], modes={{"ar": lambda f: 3 - f - better + abs(dropout - 0.2)}})
"""


def write_study(place: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the study of two arms and two seeds that tests start, and let its runs be stand-ins."""
    paths = {name: str(place / name) for name in ("notes", "fail", "hang")}
    script = place / "train.py"
    script.write_text(TRAIN.format(here=str(Path(__file__).parent), **paths))
    (place / "notes").touch()
    monkeypatch.setattr(
        study_module,
        "train_command",
        lambda recipe, folder, *options, trust: (sys.executable, str(script), str(recipe), "--run-dir", str(folder)),
    )
    note = f"open({paths['notes']!r}, 'a').write('prepare -\\n')"
    monkeypatch.setattr(study_module, "prepare_command", lambda recipe, trust: (sys.executable, "-c", note))
    base = tiny_runs.tree(source, scoring__every_tokens=None)
    base["training"]["threads"] = None
    (place / "base.yaml").write_text(yaml.safe_dump({key: base[key] for key in base if key != "controller"}))
    (place / "s.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "s",
                "recipe": "base.yaml",
                "arms": {
                    "ar": {"controller": "constant(autoregressive)"},
                    "masked": {"controller": "constant(masked)"},
                },
                "seeds": [0, 1],
                "budget": {"flops": 1e9},
            }
        )
    )
    return place
