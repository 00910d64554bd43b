"""Says which host is late and in which phase, and ends all hosts when one is gone.

Every host tells the first one each second where it is in the program. All run the same
phases in the same order, so a host is late when it is phases behind another. Whoever
ends, tells why; a connection that closes without a word is a process that was killed.
All of it happens in threads beside the program and over sockets of its own: it needs no
disk, no collective and no device, and takes part in no decision of the program.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from score_jax.distributed import processes

BEAT_SECONDS = 1.0
LATE_SECONDS = 10.0  # behind another host before it is said; then after twice as long
SILENT_SECONDS = 40.0  # without a beat a host counts as gone
GRACE_SECONDS = 5.0  # between the news that a host is gone and the end of this one
CONNECT_SECONDS = 5.0


class HostLost(RuntimeError):
    """Another host has ended; the message says which, where and why."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclass
class Host:
    """What is known of one host."""

    connection: socket.socket | None = None
    serial: int = 0  # phases begun: comparable, as all hosts begin the same ones
    phase: str = "start"
    last_heard: float = field(default_factory=time.monotonic)
    behind_since: float | None = None  # since when another host is ahead
    reported_seconds: float = 0.0  # seconds of lateness that were said
    finished: bool = False  # said goodbye
    closed: bool = False  # closed its connection


