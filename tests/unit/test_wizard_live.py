"""The wizard around its questions: where answers come from, the network, hooks, and the disks."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from p2v_sync.config import SyncConfig
from p2v_sync.convert import Fixups
from p2v_sync.device.machine import Machine, Nic
from p2v_sync.device.machine_facts import read_machine
from p2v_sync.errors import (
    ConnectFailed,
    Interrupted,
    NetworkError,
    P2vError,
    PreseedError,
    SourceMissing,
    TargetTaken,
)
from p2v_sync.units import GIB
from p2v_sync.wizard import hooks as hooks_of
from p2v_sync.wizard import live, network
from p2v_sync.wizard.conversation import Way
from p2v_sync.wizard.flow import DiskChoice, Situation, Values, default_of
from p2v_sync.wizard.job import convert_config, login, sources_of
from p2v_sync.wizard.settings import Value
from p2v_sync.wizard.situation import default_name
from p2v_sync.wizard.together import Contents
from tests.unit.test_wizard import Script

DISKS = (DiskChoice("sda", GIB, ""), DiskChoice("nvme0n1", GIB, ""))
ONLINE = Situation(hostname="web", disks=DISKS, is_online=True)


# Network.


def commands(values: dict[str, Value], *interfaces: str) -> list[str]:
    return [" ".join(argv) for argv in network.commands(values, interfaces)]


def test_nothing_is_done_to_a_network_that_is_up() -> None:
    assert commands({"network.mode": "none"}, "eno1") == []
    assert commands({}, "eno1") == []


def test_dhcp_on_the_first_interface_or_the_named_one() -> None:
    assert commands({"network.mode": "dhcp"}, "eno1", "eno2") == [
        "ip link set eno1 up",
        "dhclient -1 -v eno1",
    ]
    named: dict[str, Value] = {"network.mode": "dhcp", "network.interface": "eno2"}
    assert commands(named, "eno1", "eno2")[-1] == "dhclient -1 -v eno2"


def test_a_static_address_on_a_vlan_of_a_bond() -> None:
    values: dict[str, Value] = {
        "network.mode": "static",
        "network.bond": ("eno1", "eno2"),
        "network.vlan": 7,
        "network.address": "192.0.2.7/24",
        "network.gateway": "192.0.2.1",
    }
    assert commands(values, "eno1", "eno2", "eno3") == [
        "ip link add p2vbond type bond mode active-backup miimon 100",
        "ip link set eno1 down",
        "ip link set eno1 master p2vbond",
        "ip link set eno2 down",
        "ip link set eno2 master p2vbond",
        "ip link set p2vbond up",
        "ip link add link p2vbond name p2vbond.7 type vlan id 7",
        "ip link set p2vbond.7 up",
        "ip address replace 192.0.2.7/24 dev p2vbond.7",
        "ip route replace default via 192.0.2.1 dev p2vbond.7",
    ]


# Answers beforehand.


def test_the_kernel_command_line_is_stronger_than_the_preseed(tmp_path: Path) -> None:
    preseed = tmp_path / "p.toml"
    preseed.write_text('target = "a:/x"\nname = "web"\n')
    given = live.gather(preseed, "quiet p2v.target=b:/y p2v.auto")
    assert given.problem is None
    assert given.values == {"target": "b:/y", "name": "web", "auto": True}
    assert given.is_alone


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('traget = "x"\n[hooks]\nfail = "true"\n', "", "p.toml:1: there is no traget"),
        ('[hooks]\nfail = "true"\n', "p2v.polst=reboot", "kernel command line: there is no polst"),
        ('[hooks]\nfail = "true"\n', "p2v.login.token=x", "must not stand there"),
    ],
)
def test_what_is_wrong_beforehand_fires_the_fail_hook(
    tmp_path: Path, text: str, line: str, says: str, hooks: list[str]
) -> None:
    preseed = tmp_path / "p.toml"
    preseed.write_text(text)
    given = live.gather(preseed, line)
    with pytest.raises(PreseedError, match=says):
        through(session(given))
    assert hooks == ["fail 6"]


def test_a_preseed_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no" in str(live.gather(tmp_path / "none.toml", "").problem)


# Hooks.


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hooks that ran, by name, with the status they were told."""
    ran: list[str] = []

    def capture(argv: list[str], *, environ: Mapping[str, str], timeout_s: float) -> str:
        assert timeout_s
        ran.append(f"{names[argv[-1]]} {environ.get('P2V_STATUS', '')}".strip())
        return ""

    names = {"true": "fail", "p": "pre", "q": "post"}
    monkeypatch.setattr("p2v_sync.wizard.hooks.run.capture", capture)
    return ran


