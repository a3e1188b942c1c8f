"""The guests, built when a test first wants one, and what these tests need."""

import shutil

import pytest

from tests.contract.lab_kernel import NEEDS_LAB_KERNEL
from tests.vm import machines, recipes
from tests.vm.cache import CACHE
from tests.vm.guests import Guest, Workshop

_PROGRAMS = (
    *(machines.QEMU, "mmdebstrap", "zstd", "mkfs.vfat", "sfdisk", "lvm"),
    *("mdadm", "mkfs.btrfs", "cryptsetup"),
)
_missing = [
    each for each in _PROGRAMS if shutil.which(each, path="/usr/sbin:/usr/bin:/sbin:/bin") is None
]

# Building a guest may be part of a test's time.
NEEDS_GUESTS = [
    *NEEDS_LAB_KERNEL,
    pytest.mark.skipif(bool(_missing), reason=f"needs {', '.join(_missing)}"),
    pytest.mark.skipif(not machines.OVMF.exists(), reason="needs OVMF (apt-get install ovmf)"),
    pytest.mark.timeout(2400),
]


@pytest.fixture(scope="session")
def workshop() -> Workshop:
    return Workshop(CACHE)


_GUESTS = (
    *(pytest.param(each, id=each.name) for each in recipes.RECIPES),
    *(pytest.param(each, id=each.name, marks=pytest.mark.more) for each in recipes.MORE_RECIPES),
)


@pytest.fixture(params=_GUESTS)
def guest(request: pytest.FixtureRequest, workshop: Workshop) -> Guest:
    return workshop.guest(request.param)
