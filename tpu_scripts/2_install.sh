#!/usr/bin/env bash
# Puts the package of this checkout on all hosts, with what it was tested with,
# and makes the bucket their working folder.
#
#   2_install.sh --project=my-project --zone=us-east5-b --name=t5 \
#       --bucket=my-bucket
#
# The bucket has a hierarchical namespace, so that a checkpoint gets its name
# only when it is whole:
#   gcloud storage buckets create gs://my-bucket --location=us-east5 \
#       --uniform-bucket-level-access --enable-hierarchical-namespace
set -euo pipefail
REQUIRED='project zone name bucket'
OPTIONAL='slices ssh_flags'
source "$(dirname "$0")/common.sh"
read_settings "$@"

call make -C "$ROOT" wheel
call gcloud storage cp "$ROOT/dist/$WHEEL" "$ROOT/requirements/lock-3.11.txt" \
  "$SCRIPTS/on_host.sh" "gs://$TPU_BUCKET/install/"
install_on_all_hosts
say "Installed. Next: 3_launch.sh"
