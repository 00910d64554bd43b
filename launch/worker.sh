#!/usr/bin/env bash
# Runs on each TPU host, called by run.sh and status.sh: runs a command and restarts it on failure.
#
#     worker.sh start LOGS python ...    starts `keep` as a systemd unit, which outlives the login
#     worker.sh keep                     runs the command, restarts it, copies logs to the bucket
#     worker.sh status | stop
#
# score_jax.main exits with 0 when it has finished, with 2 for a user's mistake, which a restart
# can't fix, and with 143 after SIGTERM, when it has saved. A host that gives up writes a file
# failed.HOST to the logs in the bucket; the other hosts see it and exit too, instead of waiting
# for that host forever.
set -euo pipefail
home=${SCORE_JAX_HOME:-/opt/score_jax}
restarts=3 # after consecutive failures; exit code 143 or a run of $lasting seconds resets the count
lasting=${SCORE_JAX_LASTING_SECONDS:-3600}
pause=${SCORE_JAX_RESTART_SECONDS:-15}      # before a restart
look=${SCORE_JAX_LOOK_SECONDS:-30}          # between checks of the other hosts and copies of the log
patience=${SCORE_JAX_PATIENCE_SECONDS:-120} # from SIGTERM to SIGKILL, after another host gave up
log=$home/worker.log

note() { echo "$1" >"$home/state"; echo "[worker $(date -u +%H:%M:%S)] $1" >>"$log"; }
collect() { cp "$log" "$logs/$(hostname).log" 2>/dev/null || true; }

marks() { cat "$logs"/failed.* 2>/dev/null | head -n 1; }

end_child() {
  kill -TERM "$child" 2>/dev/null || return 0
  for ((waited = 0; waited < patience; waited++)); do
    kill -0 "$child" 2>/dev/null || return 0
    sleep 1
  done
  kill -KILL "$child" 2>/dev/null || true
}

watch_others() {
  while sleep "$look"; do
    collect
    [[ ! $(marks) ]] || end_child
  done
}

give_up() {
  local why
  why=$(grep -aE '^(\[host [0-9]+\] )?(error|[A-Za-z_.]*Error)' "$log" | tail -n 1) || true
  note "failed: $1"
  echo "$(hostname): $1: $why" >"$logs/failed.$(hostname)" || true
  collect
  exit 1
}

keep() {  # runs the command in $home/command; its first word is the folder of the logs
  local command failures=0 asked='' code other watcher begun
  mapfile -d '' -t command <"$home/command"
  logs=${command[0]} command=("${command[@]:1}")
  [[ ${command[0]} != python ]] || command=("$home/venv/bin/python" -u "${command[@]:1}")
  trap 'asked=yes; kill -TERM "$child" 2>/dev/null || true' TERM INT
  mkdir -p "$logs"
  while :; do
    note running
    begun=$SECONDS
    "${command[@]}" >>"$log" 2>&1 &
    child=$!
    watch_others &
    watcher=$! code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do  # a signal to this script interrupted the wait
      code=0
      wait "$child" || code=$?
    done
    kill "$watcher" 2>/dev/null || true
    if ((code == 0)); then note finished; collect; exit 0; fi
    if [[ $asked ]]; then note "stopped, exit code $code"; collect; exit "$code"; fi
    other=$(marks) || true
    if [[ $other ]]; then note "ended: another host gave up: $other"; collect; exit 1; fi
    ((code != 2)) || give_up "exit code 2, a mistake in the command"
    if ((code == 143 || SECONDS - begun >= lasting)); then failures=0; fi
    if ((code != 143 && ++failures > restarts)); then
      give_up "exit code $code after $restarts restarts"
    fi
    note "exit code $code; again in $pause s"
    collect
    sleep "$pause"
    [[ ! $asked ]] || exit "$code"
  done
}

case ${1:-} in
  start)
    if systemctl is-active --quiet score_jax; then echo "$(hostname): already runs"; exit; fi
    : >"$log"
    printf '%s\0' "${@:2}" >"$home/command"  # not as arguments, in which systemd expands $ and %
    # Limits as in a login, since TPUs pin memory. systemd sends SIGTERM only to this script, which
    # forwards it to the trainer, since its grading workers must live until it has saved.
    sudo systemd-run --quiet --collect --unit=score_jax --uid="$(id -u)" --working-directory="$home/code" \
      -p After=score_jax_bucket.service -p LimitMEMLOCK=infinity -p LimitNOFILE=1048576 \
      -p KillMode=mixed -p TimeoutStopSec=600 bash "$home/code/launch/worker.sh" keep
    echo "$(hostname): started"
    ;;
  keep) keep ;;
  status)
    state=$(cat "$home/state" 2>/dev/null || echo "not started")
    if [[ $state == running || $state == *again* ]] && ! systemctl is-active --quiet score_jax; then
      state="died without a message (the host went down?)"
    fi
    echo "$(hostname): $state | $(tail -c 400 "$log" 2>/dev/null | tr '\r' '\n' | grep . | tail -n 1)"
    ;;
  stop) sudo systemctl stop score_jax; echo "$(hostname): stopped" ;;
  *) echo "error: worker.sh start|keep|status|stop" >&2; exit 2 ;;
esac
