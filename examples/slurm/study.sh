#!/usr/bin/env bash
# A study as arrays of SLURM jobs, from a login node:
#
#   examples/slurm/study.sh studies/quickstart.yaml [key=value ...]
#
# It submits what is missing and stays until all has ended (in tmux, or with nohup). Stopped, or given twice, it submits
# nothing that is queued already. Without --wait it leaves at once; give the same command again when the jobs have ended.

set -euo pipefail

study=${1:?usage: study.sh STUDY [key=value ...]}
shift

exec crossover study "$study" "$@" --slurm --wait \
    --partition "${PARTITION:-gpu}" \
    --time "${TIME_LIMIT:-8:00:00}" \
    --gpus-per-run "${GPUS:-1}" \
    --cpus-per-run "${CPUS:-8}" \
    --memory "${MEMORY:-32GB}" \
    --max-parallel "${MAX_PARALLEL:-16}"
