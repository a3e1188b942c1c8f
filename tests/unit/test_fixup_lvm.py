"""Physical volumes and array members are found under their new names."""

from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN, Storage, Volume
from p2v_sync.fixup.guest import BootLoader, Generator, Guest, LoaderKind
from p2v_sync.fixup.lvm import Lvm
from p2v_sync.fixup.lvm_filter import ACCEPT, accepting, filters
from p2v_sync.fixup.md import Md
from p2v_sync.fixup.plan import Context
from tests.contract.guests import PlainGuest

CONFIG, DEVICES = "/etc/lvm/lvm.conf", "/etc/lvm/devices/system.devices"
GRUB_CFG = "/boot/grub2/grub.cfg"
PHYSICAL = Storage((Volume("", "sda", 2, "LVM2_member"),), ("sda",))


def context(storage: Storage = PHYSICAL, generator: Generator = Generator.DRACUT) -> Context:
    loaders = (BootLoader(LoaderKind.GRUB2, GRUB_CFG),)
    return Context(Guest(boot_loaders=loaders, generator=generator), storage, Machine())


# LVM


@pytest.mark.parametrize(
    ("setting", "names", "passes"),
    [
        ('filter = [ "a|.*|" ]', ["/dev/vda2"], True),
        ('filter = [ "r|.*|" ]', ["/dev/vda2"], False),
        ('filter = "r|.*|"', ["/dev/vda2"], False),
        ('filter = [ "a/sda/", "r/.*/" ]', ["/dev/vda2"], False),
        ('filter = [ "a/sda/", "r/.*/" ]', ["/dev/sda2"], True),
        ('filter = [ "a|^/dev/disk/by-id/x|", "r|.*|" ]', ["/dev/sda", "/dev/disk/by-id/x"], True),
        ('filter = [ "r|/dev/sdb|" ]', ["/dev/vda2"], True),
        ('global_filter=["r(/dev/cdrom)","r{^/dev/vd}"]', ["/dev/vda2"], False),
        ('filter = [ # "r|.*|"\n "a|x|" ]', ["/dev/vda2"], True),
        ('filter = [ "r|[|" ]', ["/dev/vda2"], True),  # no expression that anybody knows
    ],
)
def test_filters_decide_as_lvm_does(setting: str, names: list[str], passes: bool) -> None:
    (found,) = filters(f"devices {{\n  {setting}\n}}\n")
    assert (found.rejecting(names) is None) == passes


def test_settings_in_comments_are_none() -> None:
    assert not list(filters('# filter = [ "r|.*|" ]\n  #filter = "r|.*|"\nxfilter = [ "r|.*|" ]\n'))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            'filter = [ "a|^/dev/sda.*|", # disk\n "r|.*|" ] # end\n',
            f'filter = [ "a|^/dev/sda.*|", # disk\n {ACCEPT}, "r|.*|" ] # end\n',
        ),
        ('global_filter = "r|.*|"', f'global_filter = [ {ACCEPT}, "r|.*|" ]'),
        (
            'filter = [ "r|/dev/sdb|", "r|.*|" ]\nglobal_filter = [ "r|.*|" ]\n',
            f'filter = [ "r|/dev/sdb|", {ACCEPT}, "r|.*|" ]\n'
            f'global_filter = [ {ACCEPT}, "r|.*|" ]\n',
        ),
        ('filter = [ "a|.*|" ]\n', 'filter = [ "a|.*|" ]\n'),
        (
            'filter = [ "r|/dev/vd|", "r|/dev/sd|" ]\n',
            f'filter = [ {ACCEPT}, "r|/dev/vd|", "r|/dev/sd|" ]\n',
        ),
        ('filter = [ "r|.*|"', 'filter = [ "r|.*|"'),  # no end
    ],
)  # fmt: skip
def test_only_what_rejects_the_new_names_gets_a_pattern_before_it(before: str, after: str) -> None:
    assert accepting(before, [["/dev/sda2"], ["/dev/vda2"]]) == after
    assert accepting(after, [["/dev/sda2"], ["/dev/vda2"]]) == after


@pytest.mark.parametrize("storage", [PHYSICAL, NOTHING_KNOWN])
def test_the_initramfs_gets_the_changed_configuration(tmp_path: Path, storage: Storage) -> None:
    guest = PlainGuest(tmp_path, {CONFIG: 'devices {\n\tfilter = ["a|/dev/sda2|", "r|.*|"]\n}\n'})
    draft, _ = guest.plan([Lvm()], context(storage))
    guest.fix(context(storage), Lvm())
    assert ACCEPT in guest.text(CONFIG)
    assert draft.for_initramfs == {CONFIG: guest.at(CONFIG).read_bytes()}


