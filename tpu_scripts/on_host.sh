#!/usr/bin/env bash
# What the other scripts call on each host of the machine.
#
#   on_host.sh install BUCKET WHEEL    the bucket as a folder, and the package
#   on_host.sh run BUCKET ID COMMAND   starts COMMAND once for an ID, follows it
#   on_host.sh watch                   follows what was started last
#
# A run does not end with the connection that started it. Called again with the
# same ID, `run` follows what is running, or gives the exit code it had.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
BUCKET_FOLDER=$HERE/bucket
# Seconds a run that another one replaces has for writing its checkpoint.
GRACE=120

mount_bucket() {
  mkdir -p "$BUCKET_FOLDER"
  # Hosts see what other hosts have written, at once.
  mountpoint -q "$BUCKET_FOLDER" ||
    gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
      "$1" "$BUCKET_FOLDER"
}

install_all() {
  local keys=/usr/share/keyrings/cloud.google.asc
  local packages=https://packages.cloud.google.com/apt
  if ! command -v gcsfuse >/dev/null; then
    curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$keys" >/dev/null
    echo "deb [signed-by=$keys] $packages gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
    sudo apt-get -o DPkg::Lock::Timeout=300 install -y -qq gcsfuse
  fi
  mount_bucket "$1"
  python3 -m pip install --quiet --user 'uv>=0.8,<1'
  local uv=(python3 -m uv)
  "${uv[@]}" venv --quiet --clear --python 3.11 "$HERE/venv"
  "${uv[@]}" pip install --quiet --python "$HERE/venv/bin/python" \
    --constraint "$HERE/lock-3.11.txt" \
    "distillspec_jax[tpu,tokenizers] @ file://$HERE/$2"
  echo "[$(hostname)] installed $2"
}

# Whether the launch in a folder is running; after a restart of the host its
# process id may be that of another program.
is_running() {
  local words=()
  [[ -e $1/pid && -r /proc/$(<"$1/pid")/cmdline ]] || return 1
  mapfile -d '' words <"/proc/$(<"$1/pid")/cmdline"
  [[ " ${words[*]} " == *" $HERE/on_host.sh work $1 "* ]]
}

# Ends what other launches left running here, with time for a checkpoint.
stop_others() {
  local folder second
  for folder in "$HERE"/launches/*; do
    is_running "$folder" || continue
    pkill -TERM -P "$(<"$folder/pid")" || true
    for ((second = 0; second < GRACE; second++)); do
      is_running "$folder" || continue 2
      sleep 1
    done
    pkill -KILL -P "$(<"$folder/pid")" || true
  done
}

# Runs a command and notes its exit code. At a shutdown every process gets its
# own SIGTERM: this one outlives it, and does not send the command a second.
work() {
  local folder=$1 child code
  shift
  trap : TERM
  "$@" &
  child=$!
  while :; do # a signal ends `wait` before the child has ended
    wait "$child" && code=0 || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  echo "$code" >"$folder/code.new"
  mv "$folder/code.new" "$folder/code"
}

run() {
  local bucket=$1 folder=$HERE/launches/$2 follow=() code
  shift 2
  mkdir -p "$HERE/launches"
  if mkdir "$folder" 2>/dev/null; then
    stop_others
    mount_bucket "$bucket"
    ln -sfn "$folder" "$HERE/launches/latest"
    cd "$BUCKET_FOLDER"
    : >"$folder/log"
    PATH=$HERE/venv/bin:$PATH nohup setsid bash "$HERE/on_host.sh" work \
      "$folder" "$@" >>"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
    follow=(--follow --pid=$!)
  elif is_running "$folder"; then
    follow=(--follow --pid="$(<"$folder/pid")")
  fi
  tail -n +1 --sleep-interval=0.5 "${follow[@]}" "$folder/log" |
    sed -u "s/^/[$(hostname)] /"
  # Without a code the host was killed, or started anew.
  code=$(cat "$folder/code" 2>/dev/null || echo 137)
  echo "[$(hostname)] ended with exit code $code"
  return "$code"
}

case ${1:-} in
  install) install_all "$2" "$3" ;;
  run) run "${@:2}" ;;
  work) work "${@:2}" ;;
  watch) tail -n 100 -F "$HERE/launches/latest/log" ;;
  *)
    echo "on_host.sh: write install, run or watch, not '${1:-}'." >&2
    exit 2
    ;;
esac
