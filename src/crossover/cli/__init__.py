"""The command line: parses, resolves the recipe, imports late, calls."""

from __future__ import annotations

from crossover.cli.crossings import crossing_command
from crossover.cli.entry import main
from crossover.cli.hub import adopt_command, export_command
from crossover.cli.options import app
from crossover.cli.plans import plan_command
from crossover.cli.runs import (
    calibrate_command,
    doctor_command,
    prepare_command,
    replay_command,
    report_command,
    train_command,
)
from crossover.cli.samples import sample_command
from crossover.cli.scaling import scaling_command
from crossover.cli.scores import eval_command
from crossover.cli.studies import study_command
from crossover.cli.watching import watch_command

__all__ = [
    "adopt_command",
    "app",
    "calibrate_command",
    "crossing_command",
    "doctor_command",
    "eval_command",
    "export_command",
    "main",
    "plan_command",
    "prepare_command",
    "replay_command",
    "report_command",
    "sample_command",
    "scaling_command",
    "study_command",
    "train_command",
    "watch_command",
]
