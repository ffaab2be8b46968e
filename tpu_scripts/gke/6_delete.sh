#!/usr/bin/env bash
# Deletes the cluster with its machines and jobs. The bucket and the image stay.
# xpk asks first; --yes answers.
#
#   gke/6_delete.sh --project=my-project --zone=us-east5-b --name=t5
set -euo pipefail
REQUIRED='project zone name'
OPTIONAL=''
source "$(dirname "$0")/../common.sh"
read_settings "$@"

call xpk cluster delete --project="$TPU_PROJECT" --zone="$TPU_ZONE" \
  --cluster="$TPU_NAME" ${YES:+--force}
