"""What is written for each host: goldens, and nothing that a name could break out of."""

import json
import shlex
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync import __version__
from p2v_sync.device.machine import Machine
from p2v_sync.vm import kubevirt, libvirt, qemu, xl
from p2v_sync.vm.choose import choose
from p2v_sync.vm.definition import Definitions
from p2v_sync.vm.files import files
from p2v_sync.vm.inventory import Facts
from p2v_sync.vm.proxmox import dns_name
from tests.contract.machines import (
    BIOS_SERVER,
    HOSTILE,
    NASTY,
    VIRTIO,
    guest,
    images,
    samples,
    wishes,
)

GOLDEN = Path(__file__).parent / "golden_vm"
SAMPLES = {name: (definitions, facts) for name, definitions, facts in samples()}


def written(sample: str) -> dict[str, bytes]:
    definitions, facts = SAMPLES[sample]
    return dict(files(definitions, facts))


@pytest.mark.parametrize("sample", ["bios", "uefi", "windows", "hostile"])
def test_what_is_written_is_what_was_read_and_found_right(sample: str) -> None:
    """To take over a change: remove the files, run this twice, and read what git says."""
    found = {
        GOLDEN / sample / name: content.replace(f'"{__version__}"'.encode(), b'"VERSION"')
        for name, content in written(sample).items()
    }
    new = [path for path in found if not path.exists()]
    for path in new:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found[path])
    assert not new
    for path, content in found.items():
        assert content == path.read_bytes(), path.name


@pytest.mark.parametrize("sample", SAMPLES)
def test_each_form_is_there_twice(sample: str) -> None:
    found = written(sample)
    stem = SAMPLES[sample][0].recommended.stem
    for suffix in (".xml", ".cfg", ".proxmox.sh", ".qemu.sh", ".kubevirt.yaml"):
        assert {stem + suffix, f"{stem}.compat{suffix}"} <= {*found}
    record = json.loads(found[f"{stem}.json"])
    assert record["schema"] == 1
    assert {*record["definitions"]} == {"recommended", "compat"}


def test_file_names_are_plain_whatever_the_machine_is_called() -> None:
    for name in written("hostile"):
        assert name.isascii()
        assert not {*" '\"$`/;&"} & {*name}


def test_both_twins_are_one_machine_so_that_they_never_run_at_once() -> None:
    found = written("bios")
    one, other = (ET.fromstring(found[name]) for name in ("web01.xml", "web01.compat.xml"))
    assert one.findtext("name") == other.findtext("name")
    assert one.findtext("uuid") == other.findtext("uuid")


def test_control_characters_never_reach_a_file() -> None:
    for name, content in written("hostile").items():
        text = content.decode()
        assert all(c.isprintable() or c == "\n" for c in text), name


# Names and DMI strings of any kind; the real programs look at some in tests/integration.

TEXTS = st.text(min_size=1, max_size=30)
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30).filter(
    lambda name: "/" not in name and not name.startswith((".", "-"))
)


def chosen(name: str, text: str) -> Definitions:
    machine = Machine(
        uuid=BIOS_SERVER.uuid,
        dmi={"product_serial": text, "sys_vendor": text},
        memory=BIOS_SERVER.memory,
        disks=BIOS_SERVER.disks,
    )
    return choose(machine, guest(), images(machine), wishes(name), VIRTIO)


@given(NAMES, TEXTS)
def test_a_shell_sees_each_string_as_one_word(name: str, text: str) -> None:
    vm = chosen(name, text).recommended
    script = qemu.write(vm).decode()
    words = shlex.split(script[script.index("exec ") :].replace("\\\n", ""))
    assert words[words.index("-name") + 1] == "guest=" + name.replace(",", ",,")
    smbios = words[words.index("-smbios") + 1]
    if "product_serial" in vm.smbios:
        assert "serial=" + vm.smbios["product_serial"].replace(",", ",,") in smbios
    # All is an option, a value, or QEMU itself: nothing became a command.
    assert words[:2] == ["exec", "qemu-system-x86_64"]
    assert not {";", "|", "&", "&&", "||"} & {*words}


@given(NAMES, TEXTS)
def test_xml_yaml_and_xl_give_the_name_back(name: str, text: str) -> None:
    vm = chosen(name, text).recommended
    domain = ET.fromstring(libvirt.write(vm))
    assert domain.findtext("name") == name
    serial = domain.findtext("sysinfo/system/entry[@name='serial']")
    assert serial == vm.smbios.get("product_serial")
    for line in xl.write(vm).decode().splitlines():
        if line.startswith("name = "):
            quoted = line.removeprefix("name = ")
            assert quoted[1:-1].replace('\\"', '"').replace("\\\\", "\\") == name
    text = kubevirt.write(vm).decode()
    for line in text.splitlines():
        head, _, value = line.lstrip(" -").partition(": ")
        if value and not line.startswith("#"):
            assert head.isidentifier()
            json.loads(value)


