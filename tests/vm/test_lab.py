"""The guests' disks in the lab kernel: p2v-sync there works on them, and lets them be."""

import filecmp
import hashlib
from pathlib import Path

from tests.vm.conftest import NEEDS_GUESTS
from tests.vm.guests import Guest
from tests.vm.lab import run_in_lab

pytestmark = NEEDS_GUESTS


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_p1_a_guest_is_copied_in_the_lab_and_stays_as_it_was(guest: Guest, tmp_path: Path) -> None:
    before = digest(guest.image)
    (sync,) = run_in_lab(
        [guest.image], [["sync", "/dev/ubda", str(tmp_path), "--job", "old"]], tmp_path
    )
    assert sync.code == 0, sync.err
    assert sync.written == {"ubda": 0}
    assert digest(guest.image) == before
    assert filecmp.cmp(tmp_path / "old" / "ubda.img", guest.image, shallow=False)