def session(given: live.Given, situation: Situation = ONLINE) -> live.Session:
    return live.Session(given, lambda: situation, lambda: None)


def through(wizard: live.Session) -> None:
    hooks_of.with_hooks(wizard.given, wizard.values, no_work, no_log)


def no_work(values: dict[str, Value]) -> None:
    del values


def no_log(values: Values) -> None:
    del values


HOOKED: dict[str, Value] = {"hooks.pre": "p", "hooks.post": "q", "hooks.fail": "true"}


def failing(error: Exception) -> Callable[[dict[str, Value]], None]:
    def work(values: dict[str, Value]) -> None:
        del values
        raise error

    return work


def test_the_hooks_of_a_run_that_succeeds(hooks: list[str]) -> None:
    values = {**HOOKED, "post": "poweroff"}
    assert hooks_of.with_hooks(HOOKED.copy, lambda: dict(values), no_work, no_log) == values
    assert hooks == ["pre", "post"]


@pytest.mark.parametrize(
    ("error", "status"), [(ConnectFailed("gone"), 31), (ZeroDivisionError("a bug"), 1)]
)
def test_the_fail_hook_of_a_run_that_fails(error: Exception, status: int, hooks: list[str]) -> None:
    with pytest.raises(type(error)):
        hooks_of.with_hooks(HOOKED.copy, lambda: HOOKED, failing(error), no_log)
    assert hooks == ["pre", f"fail {status}"]


def test_leaving_is_no_failure(hooks: list[str]) -> None:
    with pytest.raises(Interrupted):
        hooks_of.with_hooks(HOOKED.copy, lambda: HOOKED, failing(Interrupted("left")), no_log)
    assert hooks == ["pre"]


def test_a_machine_without_disks_fires_the_fail_hook(hooks: list[str]) -> None:
    given = live.gather(None, 'p2v.auto p2v.target=h:/d "p2v.hooks.fail=true"')
    alone = session(given, Situation(is_online=True))
    with pytest.raises(SourceMissing, match="no disk that could be copied"):
        through(alone)
    assert hooks == ["fail 14"]


