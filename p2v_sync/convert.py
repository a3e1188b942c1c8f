"""The standard run: overlays, a look, the copy, fix-ups, their delta, the virtual machine.

Every step can be done again: overlays are made anew, the copy goes on where it was, a delta takes
the place of the one before, and what was applied is taken back by the next pass (P8).  So the
same command resumes whatever ended the last one.
"""

import contextlib
import os
import uuid
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from p2v_sync import jobs
from p2v_sync.config import SyncConfig, check_job_name, plain_name
from p2v_sync.cutover import IN_PLACE, QCOW2, JobCutover
from p2v_sync.device.edd import read_bios_order
from p2v_sync.device.machine_facts import read_machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.errors import (
    ConfigError,
    FixupError,
    OverlayError,
    OverlayUnsupported,
    SourceReadError,
)
from p2v_sync.events import Notice, Observer
from p2v_sync.fixup.guest import Guest
from p2v_sync.fixup.plan import Bus, Finding, Hypervisor, Plan, Severity, Target
from p2v_sync.fixup.profile import UNKNOWN_GUEST, Twins, profile
from p2v_sync.guest_disks import Look, check_possible, fix_disks, plan_disks
from p2v_sync.overlay.delta import open_delta
from p2v_sync.overlay.luks import read_keys
from p2v_sync.overlay.snapshot import (
    CHUNK_SIZE,
    Overlay,
    check_untouched,
    check_usable,
    create_overlays,
    list_overlays,
    remove_overlays,
)
from p2v_sync.transport.dialer import Ask
from p2v_sync.vm import virt_v2v
from p2v_sync.vm.boot_order import boot_order
from p2v_sync.vm.choose import Wishes, choose
from p2v_sync.vm.definition import Definitions, Format, Image
from p2v_sync.vm.files import files
from p2v_sync.vm.inventory import Facts
from p2v_sync.vm.network import Networks

_NOTES = frozenset({Severity.NOTE})


class Fixups(StrEnum):
    """What makes the guest boot as a virtual machine (``--fixups``)."""

    OWN = "own"
    VIRT_V2V = "virt-v2v"  # at the receiver, above the replica
    NONE = "none"