class Watchdog:
    """The connections of one host: of the first to all others, of any other to the first."""

    def __init__(self, near: str = ""):
        """Connects the hosts; all must come here together.

        Args:
          near: a name under which the first host may be found, tried before its own.
        """
        self.number, self.count = processes.process_index(), processes.process_count()
        self.hosts = {n: Host() for n in (range(self.count) if not self.number else (0,))}
        self.phase, self.serial = "start", 0
        self.lost: HostLost | None = None
        self.lost_event = threading.Event()
        self.closing = threading.Event()
        self.phase_changed = threading.Event()
        self.lock = threading.Lock()
        if self.count > 1:
            self.connect(near)
            threading.Thread(target=self.monitor, name="watchdog", daemon=True).start()

    def enter_phase(self, phase: str) -> None:
        """Says which phase this host begins."""
        self.phase, self.serial = phase, self.serial + 1
        self.phase_changed.set()

    def late_hosts(self, now: float) -> Iterator[str]:
        """What is to be said of hosts that are behind, each in one line."""
        ahead = max(host.serial for host in self.hosts.values())
        for number, host in self.hosts.items():
            if host.serial == ahead or host.finished:
                if host.reported_seconds:
                    yield f"host {number} of {self.count} has caught up"
                host.behind_since, host.reported_seconds = None, 0.0
                continue
            host.behind_since = host.behind_since or now
            seconds = now - host.behind_since
            if seconds >= max(LATE_SECONDS, 2 * host.reported_seconds):
                host.reported_seconds = seconds
                yield (
                    f"host {number} of {self.count} is late: for {seconds:.0f} s others have been "
                    f"ahead of it; it is in phase {host.phase}"
                )

    def connect(self, near: str) -> None:
        """Opens a connection between the first host and every other."""
        if self.number == 0:
            server = socket.create_server(("", 0), backlog=self.count)
            port, token = server.getsockname()[1], secrets.token_hex(16)
            for number in set(self.hosts) - {0}:
                self.hosts[number].finished = True  # not to be watched before it has come
            processes.broadcast_from_first(([near, *own_addresses()], port, token))
            reader = threading.Thread(target=self.accept, args=(server, token), daemon=True)
            reader.start()
            return
        names, port, token = processes.broadcast_from_first(None)
        for name in filter(None, names):
            with suppress(OSError):
                connection = socket.create_connection((name, port), timeout=CONNECT_SECONDS)
                connection.sendall(line({"token": token, "host": self.number}))
                if connection.recv(1) == b"\n":  # this was the first host and no stranger
                    connection.settimeout(None)
                    self.hosts[0].connection = connection
                    self.listen(0, connection)
                    return
        print(
            f"{processes.log_prefix()}no connection to the watchdog of host 0 at {names}, port "
            f"{port}: late hosts will not be reported",
            file=sys.stderr,
        )

    def accept(self, server: socket.socket, token: str) -> None:
        """Takes the connections of all other hosts, then no more."""
        missing = set(self.hosts) - {0}
        with server:
            while missing and not self.closing.is_set():
                connection, _ = server.accept()
                connection.settimeout(CONNECT_SECONDS)
                try:
                    hello = json.loads(connection.makefile("rb").readline(200))
                    number = hello["host"]
                    if hello["token"] != token or number not in missing:
                        raise ValueError("a stranger")
                    connection.sendall(b"\n")
                except (OSError, ValueError, KeyError, TypeError):
                    connection.close()
                    continue
                connection.settimeout(None)
                missing.remove(number)
                self.hosts[number].connection = connection
                self.listen(number, connection)

    def listen(self, number: int, connection: socket.socket) -> None:
        """Starts reading what another host says."""
        self.hosts[number].last_heard, self.hosts[number].finished = time.monotonic(), False
        reader = threading.Thread(target=self.read, args=(number, connection), daemon=True)
        reader.start()

    def read(self, number: int, connection: socket.socket) -> None:
        """Takes in one host's lines until it is gone."""
        host = self.hosts[number]
        with suppress(OSError, ValueError), connection.makefile("rb") as lines:
            for text in lines:
                message = json.loads(text)
                host.last_heard = time.monotonic()
                host.finished |= "bye" in message
                if "phase" in message:
                    host.serial, host.phase = message["serial"], message["phase"]
                if "lost" in message:
                    self.report_lost(message["lost"], message["code"])
        host.closed = True
        if not host.finished and not self.closing.is_set():
            self.report_lost(
                f"host {number} of {self.count} has ended without a word, {self.last_seen(host)}", 1
            )

    def last_seen(self, host: Host) -> str:
        """Where a host was last seen."""
        return (
            f"last seen in phase {host.phase}: the same command on all hosts goes on from what "
            "is saved"
        )

    def report_lost(self, message: str, code: int) -> None:
        """Takes note that a host is gone, tells the others, and ends this one soon."""
        with self.lock:
            if self.lost is not None or self.closing.is_set():
                return
            self.lost = HostLost(message, code)
        self.send({"lost": message, "code": code})
        self.lost_event.set()
        threading.Thread(target=self.exit_after_grace, daemon=True).start()

    def exit_after_grace(self) -> None:
        """Ends a process that waits for a host that won't come."""
        if self.closing.wait(GRACE_SECONDS) or self.lost is None:
            return  # the program has noticed by itself
        print(f"{processes.log_prefix()}error: {self.lost}", file=sys.stderr, flush=True)
        self.wait_for_others_to_close()
        os._exit(self.lost.code)

    def wait_for_others_to_close(self) -> None:
        """Has the first host end last: JAX's service is in it, and aborts whom it leaves."""
        end = time.monotonic() + GRACE_SECONDS + 1
        others = [host for host in self.hosts.values() if host.connection and self.number == 0]
        while time.monotonic() < end and not all(host.closed for host in others):
            time.sleep(0.05)

    def send(self, message: dict) -> None:
        """Sends a line to all that this host is connected to."""
        for host in self.hosts.values():
            if host.connection is not None:
                with suppress(OSError), self.lock:
                    host.connection.sendall(line(message))

    def monitor(self) -> None:
        """Beats, and looks for hosts that are late or silent."""
        while not self.closing.is_set():
            self.phase_changed.wait(BEAT_SECONDS)
            self.phase_changed.clear()
            self.send({"phase": self.phase, "serial": self.serial})
            now = time.monotonic()
            if self.number == 0:
                own = self.hosts[0]
                own.serial, own.phase, own.last_heard = self.serial, self.phase, now
                for text in self.late_hosts(now):
                    print(text, file=sys.stderr, flush=True)
            for number, host in self.hosts.items():
                if host.connection and not host.finished and now - host.last_heard > SILENT_SECONDS:
                    self.report_lost(
                        f"host {number} of {self.count} has given no sign of life for "
                        f"{SILENT_SECONDS:.0f} s, {self.last_seen(host)}",
                        1,
                    )

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _) -> None:
        """Takes leave of the others; an error that a lost host has caused is told as its loss.

        Raises:
          HostLost: instead of an error that followed from it.
        """
        if self.count == 1:
            return
        if isinstance(error, RuntimeError | OSError):
            self.lost_event.wait(
                GRACE_SECONDS / 2
            )  # broken links are noticed sooner than their cause
        lost = self.lost if isinstance(error, RuntimeError | OSError) else None
        self.closing.set()
        if error is None:
            self.send({"bye": True})
        elif lost is None:
            reason = " ".join(str(error).split())[:1000] or type(error).__name__
            message = f"host {self.number} of {self.count} has stopped: {reason}"
            code = 2 if isinstance(error, ValueError) else 1
            if isinstance(error, KeyboardInterrupt):
                code = getattr(error, "code", 130)
            self.send({"lost": message, "code": code})
        if error is not None:
            self.wait_for_others_to_close()
        if lost is not None:
            raise lost from error


def line(message: dict) -> bytes:
    """A message as one line."""
    return json.dumps(message).encode() + b"\n"


def own_addresses() -> list[str]:
    """Names under which others may reach this machine, the likeliest first."""
    found = []
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))  # sends nothing; it picks the way out
        found.append(probe.getsockname()[0])
    return [*found, socket.gethostname(), "127.0.0.1"]
