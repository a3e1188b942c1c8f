"""The wizard's flow, by answers: no terminal."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest

from p2v_sync.errors import Interrupted, PreseedError
from p2v_sync.units import GIB
from p2v_sync.wizard.conversation import Reply, Way, answer_alone, converse
from p2v_sync.wizard.flow import (
    STEPS,
    SUMMARY,
    Checklist,
    Confirm,
    DiskChoice,
    Input,
    Known,
    KnownJob,
    Menu,
    Page,
    Situation,
    Values,
    default_of,
    is_end_of_network,
    summary,
    torn_apart,
)
from p2v_sync.wizard.settings import SETTINGS

SITUATION = Situation(
    hostname="web01",
    disks=(
        DiskChoice("sda", 4 * GIB, "4.0 GiB QEMU HARDDISK"),
        DiskChoice("sdb", 2 * GIB, "2.0 GiB QEMU HARDDISK"),
    ),
    interfaces=(("eno1", "52:54:00:00:00:01"), ("eno2", "52:54:00:00:00:02")),
    memory=8 * GIB,
    cpus=4,
    nics=("eno1", "eno2"),
)
DEFAULT = "the default"


class Script:
    """Gives replies in turn; DEFAULT for what a page suggests."""

    def __init__(self, replies: Sequence[Reply | Way]) -> None:
        self._replies = list(replies)
        self.pages: list[Page] = []
        self.complaints: list[str] = []

    def show(self, page: Page, *, can_go_back: bool) -> Reply | Way:
        self.pages.append(page)
        if not self._replies:
            raise Interrupted("left")
        reply = self._replies.pop(0)
        assert reply is not Way.BACK or can_go_back
        return default_of(page) if reply == DEFAULT else reply

    def complain(self, text: str) -> None:
        self.complaints.append(text)

    @property
    def titles(self) -> list[str]:
        return [page.title for page in self.pages]


def nothing_wrong(key: str, values: Values) -> str:
    del key, values
    return ""


def run(script: Script, given: Values | None = None, situation: Situation = SITUATION) -> Values:
    values = converse(script, given or {}, lambda *_: situation, nothing_wrong)
    assert not script._replies
    return values


def test_a_conversion_with_what_was_found() -> None:
    script = Script(["dhcp", (), "eno2", "", "root@host:/srv/vm", *[DEFAULT] * 9])
    assert run(script) == {
        "network.mode": "dhcp",
        "network.interface": "eno2",
        "target": "root@host:/srv/vm",
        "disks": ("sda", "sdb"),
        "action": "convert",
        "name": "web01",
        "vm.target": "kvm",
        "vm.memory": 8 * GIB,
        "vm.vcpus": 4,
        "post": "shell",
    }
    assert isinstance(script.pages[-1], Confirm), "nothing starts before the summary"


def test_what_was_answered_beforehand_is_not_asked() -> None:
    given: Values = {
        "network.mode": "none",
        "target": "tcp://h:1",
        "login.token": "t",
        "disks": ("all",),
    }
    script = Script(["sync", "job", DEFAULT, DEFAULT])
    values = run(script, given)
    assert script.titles == ["What to do", "Name", "At the end", "Ready?"]
    assert values == {**given, "action": "sync", "name": "job", "post": "shell"}


def test_back_works_everywhere_and_shows_what_was_typed() -> None:
    one = replace(SITUATION, interfaces=())
    forth: list[Reply | Way] = [
        "dhcp",
        "7",
        "root@h:/d",
        ("sda",),
        "convert",
        "vm",
        "kvm",
        "2G",
        "2",
        "br0",
    ]
    first = Script([*forth, DEFAULT, ""])
    values = run(first, situation=one)
    # From the summary back to the very first page, and forth again with what is shown.
    back = Script([*forth, DEFAULT, *[Way.BACK] * 11, *[DEFAULT] * 11, ""])
    shown = run(back, situation=one)
    assert shown == values
    assert [type(page) for page in back.pages[:12]] == [type(page) for page in first.pages]


def test_a_later_change_drops_what_became_pointless() -> None:
    replies: list[Reply | Way] = ["static", (), "eno1", "", "192.0.2.7/24", "", ""]
    back = [Way.BACK] * 7
    bond = ("eno1", "eno2")
    rest: list[Reply | Way] = ["h:/d", ("sda",), "sync", "n", "shell", ""]
    values = run(Script([*replies, *back, "dhcp", bond, "", *rest]))
    assert values["network.bond"] == bond
    assert not {"network.address", "network.interface", "network.vlan"} & {*values}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [("", "Nothing"), ("ftp://x", "no transport"), ("root@:/x", "not understood")],
)
def test_a_wrong_answer_is_explained_and_asked_again(wrong: str, says: str) -> None:
    script = Script(["none", wrong, "root@host:/d", ("sda",), "sync", "n", "shell", ""])
    situation = replace(SITUATION, is_online=True)
    run(script, situation=situation)
    assert len(script.complaints) == 1
    assert says in script.complaints[0]


def test_an_answer_that_does_not_hold_is_asked_again() -> None:
    tries: list[str] = []

    def check(key: str, values: Values) -> str:
        if key == "target":
            tries.append(str(values["target"]))
            return "no route to host" if len(tries) == 1 else ""
        return ""

    script = Script(["none", "a:/d", "b:/d", ("sda",), "sync", "n", "shell", ""])
    online = replace(SITUATION, is_online=True)
    values = converse(script, {}, lambda *_: online, check)
    assert script.complaints == ["no route to host"]
    assert values["target"] == "b:/d"


def test_leaving() -> None:
    with pytest.raises(Interrupted):
        run(Script(["dhcp"]))


def test_alone_it_answers_from_the_machine() -> None:
    given: Values = {"target": "h:/d", "auto": True}
    values = answer_alone(given, replace(SITUATION, is_online=True))
    assert values["disks"] == ("sda", "sdb")
    assert values["network.mode"] == "none"
    assert values["action"] == "convert"
    assert values["vm.memory"] == 8 * GIB


def test_alone_it_names_what_nobody_can_know() -> None:
    with pytest.raises(PreseedError, match="nobody answered target") as caught:
        answer_alone({"network.mode": "dhcp"}, SITUATION)
    assert "p2v.target" in str(caught.value)
    with pytest.raises(PreseedError, match="nobody answered disks"):
        answer_alone({"target": "h:/d"}, replace(SITUATION, disks=()))


def test_a_vlan_of_a_bond_with_a_static_address_is_askable() -> None:
    network: list[Reply | Way] = ["static", ("eno1", "eno2"), "7", "192.0.2.7/24", "192.0.2.1", ""]
    values = run(Script([*network, "h:/d", ("sda",), "sync", "n", "shell", ""]))
    assert {key: value for key, value in values.items() if key.startswith("network.")} == {
        "network.mode": "static",
        "network.bond": ("eno1", "eno2"),
        "network.vlan": 7,
        "network.address": "192.0.2.7/24",
        "network.gateway": "192.0.2.1",
    }


def test_a_bond_of_one_is_none() -> None:
    script = Script(["dhcp", ("eno1",), (), "eno1", "9999", "", "h:/d"])
    with pytest.raises(Interrupted):
        run(script)
    assert [each.partition(":")[2] for each in script.complaints] == [
        " must be two interfaces or more",
        " must be from 1 to 4094",
    ]


@pytest.mark.parametrize(
    ("values", "last"),
    [
        ({"network.mode": "none"}, "network.mode"),
        ({"network.mode": "dhcp"}, "network.vlan"),
        ({"network.mode": "static"}, "network.dns"),
    ],
)
def test_the_network_is_tried_after_its_last_page(values: Values, last: str) -> None:
    known = Known(values, SITUATION)
    ends = [each.key for each in STEPS if each.is_due(known)]
    assert [key for key in ends if is_end_of_network(key, known, {})] == [last]


# What the receiver has.


def page_of(key: str, situation: Situation) -> Page:
    return next(step for step in STEPS if step.key == key).page(Known({}, situation))


def knowing(*disks: str, refusal: str = "") -> Situation:
    return replace(SITUATION, known_job=KnownJob("web01", disks, refusal))


def test_a_known_machine_is_offered_to_go_on() -> None:
    page = page_of("action", knowing("sda: pass 1, unfinished at 38 %"))
    assert isinstance(page, Menu)
    assert page.default == "sync"
    assert "web01" in page.text
    assert "unfinished at 38 %" in page.text
    assert [choice.tag for choice in page.choices] == ["sync", "cutover"]
    name = page_of("name", knowing("sda: pass 1, unfinished at 38 %"))
    assert isinstance(name, Input)
    assert name.default == "web01"
    assert "unfinished at 38 %" in name.text


def test_of_many_disks_a_few_are_shown() -> None:
    page = page_of("action", knowing(*(f"sd{each}: pass 1, complete" for each in "abcdefgh")))
    assert "sdd" in page.text
    assert "sde" not in page.text
    assert "and 4 more" in page.text


@pytest.mark.parametrize("known", [None, KnownJob("web01")])
def test_a_machine_that_nobody_knows_is_copied(known: KnownJob | None) -> None:
    page = page_of("action", replace(SITUATION, known_job=known))
    assert isinstance(page, Menu)
    assert page.default == "convert"


def test_a_name_that_is_another_machines_is_not_suggested() -> None:
    situation = knowing(refusal="job web01 at the host is another machine's")
    page = page_of("name", situation)
    assert isinstance(page, Input)
    assert page.default == "web01-2"
    assert "another machine's" in page.text
    action = page_of("action", situation)
    assert isinstance(action, Menu)
    assert action.default == "convert"


def test_the_summary_says_what_is_there() -> None:
    values: Values = {"disks": ("sdb",), "target": "h:/d", "action": "sync", "name": "web01"}
    assert "pass 3, complete" in summary(Known(values, knowing("sdb: pass 3, complete")))


def test_disks_that_belong_together() -> None:
    disks = (
        DiskChoice("sda", GIB, "", ("sdb",)),
        DiskChoice("sdb", GIB, "", ("sda",)),
        DiskChoice("sdc", GIB, ""),
    )
    situation = replace(SITUATION, disks=disks)
    assert "without sdb" in torn_apart(Known({"disks": ("sda", "sdc")}, situation))
    for whole in (("all",), ("sda", "sdb"), ("sdc",)):
        assert torn_apart(Known({"disks": whole}, situation)) == ""


def test_pages_fit_a_small_terminal() -> None:
    values: Values = {"disks": ("all",), "target": "root@host:/srv/vm", "action": "convert"}
    there = knowing(*["sda: pass 3, complete, of 2026-11-20, cut over as qcow2"] * 5)
    for step, situation in product(STEPS, (SITUATION, there)):
        page = step.page(Known(values, situation))
        lines = page.text.splitlines()
        assert max(map(len, lines)) <= 72, step.key
        rows = len(page.choices) if isinstance(page, Menu | Checklist) else 1
        assert len(lines) + rows <= 17, step.key
        assert isinstance(page, Input | Menu | Checklist | Confirm)


def test_the_summary_says_what_will_happen() -> None:
    values: Values = {"disks": ("sdb",), "target": "h:/d", "action": "convert", "name": "web"}
    text = summary(Known({**values, "vm.memory": GIB}, SITUATION))
    assert "sdb (2.0 GiB)" in text
    assert "sda" not in text
    assert "1.0 GiB, for" in text
    assert "not written to" in text


def test_each_step_is_a_setting() -> None:
    assert {step.key for step in STEPS} - {SUMMARY} <= {*SETTINGS}
