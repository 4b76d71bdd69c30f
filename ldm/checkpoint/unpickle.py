"""Reads the pickle inside a torch file without running any of it.

A pickle is a program for a stack machine whose instructions may import and call anything. This machine has no such
instruction: what a file names stays a name (`Global`), what it would call becomes a `Stub`, except for the few
functions that rebuild tensors, which `ldm.checkpoint.inert` stands in for. Keys of dicts are text, sets are kept as
lists: nothing that a file chose is ever hashed, compared or copied without being counted.

Instructions: https://docs.python.org/3/library/pickletools.html, protocols 2 to 5, less those torch.save never writes.
"""

import struct
from collections.abc import Callable, Sized
from typing import Any

from ldm.checkpoint.inert import CALLS, STORAGES, Broken, Global, Storage, Stub, View

MAX_STEPS = 1_000_000  # instructions and copied elements; about forty describe a tensor
MAX_PICKLE = 32 * 2**20  # bytes
MAX_NAME = 256  # letters of a class or function
STOP = 0x2E


def unpickle(data: bytes) -> tuple[Any, list[str]]:
    """The value in a pickle, and the names in it that are not among those a file of tensors needs, in their order.

    Values are None, bool, int, float, str, bytes, list, tuple, dict, `Global`, `Stub`, `Storage` and `View`. Raises
    Broken for what torch.save does not write, and for what takes more than `MAX_STEPS`.
    """
    if len(data) > MAX_PICKLE:
        raise Broken(f"its pickle has {len(data):,} bytes, more than {MAX_PICKLE:,}")
    machine = _Machine(data)
    try:
        value = machine.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, TypeError, ValueError) as error:
        raise Broken(f"byte {machine.at:,} of its pickle makes no sense ({type(error).__name__})") from None
    return value, [name for name in machine.globals if name not in STORAGES and name not in CALLS]


class _Machine:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.steps = data, 0, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.globals: dict[str, Global] = {}

    def run(self) -> Any:
        while (code := self.data[self.at]) != STOP:
            self.at += 1
            self.spend(1)
            if code not in INSTRUCTIONS:
                raise Broken(f"byte {self.at - 1:,} of its pickle is an instruction that torch.save does not write")
            INSTRUCTIONS[code](self)
        if len(self.stack) != 1 or self.below or self.at + 1 != len(self.data):
            raise Broken("its pickle does not end where it should")
        return self.stack[0]

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise Broken(f"its pickle takes more than {MAX_STEPS:,} steps to read")

    def read(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise Broken(f"its pickle claims {count:,} bytes where {len(self.data) - self.at:,} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.read(struct.calcsize(kind)))[0]

    def text(self, kind: str) -> str:
        return self.read(self.number(kind)).decode()

    def long(self, kind: str) -> int:
        length = self.number(kind)
        if not 0 <= length <= MAX_NAME:
            raise Broken(f"its pickle holds a number of {length:,} bytes")
        return int.from_bytes(self.read(length), "little", signed=True)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + MAX_NAME)
        if end < 0:
            raise Broken("its pickle holds an endless name")
        return self.read(end + 1 - self.at)[:-1].decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise Broken("its pickle takes from an empty stack")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
            raise Broken("its pickle names a function by what is no name")
        full = f"{module}.{name}"
        self.push(self.globals.setdefault(full, Global(full)))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1].items if isinstance(self.stack[-1], Stub) else self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise Broken("its pickle sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                target[key] = value

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Stub):
            raise Broken("its pickle appends to what is no list")

    def persistent(self) -> None:
        match self.stack.pop():
            case ("storage", Global(name), str(key), str(), int(numel)) if name in STORAGES and numel >= 0:
                self.push(Storage(key, STORAGES[name], numel))
            case _:
                raise Broken("its pickle refers to storage of an unknown kind")

    def call(self) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Broken("its pickle calls what is no function")
        if known := CALLS.get(function.name):
            self.spend(sum(len(each) for each in arguments if isinstance(each, Sized)))
            self.push(known(*arguments))
        else:
            self.push(Stub(function.name))

    def create(self, arguments: int) -> None:
        kind = self.pop(arguments + 1)[0]
        if not isinstance(kind, Global):
            raise Broken("its pickle makes an object of what is no class")
        self.push(Stub(kind.name))

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stub):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], (dict, View)):  # attributes of those, such as versions, are left out
            raise Broken("its pickle changes what is no object")


Instruction = Callable[[_Machine], Any]
INSTRUCTIONS: dict[int, Instruction] = {
    0x80: lambda m: m.read(1),  # PROTO
    0x95: lambda m: m.read(8),  # FRAME
    0x28: _Machine.mark,
    0x30: lambda m: m.stack.pop(),  # POP
    0x31: lambda m: m.since_mark(),  # POP_MARK
    0x32: lambda m: m.push(m.stack[-1]),  # DUP
    0x4E: lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    0x4B: lambda m: m.push(m.number("<B")),  # BININT1, BININT2, BININT
    0x4D: lambda m: m.push(m.number("<H")),
    0x4A: lambda m: m.push(m.number("<i")),
    0x8A: lambda m: m.push(m.long("<B")),  # LONG1, LONG4
    0x8B: lambda m: m.push(m.long("<i")),
    0x47: lambda m: m.push(m.number(">d")),  # BINFLOAT
    0x8C: lambda m: m.push(m.text("<B")),  # SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
    0x58: lambda m: m.push(m.text("<I")),
    0x8D: lambda m: m.push(m.text("<Q")),
    0x43: lambda m: m.push(m.read(m.number("<B"))),  # SHORT_BINBYTES, BINBYTES, BINBYTES8
    0x42: lambda m: m.push(m.read(m.number("<I"))),
    0x8E: lambda m: m.push(m.read(m.number("<Q"))),
    0x29: lambda m: m.push(()),
    0x85: lambda m: m.push(tuple(m.pop(1))),
    0x86: lambda m: m.push(tuple(m.pop(2))),
    0x87: lambda m: m.push(tuple(m.pop(3))),
    0x74: lambda m: m.push(tuple(m.since_mark())),
    0x5D: lambda m: m.push([]),
    0x8F: lambda m: m.push([]),  # EMPTY_SET
    0x91: lambda m: m.push(tuple(m.since_mark())),  # FROZENSET
    0x7D: lambda m: m.push({}),
    0x61: lambda m: m.append(m.pop(1)),
    0x65: lambda m: m.append(m.since_mark()),
    0x90: lambda m: m.append(m.since_mark()),  # ADDITEMS
    0x73: lambda m: m.set_items(m.pop(2)),
    0x75: lambda m: m.set_items(m.since_mark()),
    0x71: lambda m: m.remember(m.number("<B")),  # BINPUT, LONG_BINPUT, MEMOIZE
    0x72: lambda m: m.remember(m.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    0x68: lambda m: m.push(m.memo[m.number("<B")]),  # BINGET, LONG_BINGET
    0x6A: lambda m: m.push(m.memo[m.number("<I")]),
    0x63: lambda m: m.name(m.line(), m.line()),  # GLOBAL
    0x93: lambda m: m.name(*m.pop(2)),  # STACK_GLOBAL
    0x51: _Machine.persistent,
    0x52: _Machine.call,
    0x81: lambda m: m.create(1),  # NEWOBJ, NEWOBJ_EX
    0x92: lambda m: m.create(2),
    0x62: _Machine.build,
}
