#!/usr/bin/env bash
# Deletes the TPUs of a run; the bucket stays.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
arguments "Deletes the queued resource NAME with its slices and the TPU VM NAME, whichever there are,
so that they cost no more. What the bucket holds stays." "project zone name" "$@"

delete() {  # KIND FLAGS...: deletes the resource of that kind, if it exists
  local status=0
  (missing_is_fine=yes cloud "delete ${opt[name]}" gcloud compute tpus "$1" delete "${opt[name]}" \
    "${where[@]}" --quiet "${@:2}") || status=$?
  ((status == 0 || status == not_found)) || exit "$status"
}
delete queued-resources --force  # first, as its TPU VMs can't be deleted before it
delete tpu-vm
tell "nothing called ${opt[name]} is left in ${opt[zone]}; the bucket is untouched"
