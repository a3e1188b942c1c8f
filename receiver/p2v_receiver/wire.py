"""The wire protocol, without I/O: frames, messages, and which may follow which.

Both ends use this module; it does not know which end it plays.  The normative text is PROTOCOL.md
beside this package.  Nothing here blocks, and garbage raises :class:`ProtocolError`, never
anything else.

A frame::

    0      2      3       4            8             12             16
    | "P2" | type | flags | sequence   | meta length | body length  | meta … | body … |

All integers are big-endian.  ``meta`` is small and structured (a struct or JSON), ``body`` is
bulk data; they are apart so that the body can be received straight into a page-aligned buffer.
"""

import json
import mmap
import struct
import zlib
from enum import IntEnum
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
    cast,
)

MAGIC = b"P2"
VERSION = 1  # of the protocol; what both ends can do beyond it is negotiated in HELLO/WELCOME

# Magic, type, flags, sequence, lengths of meta and body, CRC-32 of the meta, and of all before it.
HEADER = struct.Struct("!2sBBIIIII")
_CHECK = struct.Struct("!I")
_CHECKED = HEADER.size - _CHECK.size
MAX_META = 256 * 1024
MAX_REQUEST = 4 * 1024 * 1024  # raw bytes one DATA frame may carry
MAX_BODY = MAX_REQUEST
FLAG_OPTIONAL = 0x01  # an end that does not know the type of such a frame skips it

SEGMENT_BLOCKS = 256
ENTRY_SIZE = 16
SEGMENT_ENTRIES_SIZE = SEGMENT_BLOCKS * ENTRY_SIZE
UNKNOWN = b"\0" * ENTRY_SIZE  # what the target holds here is not known: never equal to a digest
ZERO = b"\xff" * ENTRY_SIZE  # the block is zeros; no digest is taken of zeros

PAGE_SIZE = 4 * 1024  # what a changed block is refined to
PAGE_DIGEST_SIZE = 8
BLOCK_SET_SIZE = SEGMENT_BLOCKS // 8

MIN_BLOCK_SIZE = PAGE_SIZE
MAX_BLOCK_SIZE = MAX_REQUEST
DEFAULT_BLOCK_SIZE = 256 * 1024
MAX_SIZE = 1 << 60  # bytes of a disk: bounds every offset computed from a peer's numbers
MAX_EXTENTS = 4096  # in one list of extents
MAX_SEGMENTS = 1 << 21  # of a disk: bounds what each end has to remember of one
MAX_RUN = 4096  # blocks one ZEROS or VERIFY is about: the answer to it is a list of extents
MAX_FETCH = 256  # segments one FETCH is about: what takes long comes in pieces

PAGES = "pages"  # the feature: ASK_PAGES and PATCH are understood
DELTA = "delta"  # the feature: CUTOVER, ACT and RUNS are understood

MAX_RUNS = 4096  # of one RUNS frame
MAX_FILE = 1024 * 1024  # bytes of a file beside the images
MIN_CHUNK_SIZE = 512

DEFAULT_WINDOW = 64 * 1024 * 1024
HEARTBEAT_S = 5.0
SILENCE_LIMIT_S = 25.0  # a peer that says nothing for so long is dead (noticed within 30 s)

Buffer = Union[bytes, bytearray, memoryview]
Json = Dict[str, Any]


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow: the connection can't go on."""


def is_block_size(value: object) -> bool:
    """A block is a power of two, from a page to what one DATA frame can carry."""
    return (
        isinstance(value, int)
        and MIN_BLOCK_SIZE <= value <= MAX_BLOCK_SIZE
        and value & (value - 1) == 0
    )


