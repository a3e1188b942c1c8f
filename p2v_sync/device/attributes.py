"""Reading single attributes of /sys and /proc: bounded, never raising, safe to print.

What a disk says about itself (model, serial, labels) is written by whoever made or forged it.
"""

from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")

# sysfs hands out at most one page per text attribute (fs/sysfs/file.c); VPD pages are bin files of
# up to 64 KiB in theory, 255 bytes of descriptors are all that SPC-2 devices send.
ATTRIBUTE_CAP = 4096
# mountinfo of a busy container host has some thousand lines.
LIST_CAP = 16 * 1024 * 1024


def read_bytes(path: Path, cap: int = ATTRIBUTE_CAP) -> bytes:
    """The first ``cap`` bytes of a file; empty when it can't be read.

    Attributes come and go with the device, and reading one of a dying disk gives EIO or ENODEV.
    """
    try:
        with path.open("rb") as file:
            return file.read(cap)
    except OSError:
        return b""


def clean(raw: bytes) -> str:
    """Bytes → one printable line: bad UTF-8 replaced, control and bidi characters dropped."""
    text = raw.decode("utf-8", errors="replace").replace("\n", " ").replace("\t", " ")
    return " ".join("".join(c for c in text if c.isprintable()).split())


def read_text(path: Path) -> str:
    """An attribute as :func:`clean` text; empty when there is none."""
    return clean(read_bytes(path))


def read_int(path: Path) -> int:
    """A decimal attribute; 0 when there is none or it is no number."""
    text = read_text(path)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0


def names_in(directory: Path) -> list[str]:
    """Sorted names of a directory's entries; none when it can't be listed."""
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return []
