"""F25: the image that a crashed kernel's successor boots from, made for the old machine."""

from collections.abc import Iterator

from p2v_sync.fixup import lines
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.plan import Context, Finding, Severity

_IMAGES = ("/boot/initramfs-*kdump.img", "/boot/initrd-*kdump*", "/var/lib/kdump/initrd*")
_CONFIG = "/etc/kdump.conf"


class CrashDumps:
    """Nothing is changed: the guest makes a new image by itself when it sees other hardware."""

    key = "F25-kdump"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context
        images = [path for pattern in _IMAGES for path in draft.glob(pattern)]
        if images:
            yield Finding(
                self.key,
                Severity.NOTE,
                f"{images[0]}, for crash dumps, was made for the old machine",
                "restart the guest's kdump service once, and see that it makes a new one",
            )
        text = draft.text(_CONFIG) if draft.is_file(_CONFIG) else ""
        for line in lines.split_lines(text):
            words = lines.fields(line)
            if not lines.is_comment(line) and words[1:] and words[1].startswith("/dev/"):
                yield Finding(
                    self.key,
                    Severity.WARNING,
                    f"{_CONFIG} has crash dumps written to {words[1]}",
                    "name that file system by its UUID",
                )
