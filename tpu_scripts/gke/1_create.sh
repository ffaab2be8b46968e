#!/usr/bin/env bash
# Makes a GKE cluster with TPU slices, in which the bucket is the folder /bucket.
#
#   gke/1_create.sh --project=my-project --zone=us-east5-b --name=t5 \
#       --type=v6e-16 --slices=2 --capacity=spot --bucket=my-bucket
#
# xpk is Google's tool for that: pip install xpk. How the bucket is made stands
# in 2_install.sh of the folder above.
set -euo pipefail
REQUIRED='project zone name type bucket'
OPTIONAL='slices capacity reservation create_flags'
source "$(dirname "$0")/../common.sh"
read_settings "$@"

flags=("--$TPU_CAPACITY")
if [[ $TPU_CAPACITY == reserved ]]; then
  [[ -n $TPU_RESERVATION ]] || fail "capacity is reserved, but reservation is" \
    "missing: give --reservation=NAME, see 'gcloud compute reservations list'."
  flags=(--reservation="$TPU_RESERVATION")
fi
read -r -a more <<<"$TPU_CREATE_FLAGS"

call xpk cluster create --project="$TPU_PROJECT" --zone="$TPU_ZONE" \
  --cluster="$TPU_NAME" --tpu-type="$TPU_TYPE" --num-slices="$TPU_SLICES" \
  "${flags[@]}" --enable-gcsfuse-csi-driver ${more[@]+"${more[@]}"}
call xpk storage attach bucket --project="$TPU_PROJECT" --zone="$TPU_ZONE" \
  --cluster="$TPU_NAME" --type=gcsfuse --bucket="$TPU_BUCKET" --size=1 \
  --mount-point=/bucket --readonly=false --auto-mount=true \
  --mount-options=metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
say "Next: gke/2_install.sh"
