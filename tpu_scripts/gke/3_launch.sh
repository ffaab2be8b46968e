#!/usr/bin/env bash
# Starts a command on all hosts of all slices of the cluster.
#
#   gke/3_launch.sh --project=my-project --zone=us-east5-b --name=t5 \
#       --type=v6e-16 --slices=2 --workload=t5-draft \
#       --image=us-docker.pkg.dev/my-project/images/distillspec -- \
#       distillspec train --run=runs/draft ...
#
# Paths are in the bucket. The cluster starts the command again where 3_launch.sh
# of the folder above would (and after every code from 127 on, which is xpk's
# rule), also after a preemption.
set -euo pipefail
REQUIRED='project zone name type workload image'
OPTIONAL='slices restarts'
source "$(dirname "$0")/../common.sh"
read_settings "$@"
read_command

# `exec`: the command itself gets the SIGTERM of a preemption.
call xpk workload create --project="$TPU_PROJECT" --zone="$TPU_ZONE" \
  --cluster="$TPU_NAME" --workload="$TPU_WORKLOAD" --tpu-type="$TPU_TYPE" \
  --num-slices="$TPU_SLICES" --docker-image="$TPU_IMAGE" \
  --max-restarts="$TPU_RESTARTS" --restart-on-exit-codes=69 \
  --termination-grace-period-seconds=120 \
  --command="cd /bucket && exec $COMMAND"
say "Next: gke/4_watch.sh"
