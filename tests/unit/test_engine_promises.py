"""The promises of the replication engine, each shown on a case of its own.

Sender and receiver are the real ones, in one process; ``tests/PROMISES.md`` has the map.
"""

import copy
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2v_receiver import codec, store, wire
from p2v_receiver.manifest import Manifest
from p2v_receiver.target import Image, TargetError
from p2v_receiver.wire import ErrorCode, FrameType
from p2v_sync.engine import replicate
from p2v_sync.errors import (
    IntegrityError,
    P2vError,
    PeerLost,
    SourceReadError,
    TargetFull,
    TargetIOError,
    VerifyMismatch,
)
from p2v_sync.events import Notice, PassFinished, UnreadableFound
from p2v_sync.extent import Extent
from p2v_sync.transport.channel import Pipe, StreamChannel
from tests.contract.faults import (
    SECTOR,
    Fault,
    FaultySource,
    Link,
    Recorder,
    at_event,
    faulty,
    frames_of,
)
from tests.contract.host import Host
from tests.contract.lab import (
    BLOCK,
    DISK,
    SEGMENT,
    Lab,
    MemorySource,
    Receiver,
    block_of,
    letters,
    patterned,
    ram_directory,
)
from tests.contract.memory_ledger import MemoryLedger


@pytest.fixture
def root() -> Iterator[Path]:
    with ram_directory() as path:
        yield path


@pytest.fixture
def lab(root: Path) -> Lab:
    return Lab(root, MemorySource(patterned(3)))


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "_BACKOFF_S", (0.0,))


@pytest.fixture
def host() -> Iterator[Host]:
    machine = Host()
    with machine.installed():
        yield machine


def check_record(lab: Lab) -> set[int]:
    """P2: what the manifest is sure of is what the image holds.  Returns those segments."""
    sure = set()
    content = memoryview(lab.image.read_bytes())
    with lab.record() as manifest:
        header, layout = manifest.header(), manifest.layout()
        digest = codec.digest_function(header["digest"], header["seed"])
        for number in range(layout.segments):
            recorded = manifest.segment(number, layout)
            if recorded.uncertain:
                continue
            start, end = layout.segment_extent(number)
            found = codec.entries_of(content[start:end], layout.block_size, digest)
            said = [
                recorded.entries[at : at + wire.ENTRY_SIZE]
                for at in range(0, len(recorded.entries), wire.ENTRY_SIZE)
            ]
            for is_so, is_said in zip(found, said, strict=True):
                assert is_said in (is_so, wire.UNKNOWN)
            if wire.UNKNOWN not in said:
                sure.add(number)
    return sure


def recorded_frames(lab: Lab, **options: Any) -> list[FrameType]:
    """What the sender sends in a whole run."""
    recorders: list[Recorder] = []

    def wrap(pipe: Pipe) -> Pipe:
        recorders.append(Recorder(pipe))
        return recorders[-1]

    lab.dialer.wrap = wrap
    lab.sync(**options)
    return [kind for each in recorders for kind, _ in frames_of(each.sent)]


# P2: durable before recorded


def test_p2_data_then_manifest_then_ledger(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options)
            order.append(name)
            return result

        return noted

    monkeypatch.setattr(Image, "write", noting("write", Image.write))
    monkeypatch.setattr(Image, "sync", noting("flush", Image.sync))
    monkeypatch.setattr(Manifest, "commit", noting("manifest", Manifest.commit))
    monkeypatch.setattr(lab.ledger, "record", noting("ledger", lab.ledger.record))
    lab.sync(verify="none")
    assert "write" in order
    first = order.index("flush")
    assert order[first : first + 3] == ["flush", "manifest", "ledger"]
    assert "write" not in order[first:]


def test_p2_a_failed_flush_is_final(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = []

    def fail(image: Image) -> None:
        flushes.append(image)
        raise TargetError(ErrorCode.IO, "the disk is dying")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "sync", fail)
        with pytest.raises(TargetIOError, match="dying"):
            lab.sync()
    assert len(flushes) == 1, "never tried again"
    assert check_record(lab) == set()
    assert lab.ledger.entries_between(0, 3) == {}
    outcome = lab.sync()
    assert lab.is_equal()
    assert outcome.counters.sent == outcome.counters.scanned - outcome.counters.zero


