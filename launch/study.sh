#!/usr/bin/env bash
# The study of docs/real_models.md: warms SmolLM2-135M up on subtraction, then tunes, trains and
# measures four methods on it, and compares them on one page.
#
#     launch/study.sh [--workdir=runs/study] [--jobs=N] [--size=gpu] [--weights=SOURCE]
#                     [--methods="pair_sft single_turn multi_turn score"] [FLAGS]
#
# score_held is SCoRe with a larger beta in Stage I, if it is named.
# N methods train at a time on the one device, each with an Nth of $XLA_CLIENT_MEM_FRACTION, or of
# nine tenths of its memory. --size=cpu: shorter, in float32, for two cores. SOURCE is what is
# warmed up, where it is not the installed package. FLAGS go to every method's run, such as
# --config.steps=60. Relative paths are from this checkout's root. What was begun goes on with the
# same command. $PYTHON, or the first python on PATH, has score_jax with the extra hf.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "error: $1" >&2; exit "${2:-1}"; }
((BASH_VERSINFO[0] >= 5)) || fail "this is bash $BASH_VERSION; run it with bash 5 or later" 2
python=${PYTHON:-$(command -v python || command -v python3 || true)}
[[ $python ]] || fail "there is no python on PATH; set PYTHON" 2
workdir=runs/study jobs=1 size=gpu warm_up=() flags=() methods=(pair_sft single_turn multi_turn score)
known=("${methods[@]}" score_held)
for argument in "$@"; do
  case $argument in
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' launch/study.sh; exit ;;
    --workdir=*) workdir=${argument#*=} ;;
    --jobs=*) jobs=${argument#*=} ;;
    --size=*) size=${argument#*=} ;;
    --weights=*) warm_up+=("--config.weights.source=${argument#*=}") ;;
    --methods=*) read -ra methods <<< "${argument#*=}" ;;
    --config.weights.source=* | --config.comparison.only=* | --config.comparison.against=* | \
      --config.batch=* | --config.sampling.group_size=*)
      fail "$argument is set by the study; see --weights, --methods and --size" 2 ;;
    --config.*=*) flags+=("$argument") ;;
    *) fail "there is no flag '$argument'; --help lists them" 2 ;;
  esac
done
[[ $jobs =~ ^[1-9][0-9]*$ ]] || fail "--jobs is '$jobs'; give a whole number of methods from 1" 2
[[ $size == gpu || $size == cpu ]] || fail "--size is '$size'; choose gpu or cpu" 2
for method in "${methods[@]}"; do
  [[ " ${known[*]} " == *" $method "* ]] || fail "--methods has '$method'; choose of ${known[*]}" 2
done
((${#methods[@]})) || fail "--methods is empty; choose of ${known[*]}" 2
twice=$(printf '%s\n' "${methods[@]}" | sort | uniq -d)
[[ ! $twice ]] || fail "--methods has '${twice%%$'\n'*}' twice; name it once" 2
against=${methods[0]} # RL over two turns without SCoRe's stages, where it is trained
if [[ " ${methods[*]} " == *" multi_turn "* ]]; then against=multi_turn; fi
base=$workdir/warm_up/warm_up/export

main() { # CONFIG FLAGS: in the place of this shell
  exec "$python" -u -m score_jax.main --config="configs/study.py:$1" --config.log.progress=False "${@:2}"
}

compare() { # FOLDER AGAINST METHOD... : these methods' part of the comparison
  local folder=$1 against=$2 only
  shift 2
  only=$(printf '"%s",' "$@")
  main "$size" --workdir="$folder" --config.weights.source="$base" \
    --config.comparison.only="($only)" --config.comparison.against="$against" "${flags[@]}"
}

share_base() { # FOLDER: gets the base model's measurements, if a method has them all
  local measured=("$workdir"/methods/*/base/base/test.json)
  if [[ -d $1/base || ! -f ${measured[0]} ]]; then return; fi
  mkdir -p "$1"
  rm -rf "$1/base.partial"
  cp -r "${measured[0]%/base/test.json}" "$1/base.partial"
  mv "$1/base.partial" "$1/base"
}

if [[ -f $workdir/warm_up/warm_up/export.json ]]; then
  echo "study: the warm-up is done, in $workdir/warm_up; delete it for another one"
else
  warm=("warm_up_$size" --workdir="$workdir/warm_up" "${warm_up[@]}")
  (main "${warm[@]}")
  (main "${warm[@]}" --mode=export)
fi

# Each method trains in a folder of its own, which no other process writes to.
mkdir -p "$workdir/methods"
share=$(LC_ALL=C awk -v all="${XLA_CLIENT_MEM_FRACTION:-0.9}" -v jobs="$jobs" \
  'BEGIN { printf "%.3f", all / jobs }')
failed=() running=() names=()
trap 'kill -TERM "${running[@]}" 2> /dev/null; wait; exit 143' TERM INT
next_ends() { # waits for the method that was begun first
  wait "${running[0]}" || failed+=("${names[0]}")
  running=("${running[@]:1}") names=("${names[@]:1}")
}
for method in "${methods[@]}"; do
  if ((${#running[@]} >= jobs)); then next_ends; fi
  folder=$workdir/methods/$method
  echo "study: $method, in $folder.log"
  share_base "$folder"
  (XLA_CLIENT_MEM_FRACTION=$share compare "$folder" "$method" "$method") >> "$folder.log" 2>&1 &
  running+=("$!") names+=("$method")
done
while ((${#running[@]})); do next_ends; done
trap - TERM INT
((${#failed[@]} == 0)) ||
  fail "${failed[*]} failed; the logs in $workdir/methods say why, and the same command goes on"

together=$workdir/comparison
share_base "$together"
for method in "${methods[@]}"; do
  ln -sfn "../methods/$method/$method" "$together/$method"
done
compare "$together" "$against" "${methods[@]}"
