"""Answers given beforehand: on the medium, at a URL, on the kernel command line."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.errors import PreseedError
from p2v_sync.wizard.answers import (
    PRESEED_MOST,
    Answer,
    format_preseed,
    merge,
    parse_kernel_command_line,
    parse_preseed,
)
from p2v_sync.wizard.settings import SETTINGS, Value

WHOLE = """\
# of our site
target = "root@host:/srv/vm"
disks = ["sda", "nvme0n1"]
auto = true
post = "poweroff"

[network]
mode = "static"
address = "192.0.2.7/24"
dns = ["192.0.2.1", "2001:db8::1"]

[vm]
memory = "8G"
vcpus = 4
"""


def values(answers: dict[str, Answer]) -> dict[str, Value]:
    return {key: answer.value for key, answer in answers.items()}


def test_a_preseed() -> None:
    assert values(parse_preseed(WHOLE.encode(), "site.toml")) == {
        "target": "root@host:/srv/vm",
        "disks": ("sda", "nvme0n1"),
        "auto": True,
        "post": "poweroff",
        "network.mode": "static",
        "network.address": "192.0.2.7/24",
        "network.dns": ("192.0.2.1", "2001:db8::1"),
        "vm.memory": 8 << 30,
        "vm.vcpus": 4,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('\n\ntraget = "x"\n', "site.toml:3: there is no traget (did you mean target?)"),
        ("[vm]\nmemroy = 1\n", "site.toml:2: there is no vm.memroy (did you mean vm.memory?)"),
        ("[vn]\nmemory = 1\n", "site.toml:2: there is no vn.memory"),
        ("\n[vm]\nvcpus = 0\n", "site.toml:3: vm.vcpus is 0: must be from 1 to 1024"),
        ('[vm]\nmemory = "much"\n', "site.toml:2: vm.memory is 'much': 'much' is not understood"),
        ('target = "ftp://x"\n', "site.toml:1: target is 'ftp://x'"),
        ("disks = []\n", "site.toml:1: disks is []: must be all, or names like sda"),
        ('disks = ["../x"]\n', "'../x' is no name of a disk"),
        ("auto = 1\n", "site.toml:1: auto is 1: must be true or false"),
        ('[network]\naddress = "192.0.2.7"\n', "length of the network's prefix"),
        ('[network]\naddress = "300.0.2.7/24"\n', "does not appear to be an IPv4"),
        ("vm = 3\n", "site.toml:1: there is no vm"),
        ("[vm.memory]\nx = 1\n", "vm.memory is {'x': 1}"),
        ("[login]\ntoken = 3\n", "login.token is a secret"),
        ("a = \n", "site.toml is no TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, says: str) -> None:
    with pytest.raises(PreseedError) as caught:
        parse_preseed(text.encode(), "site.toml")
    assert says in str(caught.value)


def test_a_preseed_is_bounded() -> None:
    with pytest.raises(PreseedError, match="too long"):
        parse_preseed(b"#" * (PRESEED_MOST + 1), "x")
    with pytest.raises(PreseedError, match="no TOML"):
        parse_preseed(b"\xff", "x")
    with pytest.raises(PreseedError, match="no TOML"):
        parse_preseed(b"a = " + b"[" * 100_000, "x")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_is_a_preseed_or_an_error(data: bytes) -> None:
    with contextlib.suppress(PreseedError):
        parse_preseed(data, "x")


def test_the_kernel_command_line() -> None:
    text = (
        "BOOT_IMAGE=/vmlinuz quiet p2v.target=tcp://192.0.2.1:7720 p2v.auto p2v.disks=sda,sdb"
        ' p2v.network=dhcp p2v.vm.memory=2G "p2v.hooks.post=logger it is done" p2vx=1'
    )
    assert values(parse_kernel_command_line(text)) == {
        "target": "tcp://192.0.2.1:7720",
        "auto": True,
        "disks": ("sda", "sdb"),
        "network.mode": "dhcp",
        "vm.memory": 2 << 30,
        "hooks.post": "logger it is done",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p2v.tagret=x", "there is no tagret (did you mean target?)"),
        ("p2v.login.token=abc", "must not stand there"),
        ("p2v.disks", "disks is ''"),
        ("p2v.post=explode", "must be one of poweroff, reboot, shell"),
    ],
)
def test_a_mistake_on_the_kernel_command_line(text: str, says: str) -> None:
    with pytest.raises(PreseedError) as caught:
        parse_kernel_command_line(f"quiet {text}")
    assert str(caught.value).startswith("kernel command line: ")
    assert says in str(caught.value)


def test_a_secret_is_not_repeated() -> None:
    with pytest.raises(PreseedError) as caught:
        parse_kernel_command_line("p2v.login.token=abc")
    assert "abc" not in str(caught.value)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=100))
def test_any_kernel_command_line(text: str) -> None:
    with contextlib.suppress(PreseedError):
        parse_kernel_command_line(f"p2v.{text}")


def test_the_kernel_command_line_counts_most() -> None:
    medium = parse_preseed(b'post = "reboot"\nname = "web"\nauto = true\n', "medium")
    fetched = parse_preseed(b'post = "shell"\nname = "db"\n', "url")
    typed = parse_kernel_command_line("p2v.post=poweroff")
    merged = merge(typed, fetched, medium)
    assert values(merged) == {"post": "poweroff", "name": "db", "auto": True}
    assert merged["post"].origin == "kernel command line"
    assert merged["auto"].origin == "medium:3"


def test_what_the_wizard_writes_is_a_preseed() -> None:
    answers = parse_preseed(WHOLE.encode(), "x")
    again = parse_preseed(format_preseed(values(answers)).encode(), "y")
    assert values(again) == values(answers)


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30))
def test_any_text_survives_the_file(text: str) -> None:
    written = format_preseed({"hooks.post": text, "auto": False})
    assert values(parse_preseed(written.encode(), "x")) == {"hooks.post": text, "auto": False}


def test_each_setting_has_a_name_of_its_own() -> None:
    assert len(SETTINGS) == len({setting.parameter for setting in SETTINGS.values()})
    assert all(setting.meaning for setting in SETTINGS.values())
