"""An initramfs taken apart: every compression, in any order, whatever the guest put there."""

import bz2
import gzip
import lzma
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_receiver import codec
from p2v_sync.fixup.initramfs import cpio, segments
from p2v_sync.fixup.initramfs.compression import Compression, as_lz4
from p2v_sync.units import MIB

MICROCODE = cpio.write([cpio.file("kernel/x86/microcode/GenuineIntel.bin", bytes(100))])
MAIN = cpio.write([cpio.directory("etc"), cpio.file("etc/fstab", bytes(range(256)) * 5000)])


def zstd(data: bytes) -> bytes:
    if "zstd" not in codec.codec_names():
        pytest.skip("libzstd.so.1 is not here")
    return codec.codec_by_name("zstd").compress(data)


PACKERS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.NONE: lambda data: data,
    Compression.GZIP: gzip.compress,
    Compression.BZIP2: bz2.compress,
    Compression.XZ: lzma.compress,
    Compression.LZMA: lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    Compression.LZ4: as_lz4,
    Compression.ZSTD: zstd,
}


def names(image: segments.Image) -> list[str]:
    return [entry.name for segment in image.segments for entry in segment.entries]


@pytest.mark.parametrize("kind", PACKERS)
def test_every_compression_behind_microcode_and_before_what_was_appended(kind: Compression) -> None:
    packed = PACKERS[kind](MAIN)
    first = MICROCODE + bytes(512) + packed
    last = cpio.write([cpio.file("added", b"")])
    data = first + bytes(-len(first) % 4 + 4) + last
    image = segments.parse(data)
    assert image.reason == ""
    assert [each.compression for each in image.segments] == [
        Compression.NONE,
        kind,
        Compression.NONE,
    ]
    assert names(image) == ["kernel/x86/microcode/GenuineIntel.bin", "etc", "etc/fstab", "added"]
    assert bytes(image.segments[1].entries[1].data) == bytes(range(256)) * 5000
    assert data[image.segments[1].start :].startswith(packed[:8])
    assert image.segments[1].end == len(first)


def test_an_lz4_stream_goes_on_with_the_next_magic() -> None:
    image = segments.parse(as_lz4(MAIN) + as_lz4(MICROCODE))
    assert image.reason == ""
    assert len(image.segments) == 1
    assert names(image)[-1] == "kernel/x86/microcode/GenuineIntel.bin"


@pytest.mark.parametrize("length", [1, 14, 15, 16, 269, 270, 271, 525, 8 * MIB + 3])
def test_literals_of_every_length_are_lz4(length: int) -> None:
    content = bytes(length)
    image = segments.parse(as_lz4(cpio.write([cpio.file("a", content)])))
    assert image.reason == ""
    assert bytes(image.segments[0].entries[0].data) == content


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (bytes(5000), "empty"),
        (b"MZ" + bytes(100), "unified kernel image"),
        (b"\x45\x3d\xcd\x28" + bytes(100), "cramfs"),
        (
            gzip.compress(bytes(1080) + b"\x53\xef" + bytes(100), mtime=0),
            "no archive|ext2|not known",
        ),
        (b"what is this", "not known"),
        (b"\0" + MAIN, "no multiple of 4"),
        (gzip.compress(MAIN, mtime=0)[:-400], "too early|within"),
        (lzma.compress(MAIN)[:-40], "too early"),
        (as_lz4(MAIN)[:-4], "not in order"),
        (gzip.compress(b"hello", mtime=0), "no archive"),
        (b"\x1f\x8bgarbage" * 10, "not in order"),
        (b"\x89LZO\x00\r\n\x1a\n" + bytes(20), "too early|can't be decompressed"),
        (b"\x89LZO\x00\r\n\x1a\n" + b"\1" * 90, "not in order|can't be decompressed"),
    ],
)
def test_what_is_not_understood_has_a_reason(data: bytes, reason: str) -> None:
    assert reason_matches(segments.parse(data).reason, reason)


def reason_matches(text: str, patterns: str) -> bool:
    return any(each in text for each in patterns.split("|"))


@pytest.mark.parametrize("kind", [Compression.GZIP, Compression.ZSTD])
def test_a_bomb_is_not_unpacked(kind: Compression) -> None:
    bomb = PACKERS[kind](bytes(100 * MIB))
    assert "more than" in segments.parse(bomb).reason


def test_zstd_that_is_damaged_or_cut_short_has_a_reason() -> None:
    packed = zstd(MAIN)
    assert segments.parse(packed[:-9]).reason
    assert segments.parse(packed[:20] + b"\xff" * 40 + packed[60:]).reason


@given(st.sampled_from([*PACKERS]), st.integers(0, 400), st.binary(min_size=1, max_size=20))
def test_no_damage_makes_it_fail(kind: Compression, at: int, junk: bytes) -> None:
    whole = PACKERS[kind](cpio.write([cpio.file("etc/fstab", b"/dev/sda1 / ext4\n")]))
    image = segments.parse(whole[:at] + junk + whole[at + len(junk) :])
    assert image.reason or image.segments