@given(st.text())
def test_dns_names_are_dns_names(text: str) -> None:
    name = dns_name(text)
    assert 1 <= len(name) <= 63
    assert not {*name} - {*"abcdefghijklmnopqrstuvwxyz0123456789-"}
    assert name == name.strip("-")


# What each host is told.


def domain(sample: str, *, compat: bool = False) -> ET.Element:
    definitions = SAMPLES[sample][0]
    return ET.fromstring(libvirt.write(definitions[compat]))


def test_old_virtio_is_offered_to_guests_that_know_no_other() -> None:
    # On i440fx every virtio device has both faces.
    assert domain("legacy-virtio").find("os/type[@machine='pc']") is not None
    assert domain("legacy-virtio").find("devices/disk").get("model") is None  # type: ignore[union-attr]
    new = domain("uefi-legacy-virtio")
    assert new.find("os/type[@machine='q35']") is not None
    assert new.find("devices/disk[@model='virtio-transitional']") is not None
    assert new.find("devices/interface/model[@type='virtio-transitional']") is not None


def test_four_kib_sectors_are_said_to_each_host_that_can_hear_it() -> None:
    found = written("uefi")
    for name in ("db.xml", "db.qemu.sh", "db.kubevirt.yaml", "db.compat.xml", "db.compat.qemu.sh"):
        assert b"4096" in found[name], name
    for name in ("db.cfg", "db.proxmox.sh"):
        assert b"4 k" in found[name].lower(), name


def test_disk_names_never_clash() -> None:
    machine = Machine(disks=tuple(BIOS_SERVER.disks[:1]) * 9)
    many = choose(machine, guest(), images(machine), wishes(), VIRTIO).compat
    assert [bus for _, bus, _ in libvirt.disk_targets(many)] == ["sata"] * 6 + ["scsi"] * 3
    names = [dev for _, _, dev in libvirt.disk_targets(many)]
    assert names == [f"sd{letter}" for letter in "abcdefghi"]


@pytest.mark.parametrize(("number", "name"), [(0, "a"), (25, "z"), (26, "aa"), (701, "zz")])
def test_letters(number: int, name: str) -> None:
    assert libvirt.letters(number) == name


def test_xen_gets_its_own_disks_and_the_compat_twin_emulated_ones() -> None:
    found = written("xen")
    assert b"vdev=xvda" in found["x.cfg"]
    assert b"xen_platform_pci = 1" in found["x.cfg"]
    assert b"vdev=hda" in found["x.compat.cfg"]
    assert b"xen_platform_pci = 0" in found["x.compat.cfg"]
    for content in (found["x.cfg"], found["x.compat.cfg"]):
        assert b'type = "hvm"' in content
        assert b"bridge=xenbr0" in content
    assert domain("xen").get("type") == "xen"
    assert domain("xen").find("devices/disk/target[@bus='xen']") is not None


def test_virt_v2v_never_sees_the_replica() -> None:
    """P8: it would change it in place."""
    definitions, facts = SAMPLES["bios"]
    found = files(definitions, facts, with_virt_v2v=True)
    paths = [
        element.get("file", "")
        for element in ET.fromstring(found["web01.virt-v2v.xml"]).iter("source")
        if element.get("file")
    ]
    assert len(paths) == 2
    assert [path.rpartition("/")[2] for path in paths] == ["sda.qcow2", "sdb.qcow2"]
    result = ET.fromstring(found["web01.virt-v2v-result.xml"])
    assert [
        element.get("file") for element in result.iter("source") if element.get("file")
    ] == paths


def test_the_inventory_holds_what_was_found() -> None:
    definitions = choose(HOSTILE, guest(), images(HOSTILE), wishes(NASTY), VIRTIO)
    facts = Facts(HOSTILE, None, SAMPLES["bios"][1].findings)
    content = files(definitions, facts)[f"{definitions.recommended.stem}.json"]
    record = json.loads(content)
    assert Machine.from_json(record["machine"]) == HOSTILE
    assert record["guest"] is None
    assert record["findings"][0]["severity"] == "warning"
    assert record["definitions"]["recommended"]["name"] == NASTY
