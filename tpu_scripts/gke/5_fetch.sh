#!/usr/bin/env bash
# Copies a run's folder from the bucket, which is the same as without a cluster.
set -euo pipefail
exec "$(dirname "$0")/../5_fetch.sh" "$@"
