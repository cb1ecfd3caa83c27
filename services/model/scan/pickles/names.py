"""What a pickle may import: known to be harmless, known to be dangerous, or for a person to review."""

import re
from collections.abc import Set
from typing import Literal

from services.model.scan.words import words

Verdict = Literal["harmless", "review", "dangerous"]

# A class of these packages is built from plain data; their functions are not included.
_CLASSES_OF = ("sklearn.", "torch.nn.modules.", "torch.nn.parameter", "scipy.sparse")


_CLASS_NAME = re.compile(
    r"_?[A-Z][A-Za-z0-9_]*|__pyx_unpickle_[A-Za-z0-9_]+|(csr|csc|coo|bsr|dia|dok|lil)_(matrix|array)"
)

_STORAGES = frozenset(
    f"{kind}Storage"
    for kind in words(
        "Long Float Half Double BFloat16 Bool Char Short Int Byte ComplexFloat ComplexDouble QInt8 QUInt8 QInt32 "
        "QUInt4x2 QUInt2x4 Untyped Typed"
    )
)
_DTYPES = words(
    "float16 float32 float64 bfloat16 half float double int8 int16 int32 int64 uint8 uint16 uint32 uint64 short int long "
    "bool complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz qint8 quint8 qint32 cfloat"
)
_SCALARS = words(
    "ndarray dtype generic number bool_ bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 intc uintc longlong "
    "ulonglong float16 float32 float64 longdouble complex64 complex128 clongdouble str_ bytes_ void datetime64 "
    "timedelta64 matrix recarray record"
)
_PLAIN = words(
    "set frozenset list dict tuple int float bool str bytes bytearray complex slice range object long unicode "
    "xrange NoneType"
)
_REBUILD = words(
    "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state "
    "_rebuild_qtensor _rebuild_sparse_tensor _rebuild_meta_tensor_no_storage _rebuild_nested_tensor "
    "_rebuild_sparse_csr_tensor _rebuild_wrapper_subclass"
)
_HARMLESS: dict[str, Set[str]] = {
    "builtins": _PLAIN,
    "__builtin__": _PLAIN,
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter"},
    "copyreg": {"_reconstructor", "__newobj__"},
    "copy_reg": {"_reconstructor", "__newobj__"},
    "_codecs": {"encode"},
    "datetime": {"datetime", "date", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "numpy": _SCALARS,
    "numpy.dtypes": {f"{name}DType" for name in ("Float16", "Float32", "Float64", "Int8", "Int16", "Int32", "Int64")},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.ma.core": {"_mareconstruct", "MaskedArray"},
    "numpy.random": {"RandomState", "Generator", "PCG64", "MT19937"},
    "numpy.random._pickle": {"__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor"},
    "numpy.random.mtrand": {"RandomState"},
    "numpy.random._mt19937": {"MT19937", "__pyx_unpickle_MT19937"},
    "numpy.random.bit_generator": {"SeedSequence", "__pyx_unpickle_SeedSequence"},
    "numpy.random._pcg64": {"PCG64"},
    "joblib.numpy_pickle": {"NumpyArrayWrapper"},
    "torch": _STORAGES | _DTYPES | {"Size", "device", "Tensor", "dtype"},
    "torch.cuda": _STORAGES,
    "torch.storage": {"UntypedStorage", "TypedStorage", "_TypedStorage", "_UntypedStorage"},
    "torch._utils": _REBUILD,
    "torch._tensor": {"_rebuild_from_type_v2"},
    "torch.serialization": {"_get_layout"},
    "torch.jit._pickle": {
        f"build_{name}" for name in ("intlist", "tensorlist", "doublelist", "boollist", "tensor_from_id")
    }
    | {"restore_type_tag"},
}

# Everything in these modules, and below them, runs code, starts processes, opens files or talks to the network.
_DANGEROUS_MODULES = words(
    "os posix nt posixpath.os subprocess _posixsubprocess sys pty tty commands popen2 platform runpy importlib imp "
    "_imp _frozen_importlib _frozen_importlib_external zipimport pkgutil ctypes _ctypes cffi socket _socket socketserver "
    "ssl _ssl shutil webbrowser antigravity code codeop pdb bdb trace timeit cProfile profile _lsprof pip ensurepip "
    "pydoc pickle _pickle cPickle dill cloudpickle marshal shelve multiprocessing threading _thread concurrent asyncio "
    "signal requests urllib urllib2 urllib3 http httplib httpx aiohttp ftplib smtplib telnetlib imaplib poplib nntplib "
    "xmlrpc io _io tempfile _tempfile glob fileinput linecache sqlite3 _sqlite3 inspect gc ast dis atexit faulthandler "
    "resource fcntl mmap distutils setuptools pkg_resources site sitecustomize venv idlelib lib2to3 doctest unittest "
    "test turtledemo tkinter _osx_support _aix_support _pyrepl readline rlcompleter cmd sched queue winreg _winreg "
    "_winapi msvcrt winsound paramiko fabric pexpect ptyprocess sh plumbum git IPython jupyter_client numpy.testing "
    "numpy.f2py numpy.distutils numpy.ctypeslib numpy.lib.npyio numpy.memmap torch.hub torch.package torch.distributed "
    "torch.multiprocessing torch.utils.cpp_extension torch.utils.collect_env torch.utils.bottleneck torch._inductor "
    "torch._dynamo torch.fx.experimental torch.utils._config_module torch.utils.data.datapipes torch.utils.model_zoo "
    "torch.jit.unsupported_tensor_ops torch.ops torch.classes torch.onnx pandas.io.pickle pandas.core.computation "
    "joblib._memmapping_reducer joblib.memory joblib.externals yaml jinja2 mako werkzeug flask keras.src.saving"
)
_DANGEROUS_NAMES: dict[str, frozenset[str]] = {
    module: words(names)
    for module, names in {
        "builtins": "eval exec execfile compile __import__ open getattr setattr delattr apply breakpoint input "
        "globals locals vars type super memoryview map filter reduce exit quit help print file raw_input reload "
        "classmethod staticmethod property dir hasattr callable",
        "operator": "attrgetter itemgetter methodcaller call",
        "functools": "partial partialmethod reduce",
        "types": "CodeType FunctionType LambdaType MethodType ModuleType BuiltinFunctionType",
        "logging": "FileHandler",
        "logging.config": "fileConfig dictConfig listen",
        "codecs": "open",
        "_codecs": "lookup register",
        "uuid": "_get_command_stdout",
        "torch": "load save compile hub jit classes ops",
        "torch.serialization": "load save",
        "torch.storage": "_load_from_bytes",
        "torch.jit": "load save script",
        "torch.jit._serialization": "load",
        "numpy": "load fromfile memmap save savez genfromtxt loadtxt fromregex",
        "joblib": "load dump Parallel",
        "joblib.numpy_pickle": "load load_temporary_memmap",
        "pandas": "read_pickle eval",
        "_dummy_thread": "start_new_thread",
    }.items()
}
_ALIASES = {"__builtin__": "builtins", "__builtins__": "builtins", "_operator": "operator", "_functools": "functools"}


def judge(module: str, name: str) -> Verdict:
    """Of the global `module.name`, as it stands in the pickle. Names with dots walk through attributes."""
    module = _ALIASES.get(module, module)
    parts = name.split(".")
    if any(_within_dangerous(".".join([module, *parts[:count]])) for count in range(len(parts) + 1)):
        return "dangerous"
    first = _DANGEROUS_NAMES.get(module, frozenset())
    if parts[0] in first or any(_dunder(part) and part not in _HARMLESS.get(module, ()) for part in parts):
        return "dangerous"
    if len(parts) > 1:
        return "dangerous" if _DANGEROUS_MODULES & set(parts) or "system" in parts else "review"
    return "harmless" if _harmless(module, name) else "review"


def _harmless(module: str, name: str) -> bool:
    if name in _HARMLESS.get(module, ()):
        return True
    if module == "__torch__" or module.startswith("__torch__."):
        return True  # a TorchScript class: its code is looked at on its own
    return module.startswith(_CLASSES_OF) and _CLASS_NAME.fullmatch(name) is not None


def _within_dangerous(path: str) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:count]) in _DANGEROUS_MODULES for count in range(1, len(parts) + 1))


def _dunder(part: str) -> bool:
    return part.startswith("__") and part.endswith("__")
