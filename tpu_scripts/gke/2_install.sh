#!/usr/bin/env bash
# Makes the container image with the package of this checkout, and uploads it.
#
#   gke/2_install.sh --image=us-docker.pkg.dev/my-project/images/distillspec
set -euo pipefail
REQUIRED='image'
OPTIONAL=''
source "$(dirname "$0")/../common.sh"
read_settings "$@"

call make -C "$ROOT" wheel
call docker build --platform=linux/amd64 --file="$SCRIPTS/gke/Dockerfile" \
  --build-arg=WHEEL="$WHEEL" --tag="$TPU_IMAGE" "$ROOT"
call docker push "$TPU_IMAGE"
say "Next: gke/3_launch.sh"