class Layout(NamedTuple):
    """How an image is cut into blocks and segments."""

    size: int
    block_size: int

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block_size)

    @property
    def segments(self) -> int:
        return -(-self.blocks // SEGMENT_BLOCKS)

    def blocks_in(self, segment: int) -> int:
        return min(SEGMENT_BLOCKS, self.blocks - segment * SEGMENT_BLOCKS)

    def extent(self, first_block: int, blocks: int) -> Tuple[int, int]:
        """Blocks → ``(start, end)`` in bytes."""
        start = first_block * self.block_size
        return start, min(start + blocks * self.block_size, self.size)

    def segment_extent(self, segment: int) -> Tuple[int, int]:
        return self.extent(segment * SEGMENT_BLOCKS, SEGMENT_BLOCKS)

    @property
    def page_map_size(self) -> int:
        """Bytes of a map with one bit for each page of a block."""
        return -(-self.block_size // (8 * PAGE_SIZE))

    def zero_entries(self, segment: int) -> bytes:
        return ZERO * self.blocks_in(segment)


class FrameType(IntEnum):
    """S: from the sender.  R: from the receiver."""

    HELLO = 1  # S  json
    WELCOME = 2  # R  json
    OPEN = 3  # S  json
    OPENED = 4  # R  json
    ATTACH = 5  # S  json
    ATTACHED = 6  # R  json
    BEGIN = 7  # S  json
    FETCH = 8  # S  Segments
    DIGESTS = 9  # R  Segments; body: packed entries, none when all blocks are zero
    DATA = 10  # S  Data head + entries; body: the blocks
    ZEROS = 11  # S  Blocks
    SEGMENTS = 12  # S  Segments + digest of their entries
    UNREADABLE = 13  # S  json
    CHECKPOINT = 14  # S  number
    WRITTEN = 15  # R  Written
    COMMITTED = 16  # R  json
    VERIFY = 17  # S  Verify head; body: strong digests, none to compare with the manifest
    VERIFIED = 18  # R  json
    END = 19  # S  json
    ENDED = 20  # R  json
    CLOSE = 21  # S
    CLOSED = 22  # R
    PING = 23  # either
    LOG = 24  # R  json
    ERROR = 25  # either, json
    BEGUN = 26  # R
    ASK_PAGES = 27  # S  BlockSet
    PAGE_DIGESTS = 28  # R  BlockSet; body: packed digests of the pages of each of these blocks
    PATCH = 29  # S  Patch head + entries + page maps; body: the changed pages
    REFUSED = 30  # R  BlockSet
    CUTOVER = 31  # S  json, as OPEN
    ACT = 32  # S  json; body: the content of a file
    ACTED = 33  # R  json
    RUNS = 34  # S  Runs; body: their bytes


class ErrorCode(IntEnum):
    """What an ERROR frame is about.  The sender maps each to one class of its error tree."""

    INTERNAL = 1
    PROTOCOL = 2
    VERSION = 3
    REFUSED = 10
    LOCKED = 11
    TAKEN = 12
    CHANGED = 13
    READ_ONLY = 14
    SAME_FILE = 15
    PHASE = 16
    FULL = 20
    IO = 21
    INTEGRITY = 30


class State(IntEnum):
    """Where a connection is."""

    START = 0
    GREETED = 1  # HELLO sent
    READY = 2  # WELCOME sent
    OPENING = 3
    ATTACHING = 4
    CONTROL = 5  # the session's first connection
    STREAM = 6  # a further connection of the same session: bulk only
    ENDING = 7
    CLOSING = 8
    DONE = 9
    TAKING = 10  # CUTOVER sent
    TAKEN = 11  # a delta is kept, applied, taken back; no bulk


SENDER, RECEIVER = "sender", "receiver"

_F, _S = FrameType, State
_Rules = Dict[Tuple[str, FrameType], State]


def _staying(state: State, sender: List[FrameType], receiver: List[FrameType]) -> _Rules:
    rules = {(SENDER, kind): state for kind in sender}
    rules.update({(RECEIVER, kind): state for kind in receiver})
    return rules


_BULK = [_F.DATA, _F.ZEROS, _F.SEGMENTS, _F.UNREADABLE, _F.VERIFY, _F.ASK_PAGES, _F.PATCH]
_BULK_ANSWERS = [_F.WRITTEN, _F.VERIFIED, _F.PAGE_DIGESTS, _F.REFUSED]
_STEERING = [_F.BEGIN, _F.FETCH, _F.CHECKPOINT]
_STEERING_ANSWERS = [_F.BEGUN, _F.DIGESTS, _F.COMMITTED]
_ALL_ANSWERS = _BULK_ANSWERS + _STEERING_ANSWERS

# state → (who, frame) → next state.  PING, ERROR and (from the receiver) LOG are allowed
# everywhere but in DONE.
# Both ends run the same table on what they send and what they receive.
TRANSITIONS: Dict[State, _Rules] = {
    _S.START: {(SENDER, _F.HELLO): _S.GREETED},
    _S.GREETED: {(RECEIVER, _F.WELCOME): _S.READY},
    _S.READY: {
        (SENDER, _F.OPEN): _S.OPENING,
        (SENDER, _F.ATTACH): _S.ATTACHING,
        (SENDER, _F.CUTOVER): _S.TAKING,
    },
    _S.OPENING: {(RECEIVER, _F.OPENED): _S.CONTROL},
    _S.ATTACHING: {(RECEIVER, _F.ATTACHED): _S.STREAM},
    _S.CONTROL: _staying(_S.CONTROL, _BULK + _STEERING, _ALL_ANSWERS),
    _S.STREAM: _staying(_S.STREAM, _BULK, _BULK_ANSWERS),
    _S.ENDING: _staying(_S.ENDING, [], _ALL_ANSWERS),
    _S.CLOSING: _staying(_S.CLOSING, [], _ALL_ANSWERS),
    _S.DONE: {},
    _S.TAKING: {(RECEIVER, _F.OPENED): _S.TAKEN},
    _S.TAKEN: _staying(_S.TAKEN, [_F.ACT, _F.RUNS], [_F.ACTED]),
}
TRANSITIONS[_S.CONTROL].update({(SENDER, _F.END): _S.ENDING, (SENDER, _F.CLOSE): _S.CLOSING})
TRANSITIONS[_S.STREAM][(SENDER, _F.CLOSE)] = _S.CLOSING
TRANSITIONS[_S.TAKEN][(SENDER, _F.CLOSE)] = _S.CLOSING
TRANSITIONS[_S.ENDING][(RECEIVER, _F.ENDED)] = _S.CONTROL
TRANSITIONS[_S.CLOSING][(RECEIVER, _F.CLOSED)] = _S.DONE
_ANYWHERE = {SENDER: (_F.PING, _F.ERROR), RECEIVER: (_F.PING, _F.ERROR, _F.LOG)}


def next_state(state: State, role: str, kind: FrameType) -> State:
    """Where a connection in ``state`` is after ``role`` sent ``kind``.  Raises ProtocolError."""
    if kind in _ANYWHERE[role] and state is not State.DONE:
        return State.DONE if kind is FrameType.ERROR else state
    try:
        return TRANSITIONS[state][(role, kind)]
    except KeyError:
        raise ProtocolError(
            "a {} from the {} is not allowed in state {}".format(kind.name, role, state.name)
        ) from None


def pack_header(
    kind: int,
    sequence: int,
    meta_length: int,
    body_length: int,
    meta_check: int = 0,
    flags: int = 0,
) -> bytes:
    """A frame's header; ``meta_check`` is the CRC-32 of its meta."""
    fields = (MAGIC, kind, flags, sequence, meta_length, body_length, meta_check)
    checked = HEADER.pack(*fields, 0)[:_CHECKED]
    return checked + _CHECK.pack(zlib.crc32(checked))


class Frame(NamedTuple):
    """A frame that came in; ``body`` is valid until the next one is received."""

    kind: FrameType
    sequence: int
    meta: bytes
    body: memoryview


_NOTHING = memoryview(b"")


class Connection:
    """One end of one connection: checks order, sequence and caps of what goes out and comes in.

    Receiving is by buffer, so that bulk data is not copied: read into :meth:`buffer`, tell
    :meth:`received` how much came, get a frame or None.  A frame's body is valid until the next
    call of :meth:`buffer`.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.peer = RECEIVER if role == SENDER else SENDER
        self.state = State.START
        self._sent = 0
        self._expected = 0
        self._body = mmap.mmap(-1, MAX_BODY)  # page-aligned; pages are taken only when touched
        self._body_view = memoryview(self._body)
        self._header = memoryview(bytearray(HEADER.size))
        self._filled = 0
        self._parts = [self._header]  # what is still to come of the frame, in order
        self._lengths = (0, 0)
        self._meta = memoryview(b"")
        self._meta_check = 0
        self._kind = 0
        self._flags = 0

    def send(self, kind: FrameType, meta: bytes, body_length: int) -> bytes:
        """The bytes that go in front of the body.  Raises ProtocolError when it is not allowed."""
        if len(meta) > MAX_META or body_length > MAX_BODY:
            raise ProtocolError("a {} of this length can't be sent".format(kind.name))
        self._advance(self.role, kind)
        head = pack_header(kind, self._sent, len(meta), body_length, zlib.crc32(meta))
        self._sent = (self._sent + 1) & 0xFFFFFFFF
        return head + meta

    def _advance(self, role: str, kind: FrameType) -> None:
        before = self.state
        after = next_state(before, role, kind)
        # One thread sends while another one receives: a frame that changes nothing must not undo
        # what the other direction changed in the meantime.
        if after is not before:
            self.state = after

    def buffer(self) -> memoryview:
        """Where the next received bytes belong; never empty."""
        return self._parts[0][self._filled :]

    def received(self, count: int) -> Optional[Frame]:
        """``count`` bytes were put into :meth:`buffer`.  A frame when one is whole, else None."""
        self._filled += count
        if self._filled < len(self._parts[0]):
            return None
        self._filled = 0
        done = self._parts.pop(0)
        if done is self._header:
            self._start_frame()
        if self._parts:
            return None
        self._parts = [self._header]
        return self._finish_frame()

    def _start_frame(self) -> None:
        magic, self._kind, self._flags, sequence, meta, body, self._meta_check, check = (
            HEADER.unpack(self._header)
        )
        if magic != MAGIC:
            raise ProtocolError("this is not p2v-sync talking (no frame begins here)")
        if zlib.crc32(self._header[:_CHECKED]) != check:
            raise ProtocolError("a frame's header arrived damaged")
        if sequence != self._expected:
            raise ProtocolError("frame {} came where {} was due".format(sequence, self._expected))
        if self._flags & ~FLAG_OPTIONAL:
            raise ProtocolError("a frame has flags that nobody gave it")
        if meta > MAX_META or body > MAX_BODY:
            raise ProtocolError("a frame of {} + {} bytes is too long".format(meta, body))
        self._expected = (self._expected + 1) & 0xFFFFFFFF
        self._meta = memoryview(bytearray(meta))
        self._lengths = (meta, body)
        parts = [self._meta, self._body_view[:body]]
        self._parts = [part for part in parts if len(part)]

    def _finish_frame(self) -> Optional[Frame]:
        if zlib.crc32(self._meta) != self._meta_check:
            raise ProtocolError("a frame arrived damaged")
        try:
            kind = FrameType(self._kind)
        except ValueError:
            if self._flags & FLAG_OPTIONAL:
                return None
            raise ProtocolError("a frame of unknown type {} came".format(self._kind)) from None
        self._advance(self.peer, kind)
        body = self._body_view[: self._lengths[1]] if self._lengths[1] else _NOTHING
        return Frame(kind, (self._expected - 1) & 0xFFFFFFFF, bytes(self._meta), body)


# Messages with a fixed layout.

_SEGMENTS = struct.Struct("!QI")
_SEGMENT = struct.Struct("!Q")
_BLOCKS = struct.Struct("!QI")
_DATA = struct.Struct("!QBI")
_PATCH = struct.Struct("!BI")
_VERIFY = struct.Struct("!IQI")
_RUNS = struct.Struct("!BI")
_RUN = struct.Struct("!QI{}s".format(ENTRY_SIZE))
_WRITTEN = struct.Struct("!IQ")
_NUMBER = struct.Struct("!I")


def _unpack(layout: struct.Struct, meta: bytes, rest: int = 0) -> Tuple[Any, ...]:
    if len(meta) != layout.size + rest:
        raise ProtocolError("a frame is {} bytes long, not {}".format(len(meta), layout.size))
    return layout.unpack_from(meta)


def _run_length(total: int) -> int:
    if not 0 < total <= MAX_RUN:
        raise ProtocolError("a frame is about {} blocks, out of range".format(total))
    return total


class Segments(NamedTuple):
    """``total`` segments from ``first``; with SEGMENTS also the digest of their entries."""

    first: int
    total: int
    digest: bytes = b""

    def pack(self) -> bytes:
        return _SEGMENTS.pack(self.first, self.total) + self.digest

    @classmethod
    def unpack(cls, meta: bytes, with_digest: bool = False) -> "Segments":
        first, total = _unpack(_SEGMENTS, meta, ENTRY_SIZE if with_digest else 0)
        if first + total > MAX_SEGMENTS or not total:
            raise ProtocolError("segments {}+{} are out of range".format(first, total))
        return cls(first, total, meta[_SEGMENTS.size :])


class Written(NamedTuple):
    """Bulk frames and body bytes handled since the last such acknowledgement."""

    frames: int
    length: int

    def pack(self) -> bytes:
        return _WRITTEN.pack(self.frames, self.length)

    @classmethod
    def unpack(cls, meta: bytes) -> "Written":
        return cls(*_unpack(_WRITTEN, meta))


class Blocks(NamedTuple):
    """``total`` blocks from block ``first``."""

    first: int
    total: int

    def pack(self) -> bytes:
        return _BLOCKS.pack(self.first, self.total)

    @classmethod
    def unpack(cls, meta: bytes) -> "Blocks":
        first, total = _unpack(_BLOCKS, meta)
        return cls(first, _run_length(total))


class Data(NamedTuple):
    """Blocks from block ``first``: ``raw_length`` bytes once decoded, one entry a block."""

    first: int
    codec: int
    raw_length: int
    entries: bytes

    def pack(self) -> bytes:
        return _DATA.pack(self.first, self.codec, self.raw_length) + self.entries

    @classmethod
    def unpack(cls, meta: bytes) -> "Data":
        entries = meta[_DATA.size :]
        first, codec, raw_length = _unpack(_DATA, meta, len(entries))
        if not entries or len(entries) % ENTRY_SIZE or not 0 < raw_length <= MAX_REQUEST:
            raise ProtocolError("a DATA frame contradicts itself")
        return cls(first, codec, raw_length, entries)


class BlockSet(NamedTuple):
    """Some blocks of one segment: bit ``i`` of ``bits`` is the segment's block ``i``."""

    segment: int
    bits: int

    def pack(self) -> bytes:
        return _SEGMENT.pack(self.segment) + self.bits.to_bytes(BLOCK_SET_SIZE, "big")

    @classmethod
    def unpack(cls, meta: bytes) -> "BlockSet":
        (segment,) = _unpack(_SEGMENT, meta, BLOCK_SET_SIZE)
        bits = int.from_bytes(meta[_SEGMENT.size :], "big")
        if segment >= MAX_SEGMENTS or not bits:
            raise ProtocolError("a set of blocks is empty, or of no segment")
        return cls(segment, bits)

    @property
    def total(self) -> int:
        return bin(self.bits).count("1")

    @property
    def blocks(self) -> List[int]:
        """The blocks' numbers on the disk, in order."""
        first = self.segment * SEGMENT_BLOCKS
        return [first + index for index in indices(self.bits)]


def indices(bits: int) -> List[int]:
    """Which bits are set, the lowest first."""
    return [index for index, bit in enumerate(reversed(bin(bits)[2:])) if bit == "1"]


def page_pieces(page_map: int, length: int) -> List[Tuple[int, int]]:
    """``(offset, length)`` of the pages of a map in a block of ``length`` bytes, neighbours joined.

    Raises ProtocolError for pages that such a block has not.
    """
    pieces: List[Tuple[int, int]] = []
    for index in indices(page_map):
        at = index * PAGE_SIZE
        if at >= length:
            raise ProtocolError("a PATCH has pages behind the end of a block")
        size = min(PAGE_SIZE, length - at)
        if pieces and at == sum(pieces[-1]):
            pieces[-1] = pieces[-1][0], pieces[-1][1] + size
        else:
            pieces.append((at, size))
    return pieces


class Patch(NamedTuple):
    """Changed pages of ``blocks``: ``raw_length`` bytes once decoded.

    Of each block its entry as a whole and a map of the pages that come, packed one after the other.
    """

    blocks: BlockSet
    codec: int
    raw_length: int
    entries: bytes
    page_maps: bytes

    def pack(self) -> bytes:
        head = self.blocks.pack() + _PATCH.pack(self.codec, self.raw_length)
        return head + self.entries + self.page_maps

    @classmethod
    def unpack(cls, meta: bytes) -> "Patch":
        at = _SEGMENT.size + BLOCK_SET_SIZE
        blocks = BlockSet.unpack(meta[:at])
        rest = meta[at + _PATCH.size :]
        codec, raw_length = _unpack(_PATCH, meta[at:], len(rest))
        total = blocks.total
        maps = rest[total * ENTRY_SIZE :]
        if not maps or len(maps) % total or raw_length > MAX_REQUEST:
            raise ProtocolError("a PATCH frame contradicts itself")
        return cls(blocks, codec, raw_length, rest[: total * ENTRY_SIZE], maps)

    def parts(self) -> Iterator[Tuple[int, bytes, int]]:
        """``(block, entry, map of its pages)``, in order."""
        size = len(self.page_maps) // self.blocks.total
        for index, block in enumerate(self.blocks.blocks):
            page_map = self.page_maps[index * size : (index + 1) * size]
            entry = self.entries[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE]
            yield block, entry, int.from_bytes(page_map, "big")


class Verify(NamedTuple):
    """Check ``total`` blocks from ``first``; the answer carries ``number``."""

    number: int
    first: int
    total: int

    def pack(self) -> bytes:
        return _VERIFY.pack(self.number, self.first, self.total)

    @classmethod
    def unpack(cls, meta: bytes) -> "Verify":
        number, first, total = _unpack(_VERIFY, meta)
        return cls(number, first, _run_length(total))


class Run(NamedTuple):
    """Bytes of a disk that are others than those of the replica.  ``digest``: their BLAKE2b-128."""

    start: int
    length: int
    digest: bytes

    def pack(self) -> bytes:
        return _RUN.pack(*self)

    @property
    def end(self) -> int:
        return self.start + self.length


class Runs(NamedTuple):
    """Some runs in order, none touching what another one has: a part of a delta."""

    codec: int
    runs: List[Run]

    def pack(self) -> bytes:
        return _RUNS.pack(self.codec, self.raw_length) + b"".join(run.pack() for run in self.runs)

    @property
    def raw_length(self) -> int:
        return sum(run.length for run in self.runs)

    @classmethod
    def unpack(cls, meta: bytes) -> "Runs":
        packed = meta[_RUNS.size :]
        codec, raw_length = _unpack(_RUNS, meta, len(packed))
        if not packed or len(packed) % _RUN.size or len(packed) > MAX_RUNS * _RUN.size:
            raise ProtocolError("a RUNS frame contradicts itself")
        message = cls(codec, [Run(*each) for each in _RUN.iter_unpack(packed)])
        if message.raw_length != raw_length or raw_length > MAX_REQUEST:
            raise ProtocolError("a RUNS frame contradicts itself")
        return message


def is_chunk_size(value: int) -> bool:
    """What a delta's runs are aligned to: a power of two that one RUNS frame can carry."""
    return MIN_CHUNK_SIZE <= value <= MAX_REQUEST and value & (value - 1) == 0


def pack_number(number: int) -> bytes:
    return _NUMBER.pack(number)


def unpack_number(meta: bytes) -> int:
    return cast(int, _unpack(_NUMBER, meta)[0])


# Messages in JSON: rare, and free to grow (an end ignores fields it does not know).

_MAX_DIGITS = 20


def pack_json(message: Json) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _parse_int(digits: str) -> int:
    # Python 3.6 takes seconds to read a number of 256 KiB; no message has a use for a long one.
    if len(digits) > _MAX_DIGITS:
        raise ValueError("a number of {} digits".format(len(digits)))
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError("{} is no number".format(name))  # NaN and the infinities are not JSON


def unpack_json(meta: bytes) -> Json:
    """Raises ProtocolError for anything but one JSON object."""
    try:
        message = json.loads(meta.decode(), parse_int=_parse_int, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is not JSON: {}".format(error)) from None
    if not isinstance(message, dict):
        raise ProtocolError("a message is not a JSON object")
    return message


_T = TypeVar("_T")


def get(message: Json, name: str, kind: Type[_T]) -> _T:
    """The field ``name``, which must be there and be a ``kind``.  Raises ProtocolError."""
    value = message.get(name)
    # bool is an int to isinstance, but a count of True is nonsense.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ProtocolError("field {!r} is missing or not {}".format(name, kind.__name__))
    if isinstance(value, str):
        _check_text(value, name)
    return value


def _check_text(value: str, name: str) -> None:
    # JSON can spell half of a surrogate pair, which no file name, log or database takes.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProtocolError("field {!r} is not text".format(name)) from None


def get_int(message: Json, name: str, low: int = 0, high: int = MAX_SIZE) -> int:
    """An integer field within bounds.  Raises ProtocolError."""
    value = get(message, name, int)
    if not low <= value <= high:
        raise ProtocolError("field {!r} is {}, out of range".format(name, value))
    return value


def get_names(message: Json, name: str) -> List[str]:
    """A list of strings (what an end can do).  Raises ProtocolError."""
    value = get(message, name, list)
    if not all(isinstance(item, str) for item in value):
        raise ProtocolError("field {!r} is not a list of names".format(name))
    return value


def get_pairs(message: Json, name: str) -> List[Tuple[int, int]]:
    """A list of ``[number, number]``: extents or runs.  Raises ProtocolError."""
    pairs = []
    items = get(message, name, list)
    if len(items) > MAX_EXTENTS:
        raise ProtocolError("field {!r} is a list of {} pairs".format(name, len(items)))
    for item in items:
        if not (isinstance(item, list) and len(item) == 2):
            raise ProtocolError("field {!r} is not a list of pairs".format(name))
        if not all(type(number) is int and 0 <= number <= MAX_SIZE for number in item):
            raise ProtocolError("field {!r} has a number out of range".format(name))
        pairs.append((item[0], item[1]))
    return pairs
