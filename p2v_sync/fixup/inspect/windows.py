"""Windows: looked at, never changed."""

from collections.abc import Iterator, Mapping

from p2v_sync.device.attributes import clean
from p2v_sync.device.storage import Storage
from p2v_sync.fixup.guest import Windows
from p2v_sync.fixup.inspect.reader import Reader
from p2v_sync.fixup.inspect.registry import Hive, Value

_ROOTS = ("Windows", "WINNT", "WIN32", "ReactOS")
_HIBERNATED = (b"hibr", b"wake", b"rstr")
# Logical disk manager (MBR; GPT metadata, data), Storage Spaces.
_DYNAMIC = (
    "0x42",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3",
    "af9b60a0-1431-4f62-bc68-3311714a69ad",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d",
)
_DRIVERS = (
    "storahci msahci stornvme iastorv iastora iastorac iastorvd megasas megasas2i lsi_sas "
    "lsi_sas2i atapi intelide pciide vmbus storvsc pvscsi viostor vioscsi xenvbd"
)
_STORAGE_DRIVERS = frozenset(_DRIVERS.split())


def find_root(reader: Reader) -> str:
    """The directory of a Windows system (/Windows), '' when there is none."""
    for name in _ROOTS:
        root = reader.without_case(f"/{name}")
        if root and _hive(reader, root, "SOFTWARE"):
            return root
    return ""


def _hive(reader: Reader, root: str, name: str) -> str:
    path = reader.without_case(f"{root}/System32/config/{name}")
    return path if reader.is_file(path or "/") else ""


def find_windows(reader: Reader, storage: Storage) -> Windows | None:
    """None where there is no Windows."""
    root = find_root(reader)
    if not root:
        return None
    software = Hive(reader, _hive(reader, root, "SOFTWARE"))
    said = software.values(software.key("Microsoft\\Windows NT\\CurrentVersion"))
    if not said:
        reader.note("the registry does not say which Windows this is")
    system = _System(Hive(reader, _hive(reader, root, "SYSTEM")))
    return Windows(
        name=_string(said, "productname") or "Windows",
        version=_version(said),
        root=root,
        is_hibernated=_is_hibernated(reader),
        has_bitlocker=any(volume.kind == "BitLocker" for volume in storage),
        is_dynamic=any(volume.part_type.lower() in _DYNAMIC for volume in storage),
        edition=_string(said, "editionid"),
        storage_drivers=tuple(system.storage_drivers()),
        clock=system.clock(),
    )


def _string(said: Mapping[str, Value], name: str) -> str:
    return clean(str(said.get(name, "")).encode(errors="replace"))[:200]


def _version(said: Mapping[str, Value]) -> str:
    """``CurrentVersion`` stays 6.3 from Windows 10 on, which has two numbers instead."""
    major = said.get("currentmajorversionnumber")
    numbers = f"{major}.{said.get('currentminorversionnumber', 0)}" if major else ""
    version = numbers or _string(said, "currentversion")
    build = _string(said, "currentbuild") or _string(said, "currentbuildnumber")
    return ".".join(filter(None, (version, build)))


def _is_hibernated(reader: Reader) -> bool:
    """The file's header is zeroed once it was resumed from; also fast start-up leaves it."""
    path = reader.without_case("/hiberfil.sys")
    return bool(path) and reader.part(path, 0, 4).lower() in _HIBERNATED


class _System:
    """The SYSTEM hive, in the control set that is in use."""

    def __init__(self, hive: Hive) -> None:
        self._hive = hive
        current = hive.values(hive.key("Select")).get("current", 1)
        number = current if isinstance(current, int) and 0 < current < 1000 else 1
        self._set = hive.key(f"ControlSet{number:03}")

    def _value(self, path: str, name: str) -> Value | None:
        return self._hive.values(self._hive.key(path, self._set)).get(name)

    def clock(self) -> str:
        if not self._set:
            return ""
        is_utc = self._value("Control\\TimeZoneInformation", "realtimeisuniversal")
        return "utc" if is_utc == 1 else "localtime"

    def storage_drivers(self) -> Iterator[str]:
        """Those with Start 0 that no StartOverride (Windows 8 and later) holds back."""
        services = self._hive.keys(self._hive.key("Services", self._set))
        for name in sorted(_STORAGE_DRIVERS & services.keys()):
            start = self._hive.values(services[name]).get("start")
            override = self._hive.values(self._hive.key("StartOverride", services[name])).get(
                "0", 0
            )
            if start == 0 and override == 0:
                yield name