@dataclass(frozen=True)
class ConvertConfig:
    """``p2v-sync convert`` as typed.  ``memory``, ``cow_size``: bytes."""

    sync: SyncConfig
    target: Target = field(default_factory=Target)
    name: str | None = None
    memory: int | None = None
    vcpus: int | None = None
    networks: Networks = field(default_factory=Networks)
    fixups: Fixups = Fixups.OWN
    mode: str = IN_PLACE
    start: bool = False
    cow_size: int | None = None
    cow_dir: Path | None = None
    key_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What the conversion made of the guest.  ``plan``: None when nobody looked into it, empty
    when none of it is carried out.

    ``is_fixed``: False when the overlays hold nothing that may be sent.
    """

    look: Look
    plan: Plan | None
    is_fixed: bool = False


def convert(config: ConvertConfig, observe: Observer, ask: Ask | None) -> None:
    """Copy the disks, make them boot as a virtual machine, and describe that.

    Raises what ``jobs.sync`` raises; FixupError, OverlayError before the copy for what can't be
    converted.  Sectors that could not be read are an error only when all else is done.
    """
    conversion = Conversion(config, observe, ask)
    conversion.check()
    unreadable: SourceReadError | None = None
    with conversion.overlays() as overlays:
        seen = conversion.preview(overlays)
        try:
            jobs.sync(config.sync, observe, ask)
        except SourceReadError as error:
            unreadable = error
        conversion.finish(overlays, seen)
    if unreadable is not None:
        raise unreadable


class Conversion:
    """The steps of one conversion, in the order of its methods."""

    def __init__(self, config: ConvertConfig, observe: Observer, ask: Ask | None) -> None:
        self._config = config
        self._observe = observe
        self._ask = ask
        self._keys = read_keys(config.key_files, os.environ, ask.secret if ask else None)
        self._sources = jobs.name_sources(config.sync.sources)
        self._job = check_job_name(config.sync.job or jobs.default_job(self._sources))
        self._by_disk = {jobs.kernel_name(source.path): source for source in self._sources}

    def _say(self, text: str) -> None:
        self._observe(Notice("", text))

    def check(self) -> None:
        """What is wrong is said before hours of copying.  Raises ConfigError."""
        if self._config.sync.seed:
            raise ConfigError(
                "a seed can't be converted: it is read from a running system (P11)",
                hint="make it with sync --seed, and convert from the live CD later",
            )
        if self._config.start and plain_name(self._name) != self._name:
            raise ConfigError(
                f"--start can't find {self._name!r} on the host",
                hint=f"name it without what files can't be called: --name {plain_name(self._name)}",
            )
        self._wishes("/").check()
        target = self._config.target
        if self._config.fixups is not Fixups.VIRT_V2V:
            return
        if target.hypervisor is Hypervisor.XEN or target.bus not in (Bus.AUTO, Bus.VIRTIO):
            raise ConfigError(
                "virt-v2v makes virtual machines for KVM, with their disks on virtio",
                hint="leave --target and --bus out, or convert with --fixups own",
            )

    # Overlays

    @contextlib.contextmanager
    def overlays(self) -> Iterator[list[Overlay]]:
        """Of all disks, new; none without fix-ups.  Raises OverlayError, DeviceError."""
        if self._config.fixups is Fixups.NONE:
            yield []
            return
        paths = [source.path for source in self._sources]
        self._drop_leftovers(paths)
        config = self._config
        try:
            made = create_overlays(paths, cow_size=config.cow_size, cow_dir=config.cow_dir)
        except OverlayUnsupported as error:
            hint = f"{error.hint}; or copy without looking into the guest: --fixups none"
            raise OverlayUnsupported(error.message, hint=hint) from error
        names = [overlay.disk for overlay in made]
        try:
            yield made
        except BaseException:
            with contextlib.suppress(OverlayError):  # what went wrong counts
                remove_overlays(names)
            raise
        remove_overlays(names)

    def _drop_leftovers(self, paths: Sequence[Path]) -> None:
        """What a killed run left over these disks has changes that nobody knows any more."""
        for path in paths:
            with contextlib.suppress(OverlayError):
                stale = list_overlays([str(path)])
                remove_overlays([overlay.disk for overlay in stale])
                self._say(f"{path}: the overlay that an earlier run left was removed")

    def preview(self, overlays: Sequence[Overlay]) -> Outcome:
        """Look and plan, and say what will not work.  Raises FixupError, OverlayError."""
        if not overlays:
            return Outcome(self._unseen(), None)
        look, plan = plan_disks(overlays, self._config.target, self._keys)
        guest = look.guest
        name = guest.windows.name if guest.windows else guest.distribution.name
        self._say(f"found {name or 'a system'}{f' ({guest.hostname})' if guest.hostname else ''}")
        is_by_others = self._config.fixups is Fixups.VIRT_V2V
        # Hardware that we can't give a guest drivers for is what virt-v2v has its own way for.
        self._report(look, plan, {Severity.NOTE, Severity.DOWNGRADE} if is_by_others else _NOTES)
        check_possible(plan)
        if is_by_others:
            for doubt in virt_v2v.doubts(guest):
                self._say(doubt)
        elif guest.windows:
            self._say("Windows is copied as it is: what gives it virtio is --fixups virt-v2v")
        return Outcome(look, Plan((), ()))

    def _report(self, look: Look, plan: Plan, unsaid: Container[Severity]) -> None:
        for problem in look.problems:
            self._say(problem)
        for finding in plan.findings:
            if finding.severity not in unsaid:
                hint = f" ({finding.hint})" if finding.hint else ""
                self._say(f"{finding.severity}: {finding.text}{hint}")

    # After the copy

    def finish(self, overlays: Sequence[Overlay], seen: Outcome) -> None:
        """Fix up, send what that changed, describe the machine, cut over, start."""
        outcome = self._fix_up(overlays) if self._config.fixups is Fixups.OWN else seen
        with JobCutover(
            self._job,
            self._config.sync.state_dir,
            self._config.sync.connection,
            self._observe,
            self._ask,
        ) as job:
            if outcome.is_fixed:
                for overlay in overlays:
                    self._send(job, overlay)
            else:
                self._send_nothing(job)
            directory = job.directory
            definitions = self._definitions(outcome, directory)
            if self._config.fixups is Fixups.VIRT_V2V:
                self._use_virt_v2v(job, outcome, definitions)
            else:
                job.put_files(files(definitions, _facts(outcome)))
                job.apply(self._config.mode)
            if self._config.start:
                job.start(self._name)
        self._say(f"the virtual machine {self._name} is described in {directory}")

    def _use_virt_v2v(self, job: JobCutover, outcome: Outcome, definitions: Definitions) -> None:
        """Until the guest is converted, the definitions are those of the guest as it was."""
        facts = _facts(outcome)
        recommended = definitions.recommended
        job.put_files(files(definitions, facts, with_virt_v2v=True))
        if job.convert(recommended.stem):
            job.put_files(files(virt_v2v.both_converted(definitions), facts))
            return
        script = f"{recommended.directory}/{recommended.stem}.virt-v2v.sh"
        text = f"virt-v2v-in-place can't be run from here; run this on the host: sh {script}"
        if self._config.start:
            raise ConfigError(text, hint="then start the virtual machine there")
        self._say(text)

    def _unseen(self) -> Look:
        """Of a guest that nobody looked into."""
        return Look(Guest(), NOTHING_KNOWN, read_machine(disks=self._by_disk))

    def _fix_up(self, overlays: Sequence[Overlay]) -> Outcome:
        """A failure costs the virtual machine its fast hardware, not the copy its use.

        What is half in an overlay is never sent.  Raises OverlayFull.
        """
        try:
            target = self._config.target
            look, plan = fix_disks(overlays, target, self._keys, uuid.uuid4().hex)
        except FixupError as error:
            self._say(f"the guest was not fixed up: {error}; it gets hardware that it knows")
            look, plan = plan_disks(overlays, self._config.target, self._keys)
            failed = Finding("apply", Severity.DOWNGRADE, error.message, error.hint or "")
            return Outcome(look, Plan((), (*plan.findings, failed)))
        self._say(f"fixed up: {len(plan.edits)} changes in the guest, none on its disks")
        return Outcome(look, plan, is_fixed=True)

    def _send_nothing(self, job: JobCutover) -> None:
        """In the place of what an earlier conversion sent: it does not belong to this pass."""
        is_overlay_wanted = self._wants_qcow2
        for disk in job.disks:
            if is_overlay_wanted or job.status(disk).delta is not None:
                job.send_delta(disk, (), CHUNK_SIZE)

    def _send(self, job: JobCutover, overlay: Overlay) -> None:
        check_usable(overlay)
        check_untouched(overlay)
        with open_delta(overlay) as delta:
            job.send_delta(self._by_disk[overlay.disk].name, delta, overlay.chunk_size)

    # The machine

    @property
    def _name(self) -> str:
        return self._config.name or self._job

    def _wishes(self, directory: str) -> Wishes:
        config = self._config
        return Wishes(
            self._name,
            directory,
            config.memory,
            config.vcpus,
            config.networks,
            config.target.hypervisor,
        )

    def _definitions(self, outcome: Outcome, directory: str) -> Definitions:
        look = outcome.look
        return choose(
            look.machine,
            look.guest if outcome.plan is not None else None,
            [self._image(disk) for disk in self._boot_order(look)],
            self._wishes(directory),
            self._hardware(outcome),
        )

    def _boot_order(self, look: Look) -> list[str]:
        """Kernel names, the boot disk first."""
        paths = {disk: str(source.path) for disk, source in self._by_disk.items()}
        return boot_order([*paths], read_bios_order(paths), look.guest, look.storage)

    @property
    def _wants_qcow2(self) -> bool:
        """virt-v2v makes its own."""
        return self._config.mode == QCOW2 and self._config.fixups is not Fixups.VIRT_V2V

    def _image(self, disk: str) -> Image:
        name = self._by_disk[disk].name
        if self._wants_qcow2:
            return Image(disk, f"{name}.qcow2", Format.QCOW2)
        return Image(disk, f"{name}.img")

    def _hardware(self, outcome: Outcome) -> Twins:
        if outcome.plan is None:
            return UNKNOWN_GUEST
        return profile(outcome.look.guest, self._config.target, outcome.plan)


def _facts(outcome: Outcome) -> Facts:
    look, plan = outcome.look, outcome.plan
    guest = look.guest if plan is not None else None
    return Facts(look.machine, guest, plan.findings if plan else ())
