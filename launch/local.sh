#!/usr/bin/env bash
# Runs one process on this machine: CPU, all or some of its GPUs, or a TPU VM.
#
#   launch/local.sh [options] -- --config=configs/sit_b.py:irepa --workdir=DIR
#
#   --platform=auto   auto, cpu, gpu or tpu; a named one is an error if missing
#   --devices=N       cpu: N simulated devices; gpu: the first N of those visible
#   --module=NAME     instead of irepa_jax.main, for example irepa_jax.tools.sample
#   --no-xla-flags    without the compiler flags of launch/xla_flags.sh
#   --dry-run         print the command and run nothing
#
# Arguments after -- go to the program as they are; relative paths are seen from
# the root of the repository, or, of an installed copy (irepa launch), from here.
# PYTHON names the interpreter (default: .venv of the repository, else python3). Ends with the status of the program: 0 done,
# 2 usage, 3 data, 4 checkpoint, 75 asked to stop and saved (start again).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"
# shellcheck source-path=SCRIPTDIR source=xla_flags.sh
source "$here/xla_flags.sh"

platform=auto
devices=
while (($#)); do
  case $1 in
    --) shift; break ;;
    --help | -h) print_help "$0"; exit ;;
    --platform=*) platform=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    *) common_option "$1" || unknown_option "$1" ;;
  esac
  shift
done
[[ -z $devices ]] || need_number --devices "$devices" 1

settings=()
case $platform in
  cpu) settings+=(JAX_PLATFORMS=cpu) ;;
  gpu) settings+=('JAX_PLATFORMS=cuda,cpu') ;;
  tpu) settings+=('JAX_PLATFORMS=tpu,cpu') ;;
  auto)
    if [[ -e /dev/nvidiactl || -e /dev/dxg ]]; then
      platform=gpu
    elif [[ -e /dev/accel0 || -e /dev/vfio/0 ]]; then
      platform=tpu
    else
      platform=cpu
    fi
    ;;
  *) die "--platform is '$platform'; it must be auto, cpu, gpu or tpu" ;;
esac

if [[ -n $devices ]]; then
  case $platform in
    cpu) settings+=("JAX_NUM_CPU_DEVICES=$devices") ;;
    gpu)
      visible=${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((devices - 1)))}
      settings+=("CUDA_VISIBLE_DEVICES=$(cut -d, -f "1-$devices" <<<"$visible")")
      ;;
    tpu) die '--devices is for cpu and gpu; a TPU VM uses all of its chips' ;;
  esac
fi

if $XLA_TUNING; then
  xla_flags "$platform"
  settings+=(${XLA_SETTINGS[@]+"${XLA_SETTINGS[@]}"})
fi

enter_checkout
command=(env ${settings[@]+"${settings[@]}"} "$PYTHON" -m "$MODULE" "$@")
$DRY_RUN || exec "${command[@]}"
run "${command[@]}"
