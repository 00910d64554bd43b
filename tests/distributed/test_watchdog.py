"""Two watchdogs in one process: what one host's fate is to the other."""

import queue
import threading
import time

import pytest

from score_jax.distributed import processes, watchdog
from score_jax.distributed.watchdog import Host, HostLost, Watchdog

WAIT = 30  # seconds after which a message is lost for certain


@pytest.fixture
def pair(monkeypatch):
    """The watchdogs of hosts 0 and 1; they would end the process after GRACE_SECONDS."""
    told, here = queue.Queue(), threading.local()

    def from_first(value):
        if processes.process_index() == 0:
            told.put(value)
            return value
        return told.get(timeout=WAIT)

    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "process_index", lambda: getattr(here, "number", 0))
    monkeypatch.setattr(processes, "broadcast_from_first", from_first)
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 10 * WAIT)
    first = Watchdog()
    here.number = 1
    second = Watchdog()
    here.number = 0
    yield first, second
    for each in (first, second):
        each.closing.set()
        for host in each.hosts.values():
            if host.connection is not None:
                host.connection.close()


def soon(condition):
    """Whether it comes true before a message counts as lost."""
    end = time.monotonic() + WAIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_the_first_host_knows_where_the_other_is(pair):
    first, second = pair
    second.enter_phase("grade of step 2")
    assert soon(lambda: first.hosts[1].phase == "grade of step 2")
    assert first.hosts[1].serial == 1
    assert first.lost is None and second.lost is None


def cut(second):
    """What the end of its process does to a connection."""
    second.closing.set()
    second.hosts[0].connection.shutdown(2)


def test_a_connection_that_closes_without_a_word_is_a_lost_host(pair):
    first, second = pair
    second.enter_phase("update of step 7")
    assert soon(lambda: first.hosts[1].phase == "update of step 7")
    cut(second)
    assert first.lost_event.wait(WAIT)
    assert str(first.lost) == (
        "host 1 of 2 has ended without a message, last seen in phase update of step 7: the same "
        "command on all hosts goes on from the last checkpoint"
    )
    with pytest.raises(HostLost, match="host 1 of 2 has ended without a message"), first:
        raise RuntimeError("a collective broke")


def test_a_host_that_stops_tells_the_others_why(pair):
    first, second = pair
    with pytest.raises(ValueError, match="no such"), second:
        raise ValueError("no such\nfield")
    assert first.lost_event.wait(WAIT)
    assert (str(first.lost), first.lost.code) == ("host 1 of 2 has stopped: no such field", 2)


def test_ones_own_mistake_is_told_before_anothers_loss(pair):
    first, second = pair
    cut(second)
    assert first.lost_event.wait(WAIT)
    with pytest.raises(ValueError, match="mine"), first:
        raise ValueError("mine")


def test_a_goodbye_is_no_loss(pair):
    first, second = pair
    with second:
        pass
    second.hosts[0].connection.shutdown(2)
    assert soon(lambda: first.hosts[1].closed)
    assert first.hosts[1].finished and first.lost is None


def test_lateness_is_told_when_it_doubles_and_when_it_ends():
    watch = Watchdog()
    watch.count = 3
    watch.hosts = {0: Host(serial=7), 1: Host(serial=6, phase="grade of step 2"), 2: Host(serial=7)}
    said = {now: list(watch.late_hosts(float(now))) for now in range(100, 145)}
    assert [now for now, texts in said.items() if texts] == [110, 120, 140]
    assert said[120] == [
        "host 1 of 3 is late: for 20 s others have been ahead of it; it is in phase grade of step 2"
    ]
    watch.hosts[1].serial = 7
    assert list(watch.late_hosts(145.0)) == ["host 1 of 3 has caught up"]
    assert list(watch.late_hosts(146.0)) == []
