#!/bin/bash
# A folder with the program, the shared libraries it needs and the MPI runtime, for nodes where nothing can be installed:
#   [BUNDLE_TESTS=1] jobs/bundle.sh PROGRAM FOLDER
# Not in it: the C library, of which the other machine needs this one's version or a later one; CUDA and the driver,
# which the program opens when it is to use a GPU; MPI's fabric components (UCX, libfabric, verbs), so between nodes it
# speaks TCP. In the folder, ./fedpdpo runs the program and ./mpirun starts ranks of it; both may be called from anywhere.
# With BUNDLE_TESTS=1 also the tests of operations and of training, ./test_backend and ./test_train, from beside PROGRAM:
# ./test_backend --gtest_filter='*/cuda' on a machine with a GPU.
set -euo pipefail

program=$1 out=$2
jobs=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
rm -rf "$out"
mkdir -p "$out"/{bin,lib,openmpi,share}
out=$(cd "$out" && pwd)
fail() {
  echo "bundle: $1" >&2
  exit 1
}
# All libraries of a file, those of its libraries too, as far as they are found; the bundle's own come first.
needs() { LD_LIBRARY_PATH=$out/lib ldd "$1" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'; }
# What a file itself names.
names() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }
is_system='/(ld-linux[^/]*|libc|libm|libdl|libpthread|librt|libresolv|libutil|libanl)\.so'
is_fabric='/(libucp|libuct|libfabric|libibverbs|libpsm2|libpsm_infinipath|libflux-core)\.so'
is_oshmem='/liboshmem\.so'  # another programming interface; 1 MB
is_unused='/(mca_(io|fs|fbtl|fcoll|sharedfp)_|mca_[a-z]+_monitoring|libompi_dbg)'  # MPI-IO and tools' interfaces; 1 MB

plugins=$(dirname "$(dirname "$(readlink -f "$(ldd "$program" | awk '/libmpi\.so/ { print $3 }')")")")
for candidate in "$plugins"/*/openmpi/lib/openmpi3 "$plugins"/openmpi/lib/openmpi3 "$plugins"/lib/openmpi "$plugins"/openmpi; do
  [[ -e $candidate/mca_pml_ob1.so ]] && found=$candidate
done
[[ -n ${found:-} ]] || fail "no Open MPI components (mca_pml_ob1.so) found under $plugins"
data=$(ompi_info --parsable --path pkgdatadir 2> /dev/null | awk -F: '/pkgdatadir/ { print $NF }')
[[ -d $data ]] || data=/usr/share/openmpi

cp -L "$program" "$out/bin/fedpdpo"
for tool in orterun orted; do cp -L "$(command -v $tool)" "$out/bin/$tool"; done
ln -s orterun "$out/bin/mpirun"
tests=()
if [[ -n ${BUNDLE_TESTS:-} ]]; then
  tests=(test_backend test_train)
  for test in "${tests[@]}"; do
    cp -L "$(dirname "$program")/tests/$test" "$out/bin/" 2> /dev/null || fail "BUNDLE_TESTS: build $test first"
  done
  mkdir "$out/tests"
  cp -r "$jobs/../tests/golden" "$out/tests/"
fi
for component in "$found"/*.so; do
  [[ $component =~ $is_unused ]] && continue
  needs "$component" | grep -E "$is_fabric|$is_oshmem" > /dev/null || cp -L "$component" "$out/openmpi/"
done
cp -L "$data"/*.txt "$out/share/"
for pmix in /usr/lib/*/pmix2/lib/pmix /usr/lib/pmix; do [[ -d $pmix ]] && cp -rL "$pmix" "$out/pmix"; done
mkdir -p "$out/pmix"

# Debian's HDF5 can read from S3, by libcurl and libcrypto, which bring LDAP, Kerberos and TLS along, 16 MB in all. This
# program opens files by their paths only: stand-ins take their place, unless the program itself needs the real ones.
hdf5=$(needs "$program" | grep -E '/libhdf5[^/]*\.so' || true)
for library in $hdf5; do
  cp -L "$library" "$out/lib/"
  for name in $(names "$library" | grep -E '^lib(curl|crypto)\.so' || true); do
    names "$program" | grep -Fx "$name" > /dev/null ||
      "$jobs/stand_in.sh" "$out/lib/$(basename "$library")" "$(needs "$library" | grep -F "/$name")"
  done
done

for file in "$out"/bin/* "$out"/openmpi/*.so "$out"/pmix/*.so; do needs "$file"; done | sort -u |
  grep -Ev "$is_system|^$out/" | while read -r library; do cp -L "$library" "$out/lib/"; done
# Debug information is most of the program.
strip --strip-unneeded "$out"/bin/* "$out"/lib/*.so* "$out"/openmpi/*.so "$out"/pmix/*.so 2> /dev/null || true

cat > "$out/environment" <<'END_OF_FILE'
# Sourced by the programs of this folder, which set `here`.
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PATH=$here/bin:$PATH
export OPAL_PREFIX=$here OPAL_BINDIR=$here/bin OPAL_LIBDIR=$here/lib OPAL_PKGLIBDIR=$here/openmpi OPAL_PKGDATADIR=$here/share
export PMIX_PREFIX=$here PMIX_LIBDIR=$here/lib PMIX_PKGLIBDIR=$here/pmix PMIX_MCA_pcompress_base_silence_warning=1
export HWLOC_PLUGINS_PATH=$here/none  # the other machine's plugins belong to its own hwloc
END_OF_FILE
for tool in fedpdpo mpirun "${tests[@]}"; do
  cat > "$out/$tool" <<'END_OF_FILE'
#!/bin/bash
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
. "$here/environment"
END_OF_FILE
  chmod +x "$out/$tool"
done
cat >> "$out/mpirun" <<'END_OF_FILE'
# Without ssh, ranks on this node, or on all of a Slurm allocation.
command -v ssh > /dev/null || export OMPI_MCA_plm=^rsh
exec "$here/bin/orterun" "$@"
END_OF_FILE
for test in "${tests[@]}"; do
  echo 'export FEDPDPO_SOURCE_DIR=$here  # of tests/golden' >> "$out/$test"
done
for tool in fedpdpo "${tests[@]}"; do
  cat >> "$out/$tool" <<END_OF_FILE
# A single process without mpirun asks nobody for a place in a job.
[[ -n \${OMPI_COMM_WORLD_SIZE:-}\${PMIX_RANK:-} ]] || export OMPI_MCA_ess_singleton_isolated=1
exec "\$here/bin/$tool" "\$@"
END_OF_FILE
done

"$out/fedpdpo" --version > /dev/null
# Every library must come from the folder or the system, and be there.
for file in "$out"/bin/* "$out"/lib/*.so* "$out"/openmpi/*.so "$out"/pmix/*.so; do
  LD_LIBRARY_PATH=$out/lib ldd "$file"
done | grep "=>" | grep -Ev "$is_system|=> $out/" | sort -u > "$out/missing" || true
[[ ! -s $out/missing ]] || fail "these libraries are not in it: $(tr -s '\n\t ' ' ' < "$out/missing")"
rm "$out/missing"
echo "bundle: $out, $(du -sm "$out" | cut -f1) MB"
