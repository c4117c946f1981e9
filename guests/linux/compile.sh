#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A compile-like mix: for each unit, text is generated, translated, sorted, packed and compared.
set -e
units=$1
directory=/tmp/compile
mkdir -p $directory
cd $directory
unit=1
while [ "$unit" -le "$units" ]; do
    awk -v unit="$unit" 'BEGIN {
        for (i = 1; i <= 400; i++)
            printf "static int f_%d_%d(int x) { return x * %d + %d; }\n", unit, i, i * 7 % 97, unit
    }' > "unit$unit.c"
    sed -e 's/static int/int/' -e 's/return/  return/' "unit$unit.c" > "unit$unit.i"
    sort -t_ -k3 -n -r "unit$unit.i" | grep -c 'int f_' > "unit$unit.count"
    [ "$(cat "unit$unit.count")" = 400 ]
    gzip -c "unit$unit.i" > "unit$unit.o"
    gunzip -c < "unit$unit.o" | cmp - "unit$unit.i"
    before=$(sha256sum < "unit$unit.i")
    sort "unit$unit.i" | sort -t_ -k3 -n > "unit$unit.sorted"
    after=$(sed -e 's/^/ /' -e 's/^ //' "unit$unit.sorted" | sha256sum)
    [ "$before" = "$after" ]
    unit=$((unit + 1))
done
tar cf all.tar unit*.o
tar tf all.tar | wc -l > members
[ "$(cat members)" = "$units" ]
cd /
rm -rf $directory
