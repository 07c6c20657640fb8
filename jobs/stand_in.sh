#!/bin/bash
# Frees a copied shared library from a large one that it links and that the program never gets to:
#   jobs/stand_in.sh LIBRARY NEEDED
# LIBRARY is changed in place: where it named NEEDED (a path; its file name is what LIBRARY names) it names a stand-in of a
# few kB beside it, "no_" for "lib" so that no other program mistakes it for the real one. The stand-in has the functions of
# NEEDED that LIBRARY calls, under the symbol versions that it asks for; each ends the program with one line if it is called.
set -euo pipefail
export LC_ALL=C

library=$1 needed=$2
real=$(basename "$needed")
name=no_${real#lib}
fail() {
  echo "stand_in: $library: $1" >&2
  exit 1
}
names() { readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }
[[ $real == lib* ]] || fail "expected a library's file name that begins with lib, found $real"
names | grep -Fx "$real" > /dev/null || fail "does not link $real"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# "name version" of what LIBRARY asks for, "name type" of what NEEDED has; a stand-in can have functions only.
nm -D --undefined-only --with-symbol-versions "$library" | awk '{ sub("@+", " ", $NF); print $NF }' | sort > "$work/asked"
nm -D --defined-only "$needed" | awk '{ sub("@.*", "", $3); print $3, $2 }' | sort -u > "$work/had"
join "$work/asked" <(awk '{ print $1 }' "$work/had" | sort -u) > "$work/functions"
[[ -s $work/functions ]] || fail "asks for no symbol of $real"
data=$(join "$work/functions" "$work/had" | awk '$NF !~ /^[TWi]$/ { print $1 }')
[[ -z $data ]] || fail "$real is more than functions: $data"

{
  echo '#include <stdio.h>'
  echo '#include <stdlib.h>'
  echo 'static void refuse(const char* function) {'
  echo "  fprintf(stderr, \"%s was called, but this bundle has only a stand-in for $real\\n\", function);"
  echo '  abort();'
  echo '}'
  awk '{ print "void " $1 "(void) { refuse(\"" $1 "\"); }" }' "$work/functions"
} > "$work/stand_in.c"
awk 'NF == 2 { of[$2] = of[$2] " " $1 ";" } END { for (version in of) print version " { global:" of[version] " };" }' \
  "$work/functions" > "$work/versions"
versioned=()
[[ ! -s $work/versions ]] || versioned=("-Wl,--version-script=$work/versions")
# The compiler knows some of these names with other types.
"${CC:-cc}" -shared -fPIC -O2 -s -fno-builtin -w -Wl,-soname,"$name" "${versioned[@]}" "$work/stand_in.c" \
  -o "$(dirname "$library")/$name"

# The name is replaced by one of the same length in the table of strings, for the loader and for the symbols' versions.
sed -i "s/\x00${real//./\\.}\x00/\x00$name\x00/" "$library"
names | grep -Fx "$name" > /dev/null || fail "$real could not be renamed"