def test_p2_without_an_acknowledgement_the_ledger_knows_nothing(lab: Lab) -> None:
    recorder: list[Recorder] = []

    def wrap(pipe: Pipe) -> Pipe:
        recorder.append(Recorder(pipe))
        return recorder[-1]

    lab.dialer.wrap = wrap
    lab.sync(streams=1, verify="none")
    ends = list(frames_of(recorder[0].received))
    before = [end for kind, end in ends[: [k for k, _ in ends].index(FrameType.COMMITTED)]][-1]
    again = Lab(lab.root / "again", lab.source)
    again.dialer.wrap = faulty(Link(received=Fault(cut_after=before)))
    with pytest.raises(PeerLost):
        again.sync(streams=1, verify="none")
    assert again.ledger.entries_between(0, 3) == {}
    assert check_record(again) == {0, 1, 2}, "the receiver had it, the sender can't know"


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("losses", [[False], [True], [True, False]])
def test_p2_power_cut_at_every_operation(
    root: Path, host: Host, is_first: bool, losses: list[bool]
) -> None:
    """At any point nothing is recorded that is not there, and the next run completes it."""
    number = 0
    while True:
        number += 1
        lab = Lab(root / f"{number}", MemorySource(patterned(2)))
        host.going_down = lab.receiver.hang_up
        if not is_first:
            lab.sync(verify="none")
            lab.source.fill(SEGMENT - 3 * BLOCK, block_of("new", 6 * BLOCK))
            lab.source.fill(0, bytes(2 * BLOCK))
        host.dies_at = number
        try:
            lab.sync(verify="none")
        except P2vError:
            pass
        else:
            assert host.dies_at, "all of it was tried"
            break
        lost = itertools.cycle(losses)
        host.come_back(is_lost=lambda lost=lost: next(lost), time_goes_back=True)  # type: ignore[misc]
        lab.receiver = lab.dialer.receiver = Receiver(lab.root)
        if lab.manifest.exists():
            check_record(lab)
        lab.sync(verify="none")
        assert lab.is_equal()
        check_record(lab)
    assert number > 5


# P3: write intent


@pytest.mark.parametrize("keeps_ledger", [True, False])
def test_p3_a_b_crash_a(root: Path, host: Host, keeps_ledger: bool) -> None:
    """A is on both sides; B is half written when the power goes; the source is A again.

    The file's times say nothing, for they are as at the last checkpoint: only the intent does.
    """
    lab = Lab(root, MemorySource(patterned(4)))
    host.going_down = lambda: lab.receiver.hang_up()
    lab.sync()
    a = bytes(lab.source.data)
    lab.source.fill(2 * SEGMENT, block_of("B", 8 * BLOCK))
    host.operations = 0
    host.dies_at = 4  # the pass begins, intent, the write; then the power goes
    with pytest.raises(P2vError):
        lab.sync()
    host.come_back(is_lost=lambda: False, time_goes_back=True)
    assert lab.image.read_bytes() != a, "B was written"
    lab.source.fill(0, a)
    lab.receiver = lab.dialer.receiver = Receiver(root)
    lab.ledger = lab.ledger.reopened() if keeps_ledger else MemoryLedger()
    lab.sync(verify="none")
    assert lab.is_equal()
    assert not [event for event in lab.of(Notice) if "image was changed" in event.text]


def test_p3_only_the_region_that_was_written_to_is_uncertain(root: Path, host: Host) -> None:
    lab = Lab(root, MemorySource(patterned(20)))
    host.going_down = lambda: lab.receiver.hang_up()
    lab.sync(verify="none")
    lab.source.fill(2 * SEGMENT, block_of("B", 8 * BLOCK))
    host.dies_at = 4
    with pytest.raises(P2vError):
        lab.sync(verify="none")
    host.come_back(is_lost=lambda: False, time_goes_back=True)
    assert 2 not in check_record(lab)
    assert len(check_record(lab)) >= 12


# P4: what is hashed is what is sent


@pytest.mark.parametrize("compress", ["none", "zlib"])
@pytest.mark.parametrize("at", [0, 17_000, 99_999])
def test_p4_a_flipped_bit_never_reaches_the_image(lab: Lab, compress: str, at: int) -> None:
    lab.source = MemorySource(os.urandom(3 * SEGMENT))
    link = Link(sent=Fault(flip=at))
    lab.dialer.wrap = faulty(link)
    with pytest.raises(IntegrityError):
        lab.sync(compress=compress)
    assert link.struck
    source, image = bytes(lab.source.data), lab.image.read_bytes()
    for start in range(0, len(source), BLOCK):
        assert image[start : start + BLOCK] in (bytes(BLOCK), source[start : start + BLOCK])
    check_record(lab)
    lab.sync()
    assert lab.is_equal()


