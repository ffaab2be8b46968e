#!/usr/bin/env bash
# Copies a run's folder from the bucket to the same path here, but for the
# checkpoints that only the training itself goes on from.
#
#   5_fetch.sh --bucket=my-bucket --run=runs/draft
#
# The machine need not be there any more. What follows a -- goes to
# `gcloud storage rsync`.
set -euo pipefail
REQUIRED='bucket run'
OPTIONAL=''
source "$(dirname "$0")/common.sh"
read_settings "$@"

call mkdir -p "$TPU_RUN"
call gcloud storage rsync "gs://$TPU_BUCKET/$TPU_RUN" "$TPU_RUN" --recursive \
  '--exclude=^(.*/)?checkpoints/.*' ${REST[@]+"${REST[@]}"}
