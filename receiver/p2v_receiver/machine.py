"""The machine's definitions and logs beside the images, and the few programs that take them.

Nothing goes through a shell, and no argument is anything but a file of the job or a plain name.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from typing import Dict, List, Optional, Tuple

from .place import Draft
from .target import TargetError
from .wire import MAX_FILE, Buffer, ErrorCode

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(xml|cfg|sh|yaml|json|log)")
_VM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/usr/libexec"
_ENVIRON = dict(os.environ, LC_ALL="C.UTF-8", PATH=_PATH)
_ANSWER_S = 10
_MOST_TEXT = 2000

# (hypervisor, what) → program and its arguments.
_COMMANDS: Dict[Tuple[str, str], List[str]] = {
    ("kvm", "define"): ["virsh", "define", "{directory}/{name}.xml"],
    ("kvm", "start"): ["virsh", "start", "{name}"],
    ("xen", "start"): ["xl", "create", "{directory}/{name}.cfg"],
    # Scripts: sh runs them, but only where there is a program for them.
    ("proxmox", "define"): ["qm", "sh", "{directory}/{name}.proxmox.sh"],
    ("virt-v2v", "convert"): ["virt-v2v-in-place", "sh", "{directory}/{name}.virt-v2v.sh"],
}
_PROGRAMS = ("virsh", "xl", "qm", "virt-v2v-in-place")


def programs() -> List[str]:
    """Those that this host has."""
    return [name for name in _PROGRAMS if shutil.which(name, path=_PATH)]


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


class Program:
    """One that defines, starts or converts the machine ``name``.  Raises TargetError."""

    def __init__(self, directory: str, hypervisor: str, what: str, name: str) -> None:
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
        words = [each.format(directory=os.path.abspath(directory), name=name) for each in command]
        self._words = words[1:] if words[1] == "sh" else words
        try:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_ENVIRON,
                start_new_session=True,  # so that all that it starts can be ended
            )
        except OSError as error:
            raise self._failure(str(error)) from error

    def _failure(self, text: str) -> TargetError:
        text = "{} failed: {}".format(" ".join(self._words), text)
        return TargetError(ErrorCode.IO, text, "see to it on the host")

    def wait(self) -> Optional[str]:
        """What it said; None: it is not done yet, ask again."""
        try:
            output = self._process.communicate(timeout=_ANSWER_S)[0]
        except subprocess.TimeoutExpired:
            return None
        text = output[-_MOST_TEXT:].decode(errors="replace").strip()
        if self._process.returncode:
            raise self._failure(text)
        return text

    def end(self) -> None:
        """Nobody waits for it any more: it, and all that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=_ANSWER_S)
                return
