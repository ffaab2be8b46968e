# shellcheck shell=bash disable=SC2034 # variables are for the scripts
# What the scripts share: settings, errors, calls that can be shown instead of
# made, and the machine's state. A setting is a flag or an environment variable.
#
# A script sets REQUIRED and OPTIONAL (names of settings), reads this file, and
# calls `read_settings "$@"`. What follows a -- is then in the array REST.

((BASH_VERSINFO[0] >= 4)) || {
  echo 'bash 4 or newer is needed; on a Mac: brew install bash.' >&2
  exit 2
}

declare -A DEFAULT EXAMPLE MEANING
while IFS='|' read -r name default example meaning; do
  DEFAULT[$name]=$default EXAMPLE[$name]=$example MEANING[$name]=$meaning
done <<'END'
project||my-project|the Google Cloud project
zone||us-east5-b|where the machine is
name||t5|of the machine, or of the cluster
type||v6e-16|accelerator type: TPU generation and number of chips (v4, v5p: cores)
slices|1|2|how many slices of that type; more than one: multislice
capacity|on-demand|spot|on-demand, spot or reserved
runtime||v2-alpha-tpuv6e|software of the machine; follows from the type
create_flags||--service-account=me@my-project.iam.gserviceaccount.com|more flags for creating
ssh_flags||--tunnel-through-iap|more flags for ssh
bucket||my-bucket|whose content the hosts see as their working folder
run||runs/draft|a folder in the bucket
restarts|20|50|how often a launch is started again, at most
id||20260131-120000.0|of a launch that is to be followed again
worker|0|3|of the first slice: the host whose log is shown
image||us-docker.pkg.dev/my-project/images/distillspec|the container image
reservation||my-reservation|of the cluster, with --capacity=reserved
workload||t5-draft|name of a job on the cluster; each launch has its own
END
# Exit codes after which a run is started again; all others end it.
#   69 another host was lost     134 aborted     137 killed, or out of memory
#   143 preempted, a checkpoint was written     255 no connection
readonly AGAIN=' 69 134 137 143 255 '

REST=()
DRY_RUN=
YES=
SEEN= # states in which the machine was found
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$SCRIPTS")
VERSION=$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$ROOT/distillspec_jax/__init__.py")
WHEEL=distillspec_jax-$VERSION-py3-none-any.whl

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "$(basename "$0"): $*"
  exit 2
}

help_and_exit() {
  awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0"
  printf '\nSettings, as a flag or as an environment variable:\n'
  local name
  for name in $REQUIRED $OPTIONAL; do
    printf '  --%s=%s  (%s)\n      %s%s\n' "$name" "${EXAMPLE[$name]}" \
      "TPU_${name^^}" "${MEANING[$name]}" \
      "${DEFAULT[$name]:+; default ${DEFAULT[$name]}}"
  done
  printf '  --dry-run\n      prints the commands that would be called, and calls none\n'
  exit 0
}

read_settings() {
  local name variable
  for name in $REQUIRED $OPTIONAL; do
    variable=TPU_${name^^}
    printf -v "$variable" '%s' "${!variable:-${DEFAULT[$name]}}"
    export "${variable?}" # for scripts that this one calls
  done
  while (($#)); do
    case $1 in
      --help | -h) help_and_exit ;;
      --dry-run) DRY_RUN=1 ;;
      --yes) YES=1 ;;
      --)
        shift
        REST=("$@")
        break
        ;;
      --*=*)
        name=${1#--}
        name=${name%%=*}
        name=${name//-/_}
        [[ " $REQUIRED $OPTIONAL " == *" $name "* ]] ||
          fail "there is no setting --$name here; see $0 --help."
        printf -v "TPU_${name^^}" '%s' "${1#*=}"
        ;;
      *) fail "$1 is not understood; write --NAME=VALUE, see $0 --help." ;;
    esac
    shift
  done
  for name in $REQUIRED; do
    variable=TPU_${name^^}
    [[ -n ${!variable} ]] ||
      fail "$name is missing (${MEANING[$name]}): give --$name=VALUE or set" \
        "$variable, e.g. --$name=${EXAMPLE[$name]}."
  done
  check_settings
}

