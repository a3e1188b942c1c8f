"""P10: is this the disk the job copies?"""

import os
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.device.identity import Identity, difference, read_identity
from p2v_sync.device.source import DiskSource
from p2v_sync.units import GIB, MIB

A, B = "a" * 32, "b" * 32
DISK = Identity("block", 4 * GIB, 512, "naa.5000c500a1b2c3d4", "WD-1", "1234abcd", A, A)
NAMELESS = replace(DISK, wwn="", serial="")
FILE = replace(NAMELESS, kind="file", table_id="")


@pytest.mark.parametrize(
    ("old", "changes", "reason"),
    [
        (DISK, {"size": 8 * GIB}, "its size was 4294967296, is 8589934592"),
        (DISK, {"sector_size": 4096}, "its logical sector size was 512, is 4096"),
        (DISK, {"wwn": "naa.1"}, "its WWN was naa.5000c500a1b2c3d4, is naa.1"),
        (DISK, {"serial": "WD-2"}, "its serial was WD-1, is WD-2"),
        (DISK, {"wwn": "", "serial": "WD-2"}, "its serial was WD-1, is WD-2"),
        (
            NAMELESS,
            {"table_id": "ffff0000"},
            "its partition table or file system id was 1234abcd, is ffff0000",
        ),
        (
            FILE,
            {"first_mib": B, "last_mib": B},
            "both its first and its last MiB have other contents",
        ),
        # A name on one side only settles nothing.
        (
            NAMELESS,
            {"serial": "WD-1", "table_id": "0"},
            "its partition table or file system id was 1234abcd, is 0",
        ),
    ],
)
def test_p10_another_disk_is_noticed(old: Identity, changes: dict[str, Any], reason: str) -> None:
    assert difference(old, replace(old, **changes)) == reason


@pytest.mark.parametrize(
    ("old", "changes"),
    [
        (DISK, {}),
        (DISK, {"table_id": "ffff0000", "first_mib": B, "last_mib": B}),  # repartitioned
        (DISK, {"wwn": "", "first_mib": B, "last_mib": B}),  # another driver says less
        (DISK, {"serial": "", "table_id": "x"}),
        (NAMELESS, {"first_mib": B, "last_mib": B}),  # same table, written to
        (FILE, {"first_mib": B}),
        (FILE, {"last_mib": B}),
        (FILE, {"first_mib": "", "last_mib": B}),  # a bad sector, and a write
        (replace(FILE, size=2 * MIB), {"first_mib": B, "last_mib": B}),
        (FILE, {"kind": "block"}),
    ],
)
def test_p10_the_same_disk_may_have_been_written_to(old: Identity, changes: dict[str, Any]) -> None:
    new = replace(old, **changes)
    assert difference(old, new) is None
    assert difference(new, old) is None


def test_identity_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    content = os.urandom(3 * MIB + 5)
    path.write_bytes(content)
    with DiskSource(path) as source:
        identity = read_identity(source)
    assert identity == Identity(
        kind="file",
        size=3 * MIB + 5,
        sector_size=512,
        wwn="",
        serial="",
        table_id="",
        first_mib=blake2b(content[:MIB], digest_size=16).hexdigest(),
        last_mib=blake2b(content[-MIB:], digest_size=16).hexdigest(),
    )


def test_identity_of_one_byte(tmp_path: Path) -> None:
    path = tmp_path / "tiny.img"
    path.write_bytes(b"x")
    with DiskSource(path) as source:
        identity = read_identity(source)
    assert identity.first_mib == identity.last_mib == blake2b(b"x", digest_size=16).hexdigest()


@pytest.mark.parametrize("policy", ["skip", "fail"])
def test_unreadable_mib_has_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Any
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(3 * MIB))
    real = os.preadv

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        if offset <= MIB // 2 < offset + sum(map(len, buffers)):
            raise OSError(5, "bad sector")
        return real(fd, buffers, offset)

    monkeypatch.setattr("os.preadv", preadv)
    with DiskSource(path, on_read_error=policy) as source:
        identity = read_identity(source)
    assert (identity.first_mib, len(identity.last_mib)) == ("", 32)


def test_round_trip() -> None:
    assert Identity.from_dict(DISK.to_dict()) == DISK
    assert Identity.from_dict({**FILE.to_dict(), "from_a_later_version": 1}) == FILE


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "tape"},
        {"kind": ["block"]},
        {"size": 0},
        {"size": True},
        {"size": "1"},
        {"size": 1 << 63},
        {"sector_size": 513},
        {"sector_size": 512.0},
        {"wwn": None},
        {"serial": "x" * 513},
        {"serial": "a\x1b[2J"},
        {"table_id": 7},
        {"first_mib": "A" * 32},
        {"last_mib": A + "\n"},
        {"last_mib": b"a" * 32},
    ],
)
def test_hostile_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="identity"):
        Identity.from_dict({**DISK.to_dict(), **changes})


@pytest.mark.parametrize("raw", [None, [], "x", 7, {}])
def test_hostile_shapes_are_refused(raw: object) -> None:
    with pytest.raises(ValueError, match="identity"):
        Identity.from_dict(raw)


@given(
    key=st.sampled_from(sorted(DISK.to_dict())),
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(), st.binary()),
)
def test_hostile_values_raise_nothing_but_value_error(key: str, value: Any) -> None:
    try:
        identity = Identity.from_dict({**DISK.to_dict(), key: value})
    except ValueError:
        return
    assert Identity.from_dict(identity.to_dict()) == identity