def test_a_machine_without_network_fires_the_fail_hook(
    hooks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2v_sync.wizard.live.interface_names", list)
    given = live.gather(None, 'p2v.auto p2v.target=h:/d p2v.network=dhcp "p2v.hooks.fail=true"')
    with pytest.raises(P2vError, match="no network interface"):
        through(session(given))
    assert hooks == ["fail 38"]


@pytest.mark.parametrize("text", ['disks = ["sdz"]', "dikss = 1"])
def test_what_is_wrong_with_a_fetched_preseed_fires_its_own_fail_hook(
    text: str, hooks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def urlopen(url: str, timeout: float) -> io.BytesIO:
        del url, timeout
        return io.BytesIO(f'{text}\n[hooks]\nfail = "true"\n'.encode())

    monkeypatch.setattr("p2v_sync.wizard.live.urllib.request.urlopen", urlopen)
    given = live.gather(None, "p2v.auto p2v.config=http://h/p.toml p2v.target=h:/d")
    with pytest.raises(PreseedError):
        through(session(given))
    assert hooks == ["fail 6"]


# What is tried of an answer, and when.


class Person(Script):
    """At the screens."""

    def secret(self, prompt: str) -> str:
        raise AssertionError(prompt)

    def confirm(self, question: str) -> bool:
        raise AssertionError(question)


class Tried:
    """A network that comes up, or does not, and a host that answers everything with ``job``."""

    def __init__(self, patch: pytest.MonkeyPatch, *, has_dhcp: bool = True) -> None:
        self.done: list[str] = []
        self._has_dhcp = has_dhcp
        self.taken: str = ""
        patch.setattr("p2v_sync.wizard.live.interface_names", lambda: ["eno1"])
        patch.setattr("p2v_sync.wizard.live.network.bring_up", self._bring_up)
        patch.setattr("p2v_sync.wizard.live.jobs.reach", lambda *_: self.done.append("reach"))
        patch.setattr("p2v_sync.wizard.live.inquiry", self._inquiry)

    def _bring_up(self, values: Mapping[str, Value], interfaces: Sequence[str]) -> None:
        del interfaces
        self.done.append(f"network {values['network.mode']}")
        if values["network.mode"] == "dhcp" and not self._has_dhcp:
            raise NetworkError("no DHCP server answered on eno1")

    def _inquiry(self, name: str, *_: object) -> "Tried":
        self._name = name
        return self

    def replicas(self) -> list[str]:
        self.done.append(f"ask for {self._name}")
        if self._name == self.taken:
            raise TargetTaken("another machine's", hint="another name")
        return ["sda: pass 1, unfinished at 38 %"]


OFFLINE = Situation(hostname="web", disks=DISKS[:1])


def talk(line: str, *replies: str | tuple[str, ...]) -> tuple[Person, dict[str, Value]]:
    """All that is not answered on the kernel command line is ``replies``."""
    person = Person(replies)
    wizard = live.Session(live.gather(None, line), lambda: OFFLINE, lambda: person)
    return person, wizard.values()


def test_the_network_is_tried_on_its_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(monkeypatch, has_dhcp=False)
    with pytest.raises(Interrupted):
        talk("", "dhcp", "")
    assert tried.done == ["network dhcp"]


def test_a_network_that_does_not_come_up_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Tried(monkeypatch, has_dhcp=False)
    person = Person(["dhcp", "", Way.BACK, "static", "", "192.0.2.7/24", "", ""])
    wizard = live.Session(live.gather(None, ""), lambda: OFFLINE, lambda: person)
    with pytest.raises(Interrupted):
        wizard.values()
    assert person.complaints == ["no DHCP server answered on eno1"]
    assert person.titles[-1] == "Target"


def test_a_target_that_was_given_is_asked_once_the_network_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing is reached before that."""
    tried = Tried(monkeypatch)
    person, values = talk("p2v.target=h:/d p2v.post=shell", "dhcp", "", ("sda",), "sync", "web", "")
    assert tried.done == ["network dhcp", "ask for web"], "once for three pages and a check"
    assert person.told == [
        "Trying the network; this may take a minute.",
        "Asking the host for web.",
    ]
    assert values["name"] == "web"
    texts = [page.text for page in person.pages if "38 %" in page.text]
    assert len(texts) == 3, "what to do, the name, the summary"


def test_with_network_and_target_given_all_is_tried_before_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = Tried(monkeypatch)
    line = "p2v.target=h:/d p2v.network=dhcp p2v.network.vlan=7 p2v.name=db p2v.action=sync"
    talk(f"{line} p2v.disks=all", "shell", "")
    assert tried.done == ["network dhcp", "ask for db"]


def test_p10_another_machines_name_is_refused_on_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(monkeypatch)
    tried.taken = "web"
    person, values = talk(
        "p2v.target=h:/d p2v.network=none p2v.post=shell", ("sda",), "sync", "web", "web-2", ""
    )
    assert person.complaints == ["another machine's (another name)"]
    assert values["name"] == "web-2"
    names = [page for page in person.pages if page.title == "Name"]
    assert [default_of(page) for page in names[:1]] == ["web-2"]


def test_p10_another_machines_name_that_was_given_never_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = Tried(monkeypatch)
    tried.taken = "web"
    line = "p2v.target=h:/d p2v.network=none p2v.name=web p2v.action=sync p2v.disks=all"
    person = Person(["shell", "", Way.BACK])
    wizard = live.Session(live.gather(None, line), lambda: OFFLINE, lambda: person)
    with pytest.raises(Interrupted):
        wizard.values()
    assert person.complaints == ["another machine's (another name)"]


def test_alone_the_name_is_asked_for_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(monkeypatch)
    tried.taken = "web"
    alone = session(live.gather(None, "p2v.auto p2v.target=h:/d"), OFFLINE)
    values = alone.values()
    assert values["action"] == "convert", "also of a machine that the host knows"
    with pytest.raises(TargetTaken):
        alone.require_own(values)


# Disks and names.


def test_a_disk_that_is_not_there_is_named_before_anything_is_done() -> None:
    with pytest.raises(PreseedError, match="there is no disk sdz"):
        sources_of({"disks": ("sda", "sdz")}, ONLINE)
    assert sources_of({"disks": ("all",)}, ONLINE) == (Path("/dev/sda"), Path("/dev/nvme0n1"))


def lsblk(**disks: tuple[str, str]) -> str:
    """One partition on each: (type, UUID)."""
    return json.dumps(
        {
            "blockdevices": [
                {"name": name, "children": [{"name": f"{name}1", "fstype": kind, "uuid": uuid}]}
                for name, (kind, uuid) in disks.items()
            ]
        }
    )


def test_members_of_an_array_and_of_a_volume_group_are_kept_together() -> None:
    raid, lvm = "linux_raid_member", "LVM2_member"
    said = lsblk(sda=(raid, "A"), sdb=(raid, "A"), sdc=(lvm, "c"), sdd=(lvm, "d"), sde=("xfs", "e"))
    volumes = [{"pv_name": f"/dev/sd{each}1", "vg_name": "vg0"} for each in "cd"]
    contents = Contents(said, json.dumps({"report": [{"pv": volumes}]}))
    kept = {name: contents.kept_with(name) for name in ("sda", "sdb", "sdc", "sdd", "sde")}
    assert kept == {"sda": ("sdb",), "sdb": ("sda",), "sdc": ("sdd",), "sdd": ("sdc",), "sde": ()}
    assert contents.kinds["sde"] == ["xfs"]


def test_sets_that_share_a_disk_are_one() -> None:
    raid = "linux_raid_member"
    one = json.loads(lsblk(sda=(raid, "A"), sdb=(raid, "A"), sdc=(raid, "B")))
    one["blockdevices"][1]["children"].append({"name": "sdb2", "fstype": raid, "uuid": "B"})
    assert Contents(json.dumps(one)).kept_with("sda") == ("sdb", "sdc")


def test_the_medium_is_none_of_the_disks() -> None:
    """Also where nothing of it is mounted; a disk that only has its name is no medium."""
    medium = {"name": "sdb", "fstype": "iso9660", "label": "P2V-SYNC", "uuid": "2026"}
    disks = [medium, {**medium, "name": "sda", "fstype": "ext4"}, {**medium, "name": "sdc"}]
    disks[2]["label"] = "DEBIAN"
    assert Contents(json.dumps({"blockdevices": disks})).media == {"sdb"}


@pytest.mark.parametrize("said", ["", "[]", "{}", '{"blockdevices": [7]}', "{"])
def test_without_an_answer_of_lsblk_nothing_is_known(said: str) -> None:
    assert Contents(said, said).kept_with("sda") == ()


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (Machine(hostname="web01"), "web01"),
        (
            Machine(
                hostname="p2v-live",
                dmi={"product_name": "PowerEdge R720", "product_serial": "4F5G6H"},
            ),
            "PowerEdge_R720-4F5G6H",
        ),
        (
            Machine(
                hostname="p2v-live",
                dmi={"product_name": "Standard PC (Q35 + ICH9, 2009)"},
                nics=(Nic("eno2", "52:54:00:00:00:02"), Nic("eno1", "52:54:00:00:00:01")),
            ),
            "Standard_PC-525400000001",
        ),
    ],
)
def test_the_same_machine_is_called_the_same_after_the_next_boot(
    machine: Machine, name: str
) -> None:
    assert default_name(machine) == name


@pytest.mark.parametrize(
    ("serial", "uuid", "name"),
    [
        ("To be filled by O.E.M.", "4c4c4544-0046-3510-8047-b4c04f364831", "4c4c4544-0046"),
        ("Default string", "03000200-0400-0500-0006-000700080009", "525400000001"),
        ("System Serial Number", "ffffffff-ffff-ffff-ffff-ffffffffffff", "525400000001"),
        ("0123456789", "00000000-0000-0000-0000-000000000000", "525400000001"),
    ],
)
def test_what_makers_leave_in_is_no_identity(
    serial: str, uuid: str, name: str, tmp_path: Path
) -> None:
    """Two machines of one model must not get one name from what their boards have in common."""
    sys_root, proc_root = tmp_path / "sys", tmp_path / "proc"
    files = {
        sys_root / "class/dmi/id/product_name": "X10",
        sys_root / "class/dmi/id/product_serial": serial,
        sys_root / "class/dmi/id/product_uuid": uuid,
        proc_root / "sys/kernel/hostname": "p2v-live",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (sys_root / "block").mkdir()
    machine = replace(read_machine(sys_root, proc_root), nics=(Nic("eno1", "52:54:00:00:00:01"),))
    assert default_name(machine).startswith(f"X10-{name}")


def test_secrets_are_in_the_environment_of_the_run_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("P2V_TOKEN", "of the shell")
    monkeypatch.delenv("P2V_LUKS_PASSPHRASE", raising=False)
    with login({"login.token": "t", "login.luks": "open sesame"}):
        assert (os.environ["P2V_TOKEN"], os.environ["P2V_LUKS_PASSPHRASE"]) == ("t", "open sesame")
    assert os.environ["P2V_TOKEN"] == "of the shell"
    assert "P2V_LUKS_PASSPHRASE" not in os.environ


def test_what_the_answers_make_of_a_conversion() -> None:
    sync = SyncConfig((Path("/dev/sda"),), "host:/dir", Path("/state"), job="web")
    plain = convert_config({}, sync)
    assert (plain.name, plain.fixups, plain.start) == ("web", Fixups.OWN, False)
    windows: Values = {"vm.fixups": "virt-v2v", "vm.memory": 2 * GIB, "vm.start": True}
    assert convert_config(windows, sync) == replace(
        plain, fixups=Fixups.VIRT_V2V, memory=2 * GIB, start=True
    )