# What follows the --, as one line for a shell, in COMMAND.
read_command() {
  ((${#REST[@]})) || fail "there is no command; write it after --, e.g." \
    "-- distillspec train --run=runs/draft."
  COMMAND=$(printf '%q ' "${REST[@]}")
  COMMAND=${COMMAND% }
}

check_settings() {
  case ${TPU_CAPACITY:-spot} in
    spot | reserved | on-demand) ;;
    *) fail "capacity is $TPU_CAPACITY; it must be on-demand, spot or reserved." ;;
  esac
  [[ ${TPU_SLICES:-1} =~ ^[1-9][0-9]*$ ]] ||
    fail "slices is $TPU_SLICES; it must be a number, at least 1."
  [[ ${TPU_RESTARTS:-0} =~ ^[0-9]+$ ]] ||
    fail "restarts is $TPU_RESTARTS; it must be a number, at least 0."
  [[ ${TPU_BUCKET:-} != *[:/]* ]] ||
    fail "bucket is $TPU_BUCKET; give its name alone, without gs:// and folders."
}

# Prints a command so that a shell reads it as it is meant.
shown() {
  local text
  text=$(printf '%q ' "$@")
  printf '%s\n' "${text% }" >&3
}

# Calls a command, or shows it.
call() {
  if [[ -n $DRY_RUN ]]; then
    shown "$@"
  else
    "$@"
  fi
}

# As `call`, for what a command answers: $1 is the answer of a dry run.
ask() {
  local answer=$1
  shift
  if [[ -n $DRY_RUN ]]; then
    shown "$@"
    printf '%s\n' "$answer"
  else
    "$@"
  fi
}
exec 3>&1 # where commands are shown, also from within $(...)

# The slices; each is a TPU VM of one or more hosts.
nodes() {
  if ((TPU_SLICES == 1)); then
    printf '%s\n' "$TPU_NAME"
  else
    local number
    for ((number = 0; number < TPU_SLICES; number++)); do
      printf '%s-%d\n' "$TPU_NAME" "$number"
    done
  fi
}

# ACTIVE where all is there; otherwise the state of what is not.
machine_state() {
  local state node
  state=$(ask ACTIVE gcloud compute tpus queued-resources describe "$TPU_NAME" \
    --project="$TPU_PROJECT" --zone="$TPU_ZONE" '--format=value(state.state)')
  if [[ $state == ACTIVE ]]; then
    for node in $(nodes); do
      state=$(ask READY gcloud compute tpus tpu-vm describe "$node" \
        --project="$TPU_PROJECT" --zone="$TPU_ZONE" '--format=value(state)')
      if [[ $state != READY ]]; then
        printf '%s\n' "$state"
        return
      fi
    done
    state=ACTIVE
  fi
  printf '%s\n' "$state"
}

# Waits until the machine is there; returns 1 once it cannot be.
await_machine() {
  local state before='' unknown=0
  while :; do
    state=$(machine_state) || true
    SEEN+=$state
    case $state in
      ACTIVE) return 0 ;;
      SUSPENDED | FAILED | DELETING | PREEMPTED | TERMINATED | STOPPED | UNKNOWN)
        say "$TPU_NAME is $state."
        return 1
        ;;
      '') # no network for a while, or no such machine
        if [[ -z $SEEN ]] || ((++unknown == 20)); then
          fail "the state of $TPU_NAME is not to be had; is it there? See" \
            "1_create.sh."
        fi
        ;;
    esac
    if [[ $state != "$before" ]]; then
      say "$TPU_NAME is $state; waiting."
      before=$state
    fi
    sleep "${TPU_POLL_SECONDS:-30}"
  done
}

# Runs a command on all hosts of all slices at once.
# A slice that fails says so in a line of its own; returns the last such code.
on_all_hosts() {
  local node pid pids=() code=0
  for node in $(nodes); do
    if [[ -n $DRY_RUN ]]; then # in order
      on_host "$node" all "$1"
    else
      on_host "$node" all "$1" &
      pids+=($!)
    fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do
    wait "$pid" || code=$?
  done
  return "$code"
}

# on_host SLICE WORKER COMMAND
on_host() {
  local flags=() code=0
  read -r -a flags <<<"${TPU_SSH_FLAGS:-}"
  call gcloud compute tpus tpu-vm ssh "$1" --project="$TPU_PROJECT" \
    --zone="$TPU_ZONE" --worker="$2" ${flags[@]+"${flags[@]}"} \
    --command="$3" || code=$?
  ((code == 0)) || printf '%s: gcloud exit code %d\n' "$1" "$code"
  return "$code"
}

install_on_all_hosts() {
  local from="gs://$TPU_BUCKET/install/*"
  on_all_hosts "mkdir -p distillspec && gcloud storage cp '$from' distillspec/ && bash distillspec/on_host.sh install $TPU_BUCKET $WHEEL"
}
