# shellcheck shell=bash
# Shared by the launchers, which source it. Bash 4.4 or newer.
# shellcheck disable=SC2034  # the launchers read what is set here

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The interpreter that has irepa_jax installed.
if [[ -z ${PYTHON:-} && -x $ROOT/.venv/bin/python ]]; then
  PYTHON=$ROOT/.venv/bin/python
fi
PYTHON=${PYTHON:-python3}
MODULE=irepa_jax.main
DRY_RUN=false
XLA_TUNING=true

# Relative paths are seen from the root of a checkout; what pip has installed is
# no checkout, and there from where the command was typed.
is_checkout() { [[ -e $ROOT/setup.py ]]; }
enter_checkout() { if is_checkout; then cd "$ROOT" || exit; fi; }

die() {
  printf 'ERROR: %s\n' "$*" >&2
  exit 2
}

# Prints the comment at the top of the launcher.
print_help() {
  awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "$1"
}

# Prints words so that a shell reads them back as the same words.
quoted() {
  local text
  printf -v text '%q ' "$@"
  printf '%s' "${text% }"
}

# Runs a command, or prints it with --dry-run.
run() {
  if $DRY_RUN; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Takes one option that all launchers share; fails on any other.
common_option() {
  case $1 in
    --module=*) MODULE=${1#*=} ;;
    --no-xla-flags) XLA_TUNING=false ;;
    --dry-run) DRY_RUN=true ;;
    *) return 1 ;;
  esac
}

# Dies unless $2 is a whole number of at least $3; $1 is its name.
need_number() {
  if [[ ! $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3)); then
    die "$1 is '$2'; it must be a number of at least $3"
  fi
}

unknown_option() {
  die "unknown option '$1' (see --help; arguments of $MODULE come after --)"
}
