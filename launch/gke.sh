#!/usr/bin/env bash
# Runs a job on GKE: TPU slices or GPU nodes, as a JobSet or through xpk.
#
#   launch/gke.sh image --image=REGION-docker.pkg.dev/PROJECT/REPO/irepa:1
#   launch/gke.sh apply --name=run --image=... --tpu=tpu-v6e-slice \
#     --topology=4x4 --hosts=4 --chips=4 -- --config=... --workdir=gs://...
#
# Commands
#   image     build launch/Dockerfile and push it
#   render    print the JobSet
#   apply     start the job
#   xpk       start it through xpk (Kueue), on a cluster that xpk has made
#   status    state of the job and of its pods
#   logs      log of the first host as it grows
#   stop      end the job; its pods get SIGTERM and save
#
# Options
#   --name=NAME --image=IMAGE   required
#   --tpu=ACCELERATOR --topology=AxB[xC] --hosts=N --chips=N
#                               hosts of one slice, chips of one host
#   --slices=1                  TPU slices, joined over the network
#   --gpu=ACCELERATOR --hosts=N --chips=8   such as nvidia-h100-80gb
#   --spot                      on spot nodes
#   --max-restarts=100          after preemptions and crashes together
#   --grace=300                 seconds from SIGTERM to SIGKILL
#   --service-account=default   of Kubernetes, with access to the bucket
#   --env=NAME=VALUE            set for the job (repeatable)
#   --cluster=NAME --tpu-type=v6e-16   of xpk
#   --module=NAME               instead of irepa_jax.main
#   --no-xla-flags              without the compiler flags of launch/xla_flags.sh
#   --dry-run                   print the commands and run nothing
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

name='' image='' tpu='' gpu='' topology='' cluster='' tpu_type=''
hosts='' chips='' slices=1 spot=false
max_restarts=100 grace=300 account=default
settings=()
command=${1:---help}
(($#)) && shift
while (($#)); do
  case $1 in
    --) shift; break ;;
    --help | -h) command=--help ;;
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --tpu=*) tpu=${1#*=} ;;
    --gpu=*) gpu=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --spot) spot=true ;;
    --max-restarts=*) max_restarts=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --service-account=*) account=${1#*=} ;;
    --env=[A-Za-z_]*=*) settings+=("${1#--env=}") ;;
    --env=*) die "$1 must be --env=NAME=VALUE" ;;
    --cluster=*) cluster=${1#*=} ;;
    --tpu-type=*) tpu_type=${1#*=} ;;
    *) common_option "$1" || unknown_option "$1" ;;
  esac
  shift
done
arguments=("$@")

need() {
  [[ -n ${!1} ]] || die "--${1//_/-} is required for $command"
}

need_name() {
  need name
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name is '$name'; it must be lower-case letters, digits and dashes"
}

# Puts into `program` what a container runs.
make_program() {
  local platform=gpu
  [[ -n $gpu ]] || platform=tpu
  program=(launch/local.sh "--platform=$platform" "--module=$MODULE")
  $XLA_TUNING || program+=(--no-xla-flags)
  program+=(--)
}

# Prints the JobSet. JSON is YAML, and safe for any text.
render() {
  need_name
  need image
  need hosts
  need chips
  local value
  for value in hosts chips slices grace; do
    need_number "--${value}" "${!value}" 1
  done
  need_number --max-restarts "$max_restarts" 0
  if [[ -n $tpu ]]; then need topology; else need gpu; fi
  [[ -z $gpu || $slices == 1 ]] || die '--slices is for TPUs; use --hosts'
  make_program
  "$PYTHON" "$here/gke_render.py" "$here/gke_jobset.yaml" \
    "name=$name" "image=$image" "tpu=$tpu" "gpu=$gpu" "topology=$topology" \
    "hosts=$hosts" "chips=$chips" "slices=$slices" "spot=$spot" \
    "max_restarts=$max_restarts" "grace=$grace" "account=$account" \
    "${#program[@]}" "${program[@]}" \
    "${#settings[@]}" ${settings[@]+"${settings[@]}"} \
    ${arguments[@]+"${arguments[@]}"}
}

apply() {
  local text
  text=$(render)
  if $DRY_RUN; then
    printf "kubectl apply -f - <<'EOF'\n%s\nEOF\n" "$text"
  else
    kubectl apply -f - <<<"$text"
  fi
}

# Exits 42 and 127 to 255 restart by default there; 75 and a crash (1) as well.
start_with_xpk() {
  need_name
  need image
  need cluster
  need tpu_type
  make_program
  local setting options=()
  for setting in ${settings[@]+"${settings[@]}"}; do
    options+=("--env=$setting")
  done
  run xpk workload create "--cluster=$cluster" "--workload=$name" \
    "--tpu-type=$tpu_type" "--num-slices=$slices" "--docker-image=$image" \
    "--max-restarts=$max_restarts" --restart-on-exit-codes=1,75 \
    "--termination-grace-period-seconds=$grace" \
    ${options[@]+"${options[@]}"} \
    "--command=$(quoted "${program[@]}" ${arguments[@]+"${arguments[@]}"})"
}

case $command in
  --help | -h) print_help "$0" ;;
  image)
    need image
    is_checkout || die "$ROOT is no checkout of the repository: clone it"
    extra=tpu
    [[ -z $gpu ]] || extra=cuda
    run docker build -f "$here/Dockerfile" --build-arg "EXTRA=$extra" \
      -t "$image" "$ROOT"
    run docker push "$image"
    ;;
  render) render ;;
  apply) apply ;;
  xpk) start_with_xpk ;;
  status)
    need_name
    run kubectl get jobset "$name"
    run kubectl get pods -l "jobset.sigs.k8s.io/jobset-name=$name" -o wide
    ;;
  logs)
    need_name
    run kubectl logs -f -c main --tail=200 -l "$(
      printf '%s,' "jobset.sigs.k8s.io/jobset-name=$name" \
        jobset.sigs.k8s.io/job-index=0
    )batch.kubernetes.io/job-completion-index=0"
    ;;
  stop)
    need_name
    run kubectl delete jobset "$name"
    ;;
  *) die "unknown command '$command' (see --help)" ;;
esac
