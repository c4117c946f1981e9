# SPDX-License-Identifier: Apache-2.0
# Debian's packages for build.sh: from apt as this machine has it, or from another suite or architecture
# by lists of their own under BUILD. Nothing of the system's apt is changed. Needs $build.

# What this machine's apt knows as the archive of its own release: where other suites lie too.
debian_archive() {
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v release="$(. /etc/os-release && echo "$VERSION_CODENAME")" '$1 == release {print $2; exit}'
}

# in_suite ARCHITECTURE SUITE PROGRAM ...: an apt program that knows this suite alone.
in_suite() {
    local architecture=$1 suite=$2 program=$3 root=$build/apt/$1-$2
    shift 3
    "$program" -q -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" \
        -o Dir::Etc::SourceList="$root/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$root/lists" -o Dir::State::Status=/dev/null \
        -o Dir::Cache="$root/cache" -o Acquire::Languages=none -o Acquire::Retries=3 \
        -o APT::Sandbox::User=root "$@"
}

# know_suite ARCHITECTURE SUITE: fetch the suite's list of packages, once.
know_suite() {
    local root=$build/apt/$1-$2 archive
    [ -e "$root/known" ] && return
    archive=$(debian_archive)
    if [ -z "$archive" ]; then
        echo "build.sh: apt has no archive of this Debian release; run apt-get update" >&2
        return 1
    fi
    mkdir -p "$root/lists/partial" "$root/cache/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $2 main" \
        > "$root/sources.list"
    in_suite "$1" "$2" apt-get update -o APT::Update::Error-Mode=any >&2 || return 1
    touch "$root/known"
}

# download ARCHITECTURE SUITE PACKAGE: put its newest .deb into BUILD, if it is not there; its path.
download() {
    local package=$3 version file
    know_suite "$1" "$2" || return 1
    version=$(in_suite "$1" "$2" apt-cache policy "$package" | awk '/Candidate:/ {print $2}')
    if [ -z "$version" ] || [ "$version" = "(none)" ]; then
        echo "build.sh: Debian's $2 has no package $package for $1" >&2
        return 1
    fi
    for file in "$build/${package}_${version//:/%3a}"_{"$1",all}.deb; do
        [ -e "$file" ] && echo "$file" && return
    done
    (cd "$build" && in_suite "$1" "$2" apt-get download "$package" >&2) || {
        rm -f "$build/apt/$1-$2/known"  # the list may have grown old: fetch it next time
        return 1
    }
    for file in "$build/${package}_${version//:/%3a}"_{"$1",all}.deb; do
        [ -e "$file" ] && echo "$file" && return
    done
}

# fetch PACKAGE: put its newest .deb into BUILD, from apt's own cache if it is there; its path.
fetch() {
    local package=$1 version file
    version=$(apt-cache policy "$package" | awk '/Candidate:/ {print $2}')
    if [ -z "$version" ] || [ "$version" = "(none)" ]; then
        echo "build.sh: package $package is not known to apt; run apt-get update" >&2
        return 1
    fi
    for file in "$build"/"${package}_${version//:/%3a}"_*.deb \
        /var/cache/apt/archives/"${package}_${version//:/%3a}"_*.deb; do
        if [ -e "$file" ]; then
            [ "$(dirname "$file")" = "$build" ] || cp "$file" "$build"
            echo "$build/$(basename "$file")"
            return
        fi
    done
    (cd "$build" && apt-get download -q "$package" >&2)
    ls "$build"/"${package}_${version//:/%3a}"_*.deb
}
