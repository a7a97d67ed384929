#!/usr/bin/env bash
# Runs a job on a TPU VM or a pod of them, and again after each preemption.
#
#   launch/tpu_pod.sh run --name=pod --zone=us-east5-b --type=v6e-16 --spot \
#     -- --config=configs/sit_xl.py:irepa --workdir=gs://bucket/run
#
# Commands
#   run       create the pod if it is not there, install, start on all workers,
#             wait; after preemption, exit 75 or a crash do it again.
#             Interrupting it leaves the job alone; the same command later
#             takes it up again.
#   create    create the pod if it is not there, and wait for it
#   install   copy this checkout (what git tracks) to all workers, install it
#   check     add a number on all chips of all workers (about a minute)
#   start     start the job on all workers
#   status    state of the pod, and of the job on each worker
#   logs      show the log of one worker as it grows
#   stop      ask the job to save and end; `run` then ends too, with 75
#   delete    delete the pod
#
# Options
#   --name=NAME --zone=ZONE    of the pod (required)
#   --project=PROJECT          default: that of gcloud
#   --type=TYPE                accelerator type, such as v5litepod-16 or v6e-16
#   --version=VERSION          software version; default by type
#   --queue                    ask through a queued resource: wait until there is one
#   --spot                     cheaper, may be taken away at any time
#   --reserved                 from a reservation
#   --internal-ip              reach the workers by their internal addresses
#   --worker=0                 of logs
#   --env=NAME=VALUE           set for the job (repeatable), such as HF_TOKEN
#   --with=PATH                copy this file or folder of the checkout as well
#                              (repeatable); otherwise what git tracks
#   --max-crashes=3            crashes in a row (half an hour of work between two
#                              counts anew) before `run` gives up
#   --poll=60                  seconds between two looks at the job
#   --module=NAME              instead of irepa_jax.main
#   --no-xla-flags             without the compiler flags of launch/xla_flags.sh
#   --dry-run                  print the commands and run nothing
#
# `run` ends with the status of the job: 0 done, 2 usage, 3 data, 4 checkpoint.
# The run directory must be one that all workers and later pods see (gs://).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

parse() {
  name='' zone='' type='' version=''
  queue=false worker=0 max_crashes=3 poll=60
  where=() kind=() reach=() settings=() extra=()
  command=${1:---help}
  (($#)) && shift
  while (($#)); do
    case $1 in
      --) shift; break ;;
      --help | -h) command=--help ;;
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=}; where+=("$1") ;;
      --project=*) where+=("$1") ;;
      --type=*) type=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      --queue) queue=true ;;
      --spot | --reserved) kind+=("$1") ;;
      --internal-ip) reach+=("$1") ;;
      --worker=*) worker=${1#*=} ;;
      --env=[A-Za-z_]*=*) settings+=("${1#--env=}") ;;
      --env=*) die "$1 must be --env=NAME=VALUE" ;;
      --with=*) extra+=("${1#--with=}") ;;
      --max-crashes=*) max_crashes=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      *) common_option "$1" || unknown_option "$1" ;;
    esac
    shift
  done
  arguments=("$@")
  [[ $command != --help ]] || return 0
  [[ -n $name ]] || die '--name is required'
  [[ -n $zone ]] || die '--zone is required'
  need_number --max-crashes "$max_crashes" 0
  need_number --poll "$poll" 1
  job=(--platform=tpu "--module=$MODULE")
  $XLA_TUNING || job+=(--no-xla-flags)
}

note() {
  if $DRY_RUN; then printf '# %s\n' "$*"; else
    printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" >&2
  fi
}

tpu_vm() {
  run gcloud compute tpus tpu-vm "$1" "$name" "${where[@]}" --quiet "${@:2}"
}

queued() {
  run gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" \
    --quiet "${@:2}"
}

# Runs a shell command on workers $1 (a number, or all).
on() {
  tpu_vm ssh ${reach[@]+"${reach[@]}"} "--worker=$1" "--command=$2"
}

