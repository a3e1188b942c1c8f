"""Every failure that can be explained to the operator, each kind with an exit code of its own.

The class says what the caller may do next: ``retryable`` errors go away with a new connection, the
others need the operator.  An exception that is not a :class:`P2vError` is a bug and shows a
traceback (exit code 1).
"""

from typing import ClassVar


class P2vError(Exception):
    """Anything we can explain to the operator.  The message carries facts, ``hint`` the advice."""

    exit_code: ClassVar[int] = 9
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.is_reported = False  # an observer has already told the operator

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(P2vError):
    """What was asked for makes no sense: a wrong option, target or combination."""

    exit_code = 3


class PreseedError(ConfigError):
    """A preseed or the kernel command line has an answer that can't be, or lacks one."""

    exit_code = 6


class DuplicateSource(ConfigError):
    """One disk was named twice, or two disks would land in one image."""

    exit_code = 4


class SourceIsTarget(ConfigError):
    """Source and target are the same file or device."""

    exit_code = 5


class DeviceError(P2vError):
    """The source can't be used as a disk (a directory, empty, no permission, …)."""

    exit_code = 10


class DeviceChanged(DeviceError):
    """The source is not the disk this job copies, or its size changed while being read."""

    exit_code = 11


class DeviceBusy(DeviceError):
    """The source is mounted or otherwise in use, and the pass is not a seed."""

    exit_code = 12


class SourceReadError(DeviceError):
    """The source could not be read somewhere; the rest may have been copied."""

    exit_code = 13


class SourceMissing(DeviceError):
    """There is no such source."""

    exit_code = 14


class TransportError(P2vError):
    """The link to the receiver failed."""

    exit_code = 30
    retryable = True


class ConnectFailed(TransportError):
    """No connection could be made."""

    exit_code = 31


class PeerLost(TransportError):
    """The connection broke, or the receiver fell silent."""

    exit_code = 32


class AuthFailed(P2vError):
    """The other side did not accept us, or could not prove who it is."""

    exit_code = 33


class BootstrapFailed(P2vError):
    """ssh worked, but the receiver could not be started on the host."""

    exit_code = 34


class ProtocolError(P2vError):
    """The receiver said something the protocol does not allow."""

    exit_code = 35


class VersionMismatch(ProtocolError):
    """Sender and receiver have no protocol version, digest or codec in common."""

    exit_code = 36


class HostKeyUnknown(P2vError):
    """The ssh host key is not in known_hosts, or is another one than there."""

    exit_code = 37


class ReceiverError(P2vError):
    """The receiver refused or failed."""

    exit_code = 40


class TargetFull(ReceiverError):
    """No space left where the image lives."""

    exit_code = 41


class TargetChanged(ReceiverError):
    """The image is not what this job left there and can't be adopted (another size, no file)."""

    exit_code = 42


class TargetIOError(ReceiverError):
    """Reading, writing or flushing the image or its manifest failed."""

    exit_code = 43


class TargetRefused(ReceiverError):
    """The receiver does not open that: outside its directory, a link, not a disk image."""

    exit_code = 44


class TargetReadOnly(ReceiverError):
    """The target directory or image can't be written to."""

    exit_code = 45


class TargetLocked(ReceiverError):
    """Another run holds the image."""

    exit_code = 46


class TargetTaken(ReceiverError):
    """The image of that name is the copy of another disk."""

    exit_code = 47


class IntegrityError(P2vError):
    """A digest does not match what was sent."""

    exit_code = 50


class VerifyMismatch(IntegrityError):
    """Verification found blocks on the target that differ from the source."""

    exit_code = 51


class StateError(P2vError):
    """The sender's own records can't be used."""

    exit_code = 60


class JobNotFound(StateError):
    """The ledger has no such job."""

    exit_code = 61


class JobLocked(StateError):
    """Another run on this machine works on the job."""

    exit_code = 62


class StateCorrupt(StateError):
    """The ledger is damaged and could not be moved aside."""

    exit_code = 63


class WrongPhase(StateError):
    """The job is not in a state in which that can be done (a seed can't be cut over, P11)."""

    exit_code = 64


class FixupError(P2vError):
    """The guest can't be inspected or fixed up; its replica can still be made (--fixups none)."""

    exit_code = 70


class GuestFileError(FixupError):
    """A file of the guest is no regular file, too long, or a link to nothing."""

    exit_code = 71


class OverlayError(P2vError):
    """The overlay could not be made, read or removed."""

    exit_code = 75


class NetworkError(P2vError):
    """The live system can't get online."""

    exit_code = 38


class OverlayFull(OverlayError):
    """The copy-on-write space ran full: the overlay is invalid and its changes are lost."""

    exit_code = 76


class OverlayBusy(OverlayError):
    """The disk, or a device of the overlay's name, is in use or somebody else's."""

    exit_code = 77


class OverlayUnsupported(OverlayError):
    """This system can't make overlays: not root, no device-mapper, a program is missing."""

    exit_code = 78


class CowTooSmall(OverlayError):
    """There is not enough memory, or room in --cow-dir, for the copy-on-write space."""

    exit_code = 79


class CommandError(P2vError):
    """A program we started failed."""

    exit_code = 80


class Interrupted(P2vError):
    """The operator stopped the run; everything recorded stays and the same command goes on."""

    exit_code = 130


class Terminated(Interrupted):
    """The system did (SIGTERM, SIGHUP)."""

    exit_code = 143
