"""Signals that ask a run to end, after a save where there is something to be saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end, and nothing is left to be saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number  # as a shell reports a process that the signal ended


@dataclass
class StopRequest:
    """Whether a signal has asked the run to end, and whether it must wait for a save."""

    number: int = 0
    after_save: bool = False  # steps are under way: the one being done is saved first


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into `Interrupted`, while training after a save.

    A second SIGINT does not wait.
    """
    request = StopRequest()

    def ask(number: int, _: Any) -> None:
        if not request.after_save or (request.number and number == signal.SIGINT):
            name = signal.Signals(number).name
            raise Interrupted(f"{name}: the same command goes on from what is saved", number)
        request.number = number

    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
