"""SIGTERM and SIGINT: a run stops after the step under way is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run, and everything is saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number  # the shell's exit code of a process ended by a signal


@dataclass
class StopRequest:
    """A signal that was received, and whether the run first finishes and saves its step."""

    number: int = 0  # of the signal; 0: none was received
    after_save: bool = False  # True while steps run: the current one is saved first

    def interrupted(self, state: str) -> Interrupted:
        """What a loop raises when this host, or another one, was asked to stop."""
        number = self.number or signal.SIGTERM  # 0: another host received it
        return Interrupted(f"{signal.Signals(number).name}{state}", number)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handles SIGTERM and SIGINT while the context is open.

    Outside of training they raise `Interrupted` at once. During training they set the request,
    and the loop raises `Interrupted` after its save; a second SIGINT raises at once.
    """
    request = StopRequest()

    def ask(number: int, _: Any) -> None:
        if not request.after_save or (request.number and number == signal.SIGINT):
            name = signal.Signals(number).name
            raise Interrupted(f"{name}: the same command goes on from the last checkpoint", number)
        request.number = number

    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
