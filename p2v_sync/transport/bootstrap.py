"""Starting a receiver on a host where nothing is installed, over nothing but a remote shell.

    sender                                       host
    command line  ────────────────────────────►  login shell → sh: find a Python → stage 0
                  ◄───────────── (shell noise)  mark "send"
    bundle        ────────────────────────────►  check it, import the receiver from memory
                  ◄────────────────────────────  mark "ready"
    frames        ◄───────────────────────────►  the receiver

The marks carry a random nonce, so that whatever a login shell prints before them is skipped.
Nothing is sent before it is asked for, so nothing can be eaten by a shell that reads its input.
Nothing is written to the host's disk.  Pure but for reading our own source files.
"""

import hashlib
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from p2v_sync.errors import BootstrapFailed

_TEXT = re.compile(
    r'^(?P<docstring> *)"""\S(?:.|\n)*?"""$'
    r'|(?P<string>"""\n(?:.|\n)*?""")'
    r"|(?P<comment>^ *#.*$|(?<=\S)  # .*$)"
    r"|(?P<indent>^(?: {4})+)",
    re.MULTILINE,
)

NOISE_MOST = 64 * 1024
ANSWER_WITHIN_S = 30.0
OLDEST_PYTHON = (3, 6)
PYTHONS = (
    "python3",
    "/usr/libexec/platform-python",  # RHEL 8 without a python3
    "/usr/bin/python3",  # a login whose PATH is broken
    "/usr/local/bin/python3",
    *(f"python3.{minor}" for minor in range(14, OLDEST_PYTHON[1] - 1, -1)),
)

_NO_PYTHON = "p2v-no-python"
_DAMAGED = 71  # exit status of stage 0 (EX_OSERR is as good as any)

# The words of the command line must mean the same to sh, csh, tcsh and fish, where sh -c gets its
# script in single quotes: no single quote, backslash, exclamation mark or newline in it, and no
# double quote in the Python that stands in double quotes.  That Python can have no strings at all.
#
# -I: nothing of the user's environment or home gets in.  Not -S: the xxhash and zstandard modules
# live in the site-packages of the system.  -B: no .pyc files are left behind.
_PROBE = "import sqlite3,ssl,sys,zlib;sys.exit(sys.version_info<({},{}))".format(*OLDEST_PYTHON)
_STAGE_0 = (
    "import hashlib,sys,zlib;a=sys.argv;sys.stdout.write(a[1]);sys.stdout.flush();"
    "b=sys.stdin.buffer.read(int(a[2]));"
    f"hashlib.sha256(b).hexdigest()==a[3] or sys.exit({_DAMAGED});"
    "exec(zlib.decompress(b))"
)
_SCRIPT = (
    "for p in {pythons}; do "
    '"$p" -IB -c "{probe}" </dev/null >/dev/null 2>&1 && exec "$p" -IB -c "{stage_0}" "$@"; '
    "done; "
    "echo {no_python} >&2; for p in {pythons}; do "
    'command -v "$p" >/dev/null 2>&1 && echo "$p" is $("$p" -V 2>&1) >&2; '
    "done; exit 127"
)

# Stage 1: the receiver's modules become importable, then its main function runs.  Python 3.6.
_LOADER = """
import importlib.abc, importlib.machinery, os, sys, traceback

class Bundle(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def _file(self, name):
        base = name.replace(".", "/")
        return base + "/__init__.py" if base + "/__init__.py" in FILES else base + ".py"

    def find_spec(self, name, path=None, target=None):
        file = self._file(name)
        if file not in FILES:
            return None
        spec = importlib.machinery.ModuleSpec(
            name, self, origin=file, is_package=file.endswith("/__init__.py"))
        spec.has_location = True  # tracebacks name the file; get_source gives its lines
        return spec

    def get_source(self, name):
        return FILES[self._file(name)]

    def get_code(self, name):
        return compile(self.get_source(name), self._file(name), "exec", dont_inherit=True)

sys.meta_path.insert(0, Bundle())
sys.excepthook = traceback.print_exception  # which asks get_source; the built-in one wants a file
import p2v_receiver.__main__
directory = os.path.expanduser(os.fsdecode(DIRECTORY))
sys.stdout.write(READY)
sys.stdout.flush()
sys.exit(p2v_receiver.__main__.main(["serve", "--dir", directory] + OPTIONS))
"""


@dataclass(frozen=True)
class Bootstrap:
    """What is said to a host to start one receiver there."""

    command: str
    send_mark: bytes
    bundle: bytes
    ready_mark: bytes


