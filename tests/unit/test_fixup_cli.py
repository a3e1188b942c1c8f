"""``p2v-sync fixup`` as a user types it."""

import json
from pathlib import Path

import pytest

from p2v_sync.cli import main
from p2v_sync.errors import ConfigError, FixupError

UUID = "8c2da865-13f4-47a2-9c92-2f31738469e8"
FSTAB = b"# here\n/dev/sda1 / ext4 defaults 0 1\r\n/dev/sdc1 /old ext4 defaults 0 2"
FACTS = {
    "storage": {
        "volumes": [
            {"device": "", "disk": "sda", "partition": 1, "kind": "ext4", "uuid": UUID},
        ],
        "disks": ["sda"],
    },
    "machine": {"hostname": "web"},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "guest"
    (root / "etc").mkdir(parents=True)
    (root / "usr/lib/systemd").mkdir(parents=True)
    (root / "usr/lib/systemd/systemd").touch()
    (root / "var/lib").mkdir(parents=True)
    (root / "etc/fstab").write_bytes(FSTAB)
    (root / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    return root


@pytest.fixture
def facts(tmp_path: Path) -> str:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(FACTS))
    return str(path)


def test_plan_apply_and_revert(root: Path, facts: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--root", str(root), "--facts", facts]
    assert main(["fixup", "plan", *options]) == 0
    text = capsys.readouterr().out
    assert f"+UUID={UUID} / ext4 defaults 0 1\n" in text
    assert text.endswith("1 change, 1 warning\n")
    assert (root / "etc/fstab").read_bytes() == FSTAB
    assert main(["fixup", "apply", *options]) == 0
    assert "/etc/fstab [F01-fstab, F02-nofail]\n" in capsys.readouterr().out
    assert f"UUID={UUID} / ext4 defaults 0 1\r\n".encode() in (root / "etc/fstab").read_bytes()
    assert main(["fixup", "apply", *options]) == 0
    assert capsys.readouterr().out.endswith("0 changes, 0 warnings\n")
    assert main(["fixup", "revert", "--root", str(root)]) == 0
    assert capsys.readouterr().out == "/etc/fstab\nreverted: 1 change\n"
    assert (root / "etc/fstab").read_bytes() == FSTAB


def test_json_is_one_object(root: Path, facts: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--root", str(root), "--facts", facts, "--json", "--target", "xen", "--bus", "scsi"]
    assert main(["fixup", "plan", *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [edit["path"] for edit in record["edits"]] == ["/etc/fstab"]
    assert main(["fixup", "apply", *options]) == 0
    assert json.loads(capsys.readouterr().out) == record


def test_a_directory_whose_devices_nobody_listed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fixup", "plan", "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert "downgrade: /etc/fstab mounts /dev/sda1 on /: nothing tells which volume" in text
    assert "the virtual machine needs hardware that the guest knows" in text


def test_a_hibernated_guest_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads(json.dumps(FACTS))
    record["storage"]["volumes"].append(
        {"device": "", "disk": "sda", "partition": 2, "kind": "swsuspend"}
    )
    path = tmp_path / "hibernated.json"
    path.write_text(json.dumps(record))
    options = ["--root", str(root), "--facts", str(path)]
    assert main(["fixup", "plan", *options]) == 0
    assert capsys.readouterr().out.endswith("no fix-ups are possible\n")
    assert main(["fixup", "apply", *options]) == FixupError.exit_code
    assert "hibernated in sda2" in capsys.readouterr().err
    assert (root / "etc/fstab").read_bytes() == FSTAB


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"storage": 7}', '{"storage": {"volumes": [{}], "disks": []}}',
             '{"machine": {"cpus": 3}}', '{"machine": {"no": 1}}', "[" * 100_000]
)  # fmt: skip
def test_facts_that_are_none(
    root: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text)
    status = main(["fixup", "plan", "--root", str(root), "--facts", str(path)])
    assert status == ConfigError.exit_code
    assert "has no facts about a guest" in capsys.readouterr().err


def test_bad_roots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root in (tmp_path / "none", tmp_path):
        for command in ("plan", "apply", "revert"):
            assert main(["fixup", command, "--root", str(root)]) == FixupError.exit_code
            assert str(tmp_path) in capsys.readouterr().err or command == "revert"
    missing = tmp_path / "missing.json"
    status = main(["fixup", "plan", "--root", str(tmp_path), "--facts", str(missing)])
    assert status == ConfigError.exit_code
