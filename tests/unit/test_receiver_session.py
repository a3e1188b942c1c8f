"""What frames do to image and manifest, and in which order (P2, P3, P4, P6, P7)."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2v_receiver import codec, wire
from p2v_receiver.manifest import Manifest
from p2v_receiver.session import runs
from p2v_receiver.target import Image, TargetError
from p2v_receiver.wire import Blocks, ErrorCode, ProtocolError, Segments, Verify
from tests.contract.bench import BLOCK, SEGMENT, Bench, Worker, cut
from tests.contract.lab import ram_directory


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ram_directory() as root:
        yield Bench(root)


@pytest.fixture
def filled(bench: Bench) -> Bench:
    """Its image is full of A, and certain."""
    bench.fill("A")
    assert bench.certain() == {0, 1, 2}
    return bench


def failing(code: ErrorCode = ErrorCode.IO) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise TargetError(code, "the disk is dying")

    return fail


def before(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], None]
) -> None:
    """``act`` just before the next call of a method, once."""
    real = getattr(owner, name)
    left = [act]

    def call(*arguments: Any, **named: Any) -> Any:
        if left:
            left.pop()()
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


# P2: durable before recorded.


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done to image and manifest, as it ends."""
    done: list[str] = []

    def noting(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            answer = real(*arguments, **named)
            done.append(name)
            return answer

        monkeypatch.setattr(owner, name, call)

    for name in ("write", "make_zero", "sync"):
        noting(Image, name)
    for name in ("mark_uncertain", "commit"):
        noting(Manifest, name)
    return done


def test_p2_p3_intent_write_flush_record(filled: Bench, order: list[str]) -> None:
    with filled.work() as worker:
        worker.begin()
        order.clear()
        worker.write("B", 0)
        worker.zero(300)
        worker.session.checkpoint()
    assert order == ["mark_uncertain", "write", "make_zero", "sync", "commit"]


def test_p2_a_checkpoint_without_news_writes_nothing(filled: Bench, order: list[str]) -> None:
    with filled.work() as worker:
        order.clear()
        one, two = worker.session.checkpoint(), worker.session.checkpoint()
    assert order == []
    assert one == two


def test_p2_an_acknowledged_segment_is_in_the_manifest(bench: Bench) -> None:
    with bench.work() as worker:
        worker.begin()
        worker.write("A", 0, 256)
        worker.complete(0, worker.fetch()[0])
        committed = worker.session.checkpoint()
        assert committed.ranges == [(0, 1)]
        header = worker.target.manifest.header()
        assert (header["generation"], header["commit_id"]) == committed[:2]
    assert 0 in bench.certain()


@pytest.mark.parametrize("call", [Image.sync, Manifest.commit], ids=["flush", "commit"])
def test_p2_what_comes_during_a_checkpoint_is_not_covered_by_it(
    filled: Bench, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    with filled.work() as worker:
        worker.begin()
        worker.write("B", 0)
        worker.complete(0, worker.fetch()[0])
        if call is Image.sync:
            before(monkeypatch, Image, "sync", lambda: worker.write("C", 1))
        else:
            # The lock is held, so only the bytes can change: as a write that is under way does.
            before(monkeypatch, Image, "identity", lambda: worker.write("C", 1))
        assert worker.session.checkpoint().ranges == []
    assert 0 not in filled.certain()


def test_p2_blocks_on_their_way_into_the_image_are_unknown(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint comes between the intent and the write, the crash right after it."""

    class PowerCut(BaseException):
        pass

    def crash() -> None:
        worker.session.checkpoint(quiet=True)
        raise PowerCut

    with filled.work() as worker:
        worker.begin()
        before(monkeypatch, Image, "write", crash)
        with pytest.raises(PowerCut):
            worker.write("B", 7)
    assert 0 not in filled.certain()


def test_p2_a_failed_flush_is_final(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.fill("A")
    with bench.work(finish=True) as worker:
        worker.begin()
        worker.write("B", 0)
        with monkeypatch.context() as patch:
            patch.setattr(Image, "sync", failing())
            # What comes after the checkpoint began may be among the pages that were dropped.
            before(patch, Image, "sync", lambda: worker.write("B", 520))
            with pytest.raises(TargetError, match="dying"):
                worker.session.checkpoint()
        for attempt in (
            worker.session.checkpoint,
            lambda: worker.write("C", 3),
            lambda: worker.zero(3),
            lambda: worker.end(),
        ):
            with pytest.raises(TargetError, match="dying"):
                attempt()
    for again in range(2):
        with bench.work() as worker:
            found = worker.fetch()
            assert set(cut(found[0])) == {wire.UNKNOWN}, f"sent again, opening {again}"
            assert set(cut(found[2])) == {wire.UNKNOWN}


def test_p2_lost_segments_are_lost_until_all_of_them_is_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.fill("A")
    with bench.work() as worker, monkeypatch.context() as patch:
        worker.begin()
        worker.write("B", 0)
        patch.setattr(Image, "sync", failing())
        with pytest.raises(TargetError):
            worker.session.checkpoint()
    with bench.work(finish=True) as worker:
        worker.begin()
        worker.write("B", 0, 100)
    with bench.work() as worker:
        assert wire.UNKNOWN in cut(worker.fetch()[0])
        worker.begin()
        worker.write("B", 100, 100)  # and killed
    with bench.work() as worker:
        assert set(cut(worker.fetch()[0])) == {wire.UNKNOWN}
    bench.fill("B")
    assert bench.certain() == {0, 1, 2}


def test_p2_lost_segments_stay_lost_when_blocks_are_cut_otherwise(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.fill("A")
    with bench.work() as worker, monkeypatch.context() as patch:
        worker.begin()
        worker.write("B", 0)
        worker.session._load(1)
        patch.setattr(Image, "sync", failing())
        with pytest.raises(TargetError):
            worker.session.checkpoint()
    with bench.work(block_size=2 * BLOCK) as worker:
        assert set(cut(worker.fetch()[0])) == {wire.UNKNOWN}


def test_p2_a_flush_that_fails_after_a_crash_loses_all_that_was_uncertain(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error may be about what the receiver before this one wrote."""
    bench.fill("A")
    with bench.work() as worker:
        worker.begin()
        worker.write("B", 0)
    with bench.work() as worker, monkeypatch.context() as patch:
        assert worker.reasons
        worker.begin()
        worker.write("B", 520)
        patch.setattr(Image, "sync", failing())
        with pytest.raises(TargetError):
            worker.session.checkpoint()
    with bench.work() as worker:
        assert {entry for each in worker.fetch().values() for entry in cut(each)} == {wire.UNKNOWN}


@pytest.mark.parametrize(
    ("owner", "name", "act"),
    [
        (Image, "write", lambda worker: worker.write("B", 0)),
        (Image, "make_zero", lambda worker: worker.zero(0)),
        (Manifest, "mark_uncertain", lambda worker: worker.write("B", 0)),
        (Manifest, "commit", lambda worker: worker.session.checkpoint()),
    ],
    ids=["write", "zero", "intent", "commit"],
)
@pytest.mark.parametrize("code", [ErrorCode.IO, ErrorCode.FULL])
def test_p2_after_a_failure_nothing_is_recorded(
    filled: Bench,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    act: Callable[[Worker], None],
    code: ErrorCode,
) -> None:
    with filled.work() as worker:
        worker.begin()
        worker.write("B", 300)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(code))
            with pytest.raises(TargetError):
                act(worker)
        generation = worker.target.manifest.header()["generation"]
        with pytest.raises(TargetError) as caught:
            worker.session.checkpoint()
        assert caught.value.code is code, "the first failure is the one that is told"
        worker.session.finish()
        assert worker.target.manifest.header()["generation"] == generation
    assert not filled.certain() & {1}


def test_p2_a_bug_in_the_middle_of_a_write_poisons_too(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with filled.work() as worker:
        worker.begin()
        monkeypatch.setattr(Image, "write", fail)
        with pytest.raises(MemoryError):
            worker.write("B", 0)
        with pytest.raises(MemoryError):
            worker.session.checkpoint()


@pytest.mark.parametrize("harm", ["remove", "replace", "cut"])
def test_p2_nothing_is_recorded_of_an_image_that_went_away(filled: Bench, harm: str) -> None:
    with filled.work() as worker:
        worker.begin()
        worker.write("B", 0)
        if harm == "cut":
            os.truncate(filled.image, SEGMENT)
        else:
            filled.image.rename(filled.image.with_suffix(".away"))
        if harm == "replace":
            filled.image.write_bytes(bytes(filled.size))
        with pytest.raises(TargetError, match="removed, replaced or cut") as caught:
            worker.session.checkpoint()
        assert caught.value.code is ErrorCode.CHANGED
        worker.session.finish()
    with filled.record() as manifest:
        assert manifest.segment(0, filled.layout).uncertain


def test_p2_the_end_of_the_connections_records_what_was_written(filled: Bench) -> None:
    with filled.work(finish=True) as worker:
        worker.begin()
        worker.write("B", 5, 3)
        worker.zero(255, 2)
    assert filled.certain() == {0, 1, 2}
    with filled.work() as worker:
        assert worker.reasons == []
        assert cut(worker.fetch()[0])[5] == worker.digest(worker.content("B", 5))
        assert cut(worker.fetch()[1])[0] == wire.ZERO


def test_p2_a_segment_grows_over_several_checkpoints(bench: Bench) -> None:
    with bench.work() as worker:
        worker.begin()
        for first in range(0, 256, 64):
            worker.write("A", first, 64)
            assert worker.session.checkpoint().ranges == []
            assert 0 not in worker.target.manifest.segment_digests(0, 1) or (
                worker.target.manifest.segment(0, worker.layout).uncertain
            )
        worker.complete(0, worker.fetch()[0])
        assert worker.session.checkpoint().ranges == [(0, 1)]
        assert worker.session.checkpoint().ranges == []
    assert 0 in bench.certain()


def test_p2_a_segment_that_is_written_to_again_is_not_complete(bench: Bench) -> None:
    with bench.work() as worker:
        worker.begin()
        worker.write("A", 0, 256)
        worker.complete(0, worker.fetch()[0])
        worker.write("B", 0)
        assert worker.session.checkpoint().ranges == []


# P3: write intent.


def test_p3_a_b_crash_a(filled: Bench) -> None:
    """A is recorded, B overwrites it, the receiver dies, the source goes back to A."""
    with filled.work() as worker:
        worker.begin()
        a = worker.digest(worker.content("A", 7))
        worker.write("B", 7)
    with filled.work(finish=True) as worker:
        assert cut(worker.fetch()[0])[7] != a, "a cached digest would skip the block"
        worker.begin()
        worker.write("A", 7)
        worker.end()
    assert filled.image.read_bytes() == b"".join(
        worker.content("A", block) for block in range(filled.layout.blocks)
    )


def test_p3_a_b_crash_a_while_all_else_is_as_it_was(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent alone must do: times and sample see nothing here."""
    monkeypatch.setattr(Image, "identity", lambda _: [1])
    with filled.work(finish=True) as worker:
        worker.begin()
        worker.write("A", 0)
    monkeypatch.setattr("p2v_receiver.store._sample_agrees", lambda *_: True)
    with filled.work() as worker:
        worker.begin()
        worker.write("B", 7)
    with filled.work() as worker:
        assert worker.reasons == []
        entries = cut(worker.fetch()[0])
        assert entries[7] == worker.digest(worker.content("B", 7))


def test_p3_the_intent_is_durable_before_the_write(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled.work() as worker:
        worker.begin()
        manifest = worker.target.manifest
        seen = []

        def look() -> None:
            assert not manifest._db.in_transaction
            seen.append(manifest.segment(1, worker.layout).uncertain)

        before(monkeypatch, Image, "write", look)
        worker.write("B", 300)
        before(monkeypatch, Image, "make_zero", look)
        worker.zero(301)
    assert seen == [True, True]


def test_p3_marking_ahead_believes_nothing_uncertain(filled: Bench) -> None:
    """Segments marked ahead of the writes keep what is known of them, and nothing else."""
    with filled.work() as worker:
        worker.begin()
        worker.write("B", 300)  # and killed: segments 1 and 2 are uncertain
    with filled.image.open("r+b") as file:
        file.seek(2 * SEGMENT)
        file.write(b"somebody else")
    with filled.work(finish=True) as worker:
        worker.begin()
        worker.write("C", 0)
    assert filled.certain() <= {0}
    with filled.work() as worker:
        entries = cut(worker.fetch()[2])
        assert entries[0] not in (wire.UNKNOWN, worker.digest(worker.content("A", 512)))


# P4: what arrives damaged.


@pytest.mark.parametrize("at", [0, BLOCK, 2 * BLOCK - 1])
def test_p4_what_arrives_damaged_is_not_written(filled: Bench, order: list[str], at: int) -> None:
    content = filled.image.read_bytes()
    with filled.work() as worker:
        worker.begin()
        order.clear()
        data = bytearray(worker.content("B", 3, 2))
        message = worker.message(bytes(data), 3)
        data[at] ^= 1
        with pytest.raises(TargetError, match="arrived damaged") as caught:
            worker.session.data(message, memoryview(data))
        assert caught.value.code is ErrorCode.INTEGRITY
    assert order == []
    assert filled.image.read_bytes() == content


def test_p4_damaged_compression_is_not_written(filled: Bench, order: list[str]) -> None:
    with filled.work() as worker:
        worker.begin()
        order.clear()
        message = worker.message(worker.content("B", 3), 3)._replace(codec=codec.ZLIB)
        with pytest.raises(TargetError) as caught:
            worker.session.data(message, memoryview(b"no stream of zlib"))
        assert caught.value.code is ErrorCode.INTEGRITY
    assert order == []


@pytest.mark.parametrize("change", ["first", "entries", "length"])
def test_p4_data_that_contradicts_itself(filled: Bench, order: list[str], change: str) -> None:
    with filled.work() as worker:
        worker.begin()
        order.clear()
        data = worker.content("B", 530, 2)
        message = worker.message(data, 530)
        if change == "first":
            message = message._replace(first=531)
        elif change == "entries":
            message = message._replace(entries=message.entries[:16])
        else:
            data = data[:-1]
            message = message._replace(raw_length=len(data))
        with pytest.raises(ProtocolError):
            worker.session.data(message, memoryview(data))
    assert order == []


# P6: zero is made zero.


def test_p6_zeros_become_holes(filled: Bench) -> None:
    occupied = filled.image.stat().st_blocks
    with filled.work(finish=True) as worker:
        worker.begin()
        worker.zero(100, 300)
    assert filled.image.read_bytes()[100 * BLOCK : 400 * BLOCK] == bytes(300 * BLOCK)
    assert filled.image.stat().st_blocks <= occupied - 300 * BLOCK // 512
    assert filled.certain() == {0, 1, 2}


def test_p6_a_block_of_zeros_among_data_is_recorded_as_zero(bench: Bench) -> None:
    with bench.work(finish=True) as worker:
        worker.begin()
        worker.send(worker.content("A", 0) + bytes(BLOCK), 0)
    with bench.work() as worker:
        assert cut(worker.fetch()[0])[1] == wire.ZERO


# P7: the end.


def pass_over(bench: Bench, **changes: Any) -> None:
    with bench.work(finish=True) as worker:
        worker.begin()
        worker.write("B", 0, 2)
        worker.zero(300, 3)
        worker.end(**changes)


def test_p7_an_end_that_both_agree_on(filled: Bench) -> None:
    pass_over(filled)
    with filled.record() as manifest:
        header = manifest.header()
        assert (header["pass_number"], header["pass_complete"], header["quiesced"]) == (2, 1, 1)


@pytest.mark.parametrize(
    "changes",
    [{"blocks_sent": 1}, {"blocks_zeroed": 4}, {"digest": "00" * 16}],
    ids=["sent", "zeroed", "digest"],
)
def test_p7_an_end_record_that_does_not_agree(filled: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match="does not agree") as caught:
        pass_over(filled, **changes)
    assert caught.value.code is ErrorCode.INTEGRITY
    with filled.record() as manifest:
        assert not manifest.header()["pass_complete"]
        assert not manifest.is_certain(filled.layout), "all of it is compared anew"


def test_p7_an_end_before_all_is_known(filled: Bench) -> None:
    filled.manifest.unlink()
    with filled.work() as worker:
        worker.begin()
        worker.write("B", 0)
        with pytest.raises(TargetError, match="not every segment"):
            worker.end()


def test_p7_an_end_without_a_beginning(filled: Bench) -> None:
    with filled.work() as worker, pytest.raises(ProtocolError, match="not begun"):
        worker.end()


@pytest.mark.parametrize(
    "message",
    [
        {"blocks_sent": True},
        {"blocks_sent": -1},
        {"digest": 5},
        {"quiesced": 1},
        {"unreadable": [[0]]},
        {"unreadable": [[1 << 40, 1]]},
    ],
)
def test_p7_an_end_of_nonsense(filled: Bench, message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        pass_over(filled, **message)


def test_p7_segments_must_agree(filled: Bench) -> None:
    with filled.work() as worker:
        entries = worker.fetch()
        worker.complete(0, entries[0], entries[1], entries[2])
        with pytest.raises(TargetError, match="differ from what was sent"):
            worker.complete(1, entries[1], entries[1])
        with pytest.raises(ProtocolError, match="not on this disk"):
            worker.complete(2, entries[2], entries[2])


@pytest.mark.parametrize("rest", [False, True], ids=["row", "rest"])
def test_p7_what_is_uncertain_agrees_with_nothing(filled: Bench, rest: bool) -> None:
    """What was recorded of a segment, or that it was never written to, says nothing any more."""
    with filled.work() as worker:
        entries = worker.layout.zero_entries(0) if rest else worker.fetch()[0]
        if rest:
            worker.target.manifest.distrust()
        else:
            worker.target.manifest.mark_uncertain([0])
        with pytest.raises(TargetError, match="differ from what was sent"):
            worker.complete(0, entries)


def test_p11_nothing_is_written_before_a_pass_was_begun(filled: Bench, order: list[str]) -> None:
    with filled.work() as worker:
        order.clear()
        with pytest.raises(ProtocolError, match="before a pass was begun"):
            worker.write("B", 0)
        with pytest.raises(ProtocolError, match="before a pass was begun"):
            worker.zero(0)
        assert order == []
        worker.begin()
        assert not worker.target.manifest.header()["quiesced"]


@pytest.mark.parametrize(("kind", "said"), [("seed", True), ("incremental", False)])
def test_p11_seed_or_torn_is_not_quiesced(filled: Bench, kind: str, said: bool) -> None:
    with filled.work(finish=True) as worker:
        worker.begin(kind)
        worker.end(quiesced=said)
        assert not worker.target.manifest.header()["quiesced"]


# FETCH.


def test_fetch_tells_zeros_in_runs(bench: Bench) -> None:
    answers: list[tuple[Segments, bytes]] = []
    with bench.work() as worker:
        worker.begin()
        worker.write("A", 300)
        worker.session.fetch(Segments(0, 3), lambda *answer: answers.append(answer))
    assert [(each.first, each.total, bool(entries)) for each, entries in answers] == [
        (0, 1, False),
        (1, 1, True),
        (2, 1, False),
    ]


def test_fetch_redigests_what_is_uncertain_and_records_it(filled: Bench) -> None:
    with filled.work() as worker:
        entries = worker.fetch()
    filled.manifest.unlink()
    with filled.work(finish=True) as worker:
        assert worker.reasons == ["the manifest was missing"]
        found = worker.fetch()
        assert {number: len(each) for number, each in found.items()} == {
            number: len(each) for number, each in entries.items()
        }
        assert worker.fetch() == found
    assert filled.certain() == {0, 1, 2}


def test_fetch_does_not_undo_a_write_that_came_in_between(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled.work(finish=True) as worker:
        worker.begin()
        worker.target.manifest.distrust()
        real = Image.entries

        def entries(image: Image, *arguments: Any) -> bytes:
            found = real(image, *arguments)
            worker.write("B", 7)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Image, "entries", entries)
            worker.fetch(0, 1)
        assert cut(worker.fetch(0, 1)[0])[7] == worker.digest(worker.content("B", 7))
    filled.certain()


def test_fetch_of_many_zeros_takes_little_memory(bench: Bench) -> None:
    with bench.work() as worker:
        worker.target.manifest.distrust()
        worker.fetch()
        entries = worker.session._entries
        assert entries[0] is entries[1]
        worker.begin()
        worker.write("A", 300)
        assert set(cut(bytes(entries[0]))) == {wire.ZERO}


@pytest.mark.parametrize(("first", "total"), [(0, 4), (3, 1), (1 << 20, 1)])
def test_fetch_of_segments_that_are_not_there(bench: Bench, first: int, total: int) -> None:
    with bench.work() as worker, pytest.raises(ProtocolError, match="not on this disk"):
        worker.fetch(first, total)


def test_fetch_of_too_many(bench: Bench) -> None:
    with bench.work() as worker, pytest.raises(ProtocolError, match="at once"):
        worker.fetch(0, wire.MAX_FETCH + 1)


# BEGIN, UNREADABLE, VERIFY.


@pytest.mark.parametrize(
    "message",
    [{}, {"kind": "all", "source": {}}, {"kind": "seed", "source": []}, {"kind": 5, "source": {}}],
)
def test_a_beginning_of_nonsense(bench: Bench, message: dict[str, Any]) -> None:
    with bench.work() as worker, pytest.raises(ProtocolError):
        worker.session.begin(message)


def test_an_identity_that_would_not_fit_into_an_answer(bench: Bench) -> None:
    with bench.work() as worker, pytest.raises(ProtocolError, match="too long"):
        worker.session.begin({"kind": "seed", "source": {"a": "b" * 20000}})


def test_p12_unreadable_extents_are_recorded(bench: Bench) -> None:
    with bench.work() as worker:
        worker.begin()
        worker.session.unreadable({"extents": [[512, 512], [4096, 1024]]})
        worker.session.checkpoint()
        assert worker.target.manifest.unreadable() == [(512, 512), (4096, 1024)]
        worker.end(unreadable=[[512, 512]])
        assert worker.target.manifest.unreadable() == [(512, 512)]
    lines = Path(bench.place.map).read_text().splitlines()
    assert lines[2:] == [
        "0x00000000  0x00000200  +",
        "0x00000200  0x00000200  -",
        f"0x00000400  0x{bench.size - 1024:08X}  +",
    ]


def test_p12_the_map_says_when_all_is_repaired(bench: Bench) -> None:
    with bench.work() as worker:
        worker.begin()
        worker.end(unreadable=[[512, 512]])
        worker.end()
    assert "-" not in Path(bench.place.map).read_text().split("\n", 1)[1]


def test_p12_a_map_that_can_not_be_written_does_not_matter(bench: Bench) -> None:
    with bench.work() as worker:
        Path(bench.place.map).mkdir()
        worker.begin()
        worker.end(unreadable=[[512, 512]])


def test_p10_a_map_that_leads_elsewhere_is_not_followed(bench: Bench) -> None:
    precious = bench.root / "precious"
    precious.write_text("precious")
    with bench.work() as worker:
        Path(bench.place.map).symlink_to(precious)
        worker.begin()
        worker.end(unreadable=[[512, 512]])
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("extents", [[[0]], [[-1, 5]], [["0", 5]], [[1 << 30, 512]], 7])
def test_p12_extents_of_nonsense(bench: Bench, extents: Any) -> None:
    with bench.work() as worker, pytest.raises(ProtocolError):
        worker.session.unreadable({"extents": extents})


def test_p12_extents_without_end(bench: Bench) -> None:
    message = {"extents": [[0, 512]] * wire.MAX_EXTENTS}
    with bench.work() as worker:
        for _ in range(16):
            worker.session.unreadable(message)
        with pytest.raises(ProtocolError, match="too many"):
            worker.session.unreadable(message)


@pytest.mark.parametrize("strong", [False, True])
def test_verification_finds_wrong_blocks_and_forgets_them(filled: Bench, strong: bool) -> None:
    with filled.work(finish=True) as worker:
        digests = codec.strong_digest(worker.session._seed)
        wanted = codec.entries_of(memoryview(filled.image.read_bytes()), BLOCK, digests)
        for block in (3, 4, 260):
            os.pwrite(worker.target.image.fd, b"rot", block * BLOCK)
        body = b"".join(wanted) if strong else b""
        check = Verify(1, 0, filled.layout.blocks)
        assert worker.session.verify(check, body) == [(3, 2), (260, 1)]
        entries = worker.fetch()
        assert cut(entries[0])[3:5] == [wire.UNKNOWN] * 2
        assert cut(entries[1])[4] == wire.UNKNOWN
        assert not worker.target.manifest.header()["quiesced"]


def test_verification_of_what_was_just_written(filled: Bench) -> None:
    with filled.work(finish=True) as worker:
        worker.begin()
        worker.write("B", 3)
        assert worker.session.verify(Verify(1, 2, 3), b"") == []
        os.pwrite(worker.target.image.fd, b"rot", 3 * BLOCK)
        assert worker.session.verify(Verify(2, 2, 3), b"") == [(3, 1)]
        assert cut(worker.fetch()[0])[3] == wire.UNKNOWN
    with filled.work() as worker:
        assert cut(worker.fetch()[0])[3] != worker.digest(worker.content("B", 3))


@pytest.mark.parametrize(("first", "total", "body"), [(530, 5, 0), (0, 2, 16), (1 << 60, 1, 0)])
def test_verification_of_nonsense(bench: Bench, first: int, total: int, body: int) -> None:
    with bench.work() as worker, pytest.raises(ProtocolError):
        worker.session.verify(Verify(1, first, total), bytes(body))


@pytest.mark.parametrize(("first", "total"), [(0, 1 << 32), (533, 1), (1 << 63, 1)])
def test_zeros_off_the_disk(bench: Bench, first: int, total: int) -> None:
    with bench.work() as worker:
        worker.begin()
        with pytest.raises(ProtocolError, match="not on this disk"):
            worker.session.zeros(Blocks(first, total))


def test_runs() -> None:
    assert runs([7, 1, 2, 3]) == [(1, 3), (7, 1)]
    assert runs([]) == []


# Several connections at once.


def test_p2_threads_and_checkpoints_at_the_same_time(bench: Bench) -> None:
    """Two connections write, one steers; whenever it is cut off, what is recorded is right."""
    bench.fill("A")
    for round_number in range(10):
        with bench.work(finish=bool(round_number % 2)) as worker:
            worker.begin()
            over = threading.Event()

            def write(first: int, worker: Worker = worker, name: int = round_number) -> None:
                for at in range(60):
                    worker.write((name, at % 7), first + at * 3 % 200, 2)
                    if at % 5 == 0:
                        worker.zero(first + at, 2)

            def steer(worker: Worker = worker, over: threading.Event = over) -> None:
                while not over.is_set():
                    worker.fetch(0, 2)
                    worker.session.checkpoint()

            writers = [threading.Thread(target=write, args=(first,)) for first in (0, 250)]
            steering = threading.Thread(target=steer)
            for thread in [*writers, steering]:
                thread.start()
            for thread in writers:
                thread.join()
            over.set()
            steering.join()
        bench.certain()


# Pages of larger blocks (P2, P3, P4).

LARGE = 4 * BLOCK


@pytest.fixture
def large(bench: Bench) -> Bench:
    """Blocks of four pages, full of A; the last one has less than three."""
    bench = Bench(bench.root, SEGMENT + 2 * BLOCK + 5, LARGE)
    bench.fill("A")
    return bench


def altered(worker: Worker, block: int, *pages: int) -> bytes:
    """Block ``block`` of A with these pages of it changed."""
    content = bytearray(worker.content("A", block))
    for page in pages:
        at = slice(page * BLOCK, (page + 1) * BLOCK)
        content[at] = bytes(each ^ 1 for each in content[at])
    return bytes(content)


@pytest.mark.parametrize(
    ("block", "pages", "written"),
    [
        (0, (0,), [(0, BLOCK)]),
        (0, (1, 2), [(BLOCK, 2 * BLOCK)]),
        (1, (0, 3), [(LARGE, BLOCK), (LARGE + 3 * BLOCK, BLOCK)]),
        (1, (0, 1, 2, 3), [(LARGE, LARGE)]),
        (1, (), []),
        (64, (1,), [(64 * LARGE + BLOCK, BLOCK)]),
        (64, (2,), [(64 * LARGE + 2 * BLOCK, 5)]),
    ],
    ids=str,
)
def test_only_the_pages_that_differ_are_written(
    large: Bench,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    pages: tuple[int, ...],
    written: list[tuple[int, int]],
) -> None:
    done: list[tuple[int, int]] = []
    real = Image.write

    def noting(image: Image, data: memoryview, start: int) -> None:
        done.append((start, len(data)))
        real(image, data, start)

    with large.work(finish=True) as worker:
        worker.begin()
        monkeypatch.setattr(Image, "write", noting)
        content = altered(worker, block, *pages)
        assert worker.patch(block, content) == 0
        assert cut(worker.fetch()[0])[block] == worker.message(content, block).entries
        assert large.image.read_bytes()[block * LARGE :][: len(content)] == content
    assert done == written
    assert large.certain() == {0}


def test_p2_p3_pages_too_are_intended_written_flushed_recorded(
    large: Bench, order: list[str]
) -> None:
    with large.work() as worker:
        worker.begin()
        order.clear()
        worker.patch(0, altered(worker, 0, 1))
        worker.session.checkpoint()
    assert order == ["mark_uncertain", "write", "sync", "commit"]


def test_p3_pages_a_b_crash_a(large: Bench) -> None:
    """Killed after the write: what the manifest knew of the segment is not believed."""
    with large.work() as worker:
        worker.begin()
        before_it = worker.fetch()[0]
        worker.patch(7, altered(worker, 7, 2))
    assert large.certain() == set()
    with large.work() as worker:
        now = worker.fetch()[0]
        assert cut(now)[7] != cut(before_it)[7]
        assert cut(now)[7] == worker.message(altered(worker, 7, 2), 7).entries


def test_p4_pages_that_do_not_make_the_block_are_refused_and_not_written(large: Bench) -> None:
    there = large.image.read_bytes()
    with large.work(finish=True) as worker:
        worker.begin()
        wrong = worker.message(worker.content("C", 5), 5).entries
        assert worker.patch(5, altered(worker, 5, 2), entry=wrong) == 1 << 5
        assert large.image.read_bytes() == there
        assert cut(worker.fetch()[0])[5] == wire.UNKNOWN
        # The sender's first word on the segment may come before it knows.
        worker.complete(0, worker.message(worker.content("C", 0, 65), 0).entries)
        assert worker.session.checkpoint().ranges == []
        with pytest.raises(TargetError, match="differ from what was sent"):
            worker.complete(0, worker.message(worker.content("C", 0, 65), 0).entries)
        worker.write("A", 5)
        worker.complete(0, worker.fetch()[0])
        assert worker.session.checkpoint().ranges == [(0, 1)]
        worker.end()
    assert large.image.read_bytes() == there


def test_p4_an_image_that_changes_after_the_question(
    large: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with large.work() as worker:
        worker.begin()
        real = worker.session.pages

        def meddle(wanted: wire.BlockSet) -> bytes:
            digests = real(wanted)
            with large.image.open("r+b") as file:
                file.seek(5 * LARGE + 17)
                file.write(b"meddled")
            return digests

        monkeypatch.setattr(worker.session, "pages", meddle)
        assert worker.patch(5, altered(worker, 5, 2)) == 1 << 5
        sent = altered(worker, 5, 2)[2 * BLOCK : 3 * BLOCK]
        assert sent not in large.image.read_bytes()


def test_p2_pages_never_complete_a_block_that_is_unknown(
    large: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed flush the host's cache shows what may not be on its disk."""
    with large.work() as worker:
        worker.begin()
        worker.patch(5, altered(worker, 5, 1))
        with monkeypatch.context() as broken:
            broken.setattr(Image, "sync", failing())
            with pytest.raises(TargetError):
                worker.session.checkpoint()
        with pytest.raises(TargetError, match="dying"):
            worker.patch(6, altered(worker, 6, 1))
    with large.work() as worker:
        worker.begin()
        assert cut(worker.fetch()[0])[5] == wire.UNKNOWN
        assert worker.patch(5, altered(worker, 5, 1, 2)) == 1 << 5
        assert worker.patch(5, altered(worker, 5, 1, 2), whole=True) == 0


def test_a_zero_block_gets_pages(large: Bench) -> None:
    with large.work(finish=True) as worker:
        worker.begin()
        worker.zero(3)
        content = bytes(BLOCK) + worker.content("B", 3)[BLOCK : 2 * BLOCK] + bytes(2 * BLOCK)
        assert worker.patch(3, content) == 0
        worker.complete(0, worker.fetch()[0])
        worker.end()
    assert large.certain() == {0}


PATCH = wire.Patch(wire.BlockSet(0, 0b11), 0, 2 * BLOCK, bytes(32), b"\x01\x02")


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": wire.BlockSet(1, 0b11)},
        {"blocks": wire.BlockSet(0, 1 << 65 | 1)},
        {"page_maps": b"\0\x01\0\x02"},
        {"page_maps": b"\x01\x12"},
        {"page_maps": b"\x01\x03"},
        {"page_maps": b"\0\0"},
        {"blocks": wire.BlockSet(0, 1 << 64 | 1), "page_maps": b"\x01\x08"},
    ],
    ids=repr,
)
def test_a_patch_that_lies_changes_nothing(large: Bench, changes: dict[str, Any]) -> None:
    there = large.image.read_bytes()
    with large.work(finish=True) as worker:
        worker.begin()
        with pytest.raises(ProtocolError):
            worker.session.patch(PATCH._replace(**changes), memoryview(bytes(2 * BLOCK)))
    assert large.image.read_bytes() == there
    assert large.certain() == {0}


def test_pages_before_a_pass(large: Bench) -> None:
    with large.work() as worker, pytest.raises(ProtocolError, match="before a pass"):
        worker.patch(0, altered(worker, 0, 1))


@pytest.mark.parametrize("blocks", [wire.BlockSet(1, 1), wire.BlockSet(0, 1 << 65)])
def test_pages_of_blocks_that_are_not_there(large: Bench, blocks: wire.BlockSet) -> None:
    with large.work() as worker, pytest.raises(ProtocolError, match="not on this disk"):
        worker.session.pages(blocks)
