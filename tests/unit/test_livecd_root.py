"""P1 on the live CD: the files that keep its system off the disks, and that each is needed.

What they do on a booted medium is in tests/livecd.
"""

import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "livecd" / "root"
UDEV = "etc/udev/rules.d"
READ_ONLY = f"{UDEV}/00-p2v-read-only.rules"

DISKS = ("sda", "sdaa12", "hda1", "vda", "xvda2", "nvme0n1", "nvme0n1p3", "cciss/c0d0", "mmcblk0p1")
# The live system itself, and what is built above the disks.
OTHERS = ("loop0", "ram0", "zram0", "sr0", "fd0", "dm-3", "md127")


# udev(7), as far as our rules use it.

_TOKEN = re.compile(r'\s*(?P<key>\w+)(?:\{\w+\})?\s*(?P<op>==|!=|\+=|=)\s*"(?P<value>[^"]*)"\s*,?')


def tokens(line: str) -> list[tuple[str, str, str]]:
    found, at = [], 0
    while at < len(line):
        match = _TOKEN.match(line, at)
        assert match, f"no rule: {line}"
        found.append((match["key"], match["op"], match["value"]))
        at = match.end()
    return found


def programs(rules: str, event: dict[str, str]) -> Iterator[str]:
    """What RUN holds after the event went through the rules."""
    wanted = ""
    for line in filter(None, (each.partition("#")[0].strip() for each in rules.splitlines())):
        rule = tokens(line)
        labels = [value for key, _, value in rule if key == "LABEL"]
        if wanted and wanted not in labels:
            continue
        wanted = ""
        matches = [
            any(fnmatchcase(event.get(key, ""), each) for each in value.split("|")) == (op == "==")
            for key, op, value in rule
            if op in ("==", "!=")
        ]
        if not all(matches):
            continue
        for key, op, value in rule:
            if key == "RUN":
                assert op == "+=", "a rule before ours must not be lost"
                yield value.replace("$env{DEVNAME}", event["DEVNAME"])
            elif key == "GOTO":
                wanted = value


def event(name: str, action: str = "add", subsystem: str = "block") -> dict[str, str]:
    kernel = name.replace("/", "!")
    return {
        "ACTION": action,
        "SUBSYSTEM": subsystem,
        "KERNEL": kernel,
        "DEVNAME": f"/dev/{name}",
    }


def text_of(root: Path, name: str) -> str:
    path = root / name
    return path.read_text() if path.exists() else ""


def settings(text: str) -> str:
    """Without comments and white space."""
    return re.sub(r"#.*|\s", "", text)


# What must hold of a live system.


def problems(root: Path) -> Iterator[str]:
    """Which disks, arrays and volumes of the server the system would touch by itself."""
    rules = text_of(root, READ_ONLY)
    for name in DISKS:
        if f"/sbin/blockdev --setro /dev/{name}" not in programs(rules, event(name)):
            yield f"{name} can be written to"
    if "copy_exec/sbin/blockdev/sbin" not in settings(
        text_of(root, "etc/initramfs-tools/hooks/p2v")
    ):
        yield "before the root file system is there, disks can be written to"
    lvm = settings(text_of(root, "etc/lvm/lvmlocal.conf"))
    if "global{event_activation=0}" not in lvm:
        yield "volume groups are activated when their disks appear"
    if "activation{auto_activation_volume_list=[]}" not in lvm:
        yield "volume groups are activated at boot"
    if "AUTO-all" not in settings(text_of(root, "etc/mdadm/mdadm.conf")):
        yield "arrays are assembled"
    if "optionsmd_modstart_ro=1" not in settings(text_of(root, "etc/modprobe.d/p2v.conf")):
        yield "an array that is started writes"
    btrfs = root / UDEV / "64-btrfs.rules"
    if not btrfs.exists() or settings(btrfs.read_text()):
        yield "btrfs gets to know the disks"
    finder = text_of(root, "usr/lib/live/boot/9999-p2v.sh")
    if "find_livefs()" not in finder or re.search(r"^\s*mount\b", finder, re.MULTILINE):
        yield "disks are mounted to look for the medium"


def test_p1_the_live_system_touches_no_disk() -> None:
    assert list(problems(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (READ_ONLY, "can be written to"),
        ("etc/initramfs-tools/hooks/p2v", "can be written to"),
        ("etc/lvm/lvmlocal.conf", "volume groups"),
        ("etc/mdadm/mdadm.conf", "arrays are assembled"),
        ("etc/modprobe.d/p2v.conf", "writes"),
        (f"{UDEV}/64-btrfs.rules", "btrfs"),
        ("usr/lib/live/boot/9999-p2v.sh", "mounted"),
    ],
)
def test_p1_each_file_is_needed(file: str, says: str, tmp_path: Path) -> None:
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    (root / file).unlink()
    found = list(problems(root))
    assert found
    assert all(says in each for each in found)


@pytest.mark.parametrize("line", [r"^ACTION.*\n", r"^SUBSYSTEM.*\n", r"^KERNEL.*\n", r"^RUN.*\n"])
def test_p1_each_line_of_the_rule_is_needed(line: str) -> None:
    rules = (ROOT / READ_ONLY).read_text()
    less = re.sub(line, "", rules, flags=re.MULTILINE)
    assert less != rules

    def said(text: str) -> list[list[str]]:
        some = [event(name) for name in (*DISKS, *OTHERS)]
        some += [event("sda", action="change"), event("eth0", subsystem="net")]
        return [list(programs(text, each)) for each in some]

    assert said(less) != said(rules)


@pytest.mark.parametrize("name", OTHERS)
def test_what_needs_to_be_written_to(name: str) -> None:
    rules = (ROOT / READ_ONLY).read_text()
    assert list(programs(rules, event(name))) == []


def test_a_stick_that_was_let_be_written_to_stays_so() -> None:
    """Only what appears is set read-only: an event of a stick in use must not undo it."""
    rules = (ROOT / READ_ONLY).read_text()
    assert list(programs(rules, event("sdb1", action="change"))) == []


def test_p1_nothing_comes_before_the_rule() -> None:
    assert min(each.name for each in (ROOT / UDEV).iterdir()) == Path(READ_ONLY).name
