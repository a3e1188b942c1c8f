"""``p2v-sync convert``: the standard run, from disks to a virtual machine."""

from pathlib import Path
from typing import Any

import click

from p2v_sync.cli.ask import terminal_ask
from p2v_sync.cli.job import apply_option
from p2v_sync.cli.options import PATH, SIZE, key_files_option
from p2v_sync.cli.render import make_renderer
from p2v_sync.cli.replication import replication_options, take_sync_config
from p2v_sync.convert import ConvertConfig, Fixups
from p2v_sync.convert import convert as run_conversion
from p2v_sync.fixup.plan import Bus, Hypervisor, Target
from p2v_sync.vm.network import Networks, parse_networks


@click.command()
@replication_options
@click.option(
    "--target",
    "hypervisor",
    type=click.Choice([each.value for each in Hypervisor]),
    default=Hypervisor.KVM.value,
    show_default=True,
    help="What will run the virtual machine.",
)
@click.option(
    "--bus",
    type=click.Choice([bus.value for bus in Bus]),
    default=Bus.AUTO.value,
    show_default=True,
    help="What its disks are connected to.",
)
@click.option("--name", metavar="VM", help="Name of the virtual machine. [default: the job's]")
@click.option("--memory", type=SIZE, metavar="SIZE", help="[default: as much as the machine has]")
@click.option("--vcpus", type=int, metavar="N", help="[default: as many as the machine has]")
@click.option("--network", metavar="MAP", help="br0, net:default, or eth0=br0,eth1=net:default.")
@click.option(
    "--fixups",
    type=click.Choice([each.value for each in Fixups]),
    help="Ours; those of virt-v2v, made on the host in images above the replica; or none, the guest"
    " is not even looked at. [default: own]",
)
@click.option("--no-fixups", is_flag=True, help="The same as --fixups none.")
@apply_option
@click.option("--start", is_flag=True, help="Define and start the virtual machine on the host.")
@click.option(
    "--cow-size", type=SIZE, metavar="SIZE", help="Room for the changes of each disk, in memory."
)
@click.option("--cow-dir", type=PATH, metavar="DIR", help="Keep the changes in files there.")
@key_files_option
def convert(as_json: bool, **options: Any) -> None:
    """Copy whole disks to TARGET and make a virtual machine of them that boots.

    The disks are never written to: what the guest needs is changed in overlays in memory, and sent
    apart from the replica.  Running the same command again goes on where it was, or makes the
    virtual machine anew from what has changed.  "p2v-sync rollback JOB" takes the fix-ups back.
    """
    config = _config(options)
    renderer = make_renderer(as_json=as_json)
    try:
        run_conversion(config, renderer, terminal_ask())
    finally:
        renderer.close()


def _config(options: dict[str, Any]) -> ConvertConfig:
    target = Target(Hypervisor(options.pop("hypervisor")), Bus(options.pop("bus")))
    network: str | None = options.pop("network")
    cow_dir: Path | None = options.pop("cow_dir")
    fixups = _fixups(options.pop("fixups"), without=options.pop("no_fixups"))
    return ConvertConfig(
        target=target,
        networks=parse_networks(network) if network is not None else Networks(),
        fixups=fixups,
        cow_dir=cow_dir,
        **{
            key: options.pop(key)
            for key in ("name", "memory", "vcpus", "mode", "start", "cow_size", "key_files")
        },
        sync=take_sync_config(options),
    )


def _fixups(named: str | None, *, without: bool) -> Fixups:
    """Raises click.UsageError for options that contradict each other."""
    fixups = Fixups(named or (Fixups.NONE if without else Fixups.OWN))
    if without and fixups is not Fixups.NONE:
        raise click.UsageError(f"--no-fixups and --fixups {fixups} contradict each other")
    source = click.get_current_context().get_parameter_source("mode")
    if fixups is Fixups.VIRT_V2V and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError(
            "virt-v2v works in images of its own above the replica: leave --apply out"
        )
    return fixups
