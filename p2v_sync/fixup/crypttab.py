"""F03: /etc/crypttab, where a wrong name can destroy a partition: random keys make new swap."""

from collections.abc import Generator, Iterator
from dataclasses import replace

from p2v_sync.device.storage import Storage, opened_name
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.evidence import known_storage
from p2v_sync.fixup.guest import Guest, Init
from p2v_sync.fixup.lines import comment_out, fields, is_comment, replace_field, split_lines
from p2v_sync.fixup.names import depends_on_bus, has_unique_uuid, resolve
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity

CRYPTTAB = "/etc/crypttab"
# Debian's own copy in an initramfs: the volumes that are needed early, and their keys there.
BAKED = "cryptroot/crypttab"
_RANDOM = ("/dev/urandom", "/dev/random", "/dev/hwrng")
_HARDWARE = ("tpm2-device", "fido2-device", "pkcs11-uri")


class Crypttab:
    """F03: sources by UUID; what needs hardware that stays behind is said."""

    key = "F03-crypttab"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        if not draft.exists(CRYPTTAB):
            return
        storage = known_storage(draft, context.guest, context.storage)
        before = draft.read(CRYPTTAB)
        lines = []
        for line in split_lines(before.decode("latin-1")):
            said = fields(line)
            if is_comment(line) or len(said) < 2:
                lines.append(line)
                continue
            yield from self._warnings(said, storage)
            lines.append((yield from self._line(line, said, storage, context.guest)))
        draft.write(CRYPTTAB, "".join(lines))
        if draft.read(CRYPTTAB) != before:
            draft.want_in_initramfs(CRYPTTAB, draft.read(CRYPTTAB))

    def _line(
        self, line: str, said: list[str], storage: Storage, guest: Guest
    ) -> Generator[Finding, None, str]:
        name, source = said[:2]
        if not depends_on_bus(source):
            return line
        volume = resolve(source, storage)
        if _has_random_key(said):
            # Such a partition has no UUID that stays, and the next one may be somebody's data.
            if volume is not None and volume.part_uuid and guest.init is Init.SYSTEMD:
                return replace_field(line, 1, f"/dev/disk/by-partuuid/{volume.part_uuid}")
            text = f"{CRYPTTAB}: {name} gets a random key on {source}, whatever is called so then"
            hint = "it is commented out, and has to be given a name that lasts"
            yield Finding(self.key, Severity.WARNING, text, hint)
            return comment_out(line)
        if volume is None or not has_unique_uuid(volume, storage):
            text = f"{CRYPTTAB}: nothing tells the UUID of {source} ({name})"
            yield Finding(self.key, Severity.WARNING, text, "name it by UUID")
            return line
        return replace_field(line, 1, f"UUID={volume.uuid}")

    def _warnings(self, said: list[str], storage: Storage) -> Iterator[Finding]:
        options = said[3].split(",") if len(said) > 3 else []
        for option in options:
            if option.partition("=")[0] in _HARDWARE:
                yield Finding(
                    self.key,
                    Severity.WARNING,
                    f"{CRYPTTAB}: {said[0]} is unlocked by hardware ({option}) that stays behind",
                    "have a passphrase at hand: it is asked for",
                )
        _, colon, device = (said[2] if len(said) > 2 else "").partition(":")
        if colon and storage.is_complete and resolve(device, storage) is None:
            text = f"{CRYPTTAB}: the key of {said[0]} is on {device}, which is not copied"
            yield Finding(self.key, Severity.WARNING, text, "have a passphrase at hand")


def with_opened_names(storage: Storage, crypttab: str) -> Storage:
    """``storage``, where what was opened has the names that the guest's crypttab gives it."""
    more: dict[str, tuple[str, ...]] = {}  # the name that it has already → further ones
    for said in [fields(line) for line in split_lines(crypttab) if not is_comment(line)]:
        volume = resolve(said[1], storage) if len(said) > 1 else None
        if volume is not None and volume.kind == "crypto_LUKS":
            names = (f"mapper/{said[0]}", f"disk/by-id/dm-name-{said[0]}")
            more[opened_name(volume.uuid)] = names
    volumes = []
    for volume in storage:
        new = next((more[alias] for alias in volume.aliases if alias in more), ())
        volumes.append(replace(volume, aliases=(*volume.aliases, *new)))
    return replace(storage, volumes=tuple(volumes))


def with_lasting_sources(baked: str, crypttab: str) -> str:
    """BAKED, where what a bus names is called as in ``crypttab``, if that name does not change."""
    said = [fields(line) for line in split_lines(crypttab) if not is_comment(line)]
    sources = {each[0]: each[1] for each in said if len(each) > 1}

    def changed(line: str) -> str:
        name, source = (*fields(line), "", "")[:2]
        if is_comment(line) or not depends_on_bus(source):
            return line
        return replace_field(line, 1, sources.get(name, source))

    return "".join(map(changed, split_lines(baked)))


def _has_random_key(said: list[str]) -> bool:
    key = said[2] if len(said) > 2 else ""
    options = {each.partition("=")[0] for each in said[3].split(",")} if len(said) > 3 else set()
    return key in _RANDOM or bool(options & {"swap", "tmp"})


FIXUPS: tuple[Fixup, ...] = (Crypttab(),)
