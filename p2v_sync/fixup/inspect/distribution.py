"""Which distribution it is.  The order of the files is that of libguestfs."""

import re
from collections.abc import Iterator

from p2v_sync.fixup.guest import Distribution, Family
from p2v_sync.fixup.inspect.reader import Reader, assignments, shown

_FAMILIES = {
    Family.RHEL: "rhel centos rocky almalinux ol oracle amzn scientific eurolinux cloudlinux circle"
    " virtuozzo xenserver opencloudos tencentos openeuler anolis miraclelinux",
    Family.FEDORA: "fedora redhat",  # Red Hat Linux, before it was Enterprise
    Family.SUSE: "suse opensuse opensuse-leap opensuse-tumbleweed sles sled sles_sap sle_hpc"
    " opensuse-microos sl-micro",
    Family.DEBIAN: "debian ubuntu linuxmint raspbian pop devuan kali proxmox deepin elementary",
    Family.ARCH: "arch archlinux manjaro endeavouros archarm artix cachyos",
    Family.GENTOO: "gentoo funtoo calculate",
    Family.ALPINE: "alpine postmarketos",
    Family.SLACKWARE: "slackware slackel salix",
    Family.ALT: "altlinux alt",
}
_FAMILY_OF = {id_: family for family, ids in _FAMILIES.items() for id_ in ids.split()}

# What a *-release file begins with → the ID that os-release would have.
_CALLED = (
    ("Red Hat Enterprise Linux", "rhel"),
    ("Red Hat Linux", "redhat"),
    ("Fedora", "fedora"),
    ("CentOS", "centos"),
    ("Rocky", "rocky"),
    ("AlmaLinux", "almalinux"),
    ("Oracle", "ol"),
    ("Enterprise Linux Enterprise Linux", "ol"),
    ("Scientific", "scientific"),
    ("CloudLinux", "cloudlinux"),
    ("XenServer", "xenserver"),
    ("Amazon", "amzn"),
    ("SUSE Linux Enterprise Desktop", "sled"),
    ("SUSE Linux Enterprise", "sles"),
    ("openSUSE", "opensuse"),
    ("SUSE", "suse"),
    ("Slackware", "slackware"),
    ("Gentoo", "gentoo"),
    ("ALT", "altlinux"),
)
_RELEASE_FILES = (
    *(f"/etc/{name}-release" for name in ("oracle", "centos", "rocky", "almalinux", "altlinux")),
    "/etc/redhat-release",
    "/etc/system-release",
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_RED_HAT_UPDATE = re.compile(r"release (\d+) \(.* Update (\d+)\)")


def find_distribution(reader: Reader) -> Distribution:
    """An empty one, and a problem, when nothing says."""
    found = next(_found(reader), None)
    if found is None:
        reader.note("no release file says which distribution this is")
        return Distribution()
    return found


def _found(reader: Reader) -> Iterator[Distribution]:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        yield from _os_release(reader, path)
    yield from _lsb_release(reader)
    for path in _RELEASE_FILES:
        yield from _release_file(reader, path)
    yield from _plain(reader, "/etc/debian_version", "debian", "Debian GNU/Linux")
    for path in ("/etc/arch-release", "/etc/gentoo-release", "/etc/slackware-version"):
        name = path.removeprefix("/etc/").partition("-")[0]
        yield from _plain(reader, path, name, name.capitalize())
    yield from _suse_release(reader)
    yield from _plain(reader, "/etc/alpine-release", "alpine", "Alpine Linux")


def family_of(id_: str, like: str = "") -> Family:
    """By ID, else by the first of ID_LIKE that is known."""
    known = (_FAMILY_OF[each] for each in (id_, *like.lower().split()) if each in _FAMILY_OF)
    return next(known, Family.OTHER)


def _os_release(reader: Reader, path: str) -> Iterator[Distribution]:
    said = assignments(reader.text(path))
    id_ = said.get("ID", "").lower()
    if not id_ and not said.get("NAME"):
        return
    name = said.get("PRETTY_NAME") or said.get("NAME", "")
    version = _with_minor(reader, id_, said.get("VERSION_ID", ""))
    family = family_of(id_, said.get("ID_LIKE", ""))
    yield Distribution(family, shown(id_), shown(version), shown(name), path)


def _with_minor(reader: Reader, id_: str, version: str) -> str:
    """Debian and CentOS leave the point release out of os-release."""
    path = {"debian": "/etc/debian_version", "centos": "/etc/centos-release"}.get(id_)
    if path is None or "." in version:
        return version
    fuller = _NUMBER.search(reader.text(path))
    return fuller[0] if fuller and fuller[0].partition(".")[0] == version else version


def _lsb_release(reader: Reader) -> Iterator[Distribution]:
    """Red Hat's says LSB_VERSION alone."""
    path = "/etc/lsb-release"
    said = assignments(reader.text(path))
    if id_ := said.get("DISTRIB_ID", "").lower():
        name = said.get("DISTRIB_DESCRIPTION") or said["DISTRIB_ID"]
        version = said.get("DISTRIB_RELEASE", "")
        yield Distribution(family_of(id_), shown(id_), shown(version), shown(name), path)


def _release_file(reader: Reader, path: str) -> Iterator[Distribution]:
    for line in reader.text(path).splitlines()[:1]:
        updated, number = _RED_HAT_UPDATE.search(line), _NUMBER.search(line)
        version = f"{updated[1]}.{updated[2]}" if updated else number[0] if number else ""
        first = next(iter(line.lower().split()), "")
        id_ = next((id_ for start, id_ in _CALLED if line.startswith(start)), first)
        yield Distribution(family_of(id_, "rhel"), shown(id_), version, shown(line), path)


def _plain(reader: Reader, path: str, id_: str, name: str) -> Iterator[Distribution]:
    """A file with a version in it, or nothing."""
    if not reader.is_file(path):
        return
    said = reader.text(path).strip().partition("\n")[0]
    number = _NUMBER.search(said)
    version = number[0] if number else said  # trixie/sid
    full = said if said.startswith(name) else f"{name} {said}".strip()
    yield Distribution(family_of(id_), id_, shown(version), shown(full), path)


def _suse_release(reader: Reader) -> Iterator[Distribution]:
    path = "/etc/SuSE-release"
    lines = reader.text(path).splitlines()
    if not lines:
        return
    said = dict(re.findall(r"^(VERSION|PATCHLEVEL) *= *([\d.]+)", "\n".join(lines), re.MULTILINE))
    version = said.get("VERSION", "")
    if said.get("PATCHLEVEL", "0") != "0" and "." not in version:
        version = f"{version}.{said['PATCHLEVEL']}"
    id_ = next((id_ for start, id_ in _CALLED if lines[0].lower().startswith(start.lower())), "")
    yield Distribution(Family.SUSE, id_ or "suse", version, shown(lines[0]), path)


def hostname_of(reader: Reader) -> str:
    """As the guest is configured, without domain when it has none."""
    for path in ("/etc/hostname", "/etc/HOSTNAME"):
        for line in reader.lines(path):
            return shown(line)
    for path in ("/etc/sysconfig/network", "/etc/conf.d/hostname"):
        said = assignments(reader.text(path))
        if name := said.get("HOSTNAME") or said.get("hostname"):
            return shown(name)
    return ""
