"""Fix-ups on whatever guest: nothing makes them fail, changes unmeant lines, or stays for good."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN, Storage, Volume
from p2v_sync.fixup.apply import apply, revert
from p2v_sync.fixup.catalogue import FIXUPS
from p2v_sync.fixup.diff import format_plan
from p2v_sync.fixup.draft import Content
from p2v_sync.fixup.guest import BootLoader, Generator, Guest, Init, LoaderKind
from p2v_sync.fixup.lines import split_lines
from p2v_sync.fixup.plan import Context, Plan
from p2v_sync.fixup.runner import make_plan
from p2v_sync.fixup.tree import Tree

ENTRIES = ("/boot/loader/entries/a.conf",)
GUEST = Guest(
    init=Init.SYSTEMD,
    generator=Generator.INITRAMFS_TOOLS,
    boot_loaders=(
        BootLoader(LoaderKind.GRUB2_BLS, "/boot/grub2/grub.cfg", ENTRIES),
        BootLoader(LoaderKind.GRUB_LEGACY, "/boot/grub/menu.lst"),
        BootLoader(LoaderKind.EXTLINUX, "/boot/extlinux/extlinux.conf"),
        BootLoader(LoaderKind.ELILO, "/etc/elilo.conf"),
    ),
)
STORAGE = Storage(
    (
        Volume("", "sda", 1, "ext4", "0a-1", part_uuid="0b-01"),
        Volume("", "sda", 2, "swap", "0a-2"),
        Volume("", "sda", 3, "crypto_LUKS", "0a-3"),
    ),
    ("sda",),
)
FILES = (
    "/etc/fstab",
    "/etc/crypttab",
    "/etc/default/grub",
    "/etc/default/grub.d/x.cfg",
    "/etc/sysconfig/bootloader",
    "/etc/kernel/cmdline",
    "/etc/initramfs-tools/conf.d/resume",
    "/etc/systemd/system/x.mount",
    "/etc/blkid.tab",
    "/boot/grub2/grubenv",
    "/etc/udev/rules.d/x.rules",
    "/var/cache/debconf/config.dat",
    *(loader.config for loader in GUEST.boot_loaders),
    *ENTRIES,
)
WORDS = (
    "/dev/sda1", "/dev/hda2", "/dev/sdb9", "/dev/sda3", "UUID=0A-1", "LABEL=x", "root=/dev/sda1",
    "resume=/dev/sda2", "resume=/dev/sdz1", "/", "/boot", "none", "swap", "ext4", "defaults",
    "0", "1", "#", "\\040", '"', "'", "\\", "linux", "linux /vmlinuz", "kernel", "initrd /i",
    "options", "append", 'append="', "GRUB_CMDLINE_LINUX=", 'GRUB_CMDLINE_LINUX="', "$kernelopts",
    "# kopt=", "RESUME=", "What=", "DEFAULT_APPEND=", "/dev/urandom", "LABEL", "image=", "root=",
    "menuentry 'x' {", "multiboot", "module", "title", "--", ";", "rdblacklist=ahci,x", "\xff",
    "# GRUB Environment Block", "kernelopts=", 'set kernelopts="', "\0", "\x0c", "\x85",
)  # fmt: skip
GAPS = (" ", "\t", "\n", "\r\n", "", " \\\n")


@st.composite
def near_misses(draw: st.DrawFn) -> bytes:
    """What looks like configuration, and hardly ever is."""
    words = draw(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GAPS)), max_size=25))
    return "".join(word + gap for word, gap in words).encode("latin-1")


CONTENTS = st.dictionaries(
    st.sampled_from(FILES), st.one_of(near_misses(), st.binary(max_size=80)), max_size=5
)


@contextmanager
def guest_with(files: dict[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for path, data in files.items():
            file = Path(name) / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        yield Path(name)


def planned(root: Path, storage: Storage) -> Plan:
    with Tree(root) as tree:
        plan = make_plan(tree, Context(GUEST, storage, Machine()), FIXUPS)
    for finding in plan.findings:
        assert "crashed" not in finding.text, finding
    list(format_plan(plan))
    return plan


def files_in(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@given(CONTENTS, st.sampled_from([STORAGE, NOTHING_KNOWN]))
def test_any_guest_is_planned_applied_once_and_reverted(
    files: dict[str, bytes], storage: Storage
) -> None:
    with guest_with(files) as root:
        before = files_in(root)
        plan = planned(root, storage)
        assert files_in(root) == before
        with Tree(root) as tree:
            apply(tree, plan.edits)
        assert not planned(root, storage).edits
        if plan.edits:
            with Tree(root) as tree:
                revert(tree)
        assert files_in(root) == before


OLD_NAMES = (b"/dev/", b"GRUB_DISABLE", b"=0a-", b"=0A-", b"blacklist", b"esume", b"LABEL", b"UUID")


@given(CONTENTS)
def test_lines_without_a_name_that_goes_stay_to_the_byte(files: dict[str, bytes]) -> None:
    with guest_with(files) as root:
        for edit in planned(root, STORAGE).edits:
            if not (isinstance(edit.before, Content) and isinstance(edit.after, Content)):
                continue
            kept = [
                line
                for line in split_lines(edit.before.data.decode("latin-1"))
                if not any(name.decode() in line for name in OLD_NAMES)
            ]
            after = iter(split_lines(edit.after.data.decode("latin-1")))
            if not edit.path.endswith("grubenv"):  # which is padded
                assert all(line in after for line in kept)
