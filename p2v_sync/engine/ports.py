"""What the engine needs from the world, as Protocols.  Adapters satisfy them structurally."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from p2v_receiver.wire import Frame, FrameType
from p2v_sync.events import Counters
from p2v_sync.extent import Extent
from p2v_sync.records import Checkpoint, DigestSettings, PassRecord, TargetState


class Limiter(Protocol):
    """Holds the whole run to a rate."""

    def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may be sent."""
        ...


class Source(Protocol):
    """A disk being read.  Thread-safe: several workers read different places at once."""

    @property
    def size(self) -> int: ...

    def read_into(self, buffer: memoryview, start: int) -> Sequence[Extent]:
        """Fill ``buffer`` from ``start`` (bytes).  Returns the extents that could not be read.

        Unreadable ranges are narrowed to logical sectors and filled with zeros (P12).  Raises
        SourceReadError when the run must not go on after one, DeviceChanged when the source ends
        early.
        """
        ...

    def next_data(self, start: int) -> int:
        """Where the next byte that may not be zero lies, from ``start`` on; else the size.

        Raises DeviceChanged when the source has become shorter.
        """
        ...


class Channel(Protocol):
    """One connection that carries frames.  ``send`` is thread-safe, ``receive`` has one caller."""

    def send(self, kind: FrameType, meta: bytes = b"", body: "bytes | memoryview" = b"") -> int:
        """Send one frame; returns how many bytes it took on the link.  Raises PeerLost."""
        ...

    def receive(self) -> Frame:
        """The next frame; its body is valid until the next call.

        Raises PeerLost, ProtocolError.
        """
        ...

    def close(self) -> None:
        """Idempotent; wakes a blocked ``receive`` or ``send``."""
        ...

    @property
    def bytes_sent(self) -> int: ...

    @property
    def bulk(self) -> "Sequence[Channel]":
        """Connections to the same receiver that carry the bulk data instead of this one.

        Mostly none.  They end with it.
        """
        ...


class Dialer(Protocol):
    """Makes connections to one receiver."""

    @property
    def max_streams(self) -> int:
        """How many connections one session may have on this transport (1: in-band only)."""
        ...

    @property
    def is_local(self) -> bool:
        """True where bytes cost no network, so compression can't pay."""
        ...

    def dial(self) -> Channel:
        """A new authenticated connection.  Raises ConnectFailed, AuthFailed, BootstrapFailed."""
        ...


class Ledger(Protocol):
    """The sender's record of one disk of one job.  Thread-safe.  Raises StateError."""

    def target_state(self) -> TargetState | None:
        """The state the stored entries describe in full, or None when they don't describe one."""
        ...

    def entries(self, segment: int) -> bytes | None:
        """Packed entries of a segment as last recorded; None: every block is zero."""
        ...

    def entries_between(self, first: int, total: int) -> dict[int, bytes]:
        """The entries of ``total`` segments from ``first``, without those that are all zero."""
        ...

    def segment_digests(self) -> Iterator[tuple[int, bytes]]:
        """``(segment, digest of its entries)`` in order, without the segments that are all zero."""
        ...

    def set_digest_settings(self, settings: DigestSettings) -> None:
        """How entries are made; those made otherwise are dropped."""
        ...

    def begin_pass(self, number: int, kind: str) -> PassRecord:
        """Open pass ``number``, or go on with it; from here ``target_state`` is None."""
        ...

    def record(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint in one transaction."""
        ...

    def finish_pass(self, state: TargetState, counters: Counters, *, wire_digest: str) -> None:
        """The end record was agreed on; the stored entries now describe ``state`` in full."""
        ...

    def doubt(self, reason: str) -> None:
        """The newest pass left no true copy of one moment of the source."""
        ...

    def unreadable(self) -> Sequence[Extent]:
        """What could not be read, up to now."""
        ...

    def set_unreadable(self, extents: Sequence[Extent]) -> None: ...

    def event(self, text: str, **details: Any) -> None:
        """Append to the job's history."""
        ...
