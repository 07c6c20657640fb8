"""Makes h5py_types.h5, the file by which the C++ reader is tested against what h5py writes.

Run it in this folder; the result is committed, so that the tests need no Python.
"""

import h5py
import numpy as np

with h5py.File("h5py_types.h5", "w") as file:
    file.attrs["text"] = "pairs, h\u00e4lfte"
    file.attrs["empty"] = ""
    file.attrs["bytes"] = np.bytes_(b"ascii")
    file.attrs["int"] = np.int64(-7)
    file.attrs["small"] = np.uint8(200)
    file.attrs["huge"] = np.uint64(2**63 + 1)
    file.attrs["float"] = 0.25
    file.attrs["one"] = np.array([5], dtype=np.int32)
    file.attrs["two"] = np.array([5, 6], dtype=np.int32)
    file.attrs["none"] = h5py.Empty("f")
    file.attrs["long"] = "x" * 70_000

    def put(name, data, dtype, **options):
        return file.create_dataset(name, data=np.array(data, dtype=dtype), track_times=False, **options)

    for name in ("int8", "int16", "int32", "int64"):
        put(f"numbers/{name}", [0, 1, -2, 100], name)
    for name in ("uint8", "uint16", "uint32", "uint64"):
        put(f"numbers/{name}", [0, 1, 2, 200], name)
    for name in ("float16", "float32", "float64"):
        put(f"numbers/{name}", [0.0, -1.5, np.inf, np.nan], name)
    put("numbers/big_endian", [1, -2, 70000], ">i4")
    put("numbers/matrix", np.arange(6).reshape(2, 3), "int64")
    put("numbers/packed", np.arange(10000) % 7, "uint32", chunks=(1000,), compression="gzip", shuffle=True)
    put("numbers/scalar", 42, "int32")
    put("numbers/empty", [], "uint32")
    put("edges/above_int64", [1, 2**63], "uint64")
    put("edges/above_uint32", [0, 2**32], "int64")
    put("edges/negative", [5, -1], "int64")
    put("edges/above_float", [1.0, 1e300], "float64")
    put("odd/bool", [True, False], "bool")
    put("odd/compound", [(1, 2.0)], [("a", "i4"), ("b", "f8")])
    file.create_dataset("odd/null", data=h5py.Empty("int32"))
    file.create_dataset("odd/unwritten", shape=(10,), dtype="int32")
    file["odd/dangling"] = h5py.SoftLink("/nowhere")
    file["odd/soft"] = h5py.SoftLink("/numbers/int32")
    file["odd/external"] = h5py.ExternalLink("no_such_file.h5", "/x")

    utf8, ascii_text = h5py.string_dtype("utf-8"), h5py.string_dtype("ascii")
    file.create_dataset("strings/variable", data=["a", "", "h\u00e4lfte", "y" * 5000], dtype=utf8, track_times=False)
    file.create_dataset("strings/variable_ascii", data=[b"a", b"bc"], dtype=ascii_text, track_times=False)
    put("strings/fixed", [b"one", b"three", b""], "S5")
    put("strings/fixed_utf8", ["\u00e4".encode(), b"b"], h5py.string_dtype("utf-8", 4))
    file.create_dataset("strings/none", shape=(0,), dtype=utf8, track_times=False)
    file.create_dataset("strings/matrix", data=[["a", "b"]], dtype=utf8, track_times=False)
    padded = h5py.h5t.C_S1.copy()
    padded.set_size(6)
    padded.set_strpad(h5py.h5t.STR_SPACEPAD)
    space = h5py.h5s.create_simple((2,))
    dataset = h5py.h5d.create(file["strings"].id, b"space_padded", padded, space)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([b"ab    ", b"abcdef"], "S6"), mtype=padded)
