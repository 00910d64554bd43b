#!/usr/bin/env bash
# Creates the TPU VMs of a run.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
arguments "Creates TPU VMs: on demand, as spot, from the queue, or several slices at once.
The bucket is tried out first: nothing is created when it can't be written." \
  "project zone type name slices spot queued runtime network service-account bucket price-per-chip-hour" "$@"

runtime=${opt[runtime]}
if [[ $runtime == auto ]]; then  # cloud.google.com/tpu/docs/runtimes
  case ${opt[type]} in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
fi
# The hosts' permissions depend only on the roles of their service account. gcloud passes
# the scope on unchanged, so that a short name would not work.
common=("${where[@]}" --accelerator-type="${opt[type]}" --network="${opt[network]}"
  --scopes=https://www.googleapis.com/auth/cloud-platform --quiet)
[[ ! ${opt[service-account]} ]] || common+=(--service-account="${opt[service-account]}")
[[ ${opt[spot]} == no ]] || common+=(--spot)

cost_line
check_bucket
if [[ ${opt[queued]} == no ]]; then
  tell "creating ${opt[name]}; this takes minutes"
  cloud "create ${opt[name]}" gcloud compute tpus tpu-vm create "${opt[name]}" --version="$runtime" "${common[@]}"
  tell "${opt[name]} is there; next: launch/setup.sh"
  exit
fi
# A queued resource tells its hosts MEGASCALE_COORDINATOR_ADDRESS, _NUM_SLICES and _SLICE_ID
# through their metadata, from which jax.distributed.initialize reads them.
nodes=(--node-id="${opt[name]}")
if ((opt[slices] > 1)); then nodes=(--node-count="${opt[slices]}" --node-prefix="${opt[name]}"); fi
cloud "request ${opt[name]}" gcloud compute tpus queued-resources create "${opt[name]}" "${nodes[@]}" \
  --runtime-version="$runtime" "${common[@]}"
tell "${opt[name]} is requested; launch/status.sh --queued says when it is ACTIVE; then launch/setup.sh"