# Prints one word: a state as the service names it, GONE, or UNKNOWN where the
# question failed (network, permission): that must not look like a lost pod.
ask() {
  local answer
  if answer=$("$@" 2>&1); then
    answer=${answer##*$'\n'}
    echo "${answer:-UNKNOWN}"
  elif [[ $answer == *NOT_FOUND* || $answer == *'not found'* ]]; then
    echo GONE
  else
    printf '%s\n' "$answer" >&2
    echo UNKNOWN
  fi
}

pod_state() { ask tpu_vm describe '--format=value(state)'; }
queue_state() { ask queued describe '--format=value(state.state)'; }

# https://cloud.google.com/tpu/docs/runtimes
software() {
  case $type in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-* | v5e-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) die "give --version for --type=$type" ;;
  esac
}

create_now() {
  [[ -n $type ]] || die "pod '$name' is not there; give --type to create it"
  local image
  image=${version:-$(software)} || exit
  note "creating $name ($type)"
  if $queue; then
    queued create "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$image" ${kind[@]+"${kind[@]}"}
  else
    tpu_vm create "--accelerator-type=$type" "--version=$image" \
      ${kind[@]+"${kind[@]}"}
  fi
}

# Creates the pod; fails where there is no room now, dies where it never works.
try_to_create() {
  local log
  log=$(mktemp)
  if create_now 2>"$log"; then
    rm "$log"
    return
  fi
  cat "$log" >&2
  grep -qiE 'capacity|exhausted|unavailable|internal|deadline' "$log" && return 1
  die "pod '$name' cannot be created: see the message of gcloud above"
}

delete_now() {
  note "deleting $name"
  if $queue; then queued delete --force; else tpu_vm delete; fi
}

# Returns once the pod is ready, creating or replacing it where needed.
ensure() {
  local state last=''
  if $DRY_RUN; then
    note 'unless the pod is there:'
    [[ -z $type ]] || create_now
    return 0
  fi
  while true; do
    state=$(pod_state)
    # Before there are machines, and after they went, the queue knows more.
    if $queue && [[ $state != READY && $state != UNKNOWN ]]; then
      state=$(queue_state)
    fi
    [[ $state == "$last" ]] || note "pod $name: $state"
    last=$state
    case $state in
      READY) return 0 ;;
      GONE) try_to_create && last='' && continue ;;
      PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        delete_now && last='' && continue
        ;;
      STOPPED) die "pod $name is stopped; start it with gcloud, or delete it" ;;
    esac
    sleep "$poll"
  done
}

# Packs the files that git tracks, as they are now, and what --with names: once,
# so that a later start after preemption runs the same code. Data stays here.
pack() {
  archive=/tmp/irepa_jax.tgz
  is_checkout || die "$ROOT is no checkout of the repository: clone it, and" \
    'run its launch/tpu_pod.sh'
  check_packed
  if ! $DRY_RUN; then
    archive=$(mktemp -d)/irepa_jax.tgz
    trap 'rm -r "${archive%/*}"' EXIT
  fi
  # shellcheck disable=SC2016  # the inner shell expands it
  run bash -o pipefail -c 'cd "$1" && { git ls-files -cz |
    while IFS= read -rd "" path; do
      [[ ! -e $path && ! -L $path ]] || printf "%s\0" "$path"
    done; for path in "${@:3}"; do printf "%s\0" "$path"; done; } |
    tar --null -T - -czf "$2"' pack "$ROOT" "$archive" \
    ${extra[@]+"${extra[@]}"}
  $DRY_RUN || note "packed $(tar -tzf "$archive" | wc -l) files," \
    "$(du -h --apparent-size "$archive" | cut -f1) compressed: what git tracks" \
    ${extra[@]+"and ${extra[*]}"}
}

