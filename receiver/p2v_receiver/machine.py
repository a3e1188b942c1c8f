"""The machine's definitions and logs beside the images, and the few programs that take them.

Nothing goes through a shell, and no argument is anything but a file of the job or a plain name.
"""

import contextlib
import os
import re
import shutil
import subprocess
from typing import Dict, List, Tuple

from .place import Draft
from .target import TargetError
from .wire import MAX_FILE, Buffer, ErrorCode

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(xml|cfg|sh|yaml|json|log)")
_VM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
_ENVIRON = dict(os.environ, LC_ALL="C.UTF-8", PATH=_PATH)
_WITHIN_S = 120
_MOST_TEXT = 2000

# (hypervisor, what) → program and its arguments.
_COMMANDS: Dict[Tuple[str, str], List[str]] = {
    ("kvm", "define"): ["virsh", "define", "{directory}/{name}.xml"],
    ("kvm", "start"): ["virsh", "start", "{name}"],
    ("xen", "start"): ["xl", "create", "{directory}/{name}.cfg"],
    # A script for qm: sh runs it, but only where there is a qm.
    ("proxmox", "define"): ["qm", "sh", "{directory}/{name}.proxmox.sh"],
}


def programs() -> List[str]:
    """Those of the hypervisors that this host has."""
    return [name for name in ("virsh", "xl", "qm") if shutil.which(name, path=_PATH)]


def files(directory: str) -> List[str]:
    """The definitions that are there."""
    return sorted(name for name in os.listdir(directory) if _FILE.fullmatch(name))


def put(directory: str, name: str, content: Buffer) -> None:
    """Keep a definition; the one before is replaced.  Raises TargetError."""
    if _FILE.fullmatch(name) is None or len(content) > MAX_FILE:
        raise TargetError(
            ErrorCode.REFUSED,
            "{!r} of {} bytes can't be kept beside the images".format(name[:120], len(content)),
            "letters, digits and . _ - and one of .xml .cfg .sh .yaml .json .log; 1 MiB at most",
        )
    with contextlib.closing(Draft(os.path.join(directory, name))) as draft:
        draft.write(content)
        draft.keep()


def run(directory: str, hypervisor: str, what: str, name: str) -> str:
    """Define or start the machine ``name``; returns what the program said.  Raises TargetError."""
    command = _COMMANDS.get((hypervisor, what))
    if command is None or _VM.fullmatch(name) is None:
        raise TargetError(
            ErrorCode.REFUSED,
            "{!r} {!r} of {!r} is not done here".format(what[:40], hypervisor[:40], name[:120]),
            "define or start it on the host by hand",
        )
    if shutil.which(command[0], path=_PATH) is None:
        raise TargetError(
            ErrorCode.REFUSED,
            "there is no {} on the host".format(command[0]),
            "install it, or define and start the machine elsewhere",
        )
    words = [each.format(directory=directory, name=name) for each in command]
    return _run(words[1:] if words[0] == "qm" else words)


def _run(command: List[str]) -> str:
    text = "can't be started, or did not end within {} s".format(_WITHIN_S)
    status = -1
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_WITHIN_S,
            env=_ENVIRON,
        )
        status, text = done.returncode, done.stdout[-_MOST_TEXT:].decode(errors="replace").strip()
    if status:
        raise TargetError(
            ErrorCode.IO, "{} failed: {}".format(" ".join(command), text), "see to it on the host"
        )
    return text
