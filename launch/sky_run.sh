#!/usr/bin/env bash
# Runs on each node of a SkyPilot job; launch/sky.yaml calls it there.
#
#   PLATFORM=gpu MODULE=irepa_jax.main ARGS='--config=...' WORKDIR=gs://... \
#     launch/sky_run.sh [--dry-run]
#
# It turns what SkyPilot says about the nodes into IREPA_* variables. ARGS is
# split as a shell splits words. A usage, data or checkpoint error (status 2, 3, 4)
# ends the job: another start would not help, so it counts as done with a line.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

PORT=8482
while (($#)); do
  case $1 in
    --help | -h) print_help "$0"; exit ;;
    *) common_option "$1" || unknown_option "$1" ;;
  esac
  shift
done
[[ -n ${WORKDIR:-} ]] || die 'WORKDIR is empty; it must be a bucket or a mount'

settings=()
if ((${SKYPILOT_NUM_NODES:-1} > 1)); then
  settings+=(
    "IREPA_COORDINATOR=$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):$PORT"
    "IREPA_NUM_PROCESSES=$SKYPILOT_NUM_NODES"
    "IREPA_PROCESS_ID=$SKYPILOT_NODE_RANK"
  )
fi
# The words of ARGS, quotes read as a shell reads them.
words=()
while IFS= read -r -d '' word; do
  words+=("$word")
done < <(xargs printf '%s\0' <<<"${ARGS:-}")

command=(
  env ${settings[@]+"${settings[@]}"} "PYTHON=$PYTHON"
  "$here/local.sh" "--platform=${PLATFORM:-gpu}" "--module=$MODULE" --
  ${words[@]+"${words[@]}"} "--workdir=$WORKDIR"
)
if $DRY_RUN; then
  run "${command[@]}"
  exit
fi
status=0
"${command[@]}" || status=$?
case $status in
  2 | 3 | 4)
    printf 'ended with status %d: not started again\n' "$status" >&2
    status=0
    ;;
esac
exit "$status"
