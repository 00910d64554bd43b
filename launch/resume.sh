#!/usr/bin/env bash
# Resumes a run after its TPUs were preempted.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
names="project zone type name slices spot queued runtime network service-account bucket packages
  hf-token-file config workdir price-per-chip-hour watch every"
arguments "Looks at NAME and does what is missing: creates the TPUs anew, sets them up with the code that
the bucket holds, starts the same run, which goes on from its last checkpoint. Give it
the arguments that create.sh, setup.sh and run.sh had. With --watch it stays." "$names" "$@"

call() {  # SCRIPT "NAMES" MORE...: runs another script of this folder with these arguments
  local script=$1 name words=()
  for name in $2 dry-run; do
    if ! is_flag "$name"; then words+=("--$name=${opt[$name]}")
    elif [[ ${opt[$name]} == yes ]]; then words+=("--$name"); fi
  done
  bash "$root/launch/$script" "${words[@]}" "${@:3}"
}
create() {
  call create.sh "project zone type name slices spot queued runtime network service-account bucket price-per-chip-hour"
}
remove() { call delete.sh "project zone name"; }
start() {
  call setup.sh "project zone name slices bucket packages hf-token-file" --keep-code &&
    call run.sh "project zone type name slices bucket config workdir price-per-chip-hour" -- "${rest[@]}"
}
start_when_up() { if [[ ${opt[queued]} == no ]]; then start; fi; }  # a queued resource is not up yet

go_on() {  # on hosts that are up: starts the run if it does not run
  local told
  # A replaced host has no worker.sh yet.
  told=$(on_workers "ask the hosts of ${opt[name]}" \
    "bash /opt/score_jax/code/launch/worker.sh status || echo \$(hostname): not set up") || return
  printf '%s\n' "$told"
  if grep -qE '^[^ :]+: (failed|ended)' <<<"$told"; then
    fail "the run gave up; see ${opt[bucket]}/${opt[workdir]}/logs; launch/run.sh starts it again"
  elif grep -qE '^[^ :]+: (not set up|not started|died|stopped)' <<<"$told"; then start
  elif grep -qE '^[^ :]+: finished' <<<"$told" && ! grep -qE '^[^ :]+: (running|exit)' <<<"$told"; then
    return "$finished"
  fi
}

look() {  # checks the state once and does the next step
  local found
  found=$(state) || return
  say "${opt[name]}: $found"
  case $found in
    READY | ACTIVE) go_on ;;
    MISSING) create && start_when_up ;;
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED) remove && create && start_when_up ;;
    *) say "waiting for it" ;;
  esac
}

if [[ ${opt[dry-run]} == yes ]]; then
  state
  say "# where it was taken away:" && remove && create
  say "# once it is up:" && start
  exit
fi
finished=10
while :; do
  status=0
  (look) || status=$?  # in a subshell, as a failure exits
  if ((status == finished)); then say "finished; next: launch/fetch.sh, then launch/delete.sh"; exit; fi
  [[ ${opt[watch]} == yes ]] || exit "$status"
  ((status == 0 || status == no_capacity)) || exit "$status"
  sleep "${opt[every]}"
done
