"""Runs a pickle's opcodes on symbols instead of objects, to learn what it imports and calls.

`names` judges what is found; checks/pickle.py reports it. Values are only followed as far as is needed to know names,
calls, storages of torch, and the raw arrays that joblib puts between opcodes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from services.model.scan import limits
from services.model.scan.pickles import names
from services.model.scan.pickles.opcodes import Argument, Broken, Reader, Span
from services.model.scan.words import words

_MAX_KEPT = 64  # items of a tuple or dict that are followed
_MAX_INNER = 20  # pickles in pickles, as joblib makes them
_NUMBERS_FROM = 8  # bytes that are no text, from this length on, are taken for numbers


@dataclass(frozen=True, slots=True)
class Global:
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True)
class Made:
    """What a call of `callee` gave, with the state that BUILD gave it."""

    callee: object
    arguments: object
    state: object = None


class _Sign:
    """A value of which nothing is known, or the mark on the stack."""

    __slots__ = ()


UNKNOWN = _Sign()
MARK = _Sign()

_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = words(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(6))


@dataclass
class Trace:
    """What was seen. `globals` and `calls` keep the position where each was first met, in bytes.

    `end` is where the last whole pickle ended; `pieces` are the file's ranges and replacements that make up the
    pickles without their raw bytes; None ends a pickle.
    """

    globals: dict[Global, int] = field(default_factory=dict)
    calls: dict[Global, int] = field(default_factory=dict)
    oddities: dict[str, int] = field(default_factory=dict)
    foreign_ids: int = 0
    storage_ids: int = 0
    streams: int = 0
    opcodes: int = 0
    first_value: object = UNKNOWN
    end: int = 0
    pieces: list[tuple[int, int] | bytes | None] = field(default_factory=list)
    nested: list[Span | bytes] = field(default_factory=list)

    def odd(self, what: str, position: int) -> None:
        self.oddities.setdefault(what, position)


class Machine:
    """Runs one pickle after the other over `file`; each `run()` goes to the next STOP."""

    def __init__(self, file: BinaryIO, start: int, end: int, trace: Trace) -> None:
        self._reader = Reader(file, start, end)
        self._trace = trace
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._kept_from = start
        self._inner: list[tuple[int, int] | bytes | None] = []
        self._depth = 0
        self._actions: dict[str, Callable[[int, Argument], None]] = {
            name[4:].upper(): getattr(self, name) for name in dir(self) if name.startswith("_op_")
        }

    def run(self) -> None:
        """One pickle, from opcode to STOP. Raises Broken; what was seen until then is in the trace."""
        value = self._run_to_stop()
        if self._trace.streams == 0:
            self._trace.first_value = value
        self._trace.streams += 1
        self._trace.end = self._reader.position
        self._end_piece(self._trace.pieces)

    def _run_to_stop(self) -> object:
        trace, reader, actions = self._trace, self._reader, self._actions
        stack = self._stack = []
        self._memo = {}
        while True:
            position, name, argument = reader.next()
            trace.opcodes += 1
            if trace.opcodes > limits.MAX_PICKLE_OPCODES:
                raise Broken(position, "there are too many opcodes to look at")
            if name in _LITERALS:
                stack.append(self._literal(position, argument))
            elif name in _PUTS:
                self._memo[self._index(argument)] = self._top(position)
            elif name in _GETS:
                stack.append(self._memo.get(self._index(argument), UNKNOWN))
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "STOP":
                return stack[-1] if stack else UNKNOWN
            else:
                actions[name](position, argument)

    def _run_inner(self) -> None:
        """A pickle that stands inside this one, with a stack and a memo of its own. Its pieces come last."""
        stack, memo, pieces, start = self._stack, self._memo, self._trace.pieces, self._reader.position
        self._depth += 1
        if self._depth > _MAX_INNER:
            raise Broken(start, "pickles are nested too deeply")
        pieces.append((self._kept_from, start))
        self._trace.pieces, self._kept_from = [], start
        self._run_to_stop()
        self._end_piece(self._trace.pieces)
        self._inner += self._trace.pieces
        self._trace.pieces = pieces
        self._stack, self._memo = stack, memo
        self._depth -= 1

    @property
    def position(self) -> int:
        return self._reader.position

    def finish(self) -> None:
        """Close the list of pieces."""
        self._trace.pieces += self._inner

    # literals, and what is left out of `pieces`

    def _literal(self, position: int, argument: Argument) -> object:
        if isinstance(argument, Span):
            self._leave_out(position, argument.start + argument.size, b"C\x00")
            if self._file_starts_like_a_pickle(argument):
                self._trace.nested.append(argument)
            return UNKNOWN
        data = argument.encode("latin-1", "ignore") if isinstance(argument, str) else argument
        if isinstance(data, bytes) and len(data) > 4 and data.startswith(_PICKLE_STARTS):
            self._trace.nested.append(data)
        elif isinstance(argument, bytes) and len(argument) >= _NUMBERS_FROM:
            self._leave_out(position, self.position, b"C\x00")
        elif isinstance(argument, str) and len(argument) >= _NUMBERS_FROM and not argument.isascii():
            self._leave_out(position, self.position, b"X\x00\x00\x00\x00")
        return argument

    def _file_starts_like_a_pickle(self, span: Span) -> bool:
        reader = Reader(self._reader._file, span.start, span.start + 2)
        found = reader.peek(2).startswith(_PICKLE_STARTS)
        self._reader.skip(0)
        return found

    def _end_piece(self, pieces: list[tuple[int, int] | bytes | None]) -> None:
        pieces += [(self._kept_from, self._reader.position), None]
        self._kept_from = self._reader.position

    def _leave_out(self, start: int, end: int, instead: bytes) -> None:
        """From what the other scanners get: they take numbers for pickles, and large ones take them minutes."""
        self._trace.pieces += [(self._kept_from, start), instead]
        self._kept_from = end

    # the stack

    @staticmethod
    def _index(argument: Argument) -> int:
        return argument if isinstance(argument, int) else -1

    def _top(self, position: int) -> object:
        if not self._stack:
            raise Broken(position, "the stack is empty")
        return self._stack[-1]

    def _pop(self, position: int) -> object:
        if not self._stack or self._stack[-1] is MARK:
            raise Broken(position, "the stack is empty")
        return self._stack.pop()

    def _pop_to_mark(self, position: int) -> list[object]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is MARK:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise Broken(position, "there is no mark on the stack")

    def _tuple(self, items: list[object]) -> None:
        self._stack.append(tuple(items) if len(items) <= _MAX_KEPT else UNKNOWN)

    # imports and calls

    def _import(self, position: int, module: object, name: object) -> object:
        if not isinstance(module, str) or not isinstance(name, str):
            self._trace.odd("it imports a name that is computed", position)
            return UNKNOWN
        found = Global(module, name)
        self._trace.globals.setdefault(found, position)
        return found

    def _call(self, position: int, callee: object, arguments: object) -> Made:
        if isinstance(callee, Global):
            self._trace.calls.setdefault(callee, position)
        else:
            self._trace.odd("it calls something that is computed", position)
        return Made(callee, arguments)

    def _op_global(self, position: int, argument: Argument) -> None:
        module, _, name = str(argument).partition(" ")
        self._stack.append(self._import(position, module, name))

    def _op_stack_global(self, position: int, argument: Argument) -> None:
        name, module = self._pop(position), self._pop(position)
        self._stack.append(self._import(position, module, name))

    def _op_inst(self, position: int, argument: Argument) -> None:
        module, _, name = str(argument).partition(" ")
        arguments = tuple(self._pop_to_mark(position))
        self._stack.append(self._call(position, self._import(position, module, name), arguments))

    def _op_obj(self, position: int, argument: Argument) -> None:
        items = self._pop_to_mark(position)
        if not items:
            raise Broken(position, "OBJ has no class")
        self._stack.append(self._call(position, items[0], tuple(items[1:])))

    def _op_reduce(self, position: int, argument: Argument) -> None:
        arguments, callee = self._pop(position), self._pop(position)
        self._stack.append(self._call(position, callee, arguments))

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, position: int, argument: Argument) -> None:
        self._pop(position)
        self._op_reduce(position, argument)

    def _op_build(self, position: int, argument: Argument) -> None:
        state, target = self._pop(position), self._top(position)
        if isinstance(target, Global):
            self._trace.odd(f"it changes {target}", position)
        if isinstance(target, Made):
            target.state = state
            if target.callee == Global("joblib.numpy_pickle", "NumpyArrayWrapper"):
                self._raw_array(position, state)

    def _op_ext1(self, position: int, argument: Argument) -> None:
        self._trace.odd("it uses copyreg's extension registry", position)
        self._stack.append(UNKNOWN)

    _op_ext2 = _op_ext4 = _op_ext1

    def _op_persid(self, position: int, argument: Argument) -> None:
        self._trace.foreign_ids += 1
        self._stack.append(UNKNOWN)

    def _op_binpersid(self, position: int, argument: Argument) -> None:
        match self._pop(position):
            case ("storage", Global(module=str(module), name=str(name)), str(), *_) if (
                module.startswith("torch") and names.judge(module, name) == "harmless"
            ):
                self._trace.storage_ids += 1
            case _:
                self._trace.foreign_ids += 1
        self._stack.append(UNKNOWN)

    # arrays that joblib writes between the opcodes

    def _raw_array(self, position: int, state: object) -> None:
        start = self.position
        match state:
            case {"shape": tuple(shape), "dtype": dtype, **others} if all(isinstance(size, int) for size in shape):
                items = 1
                for size in shape:
                    items *= size if isinstance(size, int) else 0
            case _:
                raise Broken(position, "an array of joblib has no readable shape")
        width = _item_size(dtype)
        if width == 0:
            self._run_inner()  # an array of objects is a pickle of its own
            return
        if width is None:
            raise Broken(position, "an array of joblib has no readable type")
        if isinstance(others.get("numpy_array_alignment_bytes"), int):
            padding = self._reader.peek(1)
            self._reader.skip(1 + (padding[0] if padding else 0))
        self._reader.skip(items * width)
        self._leave_out(start, self.position, b"")

    # containers and the rest

    def _op_mark(self, position: int, argument: Argument) -> None:
        self._stack.append(MARK)

    def _op_pop(self, position: int, argument: Argument) -> None:
        self._top(position)
        self._stack.pop()

    def _op_pop_mark(self, position: int, argument: Argument) -> None:
        self._pop_to_mark(position)

    def _op_dup(self, position: int, argument: Argument) -> None:
        self._stack.append(self._top(position))

    def _op_memoize(self, position: int, argument: Argument) -> None:
        self._memo[len(self._memo)] = self._top(position)

    def _op_empty_tuple(self, position: int, argument: Argument) -> None:
        self._stack.append(())

    def _op_tuple(self, position: int, argument: Argument) -> None:
        self._tuple(self._pop_to_mark(position))

    def _op_tuple1(self, position: int, argument: Argument) -> None:
        self._tuple([self._pop(position)])

    def _op_tuple2(self, position: int, argument: Argument) -> None:
        second, first = self._pop(position), self._pop(position)
        self._tuple([first, second])

    def _op_tuple3(self, position: int, argument: Argument) -> None:
        third, second, first = self._pop(position), self._pop(position), self._pop(position)
        self._tuple([first, second, third])

    def _op_empty_dict(self, position: int, argument: Argument) -> None:
        self._stack.append({})

    def _op_dict(self, position: int, argument: Argument) -> None:
        items = self._pop_to_mark(position)
        self._stack.append({})
        self._set(items)

    def _op_setitem(self, position: int, argument: Argument) -> None:
        value, key = self._pop(position), self._pop(position)
        self._top(position)
        self._set([key, value])

    def _op_setitems(self, position: int, argument: Argument) -> None:
        items = self._pop_to_mark(position)
        self._top(position)
        self._set(items)

    def _set(self, items: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=False):
                if isinstance(key, str) and len(target) < _MAX_KEPT:
                    target[key] = value

    def _op_empty_list(self, position: int, argument: Argument) -> None:
        self._stack.append(UNKNOWN)

    _op_empty_set = _op_empty_list
    _op_next_buffer = _op_empty_list

    def _op_append(self, position: int, argument: Argument) -> None:
        self._pop(position)
        self._top(position)

    def _op_appends(self, position: int, argument: Argument) -> None:
        self._pop_to_mark(position)
        self._top(position)

    _op_additems = _op_appends

    def _op_list(self, position: int, argument: Argument) -> None:
        self._pop_to_mark(position)
        self._stack.append(UNKNOWN)

    _op_frozenset = _op_list

    def _op_readonly_buffer(self, position: int, argument: Argument) -> None:
        self._top(position)

    def _op_proto(self, position: int, argument: Argument) -> None:
        if not isinstance(argument, int) or argument > 5:
            raise Broken(position, "the protocol is not known")

    def _op_frame(self, position: int, argument: Argument) -> None:
        self._leave_out(position, self.position, b"")


def _item_size(dtype: object) -> int | None:
    """Bytes per item of a pickled numpy dtype; 0 for objects, None if it cannot be told."""
    if not isinstance(dtype, Made) or dtype.callee != Global("numpy", "dtype"):
        return None
    match dtype.arguments:
        case (str(code), *_):
            kind, digits = code.lstrip("<>|=")[:1], code.lstrip("<>|=")[1:]
        case _:
            return None
    if kind == "O":
        return 0
    if not digits.isdigit() or kind not in "biufcSUVmM":
        return {"?": 1, "b": 1}.get(kind)
    return int(digits) * (4 if kind == "U" else 1)


def looks_like_pickle(file: BinaryIO, size: int) -> bool:
    """True if the bytes from the start run as a pickle far enough to matter: to its end, or to a call.

    Text may begin like one by chance, so what is imported must have the form of a name.
    """
    trace = Trace()
    whole = True
    try:
        Machine(file, 0, size, trace).run()
    except Broken:
        whole = False
    if not all(_is_path(found.module) and _is_path(found.name) for found in trace.globals):
        return False
    if whole:
        return trace.opcodes > 2 or trace.first_value is not UNKNOWN
    return bool(trace.calls or trace.oddities or trace.nested)


def _is_path(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))
