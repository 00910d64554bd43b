"""The protocol between the process of a tested program and the process of its tests.

Messages are JSON of exact built-in types, so that an object with a manipulated `__eq__`
cannot reach an assert. Other objects stay in the program's process; the tests get a handle
that equals only itself.
"""

import builtins
import collections
import importlib
import json
import os
from collections.abc import Callable
from typing import Any

LONGEST_MESSAGE = 1 << 24  # bytes
CONTAINERS = {"l": list, "t": tuple, "s": set, "z": frozenset, "q": collections.deque}
NUMBERS = ("Fraction", "Decimal")  # imported on demand, as their modules load slowly


class Gone(Exception):
    """The program's process has ended, or has violated the protocol."""


class Attempt:
    """A context manager that stores an exception, SystemExit included, as `error`.

    The exception is the result of untrusted code or of a test. Only `Gone` is raised further.
    """

    error: BaseException | None = None

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        return not isinstance(error, Gone)


class Channel:
    """JSON lines on two pipes."""

    def __init__(self, source: int, sink: int):
        """Args: source: descriptor to read from; sink: descriptor to write to."""
        self._source, self._sink, self._rest = source, sink, b""

    def send(self, message: object) -> None:
        """Writes one message."""
        data = json.dumps(message).encode("ascii") + b"\n"
        try:
            while data:
                data = data[os.write(self._sink, data) :]
        except OSError as error:
            raise Gone(str(error)) from error

    def receive(self) -> Any:
        """Waits for a message."""
        parts = [self._rest]
        size = len(self._rest)
        while b"\n" not in parts[-1]:
            data = os.read(self._source, 1 << 16)
            size += len(data)
            if not data or size > LONGEST_MESSAGE:
                raise Gone("it ended" if not data else "it returned too much")
            parts.append(data)
        line, self._rest = b"".join(parts).split(b"\n", 1)
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Gone("it broke the protocol") from error


def pack(value: Any, handle: Callable) -> Any:
    """Converts a value to JSON; `handle(value)` packs what is not plain data."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -(1 << 62) < number < 1 << 62 else ["i", hex(number)]
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, (bytes, bytearray)):
        return ["b", bytes(value).hex()]
    if isinstance(value, dict):
        return ["d", [[pack(k, handle), pack(v, handle)] for k, v in value.items()]]
    if type(value).__name__ in NUMBERS:
        return [type(value).__name__, str(value)]
    if isinstance(value, range):
        return ["r", pack([value.start, value.stop, value.step], handle)]
    for tag, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return [tag, [pack(item, handle) for item in value]]
    return handle(value)


def unpack(message: Any, handle: Callable) -> Any:
    """Converts JSON to a value; `handle(number)` returns what is not plain data.

    Raises:
      Gone: the message is no packed value.
    """
    if not isinstance(message, list):
        if isinstance(message, dict):
            raise Gone("it broke the protocol")
        return message
    try:
        tag, content = message[0], message[1]
        if tag in CONTAINERS:
            return CONTAINERS[tag](unpack(item, handle) for item in content)
        if tag == "d":
            return {unpack(k, handle): unpack(v, handle) for k, v in content}
        simple = {
            "i": lambda: int(content, 16),
            "c": lambda: complex(content, message[2]),
            "b": lambda: bytes.fromhex(content),
            "r": lambda: range(*unpack(content, handle)),
            "Fraction": lambda: importlib.import_module("fractions").Fraction(content),
            "Decimal": lambda: importlib.import_module("decimal").Decimal(content),
            "h": lambda: handle(int(content)),
        }
        return simple[tag]()
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise Gone("it broke the protocol") from error


class Handle:
    """A proxy in the tests' process for an object in the program's process."""

    def __init__(self, session: "Session", number: int | str):
        """Args: number: the object's number, or the name of a global of the program."""
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args, **kwargs):
        return self._session.ask(["call", self._number], args, kwargs)

    def __getattr__(self, name):
        return self._session.ask(["get", self._number, name])

    def __setattr__(self, name, value):
        self._session.ask(["set", self._number, name], (value,))

    def __iter__(self):
        return iter(self._session.ask(["list", self._number]))

    def __getitem__(self, key):
        return self._session.ask(["item", self._number], (key,))

    def __len__(self):
        return self._session.ask(["len", self._number])

    def __str__(self):
        return self._session.ask(["str", self._number])

    def __eq__(self, other):
        return isinstance(other, Handle) and self._number == other._number

    def __hash__(self):
        return hash(self._number)


class Session:
    """The tests' end of the protocol: sends one request at a time to the program."""

    def __init__(self, channel: Channel):
        """Args: channel: the pipes to the program's process."""
        self._channel = channel

    def _pack(self, value: object):
        return pack(value, self._pack_handle)

    def _pack_handle(self, value: object):
        if isinstance(value, Handle):
            return ["h", value._number]
        raise TypeError(f"a test passes a {type(value).__name__}, which cannot reach the program")

    def ask(self, question: list, args: tuple = (), kwargs: dict | None = None):
        """Sends a request; returns its result, or raises the exception that the program raised.

        An exception that is not built in becomes a RuntimeError.
        """
        named = {name: self._pack(value) for name, value in (kwargs or {}).items()}
        self._channel.send([question, [self._pack(value) for value in args], named])
        return self.answer()

    def answer(self):
        """Reads one reply; see `ask`."""
        message = self._channel.receive()
        if not isinstance(message, list) or len(message) != 3:
            raise Gone("it broke the protocol")
        name, text, value = message
        if not name:
            return unpack(value, lambda number: Handle(self, number))
        kind = getattr(builtins, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind, text = RuntimeError, f"{name}: {text}"
        raise kind(str(text)[:300])
