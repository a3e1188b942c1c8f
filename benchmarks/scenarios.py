"""What is measured, and who takes part."""

from dataclasses import replace
from functools import partial

from benchmarks import ours, peers
from benchmarks.contest import Contestant, Sample, Scenario, Stage
from benchmarks.ours import LINK_DELAY_S, SPARSE_SIZE

_SSH = ("ssh", "sshd")
_NBDCOPY = "nbdkit+nbdcopy"
_BLOCKSYNC = ("blocksync-fast", *_SSH)
_ssh_in_band = partial(ours.ssh, inband=True)


def _without_holes(contestant: Contestant) -> Contestant:
    def run(stage: Stage) -> Sample:
        return contestant.run(stage.without_holes())

    return replace(contestant, run=run)


def _with(*options: str) -> Contestant:
    """A first copy with options."""
    run = partial(ours.first_copy, ours.plaintext, options=options)
    return Contestant(f"p2v-sync plaintext {' '.join(options)}", run)


_PLAINTEXT = Contestant("p2v-sync plaintext", partial(ours.first_copy, ours.plaintext))
_NOT_READ_BACK = _with("--verify", "none")
_NBDKIT_NBDCOPY = Contestant(_NBDCOPY, peers.nbdkit_nbdcopy, ("nbdkit", "nbdcopy"))

SCENARIOS = (
    Scenario(
        "first-copy",
        "a first copy of the image",
        _NBDCOPY,
        (
            _PLAINTEXT,
            _NOT_READ_BACK,
            _NBDKIT_NBDCOPY,
            Contestant("p2v-sync TLS", partial(ours.first_copy, ours.tcp)),
            Contestant("nbdcopy→qemu-nbd", peers.nbdcopy_qemu_nbd, ("nbdcopy", "qemu-nbd")),
            Contestant("p2v-sync ssh", partial(ours.first_copy, ours.ssh), _SSH),
            Contestant("dd|zstd|ssh", peers.dd_zstd_ssh, ("zstd", *_SSH)),
            Contestant("p2v-sync ssh in-band", partial(ours.first_copy, _ssh_in_band), _SSH),
            Contestant("dd|ssh", peers.dd_ssh, _SSH),
            Contestant("dd|nc", peers.dd_nc, ("nc",)),
        ),
    ),
    Scenario(
        "full-copy",
        "a first copy of an image of the same size that is all data",
        _NBDCOPY,
        tuple(map(_without_holes, (_PLAINTEXT, _NOT_READ_BACK, _NBDKIT_NBDCOPY))),
    ),
    Scenario(
        "unchanged",
        "a second pass, nothing changed",
        "dd of=/dev/null",
        (
            Contestant("p2v-sync", ours.unchanged),
            Contestant("dd of=/dev/null", peers.read_source),
            Contestant(
                "blocksync-fast --make-delta", peers.blocksync_fast_unchanged, ("blocksync-fast",)
            ),
            Contestant("p2v-sync, bytes counted", partial(ours.counted, False)),
        ),
    ),
    Scenario(
        "manifest-lost",
        "a second pass, the target is digested again",
        "read source",
        (
            Contestant("p2v-sync", ours.manifest_lost),
            Contestant("read source", peers.read_source),
            Contestant("read target", peers.read_target),
        ),
    ),
    Scenario(
        "changed-pages",
        "a second pass, 1 % of the 4 KiB pages changed at random",
        "rsync --inplace",
        (
            Contestant("p2v-sync ssh", partial(ours.changed_pages, ours.ssh), _SSH),
            Contestant("rsync --inplace", peers.rsync, ("rsync", *_SSH)),
            Contestant("bdsync", peers.bdsync, ("bdsync", *_SSH)),
            Contestant("blocksync-fast", peers.blocksync_fast, _BLOCKSYNC),
            Contestant("p2v-sync, bytes counted", partial(ours.counted, True)),
        ),
    ),
    Scenario(
        "durability",
        "a first copy, with fsync and without",
        "p2v-sync without fsync",
        (
            Contestant("p2v-sync", partial(ours.durability, True)),
            Contestant("p2v-sync without fsync", partial(ours.durability, False)),
        ),
    ),
    Scenario(
        "long-link",
        "a link of 100 MB/s, with a round trip of 50 ms and with none",
        "the link alone",
        (
            Contestant("the link alone", partial(ours.bare_link, 0.0)),
            Contestant("the link alone, 50 ms", partial(ours.bare_link, LINK_DELAY_S)),
            Contestant("p2v-sync", partial(ours.long_link, 0.0, False)),
            Contestant("p2v-sync, 50 ms", partial(ours.long_link, LINK_DELAY_S, False)),
            Contestant("p2v-sync incremental", partial(ours.long_link, 0.0, True)),
            Contestant("p2v-sync incremental, 50 ms", partial(ours.long_link, LINK_DELAY_S, True)),
        ),
    ),
    Scenario(
        "sparse",
        "a first copy of 8 TiB; a quarter of the image's size is data",
        "p2v-sync, the data alone",
        (
            Contestant("p2v-sync, the data alone", partial(ours.sparse, 0)),
            Contestant("p2v-sync", partial(ours.sparse, SPARSE_SIZE)),
        ),
    ),
    Scenario(
        "tuning",
        "a first copy with other sizes; what wins is what p2v-sync does without being asked",
        "p2v-sync plaintext --block-size 256K",
        (
            *(_with("--block-size", size) for size in ("64K", "128K", "256K", "512K", "1M")),
            *(_with("--streams", number) for number in ("1", "2", "4")),
        ),
    ),
)


def chosen(scenario: Scenario, only: list[str]) -> list[Contestant]:
    """Those whose ``scenario/name`` contains one of ``only``; all where nothing is asked for."""
    return [
        contestant
        for contestant in scenario.contestants
        if not only or any(text in f"{scenario.name}/{contestant.name}" for text in only)
    ]
