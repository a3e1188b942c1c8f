"""Kernel command lines: tokens as the kernel takes them, and all places where they stand."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.errors import FixupError
from p2v_sync.fixup.boot_entries import Change, change_command_lines, command_lines
from p2v_sync.fixup.boot_formats import Entry
from p2v_sync.fixup.command_line import CommandLine, Dialect
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import BootLoader, Guest, LoaderKind
from p2v_sync.fixup.tree import Tree

NEW = "UUID=0f0f"


# One command line


def test_quotes_hold_spaces_together_as_in_the_kernel() -> None:
    line = CommandLine('ro dyndbg="file a.c +p" "x=a b" root=/dev/sda1')
    assert line.keys() == ["ro", "dyndbg", "x", "root"]
    assert line.get("dyndbg") == "file a.c +p"
    assert line.get("x") == "a b"
    assert line.get("ro") == ""
    assert line.get("rw") is None


def test_a_shells_quotes_are_another_matter() -> None:
    text = r"""ro dyndbg=\"file a.c +p\" 'x=a b' root="/dev/sda1" $extra"""
    line = CommandLine(text, dialects=[Dialect.SHELL])
    assert line.keys() == ["ro", "dyndbg", "x", "root", "$extra"]
    assert line.get("root") == "/dev/sda1"
    assert line.get("dyndbg") == "file a.c +p"
    assert line.parts() == [text]


@given(st.text(), st.sampled_from(Dialect))
def test_what_is_not_changed_stays_to_the_byte(text: str, dialect: Dialect) -> None:
    line = CommandLine(text, dialects=[dialect])
    assert line.parts() == [text]
    line.map("no-such-key", lambda _: None)
    assert line.parts() == [text]


@given(st.lists(st.sampled_from(["quiet", "a=1", 'b="x y"', "root=/dev/sda1", "c"])))
def test_only_the_token_changes(tokens: list[str]) -> None:
    line = CommandLine("  ".join(tokens))
    line.map("root", lambda _: NEW)
    wanted = ["root=" + NEW if each.startswith("root") else each for each in tokens]
    assert line.parts() == ["  ".join(wanted)]


def test_the_last_one_counts_and_dashes_are_underscores() -> None:
    line = CommandLine("root=/dev/a log-buf-len=1M root=/dev/b")
    assert line.get("root") == "/dev/b"
    assert line.values("root") == ["/dev/a", "/dev/b"]
    assert line.get("log_buf_len") == "1M"


def test_setting_adding_and_removing() -> None:
    line = CommandLine(" quiet console=tty0 ro")
    line.set("ro")
    line.set("resume", "none")
    line.add("console=ttyS0,115200")
    line.add("console=tty0")
    line.remove("quiet")
    assert line.parts() == [" console=tty0 ro resume=none console=ttyS0,115200"]


def test_what_is_for_init_alone_stays_last() -> None:
    line = CommandLine("ro -- single")
    line.add("quiet")
    assert str(line) == "ro quiet -- single"
    only = CommandLine("-- single")
    only.add("quiet")
    assert only.parts() == ["quiet -- single"]


@pytest.mark.parametrize("value", ["a b", 'a"b', "$x", "a\\b", "a;b", "a\nb"])
def test_no_value_is_written_that_needs_quotes(value: str) -> None:
    with pytest.raises(FixupError, match="can't be written"):
        CommandLine("root=x").set("root", value)


# All places


def to_uuid(line: CommandLine, entry: Entry) -> None:
    del entry
    line.map("root", lambda value: NEW if value.startswith("/dev/") else value)


def with_console(line: CommandLine, entry: Entry) -> None:
    del entry
    line.add("console=ttyS0")


def changed(
    root: Path, files: Mapping[str, str], loaders: tuple[BootLoader, ...], change: Change = to_uuid
) -> tuple[dict[str, str], list[str]]:
    """What was made of the files that changed, and the problems; also planned a second time."""
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    with Tree(root) as tree:
        draft, guest = Draft(tree), Guest(boot_loaders=loaders)
        problems = change_command_lines(draft, guest, change)
        made = {edit.path: draft.text(edit.path) for edit in draft.edits()}
        change_command_lines(draft, guest, change)
        again = {edit.path: draft.text(edit.path) for edit in draft.edits()}
    assert made == again
    return made, problems


