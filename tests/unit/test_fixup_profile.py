"""Which bus and which card the two virtual machines have."""

import pytest

from p2v_sync.fixup.draft import Appended, Edit
from p2v_sync.fixup.guest import Driver, Guest, Kernel
from p2v_sync.fixup.plan import Bus, Finding, Hypervisor, Plan, Severity, Target
from p2v_sync.fixup.profile import Hardware, NicModel, profile

IN = Driver.INITRAMFS
B, M = Driver.BUILTIN, Driver.MODULE

VIRTIO_INSIDE = {"virtio_pci": IN, "virtio_blk": IN, "virtio_net": M}
VIRTIO_MODULE = {"virtio_pci": M, "virtio_blk": M, "virtio_net": M}
SATA = {"ahci": IN, "sd_mod": IN}
IDE = {"ata_piix": IN, "sd_mod": B}


def appended(fixup: str, *findings: Finding) -> Plan:
    edit = Edit("/boot/initrd", Appended(9), Appended(9, b"x"), (fixup,))
    return Plan([edit], findings)


ADDED = appended("F20-initramfs")
FAILED = Plan([], [Finding("F20-initramfs", Severity.DOWNGRADE, "no")])


@pytest.mark.parametrize(
    ("drivers", "target", "plan", "recommended", "compat"),
    [
        ({**VIRTIO_INSIDE, **SATA}, Target(), None, ("virtio", "virtio"), "sata"),
        ({**VIRTIO_MODULE, **SATA}, Target(), None, ("sata", "virtio"), "sata"),
        ({**VIRTIO_MODULE, **SATA}, Target(), ADDED, ("virtio", "virtio"), "sata"),
        ({**VIRTIO_MODULE, **IDE}, Target(), FAILED, ("ide", "e1000e"), "ide"),
        ({**VIRTIO_INSIDE, **IDE}, Target(bus=Bus.SATA), None, ("ide", "virtio"), "ide"),
        ({**VIRTIO_MODULE, **SATA}, Target(Hypervisor.XEN), ADDED, ("sata", "e1000e"), "sata"),
        (VIRTIO_MODULE, Target(), ADDED, ("virtio", "virtio"), "virtio"),
        (VIRTIO_MODULE, Target(), appended("F24-nash"), ("virtio", "virtio"), "virtio"),
        ({"ahci": M, "sd_mod": M, **VIRTIO_MODULE}, Target(), ADDED, ("virtio", "virtio"), "sata"),
    ],
)
def test_the_bus_is_one_that_the_guest_will_find(
    drivers: dict[str, Driver],
    target: Target,
    plan: Plan | None,
    recommended: tuple[str, str],
    compat: str,
) -> None:
    guest = Guest(kernels=(Kernel("6.1", initramfs="/i", drivers={**drivers, "e1000e": M}),))
    found = profile(guest, target, plan)
    assert found.recommended == Hardware(Bus(recommended[0]), NicModel(recommended[1]))
    assert found.compat == Hardware(Bus(compat), NicModel.E1000E)


@pytest.mark.parametrize(
    ("driver", "card"), [("e1000", "e1000"), ("8139too", "rtl8139"), ("tg3", "e1000")]
)
def test_the_card_is_one_that_the_guest_knows(driver: str, card: str) -> None:
    guest = Guest(kernels=(Kernel("2.6.9", drivers={**IDE, driver: M}),))
    assert profile(guest, Target(), None).recommended.nic == card


def test_of_an_unknown_guest_nothing_is_assumed() -> None:
    found = profile(Guest(), Target(), None)
    assert found.recommended == Hardware(Bus.SATA, NicModel.E1000E)
    assert found.compat == Hardware(Bus.IDE, NicModel.E1000)
