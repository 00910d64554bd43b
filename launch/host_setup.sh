#!/usr/bin/env bash
# Runs on each TPU host, copied by setup.sh: mounts the bucket, installs Python and score_jax.
#
#     host_setup.sh BUCKET ARCHIVE PACKAGES
#
# Python 3.11 comes from uv: the Python in the images of TPU VMs may be older. uv needs
# neither root nor apt, whose lock is taken for minutes on a freshly booted machine.
set -euo pipefail
bucket=$1 archive=$2 packages=${3:-}
home=${SCORE_JAX_HOME:-/opt/score_jax} mount=${SCORE_JAX_MOUNT:-/mnt/score_jax}
fail() { echo "error: $(hostname): $1" >&2; exit 1; }

if [[ -e ~/score_jax_token ]]; then
  mkdir -p ~/.cache/huggingface
  install -m 600 ~/score_jax_token ~/.cache/huggingface/token
  rm ~/score_jax_token
fi
# A run is stopped because its code will be replaced. It saves first, and resumes with the new code.
if systemctl is-active --quiet score_jax; then sudo systemctl stop score_jax; fi
sudo mkdir -p "$home" "$mount"
sudo chown "$(id -u):$(id -g)" "$home"
if ! command -v gcsfuse >/dev/null; then
  curl -fsSL --retry 5 https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  apt=(sudo apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=5)
  { "${apt[@]}" update || true; "${apt[@]}" install -y gcsfuse; } >/dev/null || fail "gcsfuse can't be installed"
fi
# As a systemd unit the mount outlives this login; at shutdown the run is stopped before it.
# Metadata is not cached, so that each host sees what the others write.
if ! systemctl is-active --quiet score_jax_bucket || ! mountpoint -q "$mount"; then
  sudo systemctl stop score_jax_bucket 2>/dev/null || true
  sudo systemd-run --quiet --collect --unit=score_jax_bucket gcsfuse --foreground -o allow_other \
    --uid="$(id -u)" --gid="$(id -g)" --metadata-cache-ttl-secs=0 "$bucket" "$mount"
  for _ in {1..60}; do if mountpoint -q "$mount"; then break; fi; sleep 1; done
  mountpoint -q "$mount" || fail "gs://$bucket can't be mounted: $(sudo journalctl -q -n 1 -o cat -u score_jax_bucket)"
fi
probe=$mount/.score_jax_probe-$(hostname)
rm -rf "$probe" "$probe-moved"
{ mkdir "$probe" && echo "$bucket" >"$probe/file"; } 2>/dev/null ||
  fail "gs://$bucket can't be written; give the hosts' service account roles/storage.objectUser on it"
(exec 3>"$probe/open" && echo x >&3 && mv "$probe/open" "$probe/named") 2>/dev/null ||  # as TensorStore does
  fail "gs://$bucket can't rename an open file; install a newer gcsfuse than $(gcsfuse --version)"
mv "$probe" "$probe-moved" 2>/dev/null ||  # as Orbax does to finish a checkpoint
  fail "gs://$bucket can't rename folders; make it with --enable-hierarchical-namespace (docs/pods.md)"
rm -rf "$probe-moved"

[[ -e $mount/$archive ]] || fail "gs://$bucket/$archive is missing; run setup.sh without --keep-code"
rm -rf "$home/new"
mkdir "$home/new"
tar -xzf "$mount/$archive" -C "$home/new"
rm -rf "$home/code"
mv "$home/new" "$home/code"
if [[ ! -x $home/bin/uv ]]; then
  curl -LsSf --retry 5 https://astral.sh/uv/install.sh |
    env UV_UNMANAGED_INSTALL="$home/bin" sh >/dev/null 2>&1 || fail "uv can't be installed"
fi
uv=("$home/bin/uv" --quiet)
"${uv[@]}" venv --allow-existing --python 3.11 "$home/venv"
"${uv[@]}" pip install --python "$home/venv/bin/python" -e "$home/code[tpu,hf]"
# shellcheck disable=SC2086  # a list of words
[[ ! $packages ]] || "${uv[@]}" pip install --python "$home/venv/bin/python" --no-deps $packages
"$home/venv/bin/python" -c "import score_jax.main" || fail "score_jax was installed but can't be imported"
echo "$(hostname): set up"
