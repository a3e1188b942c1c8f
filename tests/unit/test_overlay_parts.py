"""The decisions around overlays: room, names, what programs say, what may be mounted."""

import json
from pathlib import Path

import pytest

from p2v_sync import run
from p2v_sync.cli import main
from p2v_sync.device.storage import Storage, Volume
from p2v_sync.device.topology import Node, Topology
from p2v_sync.errors import CommandError, CowTooSmall, FixupError, OverlayError, OverlayUnsupported
from p2v_sync.extent import Extent
from p2v_sync.overlay import lineage, lvm, mapper, md
from p2v_sync.overlay.cow import allot, full_size
from p2v_sync.overlay.mounting import OverlayMounter, check_options, option_sets
from p2v_sync.overlay.partitions import Partition, parse_pairs
from p2v_sync.overlay.snapshot import Overlay, Usage, parse_usage
from p2v_sync.units import GIB, KIB, MIB

# Room.


def test_a_store_never_needs_more_than_all_chunks_and_their_lists() -> None:
    assert full_size(4096, 4096) == (1 + 1 + 2) * 4096
    assert full_size(256 * 4096, 4096) == (1 + 256 + 3) * 4096
    assert full_size(GIB, 4096) < GIB * 1.005 + 64 * KIB


def test_half_of_the_free_memory_is_shared_fairly() -> None:
    assert allot(None, [10 * GIB, 10 * GIB], 2 * GIB, "memory") == [GIB // 2, GIB // 2]
    assert allot(None, [10 * MIB, 10 * GIB], 2 * GIB, "memory") == [10 * MIB, GIB // 2]


def test_room_as_wanted_but_no_more_than_a_disk_can_use() -> None:
    assert allot(100 * MIB, [GIB, 20 * MIB], GIB, "memory") == [100 * MIB, 20 * MIB]


def test_too_little_memory_is_said_with_numbers() -> None:
    with pytest.raises(CowTooSmall, match=r"128.0 MiB .* 2 disks .* 200.0 MiB of free memory"):
        allot(None, [GIB, GIB], 200 * MIB, "memory")
    with pytest.raises(CowTooSmall, match=r"600.0 MiB .* 500.0 MiB of free space in /x"):
        allot(300 * MIB, [GIB, GIB], 500 * MIB, "space in /x")
    with pytest.raises(CowTooSmall, match="too little for anything"):
        allot(100 * KIB, [GIB], GIB, "memory")


# Where there are none.


class System:
    """What this machine can do, as far as overlays ask."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.user = 0
        self.programs = {"dmsetup", "losetup", "mount", "blkid", "partx"}
        self.targets = ""
        patch.setattr("os.geteuid", lambda: self.user)
        patch.setattr("shutil.which", lambda name: name if name in self.programs else None)
        patch.setattr(run, "capture", self.capture)

    def capture(self, argv: list[str], **_options: object) -> str:
        if "targets" in argv and self.targets:
            return self.targets
        raise CommandError(f"{argv[0]} failed")


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    return System(monkeypatch)


def test_where_overlays_can_be_made(system: System) -> None:
    system.targets = "snapshot-origin  v1.9.0\nsnapshot         v1.16.0\n"
    mapper.check_support()


def assert_refused(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["create", "/dev/sda"], ["status"], ["remove"]):
        assert main(["overlay", *argv]) == OverlayUnsupported.exit_code
        message, hint = capsys.readouterr().err.splitlines()
        assert said in message
        assert hint.startswith("  ")


def test_a_kernel_without_device_mapper(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused("this kernel has no device-mapper snapshots", capsys)
    system.targets = "snapshot-origin  v1.9.0\n"
    assert_refused("this kernel has no device-mapper snapshots", capsys)


def test_not_root(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    system.user = 1000
    assert_refused("only be made by root", capsys)


def test_a_program_is_missing(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    system.programs -= {"dmsetup"}
    assert_refused("overlays need dmsetup", capsys)


# What dmsetup says.


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("0 204800 snapshot 16/32768 16", Usage("active", 8192, 16 * MIB, 8192)),
        ("0 204800 snapshot Invalid", Usage("invalid")),
        ("0 204800 snapshot Overflow", Usage("invalid")),
        ("0 204800 snapshot Merge failed", Usage("failed")),
        ("0 204800 linear", Usage("failed")),
        ("", Usage("missing")),
    ],
)
def test_the_status_of_a_snapshot(line: str, usage: Usage) -> None:
    assert parse_usage(line) == usage


def test_a_warning_is_due_above_eighty_percent() -> None:
    assert not Usage("active", 80, 100).is_nearly_full
    assert Usage("active", 81, 100).is_nearly_full


@pytest.mark.parametrize(
    ("disk", "name"),
    [("sda", "p2v-sda"), ("cciss!c0d0", "p2v-cciss_c0d0"), ("a b/c", "p2v-a_b_c")],
)
def test_map_names_have_nothing_that_udev_would_mangle(disk: str, name: str) -> None:
    assert mapper.map_name(disk) == name


def test_a_record_survives_json() -> None:
    one = Overlay("sda", Path("/dev/sda"), GIB, 4096, Path("/x/p2v-sda.cow"), MIB, ("/dev/sda",), 7)
    assert Overlay.from_json(json.loads(json.dumps(one.to_json()))) == one


# What partx, LVM and mdadm say.


def test_partitions_as_partx_lists_them() -> None:
    text = (
        'NR="1" START="2048" SECTORS="8" SCHEME="gpt" TYPE="0fc6" UUID="da09" NAME="my \\x22root"\n'
        'NR="2" START="4096" SECTORS="8" SCHEME="dos" TYPE="0x5" UUID="1510-02" NAME=""\n'
        'NR="5" START="8192" SECTORS="8" SCHEME="dos" TYPE="0x83" UUID="1510-05" NAME=""\n'
    )
    assert parse_pairs(text, GIB) == [
        Partition(1, Extent(MIB, 4096), "0fc6", "da09", 'my "root'),
        Partition(5, Extent(4 * MIB, 4096), "0x83", "1510-05", ""),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "garbage",
        'NR="1" START="2048" SECTORS="99999" SCHEME="gpt" TYPE="x"',
        'NR="0" START="0" SECTORS="8" SCHEME="gpt" TYPE="x"',
        'NR="1" START="0" SECTORS="0" SCHEME="gpt" TYPE="x"',
        'NR="1" START="-8" SECTORS="8" SCHEME="gpt" TYPE="x"',
        'NR="1" START="x" SECTORS="8" SCHEME="gpt" TYPE="x"',
        'NR="1" START="0" SECTORS="8" SCHEME="gpt" TYPE="x"\n' * 2,
    ],
)
def test_partitions_that_make_no_sense(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - int's own is one of them
        parse_pairs(line, 2 * MIB)


def lv(name: str, attributes: str, origin: str = "") -> dict[str, str]:
    return {
        "vg_name": "vg-1", "vg_uuid": "ab-cd", "lv_name": name, "lv_uuid": "ef-gh",
        "lv_attr": attributes, "origin": origin,
    }  # fmt: skip


def test_logical_volumes_that_can_hold_a_file_system() -> None:
    rows = [
        lv("root-1", "-wi-------"),
        lv("cached", "Cwi---C---", "[cached_corig]"),
        lv("thin", "Vwi---tz--"),
        lv("thinsnap", "Vwi---tz-k", "thin"),
        lv("snap", "swi---s---", "root-1"),
        lv("pool", "twi---tz--"),
        lv("half", "-wi-----p-"),
        lv("mirror_rimage_0", "Iwi---r---"),
    ]
    chosen = list(lvm.choose(rows))
    assert [each.name for each in chosen] == ["root-1", "cached", "thin"]
    assert chosen[0].device == Path("/dev/mapper/vg--1-root--1")
    assert chosen[0].aliases == (
        "vg-1/root-1",
        "mapper/vg--1-root--1",
        "disk/by-id/dm-name-vg--1-root--1",
        "disk/by-id/dm-uuid-LVM-abcdefgh",
    )


def test_lvm_sees_our_maps_and_nothing_else() -> None:
    text = lvm.config([Path("/dev/md100")])
    assert 'filter=["a|^/dev/mapper/p2v-.*|","a|^/dev/md100$|","r|.*|"]' in text
    for setting in ("use_devicesfile=0", "obtain_device_list_from_udev=0"):
        assert setting in text


def test_groups_that_lack_volumes() -> None:
    rows = [
        {"vg_name": "a", "vg_missing_pv_count": "0", "pv_count": "1"},
        {"vg_name": "b", "vg_missing_pv_count": "1", "pv_count": "3"},
    ]
    (said,) = lvm.incomplete(rows)
    assert "group b is incomplete: 1 of its 3" in said


@pytest.mark.parametrize("text", ["", "{}", '{"report": [1]}', '{"report": 1}', "[]"])
def test_reports_of_lvm_that_are_none(text: str) -> None:
    with pytest.raises(OverlayError):
        lvm.parse_report(text, "vg")


UUID = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize(
    ("brief", "aliases"),
    [
        ("ARRAY /dev/md0 UUID=x", ("md0", "md/0")),
        ("ARRAY /dev/md/0 metadata=1.2 name=old:0", ("md0", "md/0", "disk/by-id/md-name-old:0")),
        ("ARRAY /dev/md/root name=old:root", ("md/root", "disk/by-id/md-name-old:root")),
        ("", ()),
    ],
)
def test_names_of_an_array(brief: str, aliases: tuple[str, ...]) -> None:
    by_uuid = "disk/by-id/md-uuid-01234567:89abcdef:01234567:89abcdef"
    assert md.parse_aliases(brief, UUID) == (by_uuid, *aliases)


# What stands on what.


def topology(tmp_path: Path) -> Topology:
    """sda under an overlay with a partition and an LV; sdb bare; md0 half on each."""
    uuids = {
        "dm-0": "P2VSYNC-overlay-p2v-sda",
        "dm-1": "P2VSYNC-part-p2v-sda-part1",
        "dm-2": "LVM-x",
        "dm-3": "LVM-y",
    }
    names = ["sda", "sdb", "md0", "md1", *uuids]
    for name, uuid in uuids.items():
        (tmp_path / name / "dm").mkdir(parents=True)
        (tmp_path / name / "dm" / "uuid").write_text(uuid)
        (tmp_path / name / "dm" / "name").write_text(f"map-{name}")
    nodes = {name: Node(name, tmp_path / name, f"1:{at}", name) for at, name in enumerate(names)}
    nodes["md1p1"] = Node("md1p1", tmp_path / "md1p1", "1:99", "md1")
    holders = {
        "sda": {"dm-0"},
        "dm-0": {"dm-1"},
        "dm-1": {"dm-2", "md0", "md1"},
        "sdb": {"md0", "dm-3"},
    }
    return Topology(nodes, {name: frozenset(upper) for name, upper in holders.items()})


def test_p1_what_touches_a_bare_disk_is_not_overlaid(tmp_path: Path) -> None:
    found = topology(tmp_path)
    names = [*found.nodes, "gone"]
    overlaid = [name for name in names if lineage.is_overlaid(found, name)]
    assert overlaid == ["md1", "dm-0", "dm-1", "dm-2", "md1p1"]


def test_the_arrays_that_a_write_would_wake(tmp_path: Path) -> None:
    found = topology(tmp_path)
    assert lineage.arrays_below(found, "md1p1") == {"md1"}
    assert lineage.arrays_below(found, "dm-2") == set()


def test_what_is_on_top_is_taken_down_first(tmp_path: Path) -> None:
    order = [node.name for node in lineage.uppers_first(topology(tmp_path), ["dm-0"])]
    assert order == ["dm-2", "md0", "md1", "dm-1"]


# Mounting.


def volume(kind: str) -> Volume:
    return Volume("/dev/mapper/p2v-sda-part1", "sda", 1, kind, uuid="u")


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("ext4", ["ro,noload,nodev,nosuid"]),
        ("ext2", ["ro,nodev,nosuid"]),
        ("xfs", ["ro,norecovery,nodev,nosuid"]),
        (
            "btrfs",
            [f"ro{way},nodev,nosuid,device=/dev/mapper/p2v-sda-part1"
             for way in (",rescue=nologreplay", ",nologreplay", "")],
        ),
    ],
)  # fmt: skip
def test_reading_replays_no_journal(kind: str, ways: list[str]) -> None:
    members = ["/dev/mapper/p2v-sda-part1"]
    assert option_sets(volume(kind), writable=False, options="", members=members) == ways


def test_writing_keeps_the_delta_small() -> None:
    (way,) = option_sets(volume("ext4"), writable=True, options="", members=[])
    assert way == "rw,noatime,nodiratime,noinit_itable,nodev,nosuid"
    (way,) = option_sets(volume("xfs"), writable=True, options="uquota", members=[])
    assert way == "rw,noatime,nodiratime,nodev,nosuid,uquota"


def test_some_file_systems_are_only_read() -> None:
    with pytest.raises(FixupError, match="never written to"):
        option_sets(volume("ntfs"), writable=True, options="", members=[])


def test_the_subvolume_and_quotas_of_the_guest_are_honoured() -> None:
    assert check_options("subvol=@/x,uquota,") == ["subvol=@/x", "uquota"]


@pytest.mark.parametrize("option", ["discard", "device=/dev/sda", "dev", "subvol=a\nb", "rw"])
def test_p1_other_options_of_the_guest_are_refused(option: str) -> None:
    with pytest.raises(FixupError, match="not used here"):
        check_options(option)


def test_p1_what_is_no_overlay_is_not_mounted(tmp_path: Path) -> None:
    mounter = OverlayMounter(Storage())
    with pytest.raises(FixupError, match="no overlay of ours"):
        mounter.mount(Volume("/dev/sda1", "sda", 1, "ext4"), tmp_path / "m", writable=True)
    with pytest.raises(FixupError, match="without a device"):
        mounter.mount(Volume("", "sda", 1, "ext4"), tmp_path / "m", writable=True)
    assert not (tmp_path / "m").exists()
