"""Fix-ups on files that nobody here wrote (tests/fixups/foreign), as they are and with old names in
them: done once is done, what is not meant stays to the byte, and taken back is as before."""

import difflib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v_sync.device.machine import Machine, Nic
from p2v_sync.device.storage import Storage, Volume
from p2v_sync.fixup.apply import apply, revert
from p2v_sync.fixup.diff import format_plan
from p2v_sync.fixup.draft import Content
from p2v_sync.fixup.lines import split_lines
from p2v_sync.fixup.plan import Hypervisor, Plan, Target
from p2v_sync.fixup.tree import Tree
from p2v_sync.guest_disks import look_at_directory, plan_for

FOREIGN = Path(__file__).parents[1] / "fixups" / "foreign"
GUESTS = ("fedora", "debian")
STORAGE = Storage(
    (
        Volume("", "sda", 1, "ext3", "0a-1", label="/boot"),
        Volume("", "sda", 2, "swap", "0a-2"),
        Volume("", "", 0, "ext3", "0a-3", aliases=("vg00/lv00", "mapper/vg00-lv00")),
    ),
    ("sda",),
)
MACHINE = Machine(
    nics=(
        Nic("eth0", "00:1c:c4:5f:6e:7d", "e1000", "0000:02:00.0"),
        Nic("eno1", "00:1c:c4:5f:6e:7e", "tg3", "0000:03:00.0"),
    )
)
# What there is no file for in the trees: Debian's are of no installed system.
ADDED = {
    "fedora": {},
    "debian": {
        "etc/debian_version": "12.5\n",
        "etc/fstab": "/dev/sda1 / ext3 defaults 0 1\n/dev/sda2 none swap sw 0 0\n",
    },
}
# Lines that a guest may have, put among those that are there.
OLD_LINES = (
    "/dev/sda1 /mnt ext3 defaults 0 0",
    "/dev/sdz9 /gone ext3 defaults 0 2",
    "kernel /vmlinuz root=/dev/sda1 resume=/dev/sda2 console=ttyS1,115200 idle=poll",
    'GRUB_CMDLINE_LINUX="root=/dev/sda1 console=tty0 console=ttyS1"',
    "S1:2345:respawn:/sbin/agetty -L 9600 ttyS1 vt100",
    "alias eth0 tg3",
    "alias scsi_hostadapter mptbase",
    "HWADDR=00:1C:C4:5F:6E:7D",
    'filter = [ "a|^/dev/sda.*|", "r|.*|" ]',
    "auto eno1",
    "iface eno1 inet dhcp",
    "DEVICE /dev/sda*",
    "# /dev/sda1 is only talked about",
)
# Without any of these no fix-up has a reason to change a line.
REASONS = re.compile(
    r"/dev/|vg00|eth\d|eno\d|alias|HWADDR|MACADDR|filter|ttyS|console|root=|resume|idle|default"
    r"|DEVICE|hwclock|UUID|BEGIN p2v|interfaces|datasource|preserve_hostname|network",
    re.IGNORECASE,
)


@contextmanager
def copy_of(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "guest")
        shutil.copytree(FOREIGN / name / "tree", root, symlinks=True)
        for path, text in ADDED[name].items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        yield root


def planned(root: Path, target: Target) -> Plan:
    with Tree(root) as tree:
        plan = plan_for(tree, look_at_directory(tree, STORAGE, MACHINE), target)
    for finding in plan.findings:
        assert "crashed" not in finding.text, finding
    return plan


def files_in(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def assert_only_what_is_meant(plan: Plan) -> None:
    for edit in plan.edits:
        if isinstance(edit.before, Content) and isinstance(edit.after, Content):
            before, after = (
                split_lines(state.data.decode("latin-1")) for state in (edit.before, edit.after)
            )
            matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
            for tag, start, end, _, _ in matcher.get_opcodes():
                for line in before[start:end] if tag != "equal" else ():
                    assert REASONS.search(line), f"{edit.path}: {line!r} [{edit.fixups}]"


def assert_done_once_and_taken_back(root: Path, target: Target) -> Plan:
    before = files_in(root)
    plan = planned(root, target)
    assert files_in(root) == before
    assert_only_what_is_meant(plan)
    with Tree(root) as tree:
        apply(tree, plan.edits)
    assert [*format_plan(Plan(planned(root, target).edits, ()))] == []
    if plan.edits:
        with Tree(root) as tree:
            revert(tree)
    assert files_in(root) == before
    return plan


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize("hypervisor", Hypervisor)
def test_as_they_are(name: str, hypervisor: Hypervisor) -> None:
    with copy_of(name) as root:
        plan = assert_done_once_and_taken_back(root, Target(hypervisor))
        paths = {edit.path for edit in plan.edits}
    assert "/etc/fstab" in paths


PLACES = {
    name: sorted(
        str(path.relative_to(FOREIGN / name / "tree"))
        for path in (FOREIGN / name / "tree").rglob("*")
        if path.is_file()
    )
    for name in GUESTS
}
INSERTED = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 10_000), st.sampled_from(OLD_LINES)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=15)  # each is a whole guest
@given(st.sampled_from(GUESTS), st.sampled_from(Hypervisor), INSERTED)
def test_with_old_names_among_their_lines(
    name: str, hypervisor: Hypervisor, inserted: list[tuple[int, int, str]]
) -> None:
    with copy_of(name) as root:
        for file, place, line in inserted:
            path = root / PLACES[name][file % len(PLACES[name])]
            lines = path.read_bytes().split(b"\n")
            lines.insert(place % len(lines), line.encode())
            path.write_bytes(b"\n".join(lines))
        assert_done_once_and_taken_back(root, Target(hypervisor))


def test_each_place_is_in_the_notice() -> None:
    notice = (FOREIGN / "NOTICE").read_text()
    patterns = [line.split()[0] for line in notice.splitlines() if "/tree/" in line]
    for name, paths in PLACES.items():
        for path in paths:
            whole = f"{name}/tree/{path}"
            matching = (each.replace("**", "*") for each in patterns)
            assert any(Path(whole).match(each) or whole.startswith(each[:-1]) for each in matching)