class Restless(MemorySource):
    """Every read finds something else."""

    def read_into(self, buffer: memoryview, start: int) -> Any:
        result = super().read_into(buffer, start)
        for at in range(start, start + len(buffer), 512):
            self.data[at] ^= 0xFF
        return result


def test_p4_one_read_serves_digest_and_data(lab: Lab) -> None:
    lab.source = Restless(patterned(3))
    before = bytes(lab.source.data)
    lab.sync(verify="none")
    assert lab.image.read_bytes() == before
    assert check_record(lab) == {0, 1, 2}
    assert sum(extent.length for extent in lab.source.reads) == lab.source.size


# P5: a cached digest is trusted only while it is provably about this target


def test_p5_a_ledger_of_an_earlier_state_is_not_believed(lab: Lab) -> None:
    lab.sync()
    old, a = copy.copy(lab.ledger), bytes(lab.source.data)
    old._segments = dict(lab.ledger._segments)
    lab.source.fill(0, block_of("B", 4 * BLOCK))
    lab.sync()
    lab.source.fill(0, a)
    lab.ledger = old.reopened()
    lab.sync(verify="none")
    assert lab.is_equal()


def test_p5_a_ledger_of_another_image_is_not_believed(lab: Lab) -> None:
    lab.sync()
    lab.image.unlink()
    lab.manifest.unlink()
    outcome = lab.sync(verify="none")
    assert lab.is_equal()
    assert outcome.counters.sent


