#!/usr/bin/env bash
# Says in which state the machine is and follows the log of one host.
#
#   4_watch.sh --project=my-project --zone=us-east5-b --name=t5
set -euo pipefail
REQUIRED='project zone name'
OPTIONAL='slices ssh_flags worker'
source "$(dirname "$0")/common.sh"
read_settings "$@"

call gcloud compute tpus queued-resources describe "$TPU_NAME" \
  --project="$TPU_PROJECT" --zone="$TPU_ZONE" \
  '--format=yaml(state,tpu.nodeSpec)'
on_host "$(nodes | head -n 1)" "$TPU_WORKER" "bash distillspec/on_host.sh watch"
