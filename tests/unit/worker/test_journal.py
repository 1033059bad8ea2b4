"""The journal: what one line says happened together, and a crash takes nothing but the line it cut off."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry.store.v1.store_pb2 import ChecksChanged, Destroyed, Observation, Started

from services.worker.journal import Entry, Journal, JournalDamaged, Phase, Stop

ENTRY = Entry(
    "0011", 3, instance_id="v3", run=2, phase=Phase.RUNNING, stop=Stop.REQUESTED, pid=7, started_at=1.5, reason="ü\n"
)


def ids() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"journal-{next(numbers)}"


def opened(path: Path) -> Journal:
    return Journal(path, ids())


def started(machine: str = "0011") -> Observation:
    return Observation(machine_id=machine, generation=1, started=Started(restart_count=1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_what_was_written_is_there_after_it_was_opened_again(path: Path) -> None:
    journal = opened(path)
    journal.write([ENTRY, replace(ENTRY, machine_id="0012")], observations=[started(), started()])
    journal.write(forget=["0012"])
    again = opened(path)
    assert again.id == journal.id == "journal-1"
    assert again.entries == {"0011": ENTRY}
    assert list(again.outbox) == list(journal.outbox)
    assert [observation.sequence for observation in again.outbox] == [1, 2]
    assert again.next_sequence == 3


def test_acknowledged_observations_do_not_come_back_and_numbers_go_on(path: Path) -> None:
    journal = opened(path)
    journal.write(observations=[started(), started(), started()])
    journal.acknowledge(2)
    again = opened(path)
    assert [observation.sequence for observation in again.outbox] == [3]
    again.acknowledge(3)
    third = opened(path)
    assert not third.outbox
    third.write(observations=[started()])
    assert third.outbox[0].sequence == 4


@given(data=st.data())
def test_a_file_that_was_cut_off_anywhere_holds_what_was_whole_before_the_cut(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal"
    journal = opened(path)
    sizes = [path.stat().st_size]
    for number in range(4):
        journal.write([replace(ENTRY, run=number)], observations=[started()])
        sizes.append(path.stat().st_size)
    whole = path.read_bytes()
    cut = data.draw(st.integers(sizes[0], len(whole)))
    garbage = data.draw(st.binary(max_size=20))
    path.write_bytes(whole[:cut] + garbage.replace(b"\n", b""))
    lines = sum(size <= cut for size in sizes) - 1
    again = opened(path)
    assert len(again.outbox) == lines
    assert again.entries.get("0011") == (replace(ENTRY, run=lines - 1) if lines else None)
    again.write(observations=[started()])
    assert [observation.sequence for observation in opened(path).outbox] == list(range(1, lines + 2))


def test_a_line_with_a_bit_turned_is_dropped_with_what_follows(path: Path) -> None:
    journal = opened(path)
    journal.write([ENTRY])
    before = path.stat().st_size
    journal.write([replace(ENTRY, run=9)])
    content = bytearray(path.read_bytes())
    content[before + 20] ^= 1
    path.write_bytes(content)
    again = opened(path)
    assert again.entries == {"0011": ENTRY}
    assert again.damaged_bytes == len(content) - before


def test_a_file_that_is_no_journal_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("something\nelse\n")
    with pytest.raises(JournalDamaged, match="move it away"):
        opened(path)
    assert path.read_text() == "something\nelse\n"


def test_the_file_stays_small_however_much_was_written(path: Path) -> None:
    journal = opened(path)
    for number in range(20_000):
        journal.write([replace(ENTRY, run=number)], observations=[started()])
        journal.acknowledge(number + 1)
    assert path.stat().st_size < 2 << 20
    again = opened(path)
    assert again.entries["0011"].run == 19_999
    assert again.next_sequence == 20_001


def test_a_write_that_does_not_fit_changes_nothing(path: Path) -> None:
    journal = opened(path)
    journal.write([ENTRY])
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            journal.write([replace(ENTRY, run=5)], observations=[started()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert raised.value.errno == errno.EFBIG
    assert journal.entries == {"0011": ENTRY}
    assert not journal.outbox
    journal.write([replace(ENTRY, run=6)])
    assert opened(path).entries["0011"].run == 6


def test_a_renewed_journal_numbers_what_it_still_has_from_one(path: Path) -> None:
    journal = opened(path)
    journal.write([ENTRY], observations=[started("a"), started("b"), started("c")])
    journal.acknowledge(1)
    journal.renew()
    for one in (journal, opened(path)):
        assert one.id == "journal-2"
        assert [(observation.sequence, observation.machine_id) for observation in one.outbox] == [(1, "b"), (2, "c")]
        assert one.entries == {"0011": ENTRY}
        assert one.next_sequence == 3


@pytest.mark.parametrize(("store_has", "agrees"), [(0, False), (1, False), (2, True), (3, True), (4, True), (5, False)])
def test_it_goes_on_only_with_a_store_that_has_what_was_dropped_and_nothing_that_was_never_written(
    path: Path, store_has: int, agrees: bool
) -> None:
    journal = opened(path)
    journal.write(observations=[started(), started(), started(), started()])
    journal.acknowledge(2)
    assert journal.agrees_with(store_has) is agrees


def test_it_knows_whose_checks_wait_to_be_told(path: Path) -> None:
    journal = opened(path)
    journal.write(observations=[Observation(machine_id="a", checks_changed=ChecksChanged()), started("b")])
    assert opened(path).tells_checks_of("a")
    assert not journal.tells_checks_of("b")
    journal.acknowledge(1)
    assert not journal.tells_checks_of("a")


@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_callers_of_sync_share_trips_to_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    ticks = itertools.count(0, seconds) if seconds else itertools.repeat(0.0)
    journal = Journal(path, ids(), timer=lambda: next(ticks))
    trips: list[int] = []
    real = os.fdatasync

    def counted(fd: int) -> None:
        trips.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    journal.write([ENTRY])
    await journal.sync()
    assert len(trips) == 1
    journal.write([replace(ENTRY, run=3)])
    await asyncio.gather(*(journal.sync() for _ in range(50)))
    assert len(trips) == 2
    await journal.sync()
    assert len(trips) == 2


def test_entries_of_a_newer_version_are_read_as_far_as_they_are_known(path: Path) -> None:
    journal = opened(path)
    journal.write([ENTRY], observations=[Observation(machine_id="x", destroyed=Destroyed())])
    from services.worker import journal as module

    line = {"entries": [{"machine_id": "n", "generation": 1, "phase": "ended", "from_the_future": 1}]}
    with path.open("ab") as file:
        file.write(module._encode(line))
    assert opened(path).entries["n"] == Entry("n", 1, phase=Phase.ENDED)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_journal_is_opened_on_a_disk_that_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(path).write([ENTRY], observations=[started()])
    monkeypatch.setattr("services.worker.journal._write_all", full)
    again = opened(path)
    assert again.entries == {"0011": ENTRY}
    assert len(again.outbox) == 1
    with pytest.raises(OSError, match="No space"):
        again.write([replace(ENTRY, run=9)])
    assert again.entries == {"0011": ENTRY}


def test_a_journal_that_has_no_room_to_become_another_stays_what_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(path)
    journal.write([ENTRY], observations=[started(), started()])
    journal.acknowledge(1)
    before = journal.id, journal.next_sequence, [each.sequence for each in journal.outbox]
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_rewrite", full)
        with pytest.raises(OSError, match="No space"):
            journal.renew()
    assert (journal.id, journal.next_sequence, [each.sequence for each in journal.outbox]) == before
    journal.renew()
    assert journal.id != before[0]
    assert (journal.next_sequence, [each.sequence for each in journal.outbox]) == (2, [1])


def test_a_journal_that_has_no_room_to_become_smaller_goes_on_as_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(path)
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_rewrite", full)
        for number in range(20_000):
            journal.write([replace(ENTRY, run=number)], observations=[started()])
            journal.acknowledge(number + 1)
    assert path.stat().st_size > 2 << 20
    assert opened(path).entries["0011"].run == 19_999
    for number in range(20_000):
        journal.write([replace(ENTRY, run=number)], observations=[started()])
        journal.acknowledge(20_000 + number + 1)
    assert opened(path).entries["0011"].run == 19_999
    assert path.stat().st_size < 4 << 20


async def test_what_a_former_process_wrote_is_on_the_disk_after_a_sync(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(path).write([ENTRY])
    trips: list[int] = []
    real = os.fdatasync

    def counted(fd: int) -> None:
        trips.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    again = opened(path)
    await again.sync()
    assert len(trips) == 1
