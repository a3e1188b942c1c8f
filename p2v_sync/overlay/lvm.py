"""LVM on the overlays: its commands see nothing else, whatever this system's lvm.conf says."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2v_sync import run
from p2v_sync.errors import OverlayError
from p2v_sync.overlay import mapper

# Letters of lv_attr (man 8 lvs) for volumes that hold no file system of their own: pools and their
# parts, images of mirrors and RAIDs, snapshots (they are their origin's past; thin ones look like
# other thin volumes, but have an origin).
_INNER = frozenset("iIlesStTdDpv")
_THIN = "V"
_PARTIAL = "p"


@dataclass(frozen=True)
class LogicalVolume:
    """``uuid``: as in dm's uuid, without dashes, the group's in front."""

    group: str
    name: str
    uuid: str

    @property
    def device(self) -> Path:
        return mapper.MAPPER / map_name(self.group, self.name)

    @property
    def aliases(self) -> tuple[str, ...]:
        name = map_name(self.group, self.name)
        return (
            f"{self.group}/{self.name}",
            f"mapper/{name}",
            f"disk/by-id/dm-name-{name}",
            f"disk/by-id/dm-uuid-LVM-{self.uuid}",
        )


def map_name(group: str, name: str) -> str:
    """LVM doubles the dashes of both: vg-1, root → vg--1-root."""
    return f"{group.replace('-', '--')}-{name.replace('-', '--')}"


def config(others: Iterable[Path] = ()) -> str:
    """For ``--config``: only our maps, and ``others`` (arrays made of them), are devices."""
    has_udev = int(mapper.has_udev())
    accepted = [f'"a|^{mapper.MAPPER}/{mapper.PREFIX}.*|"', *(f'"a|^{each}$|"' for each in others)]
    return (
        f'devices {{ filter=[{",".join(accepted)},"r|.*|"] use_devicesfile=0 '
        "obtain_device_list_from_udev=0 multipath_component_detection=0 } "
        # Where no udev runs LVM makes the nodes itself only when told to.
        f"activation {{ udev_sync={has_udev} udev_rules={has_udev} monitoring=0 }} "
        "backup { backup=0 archive=0 }"
    )


def parse_report(text: str, kind: str) -> list[dict[str, str]]:
    """The rows of ``--reportformat json``; ``kind``: vg or lv.  Raises OverlayError."""
    try:
        reports: Any = json.loads(text)["report"]
        return [dict(row) for report in reports for row in report.get(kind, ())]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OverlayError("LVM's report is not understood") from error


def choose(volumes: Iterable[dict[str, str]]) -> Iterator[LogicalVolume]:
    """Those of ``lvs`` that can hold a file system and are complete."""
    for row in volumes:
        attributes = row["lv_attr"].ljust(9)
        is_thin_snapshot = attributes[0] == _THIN and row["origin"] != ""
        if attributes[0] in _INNER or attributes[8] == _PARTIAL or is_thin_snapshot:
            continue
        uuid = (row["vg_uuid"] + row["lv_uuid"]).replace("-", "")
        yield LogicalVolume(row["vg_name"], row["lv_name"], uuid)


def incomplete(groups: Iterable[dict[str, str]]) -> list[str]:
    """A sentence for each volume group of which physical volumes are missing."""
    return [
        f"volume group {row['vg_name']} is incomplete: {row['vg_missing_pv_count']} of its "
        f"{row['pv_count']} physical volumes are not on these disks"
        for row in groups
        if row["vg_missing_pv_count"] not in ("", "0")
    ]


class Lvm:
    """The groups on the overlays; ``others`` as with ``config``."""

    def __init__(self, others: Sequence[Path] = ()) -> None:
        self._config = ["--config", config(others)]

    def _report(self, command: str, columns: str) -> list[dict[str, str]]:
        argv = [command, *self._config, "--reportformat", "json", "-o", columns]
        return parse_report(run.capture(argv), command.removesuffix("s"))

    def problems(self) -> list[str]:
        """Raises CommandError, OverlayError."""
        return incomplete(self._report("vgs", "vg_name,vg_missing_pv_count,pv_count"))

    def volumes(self) -> list[LogicalVolume]:
        """Raises CommandError, OverlayError."""
        columns = "vg_name,vg_uuid,lv_name,lv_uuid,lv_attr,origin"
        return list(choose(self._report("lvs", columns)))

    def activate(self, volumes: Sequence[LogicalVolume]) -> None:
        """Raises CommandError.  Nothing is written to them by that."""
        if not volumes:
            return
        names = [f"{each.group}/{each.name}" for each in volumes]
        run.capture(["lvchange", *self._config, "--activate", "y", *names])
