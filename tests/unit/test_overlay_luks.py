"""Keys of encrypted volumes: which are tried in which order, and that nobody sees them."""

import logging
from collections.abc import Container, Sequence
from pathlib import Path

import pytest

from p2v_sync import run
from p2v_sync.device.storage import Volume
from p2v_sync.errors import CommandError, ConfigError
from p2v_sync.overlay import luks, mapper
from p2v_sync.overlay.luks import Keys, read_keys

ROOT = Volume("/dev/mapper/p2v-sda-part3", "sda", 3, "crypto_LUKS", "0a")
HOME = Volume("/dev/mapper/vg-home", "", 0, "crypto_LUKS", "0b", aliases=("vg/home",))


class Cryptsetup:
    """Opens what has the key; notes what was run and tried."""

    def __init__(self, patch: pytest.MonkeyPatch, **keys: bytes) -> None:
        self.keys = keys
        self.open: set[str] = set()
        self.tried: list[bytes] = []
        self.argvs: list[Sequence[str]] = []
        patch.setattr(run, "capture", self.capture)
        patch.setattr(mapper, "status_text", lambda name: "0 8 crypt" if name in self.open else "")

    def capture(
        self, argv: Sequence[str], *, stdin: bytes, statuses: Container[int], timeout_s: float
    ) -> str:
        assert 2 in statuses, "a key that does not fit is no error"
        assert timeout_s > 60
        self.argvs.append(argv)
        self.tried.append(stdin)
        name = argv[-1]
        if self.keys[name.removeprefix("p2v-luks-0")] == stdin:
            self.open.add(name)
        return ""


def typed(*answers: str) -> tuple[luks.Keys, list[str]]:
    waiting, prompts = [*answers], list[str]()

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return waiting.pop(0)

    return Keys([b"given"], ask), prompts


def test_the_keys_are_tried_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Cryptsetup(monkeypatch, a=b"two")
    keys = Keys([b"one", b"", b"two", b"one", b"three"])
    assert luks.unlock(ROOT, keys) == Path("/dev/mapper/p2v-luks-0a")
    assert program.tried == [b"one", b"two"]
    assert [*keys.candidates("0a", "")] == [b"two"], "nothing else is tried the next time"


def test_none_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    Cryptsetup(monkeypatch, a=b"two")
    assert luks.unlock(ROOT, Keys([b"one"])) is None
    assert luks.unlock(ROOT, Keys()) is None


def test_keys_are_in_no_argument_and_no_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    program = Cryptsetup(monkeypatch, a=b"secret")
    assert luks.unlock(ROOT, Keys([b"other", b"secret"]))
    assert not any("secret" in word for argv in program.argvs for word in argv)
    assert all(argv[-2:] == [ROOT.device, "p2v-luks-0a"] for argv in program.argvs)
    assert "secret" not in caplog.text


def test_what_is_typed_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Cryptsetup(monkeypatch, a=b"mine", b=b"mine")
    keys, prompts = typed("oops", "mine")
    assert luks.unlock(ROOT, keys)
    assert luks.unlock(HOME, keys), "it is tried on the next volume too"
    program.open.clear()
    assert luks.unlock(ROOT, keys)
    assert len(prompts) == 2
    assert "/dev/sda3" in prompts[0]


def test_nobody_is_asked_again_for_what_stays_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    Cryptsetup(monkeypatch, a=b"mine", b=b"mine")
    keys, prompts = typed("")
    assert luks.unlock(HOME, keys) is None
    assert luks.unlock(HOME, keys) is None
    assert len(prompts) == 1
    assert "/dev/vg/home" in prompts[0]
    keys, prompts = typed("a", "b", "c")
    assert luks.unlock(ROOT, keys) is None
    assert luks.unlock(ROOT, keys) is None
    assert len(prompts) == 3


def test_what_is_not_about_the_key_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise CommandError("cryptsetup failed with status 4: Device is busy.")

    monkeypatch.setattr(run, "capture", fail)
    with pytest.raises(CommandError, match="busy"):
        luks.unlock(ROOT, Keys([b"one"]))


def test_key_files_and_the_environment(tmp_path: Path) -> None:
    binary, line = tmp_path / "binary", tmp_path / "line"
    binary.write_bytes(b"\0\xff\n\n")
    line.write_bytes(b"pass phrase\n")
    keys = read_keys([binary, line], {"P2V_LUKS_PASSPHRASE": "päss"}, None)
    assert [*keys.candidates("", "")] == [
        *(b"\0\xff\n\n", b"\0\xff\n"),
        *(b"pass phrase\n", b"pass phrase"),
        "päss".encode(),
    ]
    assert not [*read_keys([], {}, None).candidates("", "")]


@pytest.mark.parametrize(("size", "said"), [(0, "empty"), (8 * 2**20 + 1, "larger")])
def test_what_is_no_key_file(tmp_path: Path, size: int, said: str) -> None:
    path = tmp_path / "key"
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(ConfigError, match=said):
        read_keys([path], {}, None)


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--key-file .*/none: No such file"):
        read_keys([tmp_path / "none"], {}, None)