def alter(lab: Lab, start: int, data: bytes) -> None:
    """As a careful vandal: the old times come back."""
    status = lab.image.stat()
    with lab.image.open("r+b") as file:
        file.seek(start)
        file.write(data)
    os.utime(lab.image, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("keeps_ledger", [True, False])
def test_p5_an_image_changed_with_its_old_mtime_is_digested_again(
    lab: Lab, keeps_ledger: bool
) -> None:
    lab.sync()
    alter(lab, SEGMENT + 7, b"!")
    if not keeps_ledger:
        lab.ledger = MemoryLedger()
    outcome = lab.sync(verify="none")
    assert lab.is_equal()
    assert outcome.counters.sent == BLOCK, "compared, not sent anew"
    assert any("image was changed" in event.text for event in lab.of(Notice))


@pytest.mark.parametrize("at", [5, 6 * SEGMENT - 5])
def test_p5_the_sample_sees_a_change_that_left_no_trace(root: Path, host: Host, at: int) -> None:
    """A restored volume, a moved file system: same inode, same times, other bytes at the ends."""
    assert host.versions == {}
    lab = Lab(root, MemorySource(patterned(6)))
    lab.sync()
    alter(lab, at, b"!")
    lab.sync(verify="none")
    assert lab.is_equal()
    assert any("sample" in event.text for event in lab.of(Notice))


@pytest.mark.parametrize("spoil", ["delete", "truncate", "garbage"])
def test_p5_without_a_good_manifest_the_image_is_digested_again(lab: Lab, spoil: str) -> None:
    lab.sync()
    if spoil == "delete":
        lab.manifest.unlink()
    elif spoil == "truncate":
        os.truncate(lab.manifest, 100)
    else:
        lab.manifest.write_bytes(b"no manifest " * 1000)
    alter(lab, 9, b"!")
    outcome = lab.sync(verify="none")
    assert lab.is_equal()
    assert outcome.counters.sent == BLOCK


def test_p5_other_blocks_or_digests_are_compared_anew(lab: Lab) -> None:
    lab.sync()
    alter(lab, 9, b"!")
    lab.block_size, lab.digest = 4 * BLOCK, "blake2b"
    outcome = lab.sync(verify="none")
    assert lab.is_equal()
    assert outcome.counters.sent == BLOCK


def test_p5_what_is_provably_the_same_costs_nothing(lab: Lab) -> None:
    lab.sync()
    frames = recorded_frames(lab, verify="none")
    assert not {FrameType.FETCH, FrameType.DATA, FrameType.ZEROS} & set(frames)


# P6: zero is made zero


def test_p6_a_block_that_becomes_zero_becomes_a_hole(lab: Lab) -> None:
    lab.sync()
    allocated = lab.image.stat().st_blocks
    lab.source.fill(SEGMENT, bytes(SEGMENT))
    outcome = lab.sync()
    assert lab.is_equal()
    assert outcome.counters.sent == 0
    assert lab.image.stat().st_blocks * 512 <= allocated * 512 - (SEGMENT - 16 * BLOCK)


def test_p6_nothing_is_written_for_the_zeros_of_a_new_image(lab: Lab) -> None:
    lab.source = MemorySource(bytes(3 * SEGMENT))
    frames = recorded_frames(lab, verify="none")
    assert not {FrameType.DATA, FrameType.ZEROS, FrameType.FETCH} & set(frames)
    assert lab.image.stat().st_blocks == 0
    assert lab.is_equal()


@pytest.mark.parametrize("sparse", [True, False])
def test_p6_zeros_are_made_on_an_image_that_was_there_before(lab: Lab, sparse: bool) -> None:
    lab.source = MemorySource(letters("0A0") + bytes(2 * SEGMENT), sparse=sparse)
    lab.image.parent.mkdir(parents=True)
    lab.image.write_bytes(b"rubbish!" * (lab.source.size // 8))
    lab.sync()
    assert lab.is_equal()


# P7: no success without an end record


def frame_ends(lab: Lab, is_sent: bool) -> list[int]:
    """Offsets at which the frames of a whole run end, in one direction."""
    recorders: list[Recorder] = []

    def wrap(pipe: Pipe) -> Pipe:
        recorders.append(Recorder(pipe))
        return recorders[-1]

    lab.dialer.wrap = wrap
    lab.sync(streams=1)
    data = recorders[0].sent if is_sent else recorders[0].received
    return [end for _, end in frames_of(data)]


@pytest.mark.parametrize("is_sent", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_p7_the_link_ends_anywhere_and_it_is_no_success(
    root: Path, is_sent: bool, is_first: bool
) -> None:
    def make(name: str) -> Lab:
        lab = Lab(root / name, MemorySource(letters("AB0C" * 3) + bytes(SEGMENT)))
        if not is_first:
            lab.sync(verify="none")
            lab.source.fill(0, letters("0ZZ0"))
            lab.ledger = MemoryLedger()
        return lab

    ends = frame_ends(make("whole"), is_sent)
    places = {0, *ends, *(end - 1 for end in ends), *(end + 5 for end in ends)}
    for place in sorted(place for place in places if place < ends[-1]):
        lab = make(f"{place}")
        fault = Fault(cut_after=place)
        lab.dialer.wrap = faulty(Link(sent=fault) if is_sent else Link(received=fault))
        try:
            lab.sync(streams=1)
        except PeerLost:
            assert fault.struck
        else:
            # The sample differs from run to run, and with it the number of bytes.
            assert not fault.struck
            assert place > ends[-1] // 2
        if lab.manifest.exists():
            check_record(lab)
        lab.dialer.wrap = faulty()
        lab.sync(verify="none")
        assert lab.is_equal()


@pytest.mark.parametrize(
    "change",
    [
        lambda end: {**end, "digest": "0" * 32},
        lambda end: {**end, "blocks_sent": end["blocks_sent"] + 1},
        lambda end: {**end, "blocks_zeroed": end["blocks_zeroed"] + 1},
    ],
    ids=["digest", "sent", "zeroed"],
)
def test_p7_the_receiver_compares_the_end_record(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    real = StreamChannel.send

    def lying(channel: StreamChannel, kind: FrameType, meta: bytes = b"", body: Any = b"") -> int:
        if kind is FrameType.END:
            meta = wire.pack_json(change(wire.unpack_json(meta)))
        return real(channel, kind, meta, body)

    with monkeypatch.context() as patch:
        patch.setattr(StreamChannel, "send", lying)
        with pytest.raises(IntegrityError, match="end record"):
            lab.sync()
    assert not lab.header()["pass_complete"]
    assert not lab.of(PassFinished)
    assert check_record(lab) == set(), "all of it is compared again"
    lab.sync()
    assert lab.is_equal()


@pytest.mark.parametrize("what", ["removed", "altered"])
def test_p7_a_finished_image_that_is_touched_before_its_verification_is_copied_again(
    lab: Lab, what: str
) -> None:
    """The link is lost after the end record; what the next session finds is no longer that."""

    def interfere() -> None:
        lab.receiver.hang_up()
        lab.receiver.wait()
        if what == "removed":
            lab.image.unlink()
        else:
            alter(lab, SEGMENT + SEGMENT // 2, b"!")

    lab.source = MemorySource(bytes(SEGMENT) + patterned(1) + bytes(SEGMENT + 8))
    lab.observe = at_event(PassFinished, 1, interfere)
    lab.sync(retry_for_s=60.0, verify="auto")
    assert lab.is_equal()


# P9: failure deletes nothing


def files_of(lab: Lab) -> dict[int, int]:
    """inode → size."""
    paths = [path for path in lab.image.parent.iterdir() if path.suffix != ".lock"]
    return {path.stat().st_ino: path.stat().st_size for path in paths}


def fill_up(*_arguments: Any) -> None:
    raise TargetError(ErrorCode.FULL, "no space left")


@pytest.mark.parametrize("name", ["write", "make_zero", "sync"])
def test_p9_a_full_disk_costs_nothing_that_is_there(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lab.sync()
    before, content = files_of(lab), lab.image.read_bytes()
    lab.source.fill(2 * SEGMENT, letters("00AB"))
    with monkeypatch.context() as patch:
        patch.setattr(Image, name, fill_up)
        with pytest.raises(TargetFull):
            lab.sync()
    assert files_of(lab) == before
    assert lab.image.read_bytes()[: 2 * SEGMENT] == content[: 2 * SEGMENT]
    lab.sync()
    assert lab.is_equal()


def test_p9_what_can_not_be_used_is_moved_aside_whole(lab: Lab) -> None:
    lab.sync()
    os.truncate(lab.manifest, 5000)
    with lab.image.open("ab") as file:
        file.write(b"longer than the disk")
    before = files_of(lab)
    lab.sync()
    assert lab.is_equal()
    after = files_of(lab)
    assert before.items() <= after.items()


@pytest.mark.parametrize("at", [0, 700, 40_000, 1 << 20])
def test_p9_a_lost_link_costs_nothing_that_is_there(lab: Lab, at: int) -> None:
    lab.sync()
    before = files_of(lab)
    lab.source.fill(0, patterned(3, seed=1))
    lab.dialer.wrap = faulty(Link(sent=Fault(cut_after=at)))
    with pytest.raises(PeerLost):
        lab.sync(streams=1)
    after = files_of(lab)
    assert before.keys() <= after.keys()
    assert all(after[number] >= size for number, size in before.items())


# P11: a seed is never cut over


def test_p11_seed_is_marked_until_a_quiesced_pass_is_complete(lab: Lab) -> None:
    assert lab.sync(seed=True).kind == "seed"
    header = lab.header()
    assert (header["pass_kind"], header["pass_complete"], header["quiesced"]) == ("seed", 1, 0)
    lab.source.fill(0, patterned(3, seed=1))
    lab.dialer.wrap = faulty(Link(sent=Fault(cut_after=1 << 20)))
    with pytest.raises(PeerLost):
        lab.sync(streams=1)
    assert not lab.header()["quiesced"]
    lab.dialer.wrap = faulty()
    assert lab.sync().kind == "incremental"
    assert lab.header()["quiesced"] == 1


def test_p11_seed_after_a_quiesced_pass_takes_the_mark_away(lab: Lab) -> None:
    lab.sync()
    assert lab.header()["quiesced"] == 1
    lab.sync(seed=True)
    assert lab.header()["quiesced"] == 0


def test_p11_seed_or_not_a_source_that_changed_meanwhile_is_not_quiesced(lab: Lab) -> None:
    lab.judge.change = "it was written to"
    lab.sync()
    assert lab.header()["quiesced"] == 0


# P12: unreadable is said


def stored(lab: Lab) -> list[tuple[int, int]]:
    with lab.record() as manifest:
        return [(start, length) for start, length in manifest.unreadable()]


def test_p12_bad_sectors_are_zeros_and_listed_everywhere(lab: Lab) -> None:
    lab.source = FaultySource("ABE" + "C" * 300 + "EE.")
    bad = list(lab.source.bad)
    outcome = lab.sync()
    assert lab.is_equal()
    assert list(outcome.unreadable) == bad
    assert list(lab.ledger.unreadable()) == bad
    assert stored(lab) == [tuple(each) for each in bad]
    assert outcome.counters.unreadable == len(bad) * SECTOR
    assert sorted((each.start, each.length) for each in lab.of(UnreadableFound)) == stored(lab)
    shown = (lab.image.parent / f"{DISK}.map").read_text()
    assert all(f"0x{each.start:08X}  0x{each.length:08X}  -" in shown for each in bad)


def test_p12_a_later_run_reads_just_those(lab: Lab) -> None:
    lab.source = FaultySource("ABE" + "C" * 300 + "EE." + "D" * 300)
    lab.sync()
    lab.source.repair()
    lab.source.reads.clear()
    outcome = lab.sync(verify="none")
    assert sorted(lab.source.reads) == [
        Extent(2 * BLOCK, BLOCK),
        Extent(303 * BLOCK, 2 * BLOCK),
    ]
    assert lab.is_equal()
    assert outcome.unreadable == ()
    assert outcome.counters.sent == 3 * BLOCK
    assert (stored(lab), list(lab.ledger.unreadable())) == ([], [])
    assert any("only what could not be read" in event.text for event in lab.of(Notice))


def test_p12_what_stays_bad_stays_listed(lab: Lab) -> None:
    lab.source = FaultySource("ABE" + "C" * 300 + "E.")
    lab.sync()
    fixed, bad = lab.source.bad
    lab.source.bad = [bad]
    lab.source.fill(fixed.start, b"\1" * fixed.length)
    outcome = lab.sync(verify="none")
    assert list(outcome.unreadable) == [bad]
    assert stored(lab) == [tuple(bad)]
    assert lab.is_equal()


@pytest.mark.parametrize("why", ["touched", "seed", "image", "unfinished"])
def test_p12_the_short_way_is_only_taken_when_nothing_else_changed(lab: Lab, why: str) -> None:
    lab.source = FaultySource("ABE" + "C" * 300)
    lab.sync()
    lab.source.repair()
    if why == "touched":
        lab.judge.stamp += 1
        lab.source.fill(100 * BLOCK, block_of("new"))
    elif why == "image":
        alter(lab, 50 * BLOCK, b"!")
    elif why == "unfinished":
        lab.dialer.wrap = faulty(Link(received=Fault(cut_after=600)))
        with pytest.raises(PeerLost):
            lab.sync(streams=1)
        lab.dialer.wrap = faulty()
    lab.source.reads.clear()
    lab.sync(verify="none", seed=why == "seed")
    assert sum(extent.length for extent in lab.source.reads) == lab.source.size
    assert lab.is_equal()
    assert stored(lab) == []


def test_p12_the_short_way_is_not_taken_after_a_verification_found_something(
    root: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what it found would be kept: nothing is known of those blocks."""
    assert host.versions == {}
    monkeypatch.setattr(store, "sample_blocks", lambda *_: [])
    lab = Lab(root, FaultySource("ABE" + "C" * 600))
    lab.sync()
    alter(lab, 400 * BLOCK, b"!")
    with pytest.raises(VerifyMismatch, match=f"{400 * BLOCK}"):
        lab.run(lambda replication: replication.verify())
    lab.source.repair()
    lab.sync(verify="none")
    assert lab.is_equal()
    assert stored(lab) == []


def test_p12_verification_after_bad_sectors_agrees(lab: Lab) -> None:
    lab.source = FaultySource("ABE" + "C" * 300)
    lab.sync(verify="full")


def test_p12_fail_stops_at_the_first(lab: Lab) -> None:
    lab.source = FaultySource("ABE" + "C" * 300, fails=True)
    with pytest.raises(SourceReadError):
        lab.sync()
    assert not lab.header()["pass_complete"]


def test_p12_bad_sectors_of_a_broken_off_run_are_not_forgotten(lab: Lab) -> None:
    """In the run that goes on by itself they are durable with their segment, and stay listed."""
    lab.source = FaultySource("ABE" + "C" * 509 + "D" * 256)
    lab.dialer.wrap = faulty(Link(sent=Fault(cut_after=2 * SEGMENT + SEGMENT // 2)))
    outcome = lab.sync(streams=1, retry_for_s=60.0)
    assert list(outcome.unreadable) == lab.source.bad
    assert stored(lab) == [tuple(each) for each in lab.source.bad]
    assert lab.is_equal()
