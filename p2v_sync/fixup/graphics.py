"""Graphics: X starts on the virtual machine's card, and its driver is not forbidden."""

import re
from collections.abc import Iterator

from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.lines import map_lines
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity

_CONFIGS = ("/etc/X11/xorg.conf", "/etc/X11/XF86Config-4", "/etc/X11/XF86Config")
_PARTS = "/etc/X11/xorg.conf.d/*.conf"
_CONFIGURES_ITSELF = ("/usr/share/X11/xorg.conf.d", "/usr/lib/X11/xorg.conf.d")
_OF_CARDS = (
    "nvidia", "nv", "nouveau", "fglrx", "radeon", "amdgpu", "ati", "r128", "mach64", "intel",
    "i810", "i740", "mga", "ast", "savage", "s3", "sis", "via", "tdfx", "trident", "neomagic",
)  # fmt: skip
_SECTION = re.compile(r'^\s*Section\s+"(?P<name>[^"]*)"', re.IGNORECASE)
_END = re.compile(r"^\s*EndSection\b", re.IGNORECASE)
_DRIVER = re.compile(r'^\s*Driver\s+"(?P<name>[^"]*)"', re.IGNORECASE)
_OF_ONE_CARD = re.compile(r"^\s*(BusID|VideoRam|ChipID|Option|Screen)\b", re.IGNORECASE)

_VIRTUAL_CARDS = "bochs|bochs_drm|cirrus|qxl|virtio_gpu|vmwgfx|simpledrm"


class Xorg:
    """A configuration for a card that stays behind is put aside, or is for any card (vesa)."""

    key = "F51-xorg"

    def plan(self, draft: Draft, _context: Context) -> Iterator[Finding]:
        configures_itself = any(draft.exists(path) for path in _CONFIGURES_ITSELF)
        done = list[str]()
        for path in (*_CONFIGS, *draft.glob(_PARTS)):
            text = draft.text_or_empty(path)
            if not any(name in _OF_CARDS for name in _drivers(text)):
                continue
            if configures_itself and not draft.exists(f"{path}.p2v"):
                draft.rename(path, f"{path}.p2v")
            else:
                draft.write(path, _for_any_card(text))
            done.append(path)
        if done:
            text = f"for the physical machine's graphics card only: {', '.join(done)}"
            yield Finding(self.key, Severity.NOTE, text)


def _drivers(text: str) -> list[str]:
    """Of the sections for cards."""
    names, section = list[str](), ""
    for line in text.split("\n"):
        if found := _SECTION.match(line):
            section = found["name"].lower()
        elif section == "device" and (found := _DRIVER.match(line)):
            names.append(found["name"].lower())
    return names


def _for_any_card(text: str) -> str:
    section = ""

    def change(line: str) -> str | None:
        nonlocal section
        if found := _SECTION.match(line):
            section = found["name"].lower()
        elif _END.match(line):
            section = ""
        if section != "device":
            return line
        if _OF_ONE_CARD.match(line):
            return None
        if (found := _DRIVER.match(line)) and found["name"].lower() in _OF_CARDS:
            return line[: found.start("name")] + "vesa" + line[found.end("name") :]
        return line

    return map_lines(text, change)


class VirtualCards:
    """Drivers of virtual graphics cards may be loaded."""

    key = "F59-graphics"

    def plan(self, draft: Draft, _context: Context) -> Iterator[Finding]:
        for path in draft.glob("/etc/modprobe.d/*.conf"):
            text = draft.text_or_empty(path)
            new = map_lines(text, _allowed)
            if new != text:
                draft.write(path, new)
        yield from ()


def _allowed(line: str) -> str | None:
    words = line.replace("-", "_").split()
    is_forbidden = words[:1] == ["blacklist"] or (
        words[:1] == ["install"] and words[2:3] in (["/bin/true"], ["/bin/false"])
    )
    is_virtual = len(words) > 1 and re.fullmatch(_VIRTUAL_CARDS, words[1])
    return None if is_forbidden and is_virtual else line


FIXUPS: tuple[Fixup, ...] = (Xorg(), VirtualCards())
