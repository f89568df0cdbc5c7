"""The command that makes studies: on this machine, or as jobs of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from crossover.cli.options import Overrides, Trust, app, say
from crossover.errors import RunError

Jobs = Annotated[
    int | None,
    typer.Option(help="Runs at the same time, which share the cores out; the study file's by default.", min=1),
]
Processes = Annotated[
    int | None,
    typer.Option(help="Processes that train each run together, under torchrun; one for each GPU of a job.", min=1),
]
Slurm = Annotated[bool, typer.Option("--slurm", help="Submit what is missing as SLURM arrays (extra: slurm).")]
Kind = Annotated[str | None, typer.Option(help="slurm, or local: the same jobs on this machine, to try them.")]
Time = Annotated[str | None, typer.Option(help="Time limit of a job [8:00:00]; a longer run goes on in the next.")]
Gpus = Annotated[int | None, typer.Option(help="GPUs of each run [1].", min=0)]
Cpus = Annotated[int | None, typer.Option(help="CPU cores of each run [4].", min=1)]
Memory = Annotated[str | None, typer.Option(help="Main memory of each run, such as 16GB.")]
Partition = Annotated[str | None, typer.Option(help="The cluster's partition.")]
Account = Annotated[str | None, typer.Option(help="The account that pays.")]
MaxParallel = Annotated[int | None, typer.Option(help="Jobs of an array at the same time [16].", min=1)]
Setup = Annotated[list[str] | None, typer.Option(help="A shell line that comes first in a job (again for each).")]
Sbatch = Annotated[list[str] | None, typer.Option(help="Another option of sbatch: qos=long (again for each).")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay, and submit what becomes possible, until all has ended.")]

OF_CLUSTERS = ("processes_per_run", "partition", "time", "gpus_per_run", "cpus_per_run", "memory", "account",
               "max_parallel", "setup", "sbatch", "wait")  # fmt: skip
# What sbatch is told by an option of this command, else one of two lines would have no effect; "" is told by the study.
OWN_OF_SBATCH = {
    "time": "--time",
    "partition": "--partition",
    "account": "--account",
    "mem": "--memory",
    "cpus-per-task": "--cpus-per-run",
    "gpus-per-node": "--gpus-per-run",
    **dict.fromkeys(("array", "signal", "nodes", "ntasks", "ntasks-per-node", "job-name"), ""),
    **dict.fromkeys(("output", "error", "open-mode", "chdir"), ""),
}


@app.command("study", short_help="Train matched arms, and say where their curves cross.")
def study_command(
    context: typer.Context,
    study: Annotated[Path, typer.Argument(help="A study file (YAML).", show_default=False)],
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option(help="The study's folder; runs/<name> by default.")] = None,
    jobs: Jobs = None,
    processes_per_run: Processes = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Say how each run stands and what starts it; no more.")
    ] = False,
    slurm: Slurm = False,
    cluster: Kind = None,
    partition: Partition = None,
    time: Time = None,
    gpus_per_run: Gpus = None,
    cpus_per_run: Cpus = None,
    memory: Memory = None,
    account: Account = None,
    max_parallel: MaxParallel = None,
    setup: Setup = None,
    sbatch: Sbatch = None,
    wait: Wait = False,
    trust: Trust = False,
) -> None:
    """Train matched arms, prove that they are matched, and report where the curves cross."""
    kind = _kind(slurm, cluster)
    given = _given(context.params, kind)
    where: dict[str, Any] = {"folder": folder, "trust": trust}
    if listing:
        _list(study, overrides or [], kind, {**where, "processes": processes_per_run or gpus_per_run or 1})
    elif kind is None:
        from crossover.evidence.study import run_study

        processes = processes_per_run or 1
        _tell(run_study(study, overrides or [], jobs=jobs, processes=processes, notify=say, **where))
    else:
        from crossover.evidence.dispatch import dispatch_study

        _tell(dispatch_study(study, overrides or [], cluster=_cluster(kind, given), wait=wait, notify=say, **where))


def _kind(slurm: bool, cluster: str | None) -> str | None:
    from crossover.evidence.cluster import KINDS

    if cluster is not None and cluster not in KINDS:
        raise RunError(f"--cluster {cluster}: expected {' or '.join(KINDS)}")
    if slurm and cluster not in (None, "slurm"):
        raise RunError(f"--cluster {cluster}: contradicts --slurm; leave one of them out")
    return "slurm" if slurm else cluster


def _given(params: Mapping[str, Any], kind: str | None) -> dict[str, Any]:
    """Pick out what was said about a cluster, and refuse what would have no effect."""
    # No GPU is an answer, too.
    given = {key: value for key in OF_CLUSTERS if (value := params[key]) or (value == 0 and value is not False)}
    if kind is None and (stray := [key for key in given if key != "processes_per_run"]):
        raise RunError(f"--{stray[0].replace('_', '-')}: has no effect without --slurm")
    if kind is not None and params["jobs"] is not None:
        raise RunError("--jobs: has no effect on a cluster; --max-parallel says how many jobs run at the same time")
    return given


def _list(study: Path, overrides: list[str], kind: str | None, where: Mapping[str, Any]) -> None:
    from crossover.evidence.study_list import list_study

    for line in list_study(study, overrides, kind=kind, **where):
        say(line)


def _cluster(kind: str, given: Mapping[str, Any]) -> Any:
    """Put together what each run asks of a cluster, from the options that were given."""
    from crossover.evidence.cluster import Cluster, minutes_of

    if kind == "local" and (stray := [key for key in ("partition", "account", "memory", "sbatch") if key in given]):
        raise RunError(f"--{stray[0]}: has no effect on jobs of this machine")
    wanted = {key: value for key, value in given.items() if key not in ("time", "sbatch", "wait")}
    if "time" in given:
        wanted["minutes"] = minutes_of(given["time"])
    if stray := [text for text in given.get("sbatch") or () if not text.partition("=")[2]]:
        raise RunError(f"--sbatch {stray[0]}: expected name=value, such as qos=long")
    options = dict(text.removeprefix("--").split("=", 1) for text in given.get("sbatch") or ())
    if stray := [key for key in options if key.replace("_", "-") in OWN_OF_SBATCH]:
        ours = OWN_OF_SBATCH[stray[0].replace("_", "-")]
        raise RunError(f"--sbatch {stray[0]}: {f'give {ours} for it' if ours else 'is what a study sets by itself'}")
    return Cluster(kind, **{**wanted, "setup": tuple(given.get("setup") or ())}, options=options)


def _tell(result: Any) -> None:
    """Print the verdict where there is a report, and end with the study's exit code."""
    if result.report is not None:
        import json

        say("\n" + json.loads((result.folder / "report.json").read_text("utf-8"))["verdict"])
        say(f"\nreport: {result.report}")
    if result.exit_code:
        raise typer.Exit(result.exit_code)
