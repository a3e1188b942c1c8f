"""``convert`` where no overlay can be made: what is refused, and what works without fix-ups.

With fix-ups it is run in the lab kernel, on real guests: tests/vm/test_convert.py.
"""

import json
import shutil
import subprocess
from xml.etree import ElementTree as ET

import pytest

from p2v_sync.config import Connection
from p2v_sync.cutover import IN_PLACE, JobCutover
from p2v_sync.state.paths import default_state_dir
from tests.integration.cli import BIN, Lab, assert_equal, change

NEEDS_SCHEMA = pytest.mark.skipif(
    shutil.which("virt-xml-validate") is None,
    reason="needs virt-xml-validate (apt-get install libvirt-clients libxml2-utils)",
)


@NEEDS_SCHEMA
def test_without_fixups_the_replica_gets_hardware_that_all_know(lab: Lab) -> None:
    image = lab.image("web.img")
    done = lab.p2v("convert", image, lab.out, "--no-fixups", "--name", "web 1", "--memory", "2G")
    there = lab.out / "web"
    assert_equal(image, lab.replica("web"))
    assert f"the virtual machine web 1 is described in {there}" in done.err
    subprocess.run(["virt-xml-validate", there / "web_1.xml", "domain"], check=True)
    domain = ET.parse(there / "web_1.xml").getroot()
    (disk,) = domain.findall("devices/disk")
    assert [each.attrib for each in disk.findall("source")] == [{"file": str(there / "web.img")}]
    assert [each.get("bus") for each in disk.findall("target")] == ["sata"]
    assert (there / "web_1.compat.xml").exists()
    record = json.loads((there / "web_1.json").read_text())
    assert record["guest"] is None
    assert record["definitions"]["recommended"]["memory"] == 2 << 30


def test_p8_a_conversion_can_be_repeated_and_taken_back(lab: Lab) -> None:
    image = lab.image("web.img")
    command = ("convert", image, lab.out, "--no-fixups", "--json")
    lab.p2v(*command)
    change(image, 4096, b"changed" * 100)
    done = lab.p2v(*command)
    (finished,) = done.named("pass_finished")
    assert finished["kind"] == "incremental"
    assert finished["counters"]["sent"] == 4096
    lab.p2v("rollback", "web")
    assert_equal(image, lab.replica("web"))


def test_p8_what_an_earlier_conversion_sent_is_not_applied_again(lab: Lab) -> None:
    image = lab.image("web.img")
    lab.p2v("sync", image, lab.out)
    with JobCutover("web", default_state_dir(), Connection(), lambda _: None, None) as job:
        job.send_delta("web", [(0, b"fixed up" * 512)], 4096)
        job.apply(IN_PLACE)
    change(image, 8192, b"changed" * 100)
    lab.p2v("convert", image, lab.out, "--no-fixups")
    assert_equal(image, lab.replica("web"))


def test_what_is_refused_before_anything_is_copied(lab: Lab) -> None:
    image = lab.image("web.img")
    convert = ("convert", image, lab.out)
    lab.fails(2, "convert", image, say="is one place, and two are needed")
    lab.fails(3, *convert, "--seed", say="a seed can't be converted")
    lab.fails(3, *convert, "--no-fixups", "--memory", "4", say="4G is written 4G, not 4")
    lab.fails(3, *convert, "--no-fixups", "--name", "../x", say="can't be the name of a virtual")
    lab.fails(3, *convert, "--no-fixups", "--name", "web 1", "--start", say="--name web_1")
    lab.fails(3, *convert, "--network", "a=", say="can't be the name of a network")
    lab.fails(2, *convert, "--target", "vmware", say="vmware")
    lab.fails(2, *convert, "--no-fixups", "--fixups", "own", say="contradict each other")
    lab.fails(2, *convert, "--fixups", "virt-v2v", "--apply", "qcow2", say="leave --apply out")
    lab.fails(3, *convert, "--fixups", "virt-v2v", "--target", "xen", say="for KVM")
    lab.fails(14, "convert", lab.root / "none", lab.out, say="there is no")
    assert list(lab.out.iterdir()) == []


def test_without_device_mapper_it_says_how_to_copy_all_the_same(lab: Lab) -> None:
    image = lab.image("web.img")
    lab.fails(78, "convert", image, lab.out, say="--fixups none", PATH=str(BIN))
    assert list(lab.out.iterdir()) == []
