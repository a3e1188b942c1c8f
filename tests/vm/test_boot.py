"""Guests boot where they were installed, and not as they are where they shall go."""

from collections.abc import Callable
from dataclasses import replace

from tests.conftest import Tell
from tests.vm.conftest import NEEDS_GUESTS
from tests.vm.guests import Guest, Workshop
from tests.vm.machines import PHYSICAL, VIRTIO, Boot, boot
from tests.vm.recipes import VOLUMES

pytestmark = NEEDS_GUESTS


def on_virtio(name: str) -> str:
    """What a device of the old machine is called in the new one."""
    return name.replace("/dev/sd", "/dev/vd")


def on_physical(name: str) -> str:
    """What it is called in the old machine."""
    return name


def assert_runs(done: Boot, guest: Guest, *, called: Callable[[str], str]) -> None:
    """The guest came up, with all its data, its swap and its address under the name it had.

    ``called``: what a device of the old machine is called where it was booted.
    """
    recipe = guest.recipe
    assert done.report is not None, str(done)
    report = dict(done.report)
    links = {each["ifname"]: each for each in report.pop("links")}
    assert recipe.link in links, str(done)
    addresses = [each["local"] for each in links[recipe.link]["addr_info"]]
    assert (links[recipe.link]["address"], addresses[0]) == (recipe.mac, recipe.address), str(done)
    report.pop("kernel")
    words = iter(report.pop("mounts").split())
    mounted = dict(zip(words, words, strict=True))
    assert mounted == {point: called(name) for point, name in recipe.mounted.items()}, str(done)
    assert report.pop("arrays") == recipe.arrays, str(done)
    assert report == {
        "guest": recipe.name,
        "swap": called(recipe.swap),
        "state": "running",
        "failed": "",
        "damaged": "",
    }, str(done)


def told(done: Boot) -> str:
    retried = ", second attempt after a timeout" if done.attempts > 1 else ""
    return f"{done.end} after {done.seconds:.0f} s{retried}"


def test_a_guest_runs_on_its_old_machine(guest: Guest, tell: Tell) -> None:
    done = boot(guest.on(PHYSICAL), guest.images, guest.recipe.mac)
    tell(told(done))
    assert_runs(done, guest, called=on_physical)


def test_a_guest_as_it_was_does_not_boot_on_virtio(guest: Guest, tell: Tell) -> None:
    done = boot(guest.on(VIRTIO), guest.images, guest.recipe.mac)
    tell(told(done))
    assert done.end == ("uefi-shell" if guest.recipe.is_uefi else "initramfs"), str(done)
    assert done.report is None


def test_with_its_boot_entry_it_does_not_find_its_root(workshop: Workshop, tell: Tell) -> None:
    guest = workshop.guest(VOLUMES)
    machine = replace(guest.on(VIRTIO), variables=guest.variables)
    done = boot(machine, guest.images, guest.recipe.mac)
    tell(told(done))
    assert done.end == "initramfs", str(done)