def entries(root: Path, files: Mapping[str, str], *loaders: BootLoader) -> Iterator[Entry]:
    changed(root, files, loaders)
    with Tree(root) as tree:
        for entry, _ in command_lines(Draft(tree), Guest(boot_loaders=loaders)):
            yield entry


GRUB_CFG = """\
set default="0"
menuentry 'Debian GNU/Linux' --class debian {
\tsearch --no-floppy --fs-uuid --set=root 0a1b
\techo\t'Loading Linux root=/dev/sda1 ...'
\tlinux\t/boot/vmlinuz-5.10.0-8-amd64 root=/dev/sda1 ro  quiet $vt_handoff
\tinitrd\t/boot/initrd.img-5.10.0-8-amd64
}
submenu 'Advanced' {
menuentry 'Debian (recovery mode)' {
\tlinuxefi /boot/vmlinuz-5.10.0-8-amd64 root=/dev/sda1 ro single; initrdefi /boot/initrd.img
}
menuentry 'own kernel' {
\tlinux16 /boot/bzImage \\
\t  root=/dev/sda1
}
menuentry 'memtest' {
\tlinux16 /boot/memtest86+.bin
}
menuentry 'Xen' {
\tmultiboot2 /boot/xen.gz placeholder root=/dev/none
\tmodule2 /boot/vmlinuz-5.10.0-8-amd64 placeholder root=/dev/sda1 ro
\tmodule2 --nounzip /boot/initrd.img-5.10.0-8-amd64
}
}"""
GRUB2 = BootLoader(LoaderKind.GRUB2, "/boot/grub/grub.cfg")


def test_grub2(tmp_path: Path) -> None:
    made, _ = changed(tmp_path, {GRUB2.config: GRUB_CFG}, (GRUB2,))
    wanted = GRUB_CFG.replace("root=/dev/sda1", "root=" + NEW)
    wanted = wanted.replace(f"Linux root={NEW} ...", "Linux root=/dev/sda1 ...")
    assert made == {GRUB2.config: wanted}


def test_grub2_entries_and_their_initrds(tmp_path: Path) -> None:
    found = list(entries(tmp_path, {GRUB2.config: GRUB_CFG}, GRUB2))
    assert [(each.kernel, each.has_initrd, each.is_rescue) for each in found] == [
        ("/boot/vmlinuz-5.10.0-8-amd64", True, False),
        ("/boot/vmlinuz-5.10.0-8-amd64", False, True),
        ("/boot/bzImage", False, False),
        ("/boot/memtest86+.bin", False, False),
        ("/boot/vmlinuz-5.10.0-8-amd64", True, False),
    ]


def test_adding_where_there_is_nothing_or_a_line_goes_on(tmp_path: Path) -> None:
    made, _ = changed(tmp_path, {GRUB2.config: GRUB_CFG}, (GRUB2,), with_console)
    text = made[GRUB2.config]
    assert "\tlinux16 /boot/memtest86+.bin console=ttyS0\n" in text
    assert "\tlinux16 /boot/bzImage \\\n\t  root=/dev/sda1 console=ttyS0\n" in text
    assert "ro single console=ttyS0; initrdefi" in text


def test_entries_that_were_written_by_hand(tmp_path: Path) -> None:
    custom = "#!/bin/sh\nexec tail -n +3 $0\nmenuentry 'x' {\n linux /own root=/dev/sda1\n}\n"
    files = {GRUB2.config: "", "/etc/grub.d/40_custom": custom, "/boot/grub/custom.cfg": custom}
    made, _ = changed(tmp_path, files, (GRUB2,))
    wanted = custom.replace("/dev/sda1", NEW)
    assert made == {"/etc/grub.d/40_custom": wanted, "/boot/grub/custom.cfg": wanted}


BLS_DIR = "/boot/loader/entries"
GRUB2_BLS = BootLoader(
    LoaderKind.GRUB2_BLS,
    "/boot/grub2/grub.cfg",
    (f"{BLS_DIR}/a-0-rescue.conf", f"{BLS_DIR}/a-4.18.conf"),
)


def bls(options: str) -> str:
    head = "title RHEL\r\nversion 4.18\r\nlinux /vmlinuz-4.18\r\ninitrd /i.img $tuned_initrd\r\n"
    return head + options


