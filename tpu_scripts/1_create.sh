#!/usr/bin/env bash
# Asks for a TPU machine, of one slice or several, and waits until it is there.
#
#   1_create.sh --project=my-project --zone=us-east5-b --name=t5 --type=v6e-16 \
#       --capacity=spot
#
# The request waits in a queue until there is room. It is paid for from then
# on, until 6_delete.sh.
set -euo pipefail
REQUIRED='project zone name type'
OPTIONAL='slices capacity runtime create_flags'
source "$(dirname "$0")/common.sh"
read_settings "$@"

if [[ -z $TPU_RUNTIME ]]; then
  case $TPU_TYPE in
    v6e-*) TPU_RUNTIME=v2-alpha-tpuv6e ;;
    v5p-*) TPU_RUNTIME=v2-alpha-tpuv5 ;;
    v5litepod-*) TPU_RUNTIME=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) TPU_RUNTIME=tpu-ubuntu2204-base ;;
    *) fail "type is $TPU_TYPE; known are v2-, v3-, v4-, v5litepod-, v5p- and" \
      "v6e-, with a size, e.g. v6e-16. For another one give --runtime, too." ;;
  esac
fi
flags=(--accelerator-type="$TPU_TYPE" --runtime-version="$TPU_RUNTIME")
if ((TPU_SLICES == 1)); then
  flags+=(--node-id="$TPU_NAME")
else
  flags+=(--node-count="$TPU_SLICES" --node-prefix="$TPU_NAME")
fi
[[ $TPU_CAPACITY == on-demand ]] || flags+=("--$TPU_CAPACITY")
read -r -a more <<<"$TPU_CREATE_FLAGS"

call gcloud compute tpus queued-resources create "$TPU_NAME" \
  --project="$TPU_PROJECT" --zone="$TPU_ZONE" "${flags[@]}" \
  ${more[@]+"${more[@]}"}
await_machine || fail "it cannot be had; 6_delete.sh removes the request, and" \
  "'gcloud compute tpus queued-resources describe $TPU_NAME' says why."
say "$TPU_NAME is there. Next: 2_install.sh"
