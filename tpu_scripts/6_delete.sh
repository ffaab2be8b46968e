#!/usr/bin/env bash
# Deletes the machine, or its request, so that it costs nothing more. The bucket
# stays. gcloud asks first; --yes answers.
#
#   6_delete.sh --project=my-project --zone=us-east5-b --name=t5
set -euo pipefail
REQUIRED='project zone name'
OPTIONAL=''
source "$(dirname "$0")/common.sh"
read_settings "$@"

call gcloud compute tpus queued-resources delete "$TPU_NAME" \
  --project="$TPU_PROJECT" --zone="$TPU_ZONE" --force ${YES:+--quiet}
