"""What inspection says of each family of guests, and of content that is no guest at all."""

import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.cli.inspect import format_guest, inspect
from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import Storage
from p2v_sync.errors import FixupError
from p2v_sync.fixup.guest import Guest
from tests.guests.build import NAMES, build, golden, write

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", NAMES)
def test_each_guest_is_what_it_was(name: str, tmp_path: Path) -> None:
    found = build(name, tmp_path / "root").inspected()
    assert json.loads(json.dumps(found.to_json())) == golden(name)


@pytest.mark.parametrize("name", NAMES)
def test_inspection_changes_nothing(name: str, tmp_path: Path) -> None:
    built = build(name, tmp_path / "root")

    def state() -> list[tuple[str, int, int]]:
        paths = sorted(built.root.rglob("*"))
        return [(str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in paths]

    before = state()
    built.inspected()
    assert state() == before


def test_an_empty_directory_is_all_problems(tmp_path: Path) -> None:
    found = write("", tmp_path).inspected()
    assert found == Guest(problems=found.problems)
    assert len(found.problems) == 4


# Hostile content

_PATHS = sorted(  # but for those that would make it a Windows
    {
        match[1]
        for guest in (Path(__file__).parents[1] / "guests").glob("*.guest")
        for match in re.finditer(r"^=== (/\S+[^/\s])( |$)", guest.read_text(), re.MULTILINE)
        if not guest.name.startswith("windows")
    }
)


def put(root: Path, path: str) -> Path:
    """The place of a guest's file, with all directories above it."""
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def test_a_guest_of_fifos_and_sockets_does_not_hang(tmp_path: Path) -> None:
    for path in _PATHS:
        place = put_if_possible(tmp_path, path)
        if place is not None:
            os.mkfifo(place)
    found = write("", tmp_path).inspected()
    assert any("/etc/fstab in the guest is no regular file" in each for each in found.problems)


def put_if_possible(root: Path, path: str) -> Path | None:
    """None where a directory is, or a file is in the way."""
    place = root / path.lstrip("/")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return None if os.path.lexists(place) else place


def test_links_out_of_the_guest_end_in_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("ID=outside\nHOSTNAME=outside\nSELINUX=outside\n/dev/sda1 / outside\n")
    root = tmp_path / "root"
    for number, path in enumerate(_PATHS):
        place = put_if_possible(root, path)
        if place is not None:
            targets = [str(outside), f"{'../' * 30}{outside}", "loop", place.name]
            place.symlink_to(targets[number % 4])
    found = write("", root).inspected()
    assert "outside" not in json.dumps(found.to_json()["distribution"])
    assert (found.hostname, found.selinux, found.mounts) == ("", "", ())


@pytest.mark.parametrize("size", [0, 1, 511, 4096, 70_000])
def test_binary_junk_is_no_configuration(size: int, tmp_path: Path) -> None:
    junk = bytes((number * number + number // 7) % 256 for number in range(size))
    for path in _PATHS:
        place = put_if_possible(tmp_path, path)
        if place is not None:
            place.write_bytes(junk)
    found = write("", tmp_path).inspected()
    if size:
        assert "/etc/fstab in the guest is no text" in found.problems


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    for path in _PATHS:
        place = put_if_possible(tmp_path, path)
        if place is not None:
            with place.open("wb") as file:
                file.truncate(1 << 40)
    found = write("", tmp_path).inspected()
    assert any("/etc/fstab in the guest is too long" in each for each in found.problems)


_CONFIGS = (
    "/etc/os-release",
    "/etc/fstab",
    "/etc/redhat-release",
    "/etc/SuSE-release",
    "/boot/grub/grub.cfg",
    "/boot/grub/grubenv",
    "/boot/grub/menu.lst",
    "/boot/loader/entries/a.conf",
    "/boot/loader/loader.conf",
    "/boot/extlinux/extlinux.conf",
    "/etc/lilo.conf",
    "/etc/netplan/a.yaml",
    "/etc/network/interfaces",
    "/etc/sysconfig/network-scripts/ifcfg-eth0",
    "/etc/NetworkManager/system-connections/a",
    "/etc/systemd/network/a.network",
    "/etc/udev/rules.d/70-net.rules",
    "/etc/default/grub",
    "/etc/selinux/config",
)
_LINES = r"""
menuentry 'a' {
}
submenu 'b' {
set default="0>1>x"
linux /boot/x root=
linux
initrd
initrd /x $y
module
title
title a
default 9999999999
kernel (hd0,0)/x
options $a
blscfg
LABEL
image=
image=/x
label=a
default
saved_entry=>
ethernets:
  a: {
  ethernets:
    b:
      match: {macaddress: x}
source *
source /etc/network/*
source-directory ..
iface
iface a:b
[Match]
MACAddress=
ID="\
ID='
UUID="x y
LABEL=a\040b / ext4
\777 \0 x
release 4 ( Update 9)
VERSION = .
="""
_WORDS = (
    *(f"{line}\n" for line in _LINES.splitlines()),
    f"version 1~{'9' * 5000}\n",
    f"source {'/a' * 3000}\n",
    'VERSION_ID="\xff\xa0"\n',
    "\x1b[2J = \n",
    "\r\n",
)


@given(st.lists(st.tuples(st.sampled_from(_CONFIGS), st.lists(st.sampled_from(_WORDS)))))
def test_no_configuration_makes_inspection_fail(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, list[str]]]
) -> None:
    root = tmp_path_factory.mktemp("guest")
    for path, words in files:
        put(root, path).write_bytes("".join(words).encode("latin-1"))
    found = write("", root).inspected()
    json.dumps(found.to_json())
    for line in format_guest(found):
        assert line.isprintable()


def test_a_directory_without_end_is_cut(tmp_path: Path) -> None:
    directory = tmp_path / "etc" / "netplan"
    directory.mkdir(parents=True)
    for number in range(2100):
        (directory / f"{number}.yaml").touch()
    found = write("", tmp_path).inspected()
    assert any("has 2100 files" in each for each in found.problems)


# The command


def run(*arguments: object) -> Any:
    return CliRunner().invoke(inspect, [str(each) for each in arguments])


def test_the_facts_of_the_command_can_be_read_again(tmp_path: Path) -> None:
    build("debian12-uefi-lvm", tmp_path)
    record = json.loads(run("--root", tmp_path, "--json").output)
    assert not Storage.from_json(record["storage"]).is_complete
    assert Machine.from_json(record["machine"]) == Machine()
    assert record["guest"]["distribution"]["version"] == "12.5"
    assert record["blockers"] == []


def test_the_command_shows_two_columns(tmp_path: Path) -> None:
    build("centos7-bios", tmp_path)
    lines = run("--root", tmp_path).output.splitlines()
    assert lines[0] == "system          CentOS Linux 7 (Core)"
    assert any(
        line.startswith("kernel          3.10.0-1160.el7.x86_64 (default)") for line in lines
    )


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    text = "\n".join(format_guest(build("windows2019", tmp_path).inspected()))
    assert "powercfg /h off" in text
    assert "dynamic disks" in text


def test_what_is_shown_moves_no_cursor(tmp_path: Path) -> None:
    built = write("=== /etc/fstab\nUUID=\x1b[2J\x9b /\x07 ext4\n", tmp_path)
    lines = list(format_guest(built.inspected()))
    assert any("UUID=[2J" in line for line in lines)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("is_there", [True, False])
def test_no_system_is_one_clear_error(is_there: bool, tmp_path: Path) -> None:
    result = run("--root", tmp_path if is_there else tmp_path / "none")
    assert isinstance(result.exception, FixupError)
    assert result.exception.hint


def test_the_man_page_has_the_fields_of_a_guest() -> None:
    page = (DOCS / "p2v-sync.1.md").read_text()
    text = page.split("## Object of inspect\n")[1].split("\n## ")[0].split("\n# ")[0]
    said = set(re.findall(r"(?<!\*)\*([a-z_]+)\*(?!\*)", text))
    others = {"guest", "storage", "machine", "problems", "blockers"}
    assert said == {one.name for one in fields(Guest)} | others
