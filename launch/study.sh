#!/usr/bin/env bash
# The study of docs/real_models.md: warms SmolLM2-135M up on subtraction, then tunes, trains and
# measures four methods on it, and compares them on one page.
#
#     launch/study.sh [--workdir=runs/study] [--jobs=N] [--warm-up-steps=N] [FLAGS]
#
# N methods train at a time on the one device, each with an Nth of $XLA_CLIENT_MEM_FRACTION, or of
# nine tenths of its memory; 1 on a CPU. FLAGS go to every method's run, such as --config.steps=60
# --config.batch=16. What was begun goes on with the same command. $PYTHON, or the first python on
# PATH, has score_jax with the extra hf.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$(command -v python || command -v python3 || true)}
if [[ ! $python ]]; then echo "error: there is no python on PATH; set PYTHON" >&2; exit 2; fi
workdir=runs/study jobs=1 warm_up=() flags=()
for argument in "$@"; do
  case $argument in
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    --workdir=*) workdir=${argument#*=} ;;
    --jobs=*) jobs=${argument#*=} ;;
    --warm-up-steps=*) warm_up=("--config.steps=${argument#*=}") ;;
    *) flags+=("$argument") ;;
  esac
done
if [[ ! $jobs =~ ^[1-9][0-9]*$ ]]; then
  echo "error: --jobs is '$jobs'; give a whole number of methods from 1" >&2; exit 2
fi
methods=(pair_sft single_turn multi_turn score)

main() { "$python" -u -m score_jax.main "$@" --config.log.progress=False; }

compare() { # FOLDER AGAINST METHOD... : these methods' part of the comparison
  local folder=$1 against=$2 only
  shift 2
  only=$(printf '"%s",' "$@")
  main --config=configs/study.py --workdir="$folder" --config.weights.source="$base" \
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

alone() { # METHOD: in a folder of its own, which no other process writes to
  local folder=$workdir/methods/$1
  share_base "$folder"
  XLA_CLIENT_MEM_FRACTION=$share compare "$folder" "$1" "$1" >> "$folder.log" 2>&1
}

base=$workdir/warm_up/warm_up/export
if [[ ! -f $workdir/warm_up/warm_up/export.json ]]; then
  warm=(--config=configs/study.py:warm_up --workdir="$workdir/warm_up" "${warm_up[@]}")
  main "${warm[@]}"
  main "${warm[@]}" --mode=export
fi

mkdir -p "$workdir/methods"
share=$(awk -v all="${XLA_CLIENT_MEM_FRACTION:-0.9}" -v jobs="$jobs" 'BEGIN { printf "%.3f", all / jobs }')
failed=0
for method in "${methods[@]}"; do
  while (($(jobs -pr | wc -l) >= jobs)); do wait -n || failed=1; done
  echo "study: $method, in $workdir/methods/$method.log"
  alone "$method" &
done
while [[ $(jobs -pr) ]]; do wait -n || failed=1; done
if ((failed)); then
  echo "error: a method has failed; its log in $workdir/methods says why, and this command goes on" >&2
  exit 1
fi

together=$workdir/comparison
share_base "$together"
for method in "${methods[@]}"; do
  ln -sfn "../methods/$method/$method" "$together/$method"
done
compare "$together" multi_turn "${methods[@]}"
