"""A SLURM that runs nothing by itself: it notes what is submitted, and runs a job when a test says so."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

# submitit reads the number that `sbatch` prints; an array's jobs are 101_0, 101_1 and so on.
SBATCH = """
id=$(( $(cat next 2>/dev/null || echo 100) + 1 ))
echo $id > next
cp "$1" script-$id.sh
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
if [ -z "$last" ]; then echo $id >> queue; else for i in $(seq 0 $last); do echo ${id}_$i >> queue; done; fi
echo "Submitted batch job $id"
"""
SQUEUE = """
if [ -e down ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
cat queue 2>/dev/null || true
"""
SRUN = """
cd "$OLDPWD"
while :; do case $1 in --output|--error) shift 2;; --*) shift;; *) break;; esac; done
echo $$ > "$place/task"
exec "$@"
"""
PROGRAMS = {"sbatch": SBATCH, "squeue": SQUEUE, "srun": SRUN, "scontrol": 'echo "$@" >> scontrol\n'}


@dataclass(frozen=True)
class FakeSlurm:
    """The cluster.

    Args:
        place: Its folder.
    """

    place: Path

    @classmethod
    def install(cls, place: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
        """Put the programs of a cluster on the path."""
        programs = place / "bin"
        programs.mkdir(parents=True)
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!/usr/bin/env bash\nset -e\nplace={place}\ncd $place\n{text.lstrip()}")
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        return cls(place)

    def script(self, job: int) -> str:
        """The script of a job or array."""
        return (self.place / f"script-{job}.sh").read_text()

    def asked(self, job: int) -> dict[str, str]:
        """What a script asks of sbatch, by option."""
        return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", self.script(job), re.MULTILINE))

    @property
    def submitted(self) -> list[int]:
        """Numbers of jobs and arrays, as they were submitted."""
        return sorted(int(path.stem.split("-")[1]) for path in self.place.glob("script-*.sh"))

    @property
    def queue(self) -> list[str]:
        """What `squeue` answers."""
        return (self.place / "queue").read_text().split() if (self.place / "queue").exists() else []

    def end(self, *jobs: str) -> None:
        """Take jobs out of the queue."""
        (self.place / "queue").write_text("".join(f"{job}\n" for job in self.queue if job not in jobs))

    def start(self, job: str) -> subprocess.Popen[bytes]:
        """Run a job's script as the cluster would."""
        number, _, index = job.partition("_")
        given = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1",
                 **dict.fromkeys(("SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID"), "0")}  # fmt: skip
        if index:
            given |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(["bash", self.place / f"script-{number}.sh"], env={**os.environ, **given}, **quiet)
