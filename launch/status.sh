#!/usr/bin/env bash
# Prints the state of the TPUs and of the run on them.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
arguments "Says in which state NAME is and, where it is up, what every host does." \
  "project zone type name slices queued price-per-chip-hour" "$@"

found=$(state)
if [[ ${opt[dry-run]} == no ]]; then
  echo "${opt[name]}: $found"
  case $found in
    READY | ACTIVE) ;;
    MISSING) exit ;;
    PREEMPTED | TERMINATED | SUSPENDED | FAILED) say "next: launch/resume.sh"; exit ;;
    *) exit ;;
  esac
else
  echo "$found"
fi
cost_line
on_workers "ask the hosts of ${opt[name]}" "bash /opt/score_jax/code/launch/worker.sh status"
