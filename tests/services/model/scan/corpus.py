"""Harmful and innocent model files, made in code. Every payload would only touch a marker file.

`harmful(marker)` and `innocent()` give files by name; the file's own name decides how a model would load it.
"""

import base64
import bz2
import functools
import gzip
import json
import lzma
import os
import pickle
import random
import struct
import subprocess
import zipfile
import zlib
from typing import Any

from tests.services.model.scan import builders as b
from tests.services.model.scan.templates import HARMFUL, INNOCENT

# Weights that no engine could load. No harm in them, but what they are not must be said.
CUT_OR_NO_MODEL = {
    "empty.gguf": b"",
    "text.gguf": b"404: not found\n",
    "page.gguf": b"<html><body>Sign in</body></html>",
    "noise.gguf": bytes(range(200, 256)) * 20,
    "packed.gguf": gzip.compress(b.gguf()),
    "cut.gguf": b.gguf()[:60],
    "cut-data.gguf": b.gguf()[:-1],
    "nothing.safetensors": b"",
    "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 8\n",
    "cut.safetensors": b.safetensors()[:40],
    "cut-data.safetensors": b.safetensors()[:-1],
}


class _Call:
    """Pickles as a call of `function`; it is never unpickled here."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.reduced


def _pickles(marker: str) -> dict[str, bytes]:
    touch, code = f"touch {marker}", f"open({marker!r}, 'w')"
    system, t, c = _Call(os.system, touch), b.text(touch), b.text(code)
    files = {f"system-protocol{p}.pkl": pickle.dumps({"w": [1.0, 2.0], "x": system}, p) for p in range(6)}
    calls: dict[str, tuple[str, str, bytes]] = {
        "os": ("os", "system", t), "posix": ("posix", "system", t), "nt": ("nt", "system", t),
        "popen": ("os", "popen", t), "eval": ("builtins", "eval", c), "exec": ("builtins", "exec", c),
        "eval2": ("__builtin__", "eval", c), "execfile": ("__builtin__", "execfile", c),
        "import": ("builtins", "__import__", b.text("os")), "compile": ("builtins", "compile", c),
        "open": ("builtins", "open", b.text(marker) + b.text("w")), "io": ("io", "open", b.text(marker) + b.text("w")),
        "runpy": ("runpy", "run_path", b.text(marker)), "pty": ("pty", "spawn", t),
        "webbrowser": ("webbrowser", "open", b.text("http://127.0.0.1:9/")), "ctypes": ("ctypes", "CDLL", b.text(marker)),
        "importlib": ("importlib", "import_module", b.text("antigravity")),
        "code": ("code", "interact", b.text("x")), "socket": ("socket", "create_connection", b.text("127.0.0.1")),
        "requests": ("requests.api", "get", b.text("http://127.0.0.1:9/")),
        "urllib": ("urllib.request", "urlopen", b.text("http://127.0.0.1:9/")),
        "hub": ("torch.hub", "load", b.text("a/b")), "torchload": ("torch", "load", b.text(marker)),
        "loadbytes": ("torch.storage", "_load_from_bytes", b"C" + b"\x04abcd"),
        "runstring": ("numpy.testing._private.utils", "runstring", c), "timeit": ("timeit", "timeit", c),
        "cprofile": ("cProfile", "run", c), "pip": ("pip", "main", b.text("install")),
        "pipinternal": ("pip._internal", "main", b.text("install")), "bdb": ("bdb", "Bdb.run", c),
        "pdb": ("pdb", "run", c), "shutil": ("shutil", "rmtree", b.text(marker)),
        "numpyload": ("numpy", "load", b.text(marker)), "joblibload": ("joblib", "load", b.text(marker)),
        "partial": ("functools", "partial", b.name("os", "system") + t),
        "attrgetter": ("operator", "attrgetter", b.text("system")), "pydoc": ("pydoc", "pipepager", t + t),
        "methodcaller": ("_operator", "methodcaller", b.text("system") + t), "asyncio": ("asyncio", "run", t),
        "threading": ("threading", "Thread", t), "marshal": ("marshal", "loads", b"C\x01N"),
        "types": ("types", "FunctionType", b"N"), "resolve": ("pkgutil", "resolve_name", b.text("os:system")),
        "dotted": ("torch", "serialization.os.system", t), "dunder": ("collections", "OrderedDict.__class__", t),
        "profile": ("profile", "run", c), "trace": ("trace", "Trace", t), "multi": ("multiprocessing", "Process", t),
        "smtplib": ("smtplib", "SMTP", b.text("127.0.0.1")), "sqlite": ("sqlite3", "connect", b.text(marker)),
        "distutils": ("distutils.file_util", "write_file", b.text(marker)), "sys": ("sys", "exit", b"K\x00"),
        "logging": ("logging", "FileHandler", b.text(marker)), "getattr": ("builtins", "getattr", b.name("os", "path") + t),
        "dill": ("dill._dill", "_create_function", c), "cloudpickle": ("cloudpickle.cloudpickle", "subimport", t),
    }  # fmt: skip
    files |= {f"call-{key}.pkl": b.pickled(b.call(module, name, body)) for key, (module, name, body) in calls.items()}
    files["subprocess.pkl"] = pickle.dumps(_Call(subprocess.Popen, ["touch", marker]))
    files["stack-global.pkl"] = b.stack_call("os", "system", touch)
    return files | _tricks(touch, code)


def _tricks(touch: str, code: str) -> dict[str, bytes]:
    """Pickles that try to slip past a scanner."""
    t = b.text(touch)
    plain, evil = b.pickled(b.text("fine")), b.pickled(b.call("os", "system", t))
    memo = (
        b"\x80\x04"
        + b.short("os")
        + b"0"
        + b.short("system")
        + b"0"
        + b.short("decoy")
        + b"0h\x00h\x01\x93"
        + t
        + b"\x85R."
    )
    put = (
        b"\x80\x04"
        + b.text("os")
        + b"q\x07"
        + b"0"
        + b.text("system")
        + b"r\x00\x01\x00\x00"
        + b"0h\x07j\x00\x01\x00\x00\x93"
        + t
        + b"\x85R."
    )
    computed = b"\x80\x04" + b.call("builtins", "str", b.text("os")) + b.text("system") + b"\x93" + t + b"\x85R."
    getattr_chain = b.pickled(
        b.call("builtins", "getattr", b.call("builtins", "__import__", b.text("os")) + b.text("system"))
        + b"("
        + t
        + b"tR"
    )
    return {
        "after-stop.pkl": plain + evil,
        "after-many-stops.pkl": plain * 50 + evil,
        "broken-tail.pkl": evil[:-1] + b"\xff\xfe",
        "no-stop.pkl": evil[:-1],
        "popped.pkl": b.pickled(b.call("os", "system", t) + b"0" + b"N"),
        "memo.pkl": memo,
        "memo-put.pkl": put,
        "computed-name.pkl": computed,
        "getattr-chain.pkl": getattr_chain,
        "inst.pkl": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "obj.pkl": b"\x80\x02(" + b.name("os", "system") + t + b"o.",
        "text-protocol.pkl": b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.",
        "newobj.pkl": b"\x80\x02" + b.name("subprocess", "Popen") + t + b"\x85\x81.",
        "newobj-ex.pkl": b"\x80\x04" + b.name("subprocess", "Popen") + t + b"\x85}\x92.",
        "build.pkl": b"\x80\x02" + b.name("os", "path") + b"}" + b.text("x") + b.name("os", "system") + b"sb.",
        "extension.pkl": b"\x80\x02\x82\x01)R.",
        "nested-bytes.pkl": b.pickled(b.call("pickle", "loads", b"B" + len(evil).to_bytes(4, "little") + evil), 3),
        "nested-plain.pkl": b"\x80\x03}" + b.text("blob") + b"B" + len(evil).to_bytes(4, "little") + evil + b"s.",
        "nested-large.pkl": b"\x80\x03B" + (len(evil) + 100_000).to_bytes(4, "little") + evil + bytes(100_000) + b".",
        "behind-large.pkl": b"\x80\x03]B"
        + (200_000).to_bytes(4, "little")
        + bytes(200_000)
        + b"a"
        + b.call("os", "system", t)
        + b"a.",
        "base64.pkl": b.pickled(
            b.call("pickle", "loads", b.call("base64", "b64decode", b.text(base64.b64encode(evil).decode())))
        ),
        "unknown-class.pkl": b.pickled(b.name("company.model", "Loader") + b")\x81"),
        "main-class.pkl": b.pickled(b.name("__main__", "Model") + b")\x81}" + b.text("a") + b"K\x01sb"),
        "persistent.pkl": b.pickled(b.call("os", "system", t) + b"Q"),
        "frame.pkl": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00" + b.stack_call("os", "system", touch)[2:],
    }


def _archives(marker: str) -> dict[str, bytes]:
    evil = b.pickled(b.call("os", "system", b.text(f"touch {marker}")))
    torch = b.torch_zip(evil)
    deflated = b.zipped({"archive/data.pkl": evil}, zipfile.ZIP_DEFLATED)
    objects = b.numpy_file("'|O'", (1,), evil)
    legacy = b.torch_legacy(evil)
    return {
        "torch.pt": torch,
        "torch.bin": torch,
        "torch-deflated.pth": deflated,
        "torch-other-name.ckpt": b.zipped({"x/y.dat": evil}),
        "torch-wrong-crc.pt": _patched(torch, b"PK\x01\x02", 16, b"\xde\xad\xbe\xef"),
        "torch-encrypted-flag.pt": _patched(torch, b"PK\x01\x02", 8, b"\x01\x00"),
        "torch-second-pickle.pt": b.torch_zip(more={"extra.pkl": evil}),
        "torch-in-storage.pt": b.torch_zip(more={"data/2": evil}),
        "torch-code.pt": b.torch_zip(more={"code/__torch__.py": b"def forward(self):\n  pass\n"}),
        "nested.zip": b.zipped({"inner.zip": b.zipped({"deep/inner.zip": deflated})}),
        "zip-in-tar.tar": b.tarred({"model/pytorch_model.bin": torch}),
        "legacy.pt": legacy,
        "legacy-tar.pt": b.tarred({"storages": pickle.dumps(0, 2), "tensors": pickle.dumps(0, 2), "pickle": evil}),
        "object.npy": objects,
        "object.npz": b.zipped({"arr_0.npy": objects}, zipfile.ZIP_DEFLATED),
        "structured.npy": b.numpy_file("[('a', '<f8'), ('b', '|O')]", (1,), evil),
        "pickle.npy": evil,
        "model.joblib": b.joblib_array(
            [1.0, 2.0, 3.0], inside=b.text("x") + b.call("os", "system", b.text(f"touch {marker}"))
        ),
        "objects.joblib": b.joblib_objects(evil),
        "model.joblib.z": zlib.compress(evil),
        "zlib.joblib": zlib.compress(b.joblib_array([1.0]) + evil),
        "gzip.joblib": gzip.compress(evil),
        "bzip2.joblib": bz2.compress(evil),
        "xz.joblib": lzma.compress(evil),
        "lzma.joblib": lzma.compress(evil, lzma.FORMAT_ALONE),
        "model.tar.gz": gzip.compress(b.tarred({"model.pkl": evil})),
        "behind-image.png": b"\x89PNG\r\n\x1a\n" + bytes(100) + torch,
        "archive.7z": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(60),
        "archive.rar": b"Rar!\x1a\x07\x01\x00" + bytes(60),
        "model.pkl.zst": b"\x28\xb5\x2f\xfd" + bytes(60),
        "slip.zip": b.zipped({"../../evil.txt": b"x"}),
        "absolute.zip": b.zipped({"/tmp/evil.txt": b"x"}),
        "drive.zip": b.zipped({"C:\\evil.txt": b"x"}),
        "link.zip": _zip_link(),
        "two-names.zip": torch.replace(b"archive/data.pkl", b"archive/safe.txt", 1),
        "slip.tar": b.tarred({"../evil.txt": b"x"}),
        "link.tar": b.tar_link("weights", "/etc/passwd"),
        "bomb.gz": gzip.compress(bytes(150 * 1024**2)),
        "bomb.zip": _lying_zip(),
        "deep.zip": _deep_zip(),
    }


def _patched(data: bytes, before: bytes, offset: int, new: bytes) -> bytes:
    """Every record that begins with `before` gets `new` at `offset`."""
    out = bytearray(data)
    at = out.find(before)
    while at >= 0:
        out[at + offset : at + offset + len(new)] = new
        at = out.find(before, at + 4)
    return bytes(out)


def _zip_link() -> bytes:
    data = b.zipped({"weights": b"/etc/passwd"})
    return _patched(_patched(data, b"PK\x01\x02", 38, struct.pack("<I", 0o120777 << 16)), b"PK\x01\x02", 5, b"\x03")


def _lying_zip() -> bytes:
    """Says that a few bytes unpack to 3 GiB."""
    data = b.zipped({"zeros.bin": bytes(1000)}, zipfile.ZIP_DEFLATED)
    return _patched(data, b"PK\x01\x02", 24, struct.pack("<I", 3 * 1024**3))


def _deep_zip() -> bytes:
    data = b"text"
    for depth in range(10):
        data = b.zipped({f"{depth}.zip": data})
    return data


def _others(marker: str) -> dict[str, bytes]:
    evil = b.pickled(b.call("os", "system", b.text(f"touch {marker}")))
    elf = b"\x7fELF\x02\x01\x01" + bytes(100)
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    overlap = header | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}
    files = {
        "renamed.safetensors": evil,
        "renamed.gguf": b.torch_zip(evil),
        "renamed.json": evil,
        "renamed.txt": b"cos\nsystem\n(S'touch " + marker.encode() + b"'\ntR.",
        "README": b"cos\nsystem\n(S'touch " + marker.encode() + b"'\ntR.",
        "elf.safetensors": elf,
        "elf.bin": elf,
        "lib.so": elf,
        "tool.exe": b"MZ" + bytes(58) + b"\x40\x00\x00\x00PE\x00\x00" + bytes(60),
        "mach.dylib": b"\xcf\xfa\xed\xfe" + bytes(100),
        "module.pyc": b"\xa7\r\r\n" + bytes(100),
        "run.sh": f"#!/bin/sh\ntouch {marker}\n".encode(),
        "weights.bin": f"#!/bin/sh\ntouch {marker}\n".encode(),
        "modeling.py": f"import os\nos.system('touch {marker}')\n".encode(),
        "demo.ipynb": json.dumps({"cells": [{"cell_type": "code", "source": ["1"]}], "nbformat": 4}).encode(),
        "script.lua": b"os.execute('true')\n",
        "index.js": b"require('child_process')\n",
        "unknown.xyz": bytes(range(200, 256)) * 20,
        "unknown.bin": bytes(range(200, 256)) * 20,
        "overlap.safetensors": b.safetensors(overlap, bytes(12)),
        "outside.safetensors": b.safetensors({"a": header["a"] | {"data_offsets": [0, 800], "shape": [200]}}, bytes(8)),
        "gap.safetensors": b.safetensors({"a": header["a"] | {"data_offsets": [8, 16]}}, bytes(16)),
        "trailing.safetensors": b.safetensors(header, bytes(8) + evil),
        "shape.safetensors": b.safetensors({"a": header["a"] | {"shape": [3]}}, bytes(8)),
        "twice.safetensors": b.safetensors(json.dumps(header)[:-1] + ", " + json.dumps(header)[1:], bytes(8)),
        "long.safetensors": (2**62).to_bytes(8, "little") + b"{}",
        "notjson.safetensors": b.safetensors("{not json", bytes(8)),
        "count.gguf": b.gguf(counts=(2**60, 3)),
        "pairs.gguf": b.gguf(counts=(2, 2**40)),
        "outside.gguf": b.gguf(tensors=[("t", [2**40], 0, 0)]),
        "overlap.gguf": b.gguf(tensors=[("t", [16], 0, 0), ("u", [16], 0, 32)], data=bytes(128)),
        "type.gguf": b.gguf(tensors=[("t", [8], 999, 0)]),
        "unaligned.gguf": b.gguf(tensors=[("t", [4], 0, 3)]),
        "alignment.gguf": b.gguf({"general.alignment": 7}),
        "version.gguf": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        "string.gguf": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**50) + bytes(100),
        "outside.onnx": b.onnx(location="../../etc/passwd"),
        "absolute.onnx": b.onnx(location="/etc/passwd"),
        "custom.onnx": b.onnx(domain="evil.ops", operator="Run"),
        "python.onnx": b.onnx(domain="com.microsoft", operator="PythonOp"),
        "noise.onnx": bytes(range(200, 256)) * 20,
        "lambda.keras": b.zipped({"config.json": b.keras_config(("keras.layers", "Dense"), ("keras.layers", "Lambda"))}),
        "module.keras": b.zipped({"config.json": b.keras_config(("os", "system"))}),
        "lambda.h5": b.hdf5(b"model_config" + b.keras_config(("keras.layers", "Lambda"))),
        "hidden.h5": b.hdf5(b'model_config{"class_name": "\\u004cambda"}'),
        "broken.h5": b.hdf5(bytes(500))[:300],
        "untrusted.skops": b.zipped(
            {"schema.json": json.dumps({"__class__": "system", "__module__": "os", "__loader__": "ObjectNode"}).encode()}
        ),
        "stranger.skops": b.zipped(
            {"schema.json": json.dumps({"__class__": "Thing", "__module__": "company", "__loader__": "ObjectNode"}).encode()}
        ),
        "saved_model.pb": b.field(2, b.field(1, b"n") + b.field(2, b"WriteFile")),
        "read.pb": b.field(2, b.field(1, b"n") + b.field(2, b"ReadFile")),
        "pyfunc.pb": b.field(2, b.field(1, b"n") + b.field(2, b"EagerPyFunc")),
        "keras_metadata.pb": b.field(1, b.keras_config(("keras.layers", "Lambda"))),
        "entity.pmml": b'<?xml version="1.0"?><!DOCTYPE p [<!ENTITY x SYSTEM "file:///etc/passwd">]><PMML>&x;</PMML>',
        "entity.xml": '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE p [<!ENTITY x "lol">]><p>&x;</p>'.encode("utf-16"),
        "python.yaml": b"a: !!python/object/apply:os.system ['true']\n",
        "tag.yaml": b"%TAG !p! tag:yaml.org,2002:python/\n---\na: !p!object/apply:os.system ['true']\n",
        "auto_map/config.json": json.dumps({"model_type": "x", "auto_map": {"AutoModel": "modeling.X"}}).encode(),
        "escaped/config.json": b'{"\\u0061uto_map": {"AutoModel": "modeling.X"}}',
        "trust/config.json": b'{"trust_remote_code": true}',
        "pipeline/config.json": b'{"custom_pipelines": {"x": {"impl": "x.Y"}}}',
        "broken/config.json": b'{"model_type": ',
    }  # fmt: skip
    files |= CUT_OR_NO_MODEL
    for key, template in HARMFUL.items():
        files[f"{key}/tokenizer_config.json"] = json.dumps({"chat_template": template}).encode()
    files["chat_template.jinja"] = HARMFUL["class"].encode()
    files["broken/chat_template.jinja"] = b"{% for x in %}"
    files["list/tokenizer_config.json"] = json.dumps(
        {"chat_template": [{"name": "default", "template": "ok"}, {"name": "tool", "template": HARMFUL["class"]}]}
    ).encode()
    files["template.gguf"] = b.gguf({"tokenizer.chat_template": HARMFUL["class"]})
    files["template-tool.gguf"] = b.gguf({"tokenizer.chat_template.tool_use": HARMFUL["globals"]})
    return files


@functools.cache
def harmful(marker: str) -> dict[str, bytes]:
    """Files that must never be `safe`."""
    return _pickles(marker) | _archives(marker) | _others(marker)


@functools.cache
def innocent() -> dict[str, bytes]:
    """Files that must be `safe`."""
    vocabulary = {"model": {"type": "BPE", "vocab": {f"token{n}": n for n in range(500)}, "merges": ["a b"]}}
    linear = b.name("sklearn.linear_model._base", "LinearRegression") + b")\x81}" + b.text("fit_intercept") + b"\x88sb"
    array = b.numpy_array([1.0, 2.0])
    files = {
        "pytorch_model.bin": b.torch_zip(),
        "model.pt": b.torch_zip(more={".data/serialization_id": b"0636457737946401051300000027264370494161"}),
        "deflated.pth": b.zipped({"archive/data.pkl": b.state_dict(), "archive/data/0": bytes(16)}, zipfile.ZIP_DEFLATED),
        "legacy.pt": b.torch_legacy(),
        "array.npy": array,
        "matrix.npy": b.numpy_file("'<f4'", (2, 2), bytes(16)),
        "record.npy": b.numpy_file("[('a', '<f8'), ('b', '<i4', (2,))]", (1,), bytes(16)),
        "arrays.npz": b.zipped({"a.npy": array, "b.npy": array}, zipfile.ZIP_DEFLATED),
        "numbers.pkl": pickle.dumps({"a": [1, 2.5, None, True], "b": {1, 2}, "c": b"bytes" * 100, "d": (1, "x")}),
        "old.pkl": pickle.dumps({"a": [1, 2.5, "text"], "b": 2**80}, 0),
        "large.pkl": pickle.dumps({"weights": random.Random(1).randbytes(200_000), "small": random.Random(2).randbytes(3000)}),
        "numpy.pkl": b.numpy_in_pickle(),
        "sklearn.pkl": b.pickled(linear),
        "model.joblib": b.joblib_array([0.5] * 100),
        "objects.joblib": b.joblib_objects(b.pickled(b"]" + b.dtype() + b"a", 3)),
        "floats.pkl": pickle.dumps([random.Random(seed).randbytes(seed * 8) for seed in range(300)]),
        "latin.pkl": pickle.dumps([random.Random(seed).randbytes(seed * 8) for seed in range(100)], 0),
        "compressed.joblib": zlib.compress(b.joblib_array([0.5] * 100)),
        "gzip.joblib": gzip.compress(b.pickled(linear)),
        "model.safetensors": b.safetensors(),
        "empty.safetensors": b.safetensors({}, b""),
        "model.gguf": b.gguf({"tokenizer.chat_template": INNOCENT["llama3"]}),
        "quantized.gguf": b.gguf(tensors=[("t", [32, 2], 8, 0), ("u", [256], 12, 96)], data=bytes(240)),
        "model.onnx": b.onnx(),
        "external.onnx": b.onnx(location="weights.bin.data"),
        "microsoft.onnx": b.onnx(domain="com.microsoft", operator="FusedMatMul"),
        "model.keras": b.zipped({
            "config.json": b.keras_config(("keras.layers", "InputLayer"), ("keras.layers", "Dense")),
            "metadata.json": b'{"keras_version": "3.5.0"}', "model.weights.h5": b.hdf5(bytes(100)),
        }),
        "model.h5": b.hdf5(b"model_config" + b.keras_config(("keras.layers", "Dense"))),
        "model.skops": b.zipped({"schema.json": json.dumps({
            "__class__": "LinearRegression", "__module__": "sklearn.linear_model._base", "__loader__": "ObjectNode",
        }).encode()}),
        "saved_model.pb": b.field(1, 1) + b.field(2, b.field(2, b.field(1, b"n") + b.field(2, b"MatMul"))),
        "model.pmml": b'<?xml version="1.0"?><PMML version="4.4"><Header/></PMML>',
        "tokenizer.json": json.dumps(vocabulary).encode(),
        "config.json": b'{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "trust_remote_code": false}',
        "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
        "params.yaml": b"learning_rate: 0.1\nlist: [1, 2]\n",
        "vocab.txt": b"[PAD]\n[UNK]\nthe\n",
        "merges.txt": b"#version: 0.2\nt h\nth e\n",
        "README.md": b"---\nlicense: apache-2.0\n---\n# Model\n`import os` and cos\nsystem\n",
        "LICENSE": b"Apache License\n\nVersion 2.0, January 2004\n",
        ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02" * 50,
        "logo.png": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "empty.txt": b"",
        "data.jsonl": b'{"a": 1}\n{"a": 2}\n',
        "weights.tar.gz": gzip.compress(b.tarred({"model/config.json": b"{}", "model/model.safetensors": b.safetensors()})),
    }  # fmt: skip
    for key, template in INNOCENT.items():
        files[f"{key}/tokenizer_config.json"] = json.dumps({"chat_template": template, "bos_token": "<s>"}).encode()
        files[f"{key}/chat_template.jinja"] = template.encode()
    return files
