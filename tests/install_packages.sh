#!/usr/bin/env bash
# Install the Debian packages the tests use, if they are missing.
set -euo pipefail
wanted=(gcc libc6-dev make binutils qemu-system-x86 chromium gdb lzop)
missing=()
for package in "${wanted[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
