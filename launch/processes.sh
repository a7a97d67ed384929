#!/usr/bin/env bash
# Runs one job as several JAX processes on this machine, to try multi-host code.
#
#   launch/processes.sh --processes=2 --devices=4 -- --config=... --workdir=DIR
#
#   --processes=2     number of processes, each a "host"
#   --devices=4       simulated CPU devices of each
#   --logs=DIR        a file for each process; default: a new temporary folder
#   --grace=20        seconds for the others to end after one has failed
#   --module=NAME     instead of irepa_jax.main
#   --dry-run         print the commands and run nothing
#
# Process 0 is shown here as well. When one process fails, the others get SIGTERM
# and after the grace period SIGKILL. SIGTERM and Ctrl-C go to all of them, so
# that they save. Ends with the status of the first process that failed, or 0;
# 75 where the job was asked to stop and has saved, and no process says otherwise.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

processes=2
devices=4
logs=
grace=20
while (($#)); do
  case $1 in
    --) shift; break ;;
    --help | -h) print_help "$0"; exit ;;
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    *) common_option "$1" || unknown_option "$1" ;;
  esac
  shift
done
need_number --processes "$processes" 1
need_number --devices "$devices" 1
need_number --grace "$grace" 0

free_port() {
  "$PYTHON" -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Puts the command of process $1 into `command`.
make_command() {
  command=(
    env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices"
    "IREPA_COORDINATOR=127.0.0.1:$port" "IREPA_NUM_PROCESSES=$processes"
    "IREPA_PROCESS_ID=$1" PYTHONUNBUFFERED=1
    "$PYTHON" -m "$MODULE" "${arguments[@]}"
  )
}

arguments=("$@")
if $DRY_RUN; then
  port=PORT
  for ((i = 0; i < processes; i++)); do
    make_command "$i"
    run "${command[@]}"
  done
  exit
fi

logs=${logs:-$(mktemp -d -t irepa_processes.XXXXXX)}
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)
enter_checkout
port=$(free_port)
pids=()
alive=()
viewer=
printf 'logs of %d processes: %s/*.log\n' "$processes" "$logs" >&2

send() {
  local i
  for i in "${alive[@]}"; do
    kill "-$1" "${pids[i]}" 2>/dev/null || true
  done
}

# shellcheck disable=SC2329  # a trap calls it
finish() {
  send KILL
  sleep 0.5  # the last lines of process 0
  [[ -z $viewer ]] || kill "$viewer" 2>/dev/null || true
}
trap finish EXIT
trap 'send TERM' TERM INT HUP

# Notes the first failure. Those that were asked to stop are saving, all of them.
note_status() {
  local i=$1 code=$2
  ((code)) || return 0
  printf 'process %d ended with status %d (%s)\n' \
    "$i" "$code" "$logs/$i.log" >&2
  # Those whose peer is gone end with 75: its own status says more.
  ((status == 0 || status == 75)) || return 0
  status=$code
  ((code == 75)) && return 0
  send TERM
  deadline=$((SECONDS + grace))
}

for ((i = 0; i < processes; i++)); do
  make_command "$i"
  "${command[@]}" </dev/null >"$logs/$i.log" 2>&1 &
  pids+=($!)
  alive+=("$i")
done
tail -n +1 -F "$logs/0.log" 2>/dev/null &
viewer=$!

status=0
deadline=
while ((${#alive[@]})); do
  running=()
  for i in "${alive[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then
      running+=("$i")
    else
      code=0
      wait "${pids[i]}" || code=$?
      note_status "$i" "$code"
    fi
  done
  alive=(${running[@]+"${running[@]}"})
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
    send KILL
  fi
  sleep 0.2 &
  wait $! || true  # a wait, unlike a sleep, lets the traps run at once
done
exit "$status"
