#!/bin/bash
# A folder with the program, the shared libraries it needs and the MPI runtime, for nodes where nothing can be installed:
#   jobs/bundle.sh PROGRAM FOLDER
# Not in it: the C library, of which the other machine needs this one's version or a later one; CUDA and the driver,
# which it has; MPI's fabric components (UCX, libfabric, verbs), so between nodes it speaks TCP.
# In the folder, ./fedpdpo runs the program and ./mpirun starts ranks of it; both may be called from anywhere.
set -euo pipefail

program=$1 out=$2
needs() { ldd "$1" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'; }
is_system='/(ld-linux[^/]*|libc|libm|libdl|libpthread|librt|libresolv|libutil|libanl|libcuda|libcudart|libcublas|libcublasLt|libnccl|libnvrtc|libnvJitLink)\.so'
is_fabric='/(libucp|libuct|libfabric|libibverbs|libpsm2|libpsm_infinipath|libflux-core)\.so'

plugins=$(dirname "$(dirname "$(readlink -f "$(ldd "$program" | awk '/libmpi\.so/ { print $3 }')")")")
for candidate in "$plugins"/*/openmpi/lib/openmpi3 "$plugins"/openmpi/lib/openmpi3 "$plugins"/lib/openmpi "$plugins"/openmpi; do
  [[ -e $candidate/mca_pml_ob1.so ]] && found=$candidate
done
if [[ -z ${found:-} ]]; then
  echo "bundle: no Open MPI components (mca_pml_ob1.so) found under $plugins" >&2
  exit 1
fi
data=$(ompi_info --parsable --path pkgdatadir 2> /dev/null | awk -F: '/pkgdatadir/ { print $NF }')
[[ -d $data ]] || data=/usr/share/openmpi

rm -rf "$out"
mkdir -p "$out"/{bin,lib,openmpi,share}
cp -L "$program" "$out/bin/fedpdpo"
for tool in orterun orted; do cp -L "$(command -v $tool)" "$out/bin/$tool"; done
ln -s orterun "$out/bin/mpirun"
for component in "$found"/*.so; do
  needs "$component" | grep -Eq "$is_fabric" || cp -L "$component" "$out/openmpi/"
done
cp -L "$data"/*.txt "$out/share/"
for pmix in /usr/lib/*/pmix2/lib/pmix /usr/lib/pmix; do [[ -d $pmix ]] && cp -rL "$pmix" "$out/pmix"; done
mkdir -p "$out/pmix"

# Libraries of libraries are in ldd's list already.
for file in "$out"/bin/* "$out"/openmpi/*.so "$out"/pmix/*.so; do needs "$file"; done | sort -u | grep -Ev "$is_system" |
  while read -r library; do cp -L "$library" "$out/lib/"; done
strip --strip-unneeded "$out"/bin/fedpdpo "$out"/lib/*.so* 2> /dev/null || true

cat > "$out/environment" <<'END'
# Sourced by fedpdpo and mpirun of this folder, which sets `here`.
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PATH=$here/bin:$PATH
export OPAL_PREFIX=$here OPAL_BINDIR=$here/bin OPAL_LIBDIR=$here/lib OPAL_PKGLIBDIR=$here/openmpi OPAL_PKGDATADIR=$here/share
export PMIX_MCA_mca_base_component_path=$here/pmix PMIX_MCA_pcompress_base_silence_warning=1
END
for tool in fedpdpo mpirun; do
  cat > "$out/$tool" <<END
#!/bin/bash
here=\$(cd "\$(dirname "\$(readlink -f "\${BASH_SOURCE[0]}")")" && pwd)
. "\$here/environment"
END
done
cat >> "$out/fedpdpo" <<'END'
# A single process without mpirun asks nobody for a place in a job.
[[ -n ${OMPI_COMM_WORLD_SIZE:-}${PMIX_RANK:-} ]] || export OMPI_MCA_ess_singleton_isolated=1
exec "$here/bin/fedpdpo" "$@"
END
cat >> "$out/mpirun" <<'END'
# Without ssh, ranks on this node, or on all of a Slurm allocation.
command -v ssh > /dev/null || export OMPI_MCA_plm=^rsh
exec "$here/bin/orterun" "$@"
END
chmod +x "$out/fedpdpo" "$out/mpirun"

"$out/fedpdpo" --version > /dev/null
missing=$(for file in "$out"/bin/* "$out"/openmpi/*.so; do LD_LIBRARY_PATH=$out/lib ldd "$file"; done | grep "not found" |
  grep -Ev 'libcuda|libcublas|libnccl' | sort -u || true)
if [[ -n $missing ]]; then
  echo "bundle: these libraries were not found:" >&2
  echo "$missing" >&2
  exit 1
fi
echo "bundle: $out, $(du -sm "$out" | cut -f1) MB"