# Dies for a --with that is not there, and names what will stay here.
check_packed() {
  local path left
  git -C "$ROOT" rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
    die "$ROOT is not under git, which says what to copy: git init, git add"
  for path in ${extra[@]+"${extra[@]}"}; do
    [[ $path != /* && /$path/ != */../* && -e $ROOT/$path ]] ||
      die "--with=$path: a file or folder below $ROOT"
  done
  left=$(git -C "$ROOT" ls-files -o --exclude-standard | wc -l)
  if ((left)); then
    note "$left untracked files stay here, such as" \
      "$(git -C "$ROOT" ls-files -o --exclude-standard | sed -n 1p):" \
      'git add those that the job needs, or --with=PATH'
  fi
}

install_all() {
  note 'installing on all workers'
  # gcloud names the pod last here.
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${where[@]}" --quiet \
    ${reach[@]+"${reach[@]}"} --worker=all || return
  on all "mkdir -p irepa_jax && tar -xzf irepa_jax.tgz -C irepa_jax && irepa_jax/launch/worker.sh install"
}

start_all() {
  local words=(
    env ${settings[@]+"${settings[@]}"}
    irepa_jax/launch/worker.sh start "${job[@]}" --
    ${arguments[@]+"${arguments[@]}"}
  )
  note 'starting on all workers'
  on all "$(quoted "${words[@]}")"
}

# Prints the status of the job on workers $1, one a line.
statuses() {
  on "$1" 'irepa_jax/launch/worker.sh status' 2>/dev/null |
    sed -n 's/.*IREPA_STATUS [^ ]* //p' | tr -d '\r'
}

# Prints how the job stands: running, unknown, stopped, crashed, 75, or an exit
# status that another attempt would not change.
verdict() {
  local all
  all=$(statuses all | sort -u) || true
  case " ${all//$'\n'/ } " in
    '  ') echo unknown ;;
    *' running '*) echo running ;;
    *' 2 '*) echo 2 ;;
    *' 3 '*) echo 3 ;;
    *' 4 '*) echo 4 ;;
    *' stopped '*) echo stopped ;;
    ' 0 ') echo 0 ;;
    ' 75 ' | ' 0 75 ') echo 75 ;;
    # Also where only one was killed: the others end with 75 then.
    *) echo crashed ;;
  esac
}

# Waits until the job has ended on every worker or the pod is gone, and prints
# which. When worker 0 has ended, the others get five minutes to do so too.
wait_for_job() {
  local state ended='' last=''
  while true; do
    state=$(statuses 0) || true
    if [[ $state != running ]]; then
      state=$(verdict)
      ended=${ended:-$SECONDS}
      case $state in
        running) ((SECONDS - ended < 300)) || state=crashed ;;
        unknown)
          case $(pod_state) in
            GONE | PREEMPTED | TERMINATED | DELETING | STOPP*) state=gone ;;
          esac
          ;;
      esac
    fi
    [[ $state == "$last" ]] || note "job: $state"
    last=$state
    case $state in
      running | unknown) sleep "$poll" ;;
      *)
        echo "$state"
        return
        ;;
    esac
  done
}

# Counts a failure, unless the pod was taken away meanwhile.
count_crash() {
  if [[ $(pod_state) == READY ]]; then
    ((++crashes <= max_crashes)) ||
      die "gave up after $crashes failures in a row; the last one: $1"
    note "failure $crashes: $1"
  fi
}

run_job() {
  local state began crashes=0
  pack
  while true; do
    ensure
    if ! $DRY_RUN && [[ $(verdict) == running ]]; then
      note 'the job runs already'
    elif ! install_all; then
      count_crash 'the workers could not be set up'
      continue
    elif ! start_all; then
      count_crash 'the job could not be started'
      continue
    fi
    if $DRY_RUN; then
      note "every $poll s, until it has ended:"
      on 0 'irepa_jax/launch/worker.sh status'
      note 'after preemption, exit 75 or a crash: all of this again'
      return
    fi
    note "logs: launch/tpu_pod.sh logs --name=$name --zone=$zone"
    began=$SECONDS
    state=$(wait_for_job)
    ((SECONDS - began < 1800)) || crashes=0
    case $state in
      0 | 2 | 3 | 4) exit "$state" ;;
      stopped) exit 75 ;;
      crashed) count_crash 'a worker ended with an error, see its log' ;;
    esac
    on all 'irepa_jax/launch/worker.sh kill' || true  # what still hangs
  done
}

parse "$@"
case $command in
  --help | -h) print_help "$0" ;;
  run) run_job ;;
  create) ensure ;;
  install)
    pack
    install_all
    ;;
  check)
    on all "$(quoted irepa_jax/launch/local.sh --platform=tpu \
      --module=irepa_jax.tools.devices)"
    ;;
  start) start_all ;;
  status)
    tpu_vm describe '--format=value(state)'
    on all 'irepa_jax/launch/worker.sh status'
    ;;
  logs) on "$worker" 'irepa_jax/launch/worker.sh log' ;;
  stop) on all 'irepa_jax/launch/worker.sh stop' ;;
  delete) delete_now ;;
  *) die "unknown command '$command' (see --help)" ;;
esac
