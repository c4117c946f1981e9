#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Make the Linux test guest from Debian's packages: BUILD/vmlinuz and BUILD/initrd.img.
#
# usage: build.sh [BUILD]
# Needs apt, dpkg, gcc with static libc, python3. Changes nothing outside BUILD.
#
# KERNEL    a version (6.12): the newest kernel of it in SUITE. Without it, this release's own.
# FLAVOUR   cloud (default), generic or rt; of i386: 686, 686-pae (then the whole guest is i386)
# SUITE     where a KERNEL is looked for (default: backports of this release)
# BUILD     default: build/linux-guest at the top of the project, with -KERNEL and -FLAVOUR if chosen
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/debian.sh"
flavour=${FLAVOUR:-cloud}
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
case $flavour in
    cloud | rt) name=$flavour-amd64 architecture=amd64 ;;
    generic) name=amd64 architecture=amd64 ;;
    686 | 686-pae) name=$flavour architecture=i386 ;;
    *)
        echo "build.sh: FLAVOUR=$flavour: there are cloud, generic, rt, 686 and 686-pae" >&2
        exit 1
        ;;
esac
kind=${KERNEL:+-$KERNEL}
[ -z "${FLAVOUR:-}" ] || kind=$kind-$flavour
build=${1:-$here/../../build/linux-guest$kind}
mkdir -p "$build"
build=$(cd "$build" && pwd)

# dependency_of ARCHITECTURE SUITE PACKAGE: the kernel package on which a meta-package depends.
dependency_of() {
    in_suite "$1" "$2" apt-cache depends "$3" | awk '/Depends: linux-image-/ {print $2; exit}'
}

# The kernel and busybox of the guest, and where there is room for both, busybox of i386.
if [ -n "${KERNEL:-}" ]; then
    suite=${SUITE:-$release-backports}
    know_suite "$architecture" "$suite"
    package=$(in_suite "$architecture" "$suite" apt-cache pkgnames "linux-image-$KERNEL" |
        { grep -E "^linux-image-${KERNEL//./\\.}([.+-][0-9][0-9a-z.+]*)*-$name\$" || true; } |
        sort -V | tail -n 1)
    if [ -z "$package" ]; then
        echo "build.sh: Debian's $suite has no kernel $KERNEL of flavour $flavour; it has:" >&2
        in_suite "$architecture" "$suite" apt-cache pkgnames linux-image- |
            { grep -E "^linux-image-[0-9][0-9a-z.+]*(-[0-9][0-9a-z.+]*)*-$name\$" || true; } | sort -V >&2
        exit 1
    fi
    kernel=$(download "$architecture" "$suite" "$package")
elif [ "$name" != cloud-amd64 ]; then
    know_suite "$architecture" "$release"
    package=$(dependency_of "$architecture" "$release" "linux-image-$name")
    kernel=$(download "$architecture" "$release" "$package")
else
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        awk '/Depends: linux-image-/ {print $2; exit}')
    if [ -z "$package" ]; then
        apt-get update -q >&2
        package=$(apt-cache depends linux-image-cloud-amd64 |
            awk '/Depends: linux-image-/ {print $2; exit}')
    fi
    kernel=$(fetch "$package")
fi
if [ "$architecture" = amd64 ]; then
    busybox_package=$(fetch busybox-static)
    busybox32_package=$(download i386 "$release" busybox-static) ||
        echo "build.sh: no busybox of i386: the guest has no 32-bit programs" >&2
else
    busybox_package=$(download i386 "$release" busybox-static)
    busybox32_package=
fi

# unpack DIRECTORY PACKAGE.deb ...: their files, unpacked once.
unpack() {
    local root=$build/$1 stamp
    shift
    stamp=$(sha256sum "$@")
    [ "$(cat "$root/stamp" 2>/dev/null)" = "$stamp" ] && return
    rm -rf "$root"
    mkdir -p "$root"
    for package in "$@"; do
        dpkg -x "$package" "$root"
    done
    echo "$stamp" > "$root/stamp"
}

unpack packages "$kernel" "$busybox_package"
root=$build/packages
compile=(gcc -std=gnu11 -O2 -Wall -Wextra -Werror -static -s -Wl,--build-id=none
    -ffile-prefix-map="$here"=. -o "$build/init" "$here"/init/*.c)
if [ "$architecture" = i386 ]; then
    # The host's compiler with i386's C library, unpacked beside the guest.
    library=()
    for package in libc6-dev libgcc-12-dev linux-libc-dev libcrypt-dev; do
        library+=("$(download i386 "$release" "$package")")
    done
    unpack library "${library[@]}"
    "${compile[@]}" -m32 -march=i686 --sysroot="$build/library" \
        -isystem "$build/library/usr/include/i386-linux-gnu" \
        -B "$build/library/usr/lib/i386-linux-gnu" \
        -B "$build/library/usr/lib/gcc/i686-linux-gnu/12" \
        -L "$build/library/usr/lib/i386-linux-gnu" \
        -L "$build/library/usr/lib/gcc/i686-linux-gnu/12"
else
    "${compile[@]}"
fi
chmod 755 "$build/init"

# module NAME: its file, unpacked, in BUILD.
module() {
    local file
    file=$(find "$root" -name "$1.ko*" -print -quit)
    case $file in
        *.xz) xz -dc "$file" > "$build/$1.ko" ;;
        *.zst) zstd -dcq "$file" > "$build/$1.ko" ;;
        "") echo "build.sh: $(basename "$kernel") has no module $1" >&2 && return 1 ;;
        *) cp "$file" "$build/$1.ko" ;;
    esac
}

# applets DIRECTORY PROGRAM NAME: items of the archive, PROGRAM and a link to it for each applet.
applets() {
    items+=("$1/" "$1/$3=$2")
    local applet
    while read -r applet; do
        [ "$applet" = busybox ] || items+=("$1/$applet@$3")
    done < <("$2" --list | sort)
}

module vmw_vmci
module vmw_balloon
items=("init=$build/init")
applets bin "$root/bin/busybox" busybox
rm -f "$build/has-32-bit-programs"
if [ -n "$busybox32_package" ]; then
    unpack packages32 "$busybox32_package"
    applets bin32 "$build/packages32/bin/busybox" busybox
    touch "$build/has-32-bit-programs"
fi
install -m 644 "$here/compile.sh" "$build/compile.sh"
python3 "$here/initramfs.py" "$build/initrd.img" "${items[@]}" \
    lib/ "lib/compile.sh=$build/compile.sh" lib/modules/ \
    "lib/modules/vmw_vmci.ko=$build/vmw_vmci.ko" "lib/modules/vmw_balloon.ko=$build/vmw_balloon.ko"
cp "$root"/boot/vmlinuz-* "$build/vmlinuz"
echo "$build: $(basename "$root"/boot/vmlinuz-*), initrd.img of $(stat -c %s "$build/initrd.img") bytes"
