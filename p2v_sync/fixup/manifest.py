"""What fix-ups did to a guest, kept in it: enough to take all of it back.

JSON: ``{"format": 1, "directories": [path…], "runs": [run…]}``, a run ``{"version", "run",
"is_complete", "edits": [edit…]}``, an edit ``{"path", "fixups", "before": state, "after", "label",
"changes_mode"}``, a state null or an object of ``type``
file, start (of a file that is longer), link or directory.  Files before have their bytes (base64).
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from p2v_sync import __version__
from p2v_sync.errors import GuestFileError
from p2v_sync.fixup.draft import Appended, Content, Directory, Edit, Link, State

MANIFEST = "/var/lib/p2v-sync/manifest.json"
_FORMAT = 1
_MODES = 0o7777
_OWNERS = 1 << 32
_PATH_MOST = 4096


@dataclass(frozen=True)
class Witness:
    """What can be told of a state without having it.  ``kind``: '' for nothing there.

    ``text``: a digest, for files of what ``start`` bytes are before; or where a link points to.
    """

    kind: str = ""
    text: str = ""
    start: int = 0


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def witness(state: State) -> Witness:
    """Of what is planned or remembered."""
    match state:
        case Content(data):
            return Witness("file", digest(data))
        case Appended(length, data):
            return Witness("start", digest(data), length)
        case Link(target):
            return Witness("link", target)
        case Directory():
            return Witness("directory")
    return Witness()


@dataclass(frozen=True)
class Done:
    """One edit as the manifest has it: what was there, and by what to know what we made of it."""

    path: str
    fixups: tuple[str, ...]
    before: State
    after: Witness
    label: bytes | None = None  # SELinux's, of what was removed
    changes_mode: bool = False

    @classmethod
    def of(cls, edit: Edit, label: bytes | None) -> "Done":
        match edit.before, edit.after:
            case (Content() as before, Content() as after):
                changes_mode = before.mode != after.mode
            case _:
                changes_mode = False
        return cls(edit.path, edit.fixups, edit.before, witness(edit.after), label, changes_mode)


@dataclass(frozen=True)
class Run:
    """What one application did, in its order."""

    run: str
    edits: tuple[Done, ...]
    version: str = __version__
    is_complete: bool = True  # False: begun, and perhaps killed


@dataclass(frozen=True)
class Manifest:
    """``directories``: those that were made for the manifest itself."""

    runs: tuple[Run, ...] = ()
    directories: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        return all(run.is_complete for run in self.runs)

    def edits(self) -> list[Done]:
        """Of all runs, in the order in which they were done."""
        return [edit for run in self.runs for edit in run.edits]

    def to_bytes(self) -> bytes:
        record = {
            "format": _FORMAT,
            "directories": self.directories,
            "runs": [
                {
                    "version": run.version,
                    "run": run.run,
                    "is_complete": run.is_complete,
                    "edits": [_encode_edit(edit) for edit in run.edits],
                }
                for run in self.runs
            ],
        }
        return json.dumps(record, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Raises GuestFileError for whatever we have not written so."""
        try:
            record = json.loads(data)
            if record["format"] != _FORMAT:
                _refuse("of another format")
            return cls(
                tuple(_decode_run(run) for run in record["runs"]),
                tuple(_path(each) for each in record["directories"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise GuestFileError(
                f"{MANIFEST} in the guest is no record of ours: {error}",
                hint="nothing was changed; what fix-ups did can't be taken back by it",
            ) from error


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)


def _encode_edit(edit: Done) -> dict[str, Any]:
    return {
        "path": edit.path,
        "fixups": edit.fixups,
        "before": _encode(edit.before),
        "after": {"type": edit.after.kind, "text": edit.after.text, "start": edit.after.start},
        "label": None if edit.label is None else base64.b64encode(edit.label).decode(),
        "changes_mode": edit.changes_mode,
    }


def _encode(state: State) -> dict[str, Any] | None:
    match state:
        case Content(data, mode, uid, gid):
            old = base64.b64encode(data).decode()
            said = {"type": "file", "mode": mode, "uid": uid, "gid": gid}
            return {**said, "sha256": digest(data), "data": old}
        case Appended(length):
            return {"type": "start", "length": length}
        case Link(target):
            return {"type": "link", "target": target}
        case Directory(mode):
            return {"type": "directory", "mode": mode}
    return None


def _decode_run(record: Mapping[str, Any]) -> Run:
    edits = tuple(_decode_edit(edit) for edit in record["edits"])
    is_complete = bool(record["is_complete"])
    return Run(_text(record["run"]), edits, _text(record["version"]), is_complete)


def _decode_edit(record: Mapping[str, Any]) -> Done:
    after = record["after"]
    label = record["label"]
    return Done(
        path=_path(record["path"]),
        fixups=tuple(_text(each) for each in record["fixups"]),
        before=_decode(record["before"]),
        after=Witness(_text(after["type"]), _text(after["text"]), _number(after["start"])),
        label=None if label is None else base64.b64decode(_text(label), validate=True),
        changes_mode=bool(record["changes_mode"]),
    )


def _decode(record: Mapping[str, Any] | None) -> State:
    if record is None:
        return None
    match record["type"]:
        case "file":
            data = base64.b64decode(_text(record["data"]), validate=True)
            if digest(data) != record["sha256"]:
                _refuse("a digest is wrong")
            mode, owners = _number(record["mode"], _MODES), (record["uid"], record["gid"])
            return Content(data, mode, *(_number(each, _OWNERS) for each in owners))
        case "start":
            return Appended(_number(record["length"]))
        case "link":
            return Link(_text(record["target"]))
        case "directory":
            return Directory(_number(record["mode"], _MODES))
    _refuse("a state of unknown type")


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        _refuse("a text is none")
    return value


def _number(value: object, most: int = 1 << 62) -> int:
    if type(value) is not int or not 0 <= value <= most:
        _refuse("a number is none")
    return value


def _path(value: object) -> str:
    """Absolute, and as plain as ours are: nothing in it leads up."""
    path = _text(value)
    parts = path.split("/")[1:]
    if not path.startswith("/") or len(path) > _PATH_MOST or {"", ".", ".."} & {*parts}:
        _refuse("a path is none of a guest")
    return path
