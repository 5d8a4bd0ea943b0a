#!/bin/bash
# Features of a manifest's videos as a job array of Slurm: every task does its part of them into one store.
#
#   sbatch --array=1-16 slurm_extract.sh manifest.csv store.zarr --extractor i3d
#
# Both files are on a file system that all nodes share. What is behind them goes to `har extract` as it is. Submit the same
# array again after a time limit or a lost node: what is in the store is not done again.
#SBATCH --job-name=har-extract
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=04:00:00
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: sbatch --array=1-N slurm_extract.sh MANIFEST STORE [OPTIONS OF har extract]" >&2
    exit 2
fi
manifest=$1 store=$2
shift 2
# Of an array with gaps, or without a first task, nobody would do some parts.
if [ "${SLURM_ARRAY_TASK_MIN:-}" != 1 ] || [ "$SLURM_ARRAY_TASK_COUNT" != "$SLURM_ARRAY_TASK_MAX" ]; then
    echo "submit an array that is numbered from 1 without gaps: --array=1-N" >&2
    exit 2
fi
exec srun har extract "$manifest" "$store" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_MAX" "$@"
