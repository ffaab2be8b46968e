#!/usr/bin/env bash
# Lists the jobs of the cluster and follows the log of the first host of one.
#
#   gke/4_watch.sh --project=my-project --zone=us-east5-b --name=t5 \
#       --workload=t5-draft
set -euo pipefail
REQUIRED='project zone name workload'
OPTIONAL=''
source "$(dirname "$0")/../common.sh"
read_settings "$@"

call xpk workload list --project="$TPU_PROJECT" --zone="$TPU_ZONE" \
  --cluster="$TPU_NAME"
first=jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
call kubectl logs --follow --tail=100 \
  --selector="jobset.sigs.k8s.io/jobset-name=$TPU_WORKLOAD,$first"
