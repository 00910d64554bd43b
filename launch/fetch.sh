#!/usr/bin/env bash
# Copies the results of a run from the bucket.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
arguments "Copies metrics, dialogues, evaluations, the report and the logs from the bucket. Needs no TPUs." \
  "project name bucket workdir to checkpoints" "$@"

to=${opt[to]:-runs/${opt[name]}}
skip=(--exclude='(^|.*/)checkpoints/.*')
[[ ${opt[checkpoints]} == no ]] || skip=()
cloud "make $to" mkdir -p "$to"
cloud "copy ${opt[bucket]}/${opt[workdir]}" gcloud storage rsync --recursive "${skip[@]}" \
  "${opt[bucket]}/${opt[workdir]}" "$to" --project="${opt[project]}" --quiet
tell "results are in $to; read $to/report.html"
