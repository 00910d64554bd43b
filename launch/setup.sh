#!/usr/bin/env bash
# Installs score_jax on every TPU host. It can be run again.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
arguments "Installs score_jax on every host of NAME and mounts the bucket at /mnt/score_jax.
The current commit goes to the bucket as an archive and from there to the hosts, so that
resume.sh brings back the same code. A run that is under way is stopped after a save." \
  "project zone name slices bucket packages keep-code hf-token-file" "$@"

code=code/${opt[name]}.tar.gz
if [[ ${opt[keep-code]} == no ]]; then
  commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null) ||
    fail "$root is no git checkout with a commit; setup.sh sends the current commit"
  git -C "$root" diff --quiet HEAD -- ||
    say "note: what is not committed is not sent; the hosts get $commit"
  archive=${TMPDIR:-/tmp}/score_jax-$commit.tar.gz
  cloud "pack the code" git -C "$root" archive --format=tar.gz --output="$archive" "$commit"
  cloud "write to ${opt[bucket]}" gcloud storage cp "$archive" "${opt[bucket]}/$code" \
    --project="${opt[project]}" --quiet
fi
to_workers "copy the set-up to ${opt[name]}" "$root/launch/host_setup.sh" score_jax_setup.sh
if [[ ${opt[hf-token-file]} ]]; then  # as a file, since other users can see command lines
  to_workers "copy the token to ${opt[name]}" "${opt[hf-token-file]}" score_jax_token
fi
tell "installing on every host of ${opt[name]}; this takes minutes"
on_workers "set up ${opt[name]}" "bash score_jax_setup.sh $(quote "${opt[bucket]#gs://}" "$code" "${opt[packages]}")"
tell "${opt[name]} is set up; next: launch/run.sh"
