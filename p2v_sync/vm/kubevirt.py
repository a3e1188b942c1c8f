"""The virtual machine as a manifest for KubeVirt (kubevirt.io/api-reference, v1).

YAML whose every scalar is written as JSON, which is YAML too and needs no rules for quoting.
"""

import json
from collections.abc import Iterator
from typing import Any

from p2v_sync.fixup.plan import Bus
from p2v_sync.units import MIB
from p2v_sync.vm.definition import VirtualDisk, VirtualMachine, VirtualNic
from p2v_sync.vm.proxmox import dns_name
from p2v_sync.vm.shell import comment

_BUSES = {Bus.VIRTIO: "virtio", Bus.SCSI: "scsi"}
_CHASSIS = (
    ("manufacturer", "sys_vendor"),
    ("version", "product_version"),
    ("serial", "product_serial"),
    ("sku", "product_sku"),
    ("asset", "chassis_asset_tag"),
)


def _lines(value: Any, indent: str = "") -> Iterator[str]:
    """Block style; empty collections and scalars as JSON."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _entry(f"{indent}{key}:", item, indent + "  ")
    elif isinstance(value, list) and value:
        for item in value:
            first, *rest = _lines(item, indent + "  ")
            yield f"{indent}- {first.lstrip(' ')}"
            yield from rest
    else:
        yield indent + json.dumps(value, ensure_ascii=False)


def _entry(head: str, item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, dict | list) and item:
        yield head
        yield from _lines(item, indent)
    else:
        yield f"{head} {json.dumps(item, ensure_ascii=False)}"


def _claim(vm: VirtualMachine, disk: VirtualDisk) -> str:
    return f"{dns_name(vm.name, 40)}-{dns_name(disk.image.disk, 20)}"


def _disk(vm: VirtualMachine, disk: VirtualDisk) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": _claim(vm, disk),
        "bootOrder": disk.boot,
        # There is no IDE.
        "disk": {"bus": _BUSES.get(disk.bus, "sata")},
    }
    if disk.serial:
        found["serial"] = disk.serial
    if disk.sector_size != 512:
        size = disk.sector_size
        found["blockSize"] = {"custom": {"logical": size, "physical": size}}
    return found


def _nic(vm: VirtualMachine, at: int, nic: VirtualNic) -> tuple[dict[str, Any], dict[str, Any]]:
    """An interface and its network.  One may be on the pods' own, by NAT."""
    network = nic.network or vm.usual_network
    on_pods = at == 0 and not network.is_bridge
    how: dict[str, Any] = {"masquerade": {}} if on_pods else {"bridge": {}}
    where = {"pod": {}} if on_pods else {"multus": {"networkName": network.name}}
    name = f"net{at}"
    interface = {"name": name, "model": nic.model.value, "macAddress": nic.mac, **how}
    return interface, {"name": name, **where}


def _firmware(vm: VirtualMachine) -> dict[str, Any]:
    loader = {"efi": {"secureBoot": vm.has_secure_boot}} if vm.is_uefi else {"bios": {}}
    firmware: dict[str, Any] = {"uuid": vm.uuid, "bootloader": loader}
    if "product_serial" in vm.smbios:
        firmware["serial"] = vm.smbios["product_serial"]
    return firmware


def _features(vm: VirtualMachine) -> dict[str, Any]:
    features: dict[str, Any] = {"acpi": {}}
    if vm.has_secure_boot:
        features["smm"] = {"enabled": True}
    if vm.windows is not None:
        features["hyperv"] = {"relaxed": {}, "vapic": {}, "spinlocks": {"spinlocks": 8191}}
    return features


def _domain(vm: VirtualMachine, interfaces: list[dict[str, Any]]) -> dict[str, Any]:
    cpus = vm.cpus
    devices: dict[str, Any] = {
        "disks": [_disk(vm, disk) for disk in vm.disks],
        "interfaces": interfaces,
    }
    if vm.has_virtio:
        devices["rng"] = {}
    if vm.is_transitional:
        devices["useVirtioTransitional"] = True
    return {
        "cpu": {
            "sockets": cpus.sockets,
            "cores": cpus.cores,
            "threads": cpus.threads,
            "model": vm.cpu_model or "host-passthrough",
        },
        "memory": {"guest": f"{vm.memory // MIB}Mi"},
        "machine": {"type": "q35"},
        "firmware": _firmware(vm),
        "chassis": {name: vm.smbios[key] for name, key in _CHASSIS if key in vm.smbios},
        "clock": {"utc": {}, "timer": {"rtc": {"tickPolicy": "catchup"}}},
        "features": _features(vm),
        "devices": devices,
    }


def _notes(vm: VirtualMachine) -> Iterator[str]:
    yield "Made by p2v-sync.  Needs a claim for each disk, filled from the images:"
    for disk in vm.disks:
        claim = _claim(vm, disk)
        yield f"  virtctl image-upload pvc {claim} --size SIZE --image-path {disk.image.file}"
    yield from vm.notes
    yield "KubeVirt has q35 only; what is on IDE elsewhere is on SATA here"
    if vm.rtc != "utc":
        yield "the hardware clock runs in local time: write clock.timezone instead of clock.utc"


def write(vm: VirtualMachine) -> bytes:
    """For ``kubectl apply``; the machine is not started by it."""
    pairs = [_nic(vm, at, nic) for at, nic in enumerate(vm.nics)]
    volumes = [
        {"name": claim, "persistentVolumeClaim": {"claimName": claim}}
        for claim in (_claim(vm, disk) for disk in vm.disks)
    ]
    spec = {
        "domain": _domain(vm, [interface for interface, _ in pairs]),
        "networks": [network for _, network in pairs],
        "volumes": volumes,
    }
    manifest = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": dns_name(vm.name)},
        "spec": {"runStrategy": "Halted", "template": {"spec": spec}},
    }
    return ("\n".join([*comment(_notes(vm)), *_lines(manifest)]) + "\n").encode()
