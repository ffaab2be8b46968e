#!/usr/bin/env bash
# Runs a command on all hosts and shows what they say, until it is done.
#
#   3_launch.sh --project=my-project --zone=us-east5-b --name=t5 --type=v6e-16 \
#       --capacity=spot --bucket=my-bucket -- \
#       distillspec train --run=runs/draft ...
#
# Paths are in the bucket. All that the hosts say is kept in logs/NAME/. The
# hosts go on when this script or the connection ends; --id follows them again.
#
# A run that ends with 69, 134, 137, 143 or 255 (another host was lost, aborted,
# killed, preempted, no connection) is started again, and goes on from its last
# checkpoint; 0, 1, 2, 130 and any other code end this script with that code. A
# machine that was taken away is asked for again.
set -euo pipefail
REQUIRED='project zone name type bucket'
OPTIONAL='slices capacity runtime create_flags ssh_flags restarts id'
source "$(dirname "$0")/common.sh"
read_settings "$@"
read_command
options=()
[[ -z $DRY_RUN ]] || options+=(--dry-run)

# Codes of the hosts in a log; those of gcloud only where no host gave one.
codes_in() {
  local found
  found=$(sed -n 's/^\[[^]]*\] ended with exit code \([0-9]*\)$/\1/p' "$1")
  # A connection that was lost says nothing of its host.
  found+=" $(sed -n 's/.*: gcloud exit code \(255\)$/\1/p' "$1")"
  [[ -n ${found// /} ]] ||
    found=$(sed -n 's/.*: gcloud exit code \([0-9]*\)$/\1/p' "$1")
  printf '%s\n' "$found"
}

new_machine() {
  "$SCRIPTS/6_delete.sh" --yes ${options[@]+"${options[@]}"}
  "$SCRIPTS/1_create.sh" ${options[@]+"${options[@]}"}
  install_on_all_hosts
}

started=$(date -u +%Y%m%d-%H%M%S)
id=${TPU_ID:-$started.0}
logs=logs/$TPU_NAME
[[ -n $DRY_RUN ]] || mkdir -p "$logs"
trap 'say "The hosts go on. To follow them: --id=$id"; exit 130' INT
for ((restart = 0; ; restart++)); do
  await_machine || new_machine
  run="bash distillspec/on_host.sh run $TPU_BUCKET $id $COMMAND"
  if [[ -n $DRY_RUN ]]; then
    on_all_hosts "$run"
    exit
  fi
  say "Launch $id; the log is $logs/$id.log"
  on_all_hosts "$run" 2>&1 | tee "$logs/$id.log" || true

  again='' same_id=1
  for code in $(codes_in "$logs/$id.log"); do
    if [[ $AGAIN == *" $code "* ]]; then
      again=$code
      ((code == 255)) || same_id=
    elif ((code)) && await_machine; then
      say "Launch $id ended with exit code $code."
      exit "$code"
    elif ((code)); then # the machine is gone: that is why
      again=$code same_id=
    fi
  done
  [[ -n $again ]] || exit 0
  if ((restart == TPU_RESTARTS)); then
    say "Exit code $again after $restart restarts, which is the limit; give" \
      "--restarts=N for more."
    exit "$again"
  fi
  say "Exit code $again; starting again ($((restart + 1)) of $TPU_RESTARTS)."
  # Hosts that were merely not heard are followed again under the same id.
  [[ -n $same_id ]] || id=$started.$((restart + 1))
done
