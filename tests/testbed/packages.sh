#!/usr/bin/env bash
# The Debian packages with which the test bed runs pods: containerd and what it and kube-proxy call. Needs root and apt.
set -euo pipefail
packages=(containerd runc containernetworking-plugins iptables conntrack socat iproute2 mmdebstrap gcc libc6-dev)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  echo "Not installed, for this needs root and apt: ${missing[*]}" >&2
  exit 1
fi
apt-get update -qq
# Debian starts containerd as a service when systemd runs; the test bed's clusters have their own.
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
