"""Reports hosts that are late, and ends all hosts when one of them is lost.

Every host sends its current phase to the first host once a second. All hosts run the same
phases in the same order, so a host is late when it is phases behind another one. A host that
ends sends the reason first; a connection that closes without a message means that the process
was killed. The watchdog runs in its own threads and uses its own sockets: it needs no disk, no
collective and no device, and never changes what the program computes.
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
LATE_SECONDS = 10.0  # behind another host before the first report; the interval then doubles
SILENT_SECONDS = 40.0  # without a message; after that a host counts as lost
GRACE_SECONDS = 5.0  # from learning that a host is lost to the exit of this process
CONNECT_SECONDS = 5.0


class HostLost(RuntimeError):
    """Another host has ended; the message gives its number, its phase and the reason."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclass
class Host:
    """State of one host."""

    connection: socket.socket | None = None
    serial: int = 0  # phases begun; comparable between hosts, which all begin the same phases
    phase: str = "start"
    last_heard: float = field(default_factory=time.monotonic)
    behind_since: float | None = None  # time since which another host is ahead; None: it is level
    reported_seconds: float = 0.0  # lateness in the last report, in seconds
    finished: bool = False  # ended regularly
    closed: bool = False  # its connection is closed


class Watchdog:
    """The connections of one host: of the first to all others, of any other to the first."""

    def __init__(self, near: str = ""):
        """Connects the hosts; all hosts must construct it at the same point.

        Args:
          near: an address of the first host, tried before those that it reports itself.
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
        """Records the phase that this host begins, and sends it."""
        self.phase, self.serial = phase, self.serial + 1
        self.phase_changed.set()

    def late_hosts(self, now: float) -> Iterator[str]:
        """Yields one line for each host whose lateness is to be reported.

        Args:
          now: time.monotonic() in seconds.
        """
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
                self.hosts[number].finished = True  # not watched before it has connected
            processes.broadcast_from_first(([near, *own_addresses()], port, token))
            reader = threading.Thread(target=self.accept, args=(server, token), daemon=True)
            reader.start()
            return
        names, port, token = processes.broadcast_from_first(None)
        for name in filter(None, names):
            with suppress(OSError):
                connection = socket.create_connection((name, port), timeout=CONNECT_SECONDS)
                connection.sendall(line({"token": token, "host": self.number}))
                if connection.recv(1) == b"\n":  # only the first host answers so
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
        """Accepts one connection from every other host, then closes the server."""
        missing = set(self.hosts) - {0}
        with server:
            while missing and not self.closing.is_set():
                connection, _ = server.accept()
                connection.settimeout(CONNECT_SECONDS)
                try:
                    hello = json.loads(connection.makefile("rb").readline(200))
                    number = hello["host"]
                    if hello["token"] != token or number not in missing:
                        raise ValueError("not a host of this run")
                    connection.sendall(b"\n")
                except (OSError, ValueError, KeyError, TypeError):
                    connection.close()
                    continue
                connection.settimeout(None)
                missing.remove(number)
                self.hosts[number].connection = connection
                self.listen(number, connection)

    def listen(self, number: int, connection: socket.socket) -> None:
        """Starts a thread that reads the messages of another host."""
        self.hosts[number].last_heard, self.hosts[number].finished = time.monotonic(), False
        reader = threading.Thread(target=self.read, args=(number, connection), daemon=True)
        reader.start()

    def read(self, number: int, connection: socket.socket) -> None:
        """Reads one host's messages until its connection closes."""
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
                f"host {number} of {self.count} has ended without a message, "
                f"{self.last_seen(host)}",
                1,
            )

    def last_seen(self, host: Host) -> str:
        """The phase that a host last reported, and how to go on."""
        return (
            f"last seen in phase {host.phase}: the same command on all hosts goes on from the last "
            "checkpoint"
        )

    def report_lost(self, message: str, code: int) -> None:
        """Records that a host is lost, tells the others, and ends this process soon.

        Args:
          message: for people.
          code: exit code of this process.
        """
        with self.lock:
            if self.lost is not None or self.closing.is_set():
                return
            self.lost = HostLost(message, code)
        self.send({"lost": message, "code": code})
        self.lost_event.set()
        threading.Thread(target=self.exit_after_grace, daemon=True).start()

    def exit_after_grace(self) -> None:
        """Ends this process after GRACE_SECONDS, unless the program ends by itself before."""
        if self.closing.wait(GRACE_SECONDS) or self.lost is None:
            return  # the program has raised an error by itself
        print(f"{processes.log_prefix()}error: {self.lost}", file=sys.stderr, flush=True)
        self.wait_for_others_to_close()
        os._exit(self.lost.code)

    def wait_for_others_to_close(self) -> None:
        """Lets the first host exit last.

        It runs JAX's coordination service, whose end aborts every process still connected.
        """
        end = time.monotonic() + GRACE_SECONDS + 1
        others = [host for host in self.hosts.values() if host.connection and self.number == 0]
        while time.monotonic() < end and not all(host.closed for host in others):
            time.sleep(0.05)

    def send(self, message: dict) -> None:
        """Sends a message to every host that this one is connected to."""
        for host in self.hosts.values():
            if host.connection is not None:
                with suppress(OSError), self.lock:
                    host.connection.sendall(line(message))

    def monitor(self) -> None:
        """Sends this host's phase every BEAT_SECONDS; reports late hosts, ends on silent ones."""
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
        """Tells the other hosts that this one ends, and whether by an error.

        A collective that fails because a host is lost raises an error here, often before the
        loss itself is known; so an error of that kind waits briefly for the cause.

        Raises:
          HostLost: in place of a RuntimeError or OSError, where a lost host caused it.
        """
        if self.count == 1:
            return
        if isinstance(error, RuntimeError | OSError):
            self.lost_event.wait(GRACE_SECONDS / 2)  # a collective fails before its cause is known
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
    """A message as one line of JSON."""
    return json.dumps(message).encode() + b"\n"


def own_addresses() -> list[str]:
    """Addresses of this machine, the one that other hosts most likely reach first."""
    found = []
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))  # sends nothing: UDP only selects the route
        found.append(probe.getsockname()[0])
    return [*found, socket.gethostname(), "127.0.0.1"]
