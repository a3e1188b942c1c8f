"""The ledger on a stick: what names one, where it may be, and what is said when it is not there."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from p2v_sync.device.topology import read_topology
from p2v_sync.errors import CommandError, PreseedError, StateError
from p2v_sync.units import GIB
from p2v_sync.wizard import job, live, stick
from p2v_sync.wizard.answers import parse_kernel_command_line, parse_preseed
from p2v_sync.wizard.flow import DiskChoice, Situation
from p2v_sync.wizard.settings import SETTINGS

STICK = DiskChoice("sdb", GIB, "1.0 GiB SanDisk", is_pluggable=True)
SITUATION = Situation(hostname="box", disks=(DiskChoice("sda", GIB, ""), STICK), is_online=True)


@pytest.mark.parametrize("state", ["LABEL=stick", "UUID=1234-ABCD", "/dev/sdb1", "/var/lib/p2v"])
def test_what_may_be_named(state: str) -> None:
    assert parse_kernel_command_line(f"p2v.state={state}")["state"].value == state
    assert stick.is_named_by(state) is (state != "/var/lib/p2v")


@pytest.mark.parametrize("state", ["stick", "LABEL=", "PARTUUID=1", "state/dir"])
def test_what_may_not(state: str) -> None:
    with pytest.raises(PreseedError, match=r"p\.toml:1: state is .* must be a directory"):
        parse_preseed(f'state = "{state}"'.encode(), "p.toml")
    assert "stick" in SETTINGS["state"].meaning


def answering(said: str | CommandError, patch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    ran: list[Sequence[str]] = []

    def capture(argv: Sequence[str], **_: object) -> str:
        ran.append(argv)
        if isinstance(said, CommandError):
            raise said
        return said

    patch.setattr("p2v_sync.run.capture", capture)
    return ran


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("", "there is no LABEL=stick to keep the ledger on"),
        ("/dev/sdb1\n/dev/sdc1\n", "LABEL=stick is on /dev/sdb1, /dev/sdc1"),
        (CommandError("blkid is not installed"), "LABEL=stick can't be looked for"),
    ],
)
def test_a_stick_that_is_not_there_in_one_line(
    said: str | CommandError, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(said, monkeypatch)
    with pytest.raises(StateError, match=says) as caught:
        stick.find("LABEL=stick", within_s=0)
    assert caught.value.exit_code == 60
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/none")):
        state = f"/dev/../{path}"
        with pytest.raises(StateError, match="there is no"):
            stick.find(state, within_s=0)


def test_its_name_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = answering("/dev/sdb1\n", monkeypatch)
    assert stick.find("UUID=1234-ABCD") == Path("/dev/sdb1")
    assert ran[0][:3] == ["blkid", "--cache-file", "/dev/null"]


# Which disk it is on.


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """sda with a volume of LVM on its partition; sdb with a partition."""
    for name in ("sda", "sdb"):
        part = tmp_path / "block" / name / f"{name}1"
        (part / "holders").mkdir(parents=True)
        (part / "partition").write_text("1\n")
        (part / "dev").write_text(f"1:{1 + 'ab'.index(name[2])}\n")
        (part.parent / "dev").write_text(f"2:{1 + 'ab'.index(name[2])}\n")
    volume = tmp_path / "block" / "dm-0"
    (volume / "slaves" / "sda1").mkdir(parents=True)
    (volume / "dev").write_text("253:0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("dev", "below"),
    [
        ("1:2", {"sdb", "sdb1"}),
        ("2:2", {"sdb"}),
        ("253:0", {"dm-0", "sda1", "sda"}),
        ("9:9", set[str]()),
    ],
)
def test_what_it_lies_on(dev: str, below: set[str], tree: Path) -> None:
    assert stick.names_below(read_topology(tree), dev) == below


# What the wizard makes of it.


def session(disks: tuple[str, ...] | None, patch: pytest.MonkeyPatch) -> live.Session:
    line = "p2v.auto p2v.target=h:/d p2v.state=LABEL=stick p2v.network=none"
    given = live.gather(None, line + (f" p2v.disks={','.join(disks)}" if disks else ""))
    patch.setattr(stick, "find", lambda _: Path("/dev/sdb1"))
    patch.setattr(stick, "disks_below", lambda _: {"sdb"})
    return live.Session(given, lambda: SITUATION, lambda: None)


def test_all_disks_are_all_but_the_stick(monkeypatch: pytest.MonkeyPatch) -> None:
    for disks in (None, ("all",)):
        one = session(disks, monkeypatch)
        values = one.values()
        assert job.copied_disks(values, one.situation) == ["sda"]


def test_p1_a_stick_that_is_to_be_copied_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(("sda", "sdb"), monkeypatch)
    values = one.values()
    copied = job.copied_disks(values, one.situation)
    with (
        pytest.raises(PreseedError, match=r"LABEL=stick is on sdb, which is to be copied"),
        stick.state_dir("LABEL=stick", copied),
    ):
        pytest.fail("it was mounted")
    assert "which is to be copied" in one._check("disks", values)


def test_p1_a_disk_that_is_no_stick_is_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(("all",), monkeypatch)
    monkeypatch.setattr(stick, "disks_below", lambda _: {"sda"})
    values = one.values()
    with (
        pytest.raises(PreseedError, match="LABEL=stick is on sda"),
        stick.state_dir("LABEL=stick", job.copied_disks(values, one.situation)),
    ):
        pytest.fail("it was mounted")


def test_a_plain_directory_is_as_it_was(tmp_path: Path) -> None:
    with stick.state_dir(str(tmp_path), ["sda"]) as directory:
        assert directory == tmp_path


def test_the_option_is_stronger_than_the_preseed() -> None:
    given = live.gather(None, "p2v.state=/a", Path("LABEL=stick"))
    assert given.values["state"] == "LABEL=stick"
    relative = live.gather(None, "p2v.state=/a", Path("here"))
    assert relative.values["state"] == str(Path("here").absolute())