def test_filters_for_volumes_elsewhere_are_not_touched(tmp_path: Path) -> None:
    text = 'devices {\n\tfilter = ["a|/dev/md.*|", "r|.*|"]\n}\n'
    guest = PlainGuest(tmp_path, {CONFIG: text})
    on_md = Storage((Volume("", "md0", 0, "LVM2_member"),), ("sda", "sdb"))
    draft, _ = guest.plan([Lvm()], context(on_md))
    assert (draft.edits(), dict(draft.for_initramfs)) == ([], {})


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("", "system.devices"),
        ('devices {\n devicesfile = "our.devices"\n}\n', "our.devices"),
        ('devices {\n # devicesfile = "our.devices"\n}\n', "system.devices"),
    ],
)
def test_the_devices_file_is_put_aside(tmp_path: Path, config: str, name: str) -> None:
    path = f"/etc/lvm/devices/{name}"
    guest = PlainGuest(tmp_path, {path: "IDTYPE=sys_wwid IDNAME=naa.5 PVID=x\n", CONFIG: config})
    (finding,) = guest.fix(context(), Lvm())
    assert "vgimportdevices" in finding.hint
    assert not guest.has(path)
    assert guest.text(f"{path}.p2v").startswith("IDTYPE")


def test_caches_of_old_names_go_and_backups_stay(tmp_path: Path) -> None:
    paths = ["/etc/lvm/cache/.cache", "/etc/lvm/.cache", "/etc/lvm/backup/vg"]
    guest = PlainGuest(tmp_path, dict.fromkeys(paths, "x"))
    assert guest.fix(context(), Lvm()) == []
    assert [guest.has(path) for path in paths] == [False, False, True]


# md


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "DEVICE /dev/sd*[0-9] /dev/hd*\n",
            "#p2v# DEVICE /dev/sd*[0-9] /dev/hd*\nDEVICE partitions\n",
        ),
        ("DEVICE partitions containers\n", "DEVICE partitions containers\n"),
        (
            "ARRAY /dev/md0 UUID=1:2 devices=/dev/sda1,/dev/sdb1",
            "#p2v# ARRAY /dev/md0 UUID=1:2 devices=/dev/sda1,/dev/sdb1\nARRAY /dev/md0 UUID=1:2",
        ),
        ("ARRAY /dev/md0 devices=/dev/sda1\n", "ARRAY /dev/md0 devices=/dev/sda1\n"),
        ("HOMEHOST <system>\nMAILADDR root\n", "HOMEHOST <system>\nMAILADDR root\n"),
    ],
)  # fmt: skip
def test_arrays_are_looked_for_on_all_disks(tmp_path: Path, before: str, after: str) -> None:
    path = "/etc/mdadm/mdadm.conf"
    guest = PlainGuest(tmp_path, {path: before})
    guest.fix(context(), Md())
    assert guest.text(path) == after
    draft, _ = guest.plan([Md()], context())
    expected = {path: after.encode()} if after != before else {}
    assert draft.for_initramfs == expected


def test_fake_raid_that_became_a_plain_disk_is_not_looked_for(tmp_path: Path) -> None:
    fake = "ARRAY metadata=imsm UUID=aa:bb\n"
    volume = "ARRAY /dev/md/Volume0 container=aa:bb member=0 UUID=cc:dd\n"
    line = "menuentry 'L' {{\n\tlinux /vmlinuz root=UUID=1{}\n}}\n"
    guest = PlainGuest(
        tmp_path,
        {
            "/etc/mdadm.conf": fake + volume + "ARRAY /dev/md0 UUID=ee:ff\n",
            GRUB_CFG: line.format(" rd.md.uuid=cc:dd rd.md.uuid=ee:ff"),
        },
    )
    guest.fix(context(), Md())
    assert guest.text("/etc/mdadm.conf") == f"#p2v# {fake}#p2v# {volume}ARRAY /dev/md0 UUID=ee:ff\n"
    assert guest.text(GRUB_CFG) == line.format(" rd.md.uuid=ee:ff rd.md.imsm=0 rd.dm=0")


@pytest.mark.parametrize(
    "storage", [Storage((Volume("", "sda", 0, "isw_raid_member"),), ("sda",)), NOTHING_KNOWN]
)
def test_members_of_fake_raid_that_were_copied_stay_members(
    tmp_path: Path, storage: Storage
) -> None:
    text = "ARRAY metadata=imsm UUID=aa:bb\n"
    guest = PlainGuest(tmp_path, {"/etc/mdadm.conf": text})
    guest.fix(context(storage), Md())
    assert guest.text("/etc/mdadm.conf") == text
