#!/usr/bin/env bash
# First contact with a TPU: sets a fresh host up, tries everything once, brings back one file.
#
#     launch/first_contact.sh --name=one --type=v5e-8       on a TPU VM of one host (launch/create.sh)
#     launch/first_contact.sh --here [FLAGS]                on this machine, whatever its devices
#
# FLAGS are those of python -m score_jax.planning.first_contact; paths in them are from this
# checkout's root. $PYTHON, or the first python on PATH, has score_jax with the extra hf.
set -euo pipefail
if [[ ${1:-} == --here ]]; then
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  python=${PYTHON:-$(command -v python || command -v python3 || true)}
  if [[ ! $python ]]; then echo "error: there is no python on PATH; set PYTHON" >&2; exit 2; fi
  exec "$python" -u -m score_jax.planning.first_contact "${@:2}"
fi
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
arguments "Sets NAME up, compares its numbers with the CPU's and its speed with the plan's bounds, kills a
run and resumes it, and copies the result, first_contact.json, here. Half an hour, of one host.
What stands behind -- goes to score_jax.planning.first_contact; --here alone: on this machine." \
  "project zone type name bucket packages hf-token-file to price-per-chip-hour" "$@"

cost_line
bench=()
case ${opt[type]} in
  v5litepod-1) topology=v5e:1x1 ;; v5litepod-4) topology=v5e:2x2 ;; v5litepod-8) topology=v5e:2x4 ;;
  v6e-1) topology=v6e:1x1 ;; v6e-4) topology=v6e:2x2 ;; v6e-8) topology=v6e:2x4 ;;
  v5p-8) topology=v5p:2x2x1 ;;
  *) fail "--type is '${opt[type]}'; a first contact is with one host: v5e-1, v5e-4, v5e-8, v6e-1, v6e-4, v6e-8 or v5p-8" 2 ;;
esac
# One chip of 16 GiB does not hold the usual step.
[[ ${opt[type]} != *-1 ]] || bench=(--bench-config=configs/contact.py:one_chip)
setup=(--project="${opt[project]}" --zone="${opt[zone]}" --name="${opt[name]}" --bucket="${opt[bucket]}"
  --packages="${opt[packages]}" --hf-token-file="${opt[hf-token-file]}")
[[ ${opt[dry-run]} == no ]] || setup+=(--dry-run)
bash "$root/launch/setup.sh" "${setup[@]}"
check_bucket
place=${opt[workdir]}/first_contact.json
contact=(python -u -m score_jax.planning.first_contact --workdir="/mnt/score_jax/${opt[workdir]}"
  --topology="$topology" "${bench[@]}" "${rest[@]}")
contact[0]=/opt/score_jax/venv/bin/python
# Once, since a connection that is lost may leave it running; the lock keeps another one out.
alone="flock --nonblock --conflict-exit-code 3 /tmp/score_jax_contact $(quote "${contact[@]}")"
status=0
(attempts=1; on_workers "make contact with ${opt[name]}" "cd /opt/score_jax/code && $alone") || status=$?
to=${opt[to]:-runs/${opt[name]}}
cloud "make $to" mkdir -p "$to"
cloud "copy ${opt[bucket]}/$place" gcloud storage cp "${opt[bucket]}/$place" "$to/first_contact.json" \
  --project="${opt[project]}" --quiet
((status == 0)) || fail "a part failed; $to/first_contact.json says which"
tell "the result is in $to/first_contact.json; the TPUs still cost money: launch/delete.sh"
