"""The command line: parses, resolves the recipe, imports late, calls."""

from __future__ import annotations

from crossover.cli.crossings import crossing_command
from crossover.cli.entry import main
from crossover.cli.options import app
from crossover.cli.runs import (
    calibrate_command,
    doctor_command,
    prepare_command,
    replay_command,
    report_command,
    study_command,
    train_command,
)
from crossover.cli.samples import sample_command
from crossover.cli.scores import eval_command

__all__ = [
    "app",
    "calibrate_command",
    "crossing_command",
    "doctor_command",
    "eval_command",
    "main",
    "prepare_command",
    "replay_command",
    "report_command",
    "sample_command",
    "study_command",
    "train_command",
]
