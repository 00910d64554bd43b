#!/usr/bin/env bash
# Starts the run on every TPU host, in the background.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
arguments "Starts Stage I, Stage II and their evaluation on every host of NAME, in the background.
What stands behind -- goes to score_jax.main: -- --config.seed=1 --config.mesh.fsdp=16
A run that is already there goes on; --stop ends it after a save." \
  "project zone type name slices bucket config workdir run-id stop price-per-chip-hour" "$@"

host="bash /opt/score_jax/code/launch/worker.sh"
if [[ ${opt[stop]} == yes ]]; then
  on_workers "stop the run on ${opt[name]}" "$host stop"
  tell "stopped; the same launch/run.sh goes on from what was saved; the TPUs still cost money: launch/delete.sh"
  exit
fi
run=${opt[run-id]:-$(date -u +%Y%m%d-%H%M%S)}
main=(--config="${opt[config]}" --workdir="/mnt/score_jax/${opt[workdir]}" --coordinator=auto "${rest[@]}")
cost_line
check_bucket
# One command runs all stages: main trains the parents that the workdir lacks, then evaluates.
on_workers "start the run on ${opt[name]} (is it set up? launch/setup.sh)" \
  "$host start $(quote "/mnt/score_jax/${opt[workdir]}/logs/$run" python -m score_jax.main "${main[@]}")"
tell "started; logs: ${opt[bucket]}/${opt[workdir]}/logs/$run; look: launch/status.sh; results: launch/fetch.sh"