def test_bls_with_its_own_options(tmp_path: Path) -> None:
    text = bls("options root=/dev/sda1 ro\r\noptions quiet\r\ngrub_users $grub_users")
    made, problems = changed(tmp_path, {GRUB2_BLS.entries[1]: text}, (GRUB2_BLS,))
    assert made == {GRUB2_BLS.entries[1]: text.replace("/dev/sda1", NEW)}
    assert not problems
    added, _ = changed(tmp_path, {GRUB2_BLS.entries[1]: text}, (GRUB2_BLS,), with_console)
    assert added == {GRUB2_BLS.entries[1]: text.replace("quiet", "quiet console=ttyS0")}


def grubenv(kernelopts: str) -> str:
    return f"# GRUB Environment Block\nsaved_entry=x\nkernelopts={kernelopts}\n".ljust(1024, "#")


def test_bls_by_way_of_kernelopts(tmp_path: Path) -> None:
    files = {each: bls("options $kernelopts $tuned_params\n") for each in GRUB2_BLS.entries}
    files["/boot/grub2/grubenv"] = grubenv("root=/dev/sda1 ro ")
    files[GRUB2_BLS.config] = 'if x; then\n  set kernelopts="root=/dev/sda1 ro "\nfi\n'
    made, problems = changed(tmp_path, files, (GRUB2_BLS,))
    assert made == {
        "/boot/grub2/grubenv": grubenv(f"root={NEW} ro "),
        GRUB2_BLS.config: f'if x; then\n  set kernelopts="root={NEW} ro "\nfi\n',
    }
    assert len(made["/boot/grub2/grubenv"]) == 1024
    assert not problems


def test_a_full_grubenv_is_left_alone_and_said(tmp_path: Path) -> None:
    files = {
        GRUB2_BLS.entries[1]: bls("options $kernelopts\n"),
        "/boot/grub2/grubenv": grubenv("x=" + "y" * 970),
    }
    made, problems = changed(tmp_path, files, (GRUB2_BLS,), with_console)
    assert not made
    assert problems == ["/boot/grub2/grubenv has no room: it is 1024 bytes, always"]


def test_systemd_boot(tmp_path: Path) -> None:
    path = "/boot/loader/entries/arch.conf"
    loader = BootLoader(LoaderKind.SYSTEMD_BOOT, "/boot/loader/loader.conf", (path,))
    made, _ = changed(tmp_path, {path: bls("options root=/dev/sda1 rw")}, (loader,))
    assert made == {path: bls(f"options root={NEW} rw")}


MENU_LST = """\
default 0
## e.g. kopt=root=/dev/hda1 ro
# kopt=root=/dev/sda1 ro
# xenkopt=console=tty0
title CentOS (2.6.18-8.el5)
\troot (hd0,0)
\tkernel /vmlinuz-2.6.18-8.el5 ro root=/dev/sda1 rhgb
\tinitrd /initrd-2.6.18-8.el5.img
title Xen
\tkernel /xen.gz-2.6.18-8.el5 root=/dev/none
\tmodule /vmlinuz-2.6.18-8.el5xen ro root=/dev/sda1
\tmodule /initrd-2.6.18-8.el5xen.img
title memtest
\tkernel --type=netbsd /memtest86"""


def test_grub_legacy(tmp_path: Path) -> None:
    loader = BootLoader(LoaderKind.GRUB_LEGACY, "/boot/grub/menu.lst")
    made, _ = changed(tmp_path, {loader.config: MENU_LST}, (loader,))
    assert made == {loader.config: MENU_LST.replace("root=/dev/sda1", "root=" + NEW)}
    found = list(entries(tmp_path, {loader.config: MENU_LST}, loader))
    assert [each.initrds for each in found if not each.is_default] == [
        ("/initrd-2.6.18-8.el5.img",),
        ("/initrd-2.6.18-8.el5xen.img",),
        (),
    ]


def test_extlinux(tmp_path: Path) -> None:
    text = (
        "DEFAULT a\nAPPEND root=/dev/sda1\nLABEL a\n KERNEL /vmlinuz\n"
        " APPEND initrd=/i.img root=/dev/sda1 ro\nLABEL b\n  linux /v\n  initrd /i\n  append ro\n"
    )
    loader = BootLoader(LoaderKind.EXTLINUX, "/boot/extlinux/extlinux.conf")
    made, _ = changed(tmp_path, {loader.config: text}, (loader,))
    assert made == {loader.config: text.replace("/dev/sda1", NEW)}
    found = entries(tmp_path, {loader.config: text}, loader)
    assert [(each.kernel, each.initrds) for each in found] == [
        ("", ()),
        ("/vmlinuz", ("/i.img",)),
        ("/v", ("/i",)),
    ]


