"""What fix-ups are, and what one plan of all of them is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import Storage
from p2v_sync.fixup.draft import Draft, Edit
from p2v_sync.fixup.guest import Guest


class Hypervisor(StrEnum):
    """What the virtual machine is for (``--target``)."""

    KVM = "kvm"
    XEN = "xen"
    PROXMOX = "proxmox"
    GENERIC = "generic"


class Bus(StrEnum):
    """What the virtual machine's disks are connected to (``--bus``)."""

    VIRTIO = "virtio"
    SCSI = "scsi"  # virtio-scsi
    SATA = "sata"
    IDE = "ide"
    AUTO = "auto"


@dataclass(frozen=True)
class Target:
    """The virtual machine that is wanted."""

    hypervisor: Hypervisor = Hypervisor.KVM
    bus: Bus = Bus.AUTO


class Severity(StrEnum):
    """What a finding means for the virtual machine."""

    NOTE = "note"  # worth knowing
    WARNING = "warning"  # something may not work
    DOWNGRADE = "downgrade"  # the guest needs hardware that it knows (SATA or IDE, e1000)
    FATAL = "fatal"  # no fix-ups at all; the copy is not concerned


class Finding(NamedTuple):
    """One thing the operator should know.  ``text``: one line; ``hint``: what to do."""

    fixup: str
    severity: Severity
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Context:
    """What all fix-ups know.  Nothing in it changes while they plan."""

    guest: Guest
    storage: Storage
    machine: Machine
    target: Target = field(default_factory=Target)


class Fixup(Protocol):
    """One idempotent change to a guest: planned on what it has written, it plans nothing.

    A class without state; ``key`` is its number in the catalogue (F01) and a name: ``F01-fstab``.
    """

    key: str

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        """Write into ``draft``, yield what is worth saying.

        An exception drops what this fix-up has drafted and becomes a warning.
        """


@dataclass(frozen=True)
class Plan:
    """All edits of all fix-ups, and all that they have to say."""

    edits: Sequence[Edit]
    findings: Sequence[Finding]

    @property
    def is_fatal(self) -> bool:
        return any(finding.severity is Severity.FATAL for finding in self.findings)

    @property
    def is_downgraded(self) -> bool:
        return any(finding.severity is Severity.DOWNGRADE for finding in self.findings)
