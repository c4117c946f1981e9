#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Make the Linux test guest from Debian's packages: BUILD/vmlinuz and BUILD/initrd.img.
#
# usage: build.sh [BUILD]     (default: build/linux-guest at the top of the project)
# Needs apt, dpkg, gcc with static libc, python3. Changes nothing outside BUILD.
# LINUX_PACKAGE chooses the kernel package; without it, what linux-image-cloud-amd64 depends on.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
build=${1:-$here/../../build/linux-guest}
mkdir -p "$build"
build=$(cd "$build" && pwd)

# fetch PACKAGE: put its newest .deb into BUILD, from apt's own cache if it is there.
fetch() {
    local package=$1 version file
    version=$(apt-cache policy "$package" | awk '/Candidate:/ {print $2}')
    if [ -z "$version" ] || [ "$version" = "(none)" ]; then
        echo "build.sh: package $package is not known to apt; run apt-get update" >&2
        exit 1
    fi
    for file in "$build"/"${package}_${version//:/%3a}"_*.deb \
        /var/cache/apt/archives/"${package}_${version//:/%3a}"_*.deb; do
        if [ -e "$file" ]; then
            [ "$(dirname "$file")" = "$build" ] || cp "$file" "$build"
            return
        fi
    done
    (cd "$build" && apt-get download -q "$package" >&2)
}

kernel=${LINUX_PACKAGE:-$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    awk '/Depends: linux-image-/ {print $2; exit}')}
if [ -z "$kernel" ]; then
    apt-get update -q >&2
    kernel=$(apt-cache depends linux-image-cloud-amd64 |
        awk '/Depends: linux-image-/ {print $2; exit}')
fi
fetch "$kernel"
fetch busybox-static

root=$build/packages
stamp=$(cd "$build" && sha256sum ./*.deb)
if [ "$(cat "$root/stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    for package in "$build"/"$kernel"_*.deb "$build"/busybox-static_*.deb; do
        dpkg -x "$package" "$root"
    done
    echo "$stamp" > "$root/stamp"
fi

gcc -std=gnu11 -O2 -Wall -Wextra -Werror -static -s -Wl,--build-id=none \
    -ffile-prefix-map="$here"=. -o "$build/init" "$here"/init/*.c
chmod 755 "$build/init"

modules=$(echo "$root"/lib/modules/*/kernel)
busybox=$root/bin/busybox
links=()
while read -r applet; do
    [ "$applet" = busybox ] || links+=("bin/$applet@busybox")
done < <("$busybox" --list | sort)
install -m 644 "$here/compile.sh" "$build/compile.sh"
python3 "$here/initramfs.py" "$build/initrd.img" \
    "init=$build/init" bin/ "bin/busybox=$busybox" "${links[@]}" \
    lib/ "lib/compile.sh=$build/compile.sh" lib/modules/ \
    "lib/modules/vmw_vmci.ko=$modules/drivers/misc/vmw_vmci/vmw_vmci.ko" \
    "lib/modules/vmw_balloon.ko=$modules/drivers/misc/vmw_balloon.ko"
cp "$root"/boot/vmlinuz-* "$build/vmlinuz"
echo "$build: $(basename "$root"/boot/vmlinuz-*), initrd.img of $(stat -c %s "$build/initrd.img") bytes"
