"""For which processor the guest's programs are made: their headers say, nothing is run."""

import struct

from p2v_sync.fixup.inspect.reader import Reader

_PROGRAMS = ("bash", "ls", "echo", "rm", "sh", "busybox")
_LITTLE = 1  # e_ident[EI_DATA]

# e_machine, and EI_CLASS where it matters (elf.h).
_ELF = {
    (3, 1): "i686",
    (62, 1): "x86_64",  # x32
    (62, 2): "x86_64",
    (183, 2): "aarch64",
    (40, 1): "arm",
    (20, 1): "ppc",
    (21, 2): "ppc64",
    (22, 2): "s390x",
    (243, 2): "riscv64",
    (258, 2): "loongarch64",
    (50, 2): "ia64",
    (43, 2): "sparc64",
}
_PE = {0x8664: "x86_64", 0x14C: "i686", 0xAA64: "aarch64", 0x200: "ia64"}  # winnt.h


def find_architecture(reader: Reader) -> str:
    """Of the first of some programs that are everywhere; '' and a problem when none is there."""
    for directory in ("/bin", "/usr/bin"):
        for program in _PROGRAMS:
            if found := _elf(reader.part(f"{directory}/{program}", 0, 20)):
                return found
    reader.note("no program was found that shows the processor's architecture")
    return ""


def _elf(header: bytes) -> str:
    if len(header) < 20 or not header.startswith(b"\x7fELF"):
        return ""
    order = "<" if header[5] == _LITTLE else ">"
    (machine,) = struct.unpack(f"{order}H", header[18:20])
    name = _ELF.get((machine, header[4]), "")
    return f"{name}le" if name == "ppc64" and order == "<" else name


def windows_architecture(reader: Reader, program: str) -> str:
    """From the PE header; '' when it is none."""
    start = reader.part(program, 0, 64)
    if len(start) < 64 or not start.startswith(b"MZ"):
        return ""
    (at,) = struct.unpack_from("<I", start, 60)
    header = reader.part(program, at, 6)
    if len(header) < 6 or not header.startswith(b"PE\0\0"):
        return ""
    return _PE.get(struct.unpack("<H", header[4:])[0], "")