def test_elilo(tmp_path: Path) -> None:
    text = (
        'root = /dev/sda1\nimage=vmlinuz\n label=linux\n append="root=/dev/sda1 quiet"\n'
        " initrd=initrd\n root=/dev/sda1\n"
    )
    loader = BootLoader(LoaderKind.ELILO, "/etc/elilo.conf")
    made, _ = changed(tmp_path, {loader.config: text}, (loader,))
    assert made == {loader.config: text.replace("/dev/sda1", NEW)}
    added, _ = changed(tmp_path, {loader.config: text}, (loader,), with_console)
    assert 'append="root=/dev/sda1 quiet console=ttyS0"' in added[loader.config]


def test_lilo_is_never_touched(tmp_path: Path) -> None:
    loader = BootLoader(LoaderKind.LILO, "/etc/lilo.conf")
    text = 'image=/vmlinuz\n root=/dev/sda1\n append="root=/dev/sda1"\n'
    assert changed(tmp_path, {loader.config: text}, (loader,)) == ({}, [])


def test_the_defaults_of_grub(tmp_path: Path) -> None:
    drop_in = "/etc/default/grub.d/50-cloud.cfg"
    files = {
        "/etc/default/grub": "# GRUB_CMDLINE_LINUX=x\nGRUB_CMDLINE_LINUX_DEFAULT=quiet\n"
        "GRUB_CMDLINE_LINUX='root=/dev/sda1'\n"
        'GRUB_CMDLINE_LINUX_XEN_REPLACE="console=hvc0"\nGRUB_CMDLINE_XEN="x"',
        drop_in: 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT root=/dev/sda1"\n',
    }
    made, _ = changed(tmp_path, files, ())
    assert made == {path: text.replace("/dev/sda1", NEW) for path, text in files.items()}
    added, _ = changed(tmp_path, files, (), with_console)
    main = files["/etc/default/grub"].replace("/dev/sda1'", "/dev/sda1 console=ttyS0'")
    assert added == {"/etc/default/grub": main}


def test_a_value_without_quotes_gets_them_when_it_needs_them(tmp_path: Path) -> None:
    text = "GRUB_CMDLINE_LINUX_DEFAULT=quiet\n"
    made, _ = changed(tmp_path, {"/etc/default/grub": text}, (), with_console)
    assert made == {"/etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet console=ttyS0"\n'}


def test_an_empty_value_gets_no_blank(tmp_path: Path) -> None:
    made, _ = changed(tmp_path, {"/etc/default/grub": 'GRUB_CMDLINE_LINUX=""\n'}, (), with_console)
    assert made == {"/etc/default/grub": 'GRUB_CMDLINE_LINUX="console=ttyS0"\n'}


def test_other_defaults(tmp_path: Path) -> None:
    files = {
        "/etc/sysconfig/bootloader": 'LOADER_TYPE="grub"\nDEFAULT_APPEND="root=/dev/sda1 x"\n',
        "/etc/sysconfig/grub": "boot=/dev/sda\nforcelba=0\nGRUB_CMDLINE_LINUX=root=/dev/sda1\n",
        "/etc/kernel/cmdline": "root=/dev/sda1 rw",
        "/etc/update-extlinux.conf": "root=/dev/sda1\ndefault_kernel_opts=root=/dev/sda1\n",
    }
    made, _ = changed(tmp_path, files, ())
    assert made == {path: text.replace("/dev/sda1", NEW) for path, text in files.items()}


def test_a_file_that_is_none_is_a_problem_and_not_the_end(tmp_path: Path) -> None:
    (tmp_path / "boot/grub/grub.cfg").mkdir(parents=True)
    made, problems = changed(tmp_path, {"/etc/kernel/cmdline": "root=/dev/sda1\n"}, (GRUB2,))
    assert made == {"/etc/kernel/cmdline": f"root={NEW}\n"}
    assert len(problems) == 1
    assert "/boot/grub/grub.cfg" in problems[0]
