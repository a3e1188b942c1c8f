"""Boot loaders whose configuration is a list of labels: LILO, ELILO and extlinux (syslinux)."""

from collections.abc import Iterator, Mapping

from p2v_sync.fixup.guest import BootEntry
from p2v_sync.fixup.inspect.locate import Locator
from p2v_sync.fixup.inspect.reader import Reader, shown, unquoted


def lilo_entry(reader: Reader, config: str, locator: Locator) -> BootEntry | None:
    """Of lilo.conf or elilo.conf: what is said before the first image holds for all of them."""
    general: dict[str, str] = {}
    images: list[dict[str, str]] = []
    for line in reader.lines(config):
        key, _, value = (each.strip() for each in line.partition("="))
        if key in ("image", "other"):
            images.append({})
        (images[-1] if images else general)[key] = unquoted(value)
    wanted = general.get("default", "")
    labelled = [image for image in images if wanted and image.get("label") == wanted]
    for image in labelled or images:
        return _lilo({**general, **image}, config, locator)
    return None


def _lilo(said: Mapping[str, str], config: str, locator: Locator) -> BootEntry:
    options = [f"root={said['root']}"] if said.get("root", "current") != "current" else []
    options += ["ro"] if "read-only" in said else []
    options += filter(None, (said.get("append", ""), said.get("addappend", "")))
    return BootEntry(
        shown(said.get("label", "")),
        "",
        locator.find(said.get("image", ""), config),
        locator.find(said.get("initrd", ""), config),
        " ".join(options),
    )


def extlinux_entry(reader: Reader, config: str, locator: Locator) -> BootEntry | None:
    """What DEFAULT names, else the first label."""
    default, labels = "", dict[str, dict[str, str]]()
    for key, value in _commands(reader, config):
        if key == "label":
            labels[value] = {}
        elif labels:
            labels[[*labels][-1]][key] = value
        elif key == "default":
            default = value
    for label in (default, *labels):
        if label in labels:
            return _extlinux(label, labels[label], config, locator)
    return None


def _commands(reader: Reader, config: str) -> Iterator[tuple[str, str]]:
    for line in reader.lines(config):
        key, *rest = line.split(None, 1)
        yield key.lower(), rest[0] if rest else ""


def _extlinux(label: str, said: Mapping[str, str], config: str, locator: Locator) -> BootEntry:
    words = said.get("append", "").split()
    images = [word.removeprefix("initrd=") for word in words if word.startswith("initrd=")]
    initrds = (said.get("initrd") or next(iter(images), "")).split(",")
    return BootEntry(
        shown(label),
        shown(said.get("menu", "").removeprefix("LABEL ").removeprefix("label ")),
        locator.find(said.get("linux") or said.get("kernel", ""), config),
        locator.find(initrds[-1], config),
        " ".join(word for word in words if not word.startswith("initrd=")),
    )