def build_bootstrap(
    directory: str,
    *,
    sudo: bool,
    pythons: tuple[str, ...] = PYTHONS,
    options: Sequence[str] = (),
) -> Bootstrap:
    """``directory`` is the receiver's: absolute, below ``~``, or relative to the home.

    ``options`` are more ones for its ``serve``; no other process of the host gets to see them.
    """
    send_mark, ready_mark = (f"p2v-{secrets.token_hex(16)}\n" for _ in range(2))
    bundle = build_bundle(directory, ready_mark, options)
    script = _SCRIPT.format(
        pythons=" ".join(pythons), probe=_PROBE, stage_0=_STAGE_0, no_python=_NO_PYTHON
    )
    digest = hashlib.sha256(bundle).hexdigest()
    # $0, then the arguments of stage 0; none of them holds anything a shell could take amiss.
    words = ["sh", "-c", f"'{script}'", "p2v-receiver", send_mark.strip(), str(len(bundle)), digest]
    if sudo:
        words = ["sudo", "-n", "--", *words]
    return Bootstrap(" ".join(words), send_mark.strip().encode(), bundle, ready_mark.encode())


def build_bundle(directory: str, ready_mark: str, options: Sequence[str] = ()) -> bytes:
    """All of receiver/p2v_receiver and what starts it, compressed."""
    files = {
        f"p2v_receiver/{file.name}": bare(file.read_text())
        for file in resources.files("p2v_receiver").iterdir()
        if file.name.endswith(".py")
    }
    raw_directory = directory.encode(errors="surrogateescape")
    head = f"FILES = {files!r}\nDIRECTORY = {raw_directory!r}\nREADY = {ready_mark!r}\n"
    head += f"OPTIONS = {[*options]!r}\n"
    return zlib.compress((head + _LOADER).encode(), 9)


def bare(source: str) -> str:
    """Our Python source without docstrings and comments, and indented by single spaces.

    That is a quarter of what is shipped.  Lines keep their numbers: a traceback from the host must
    fit the files here.  By pattern: a tokenizer would take half a second, and a test compares the
    syntax trees.
    """
    return _TEXT.sub(_without_text, source)


def _without_text(found: re.Match[str]) -> str:
    if found["docstring"] is not None:
        return " " * (len(found["docstring"]) // 4) + '""' + "\n" * found[0].count("\n")
    if found["indent"]:
        return " " * (len(found["indent"]) // 4)
    return found["string"] or ""


@dataclass(frozen=True)
class Silence:
    """How a bootstrap came to nothing: what was heard instead of a mark."""

    status: int | None  # exit status of the remote command; None: it did not end
    output: str
    errors: str

    @property
    def last_lines(self) -> str:
        lines = f"{self.output}\n{self.errors}".strip().splitlines()
        return "\n".join(line.rstrip()[:300] for line in lines[-8:])


_SUDO = "allow it without a password (NOPASSWD in sudoers), log in as root, or leave --sudo out"
_PYTHON = "install Python 3.6 or newer on the host, or run p2v-receiver listen elsewhere"

# What a host may say → what it means, and the remedy.  The first that matches.
_SAYINGS = (
    (r"sudo: .*password is required|sudo: no tty present", "sudo asks for a password", _SUDO),
    (r"sudo: .*must have a tty", "sudo wants a terminal", "put !requiretty into sudoers"),
    (r"is not in the sudoers file|not allowed to execute", "sudo is not allowed there", _SUDO),
    (
        r"sudo.{0,20}(not found|no such file|unknown command)|unknown command.{0,5}sudo",
        "there is no sudo on the host",
        "log in as root, or leave --sudo out",
    ),
    (rf"{_NO_PYTHON}\n.*is Python", "no Python there can run the receiver", _PYTHON),
    (_NO_PYTHON, "there is no Python on the host", _PYTHON),
    (
        r"sftp connections only|allows sftp",
        "the login may only transfer files",
        "use a login that may run commands",
    ),
    (
        r"account is currently not available|nologin",
        "the login has no shell",
        "use a login that may run commands",
    ),
    (
        r"ModuleNotFoundError|ImportError",
        "Python is there, but parts of its standard library are missing",
        "install the complete Python 3 of the distribution",
    ),
    (
        r"sh.{0,20}(not found|no such file)",
        "there is no sh on the host",
        "the host must be a Linux machine with a shell",
    ),
)


def explain(name: str, silence: Silence) -> BootstrapFailed:
    """Why no receiver runs on the host ``name``."""
    said = silence.last_lines
    what, hint = _diagnose(silence)
    told = f"; the host said:\n{said}\n" if said else ""
    return BootstrapFailed(f"{name}: {what}{told}", hint=hint)


def _diagnose(silence: Silence) -> tuple[str, str]:
    if len(silence.output) >= NOISE_MOST:
        return (
            "the login shell prints without end",
            "make the shell's start-up files silent for commands that are not interactive",
        )
    for pattern, what, hint in _SAYINGS:
        if re.search(pattern, f"{silence.output}\n{silence.errors}", re.IGNORECASE | re.DOTALL):
            return what, hint
    if silence.status == _DAMAGED:
        return (
            "what was sent arrived damaged",
            "does something in the shell's start-up files read its standard input?",
        )
    if silence.status is None:
        return (
            f"no receiver answered within {ANSWER_WITHIN_S:.0f} s",
            "does the login run commands at all? try: ssh HOST true",
        )
    return (
        f"the command ended with status {silence.status} before the receiver ran",
        "does the login run commands at all? try: ssh HOST true",
    )
