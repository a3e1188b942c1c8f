"""The others: how each does the same work, with the options that its own documentation gives."""

import time
from collections.abc import Sequence

from benchmarks.contest import Sample, Stage
from benchmarks.image import copy_sparse
from benchmarks.processes import Program, find, free_port, pipeline, run, serving


def _seconds(program: Program) -> Sample:
    return {"seconds": program.seconds}


def _dd(stage: Stage) -> str:
    return f"dd if={stage.source} bs=1M status=none"


# First copies


def dd_nc(stage: Stage) -> Sample:
    """Until the listening end has written the last byte and ended."""
    port, replica = free_port(), stage.scratch / "replica.img"
    server = ["bash", "-c", f"exec nc -l 127.0.0.1 {port} > {replica}"]
    with serving(server, port) as receiver:
        began = time.monotonic()
        pipeline(f"{_dd(stage)} | nc -N 127.0.0.1 {port}")
        receiver.wait()
        seconds = time.monotonic() - began
    stage.check(replica)
    return {"seconds": seconds}


def dd_ssh(stage: Stage) -> Sample:
    replica = stage.scratch / "replica.img"
    program = pipeline(f"{_dd(stage)} | {stage.ssh_host.ssh} 'cat > {replica}'")
    stage.check(replica)
    return _seconds(program)


def dd_zstd_ssh(stage: Stage) -> Sample:
    replica = stage.scratch / "replica.img"
    write = f"dd of={replica} bs=1M iflag=fullblock conv=sparse status=none"
    remote = f"'zstd -q -d -c | {write}'"
    program = pipeline(f"{_dd(stage)} | zstd -q -1 -c | {stage.ssh_host.ssh} {remote}")
    stage.check(replica)
    return _seconds(program)


def nbdkit_nbdcopy(stage: Stage) -> Sample:
    """The target pulls."""
    server = ["nbdkit", "--foreground", "--ipaddr", "127.0.0.1", "--port"]
    return _nbd(stage, server, ["file", str(stage.source)], pull=True)


def nbdcopy_qemu_nbd(stage: Stage) -> Sample:
    """The source pushes."""
    server = ["qemu-nbd", "--format", "raw", "--shared", "4", "--persistent", "--discard", "unmap"]
    server += ["--bind", "127.0.0.1", "--port"]
    return _nbd(stage, server, [str(stage.scratch / "replica.img")], pull=False)


def _nbd(stage: Stage, server: Sequence[str], file: Sequence[str], *, pull: bool) -> Sample:
    port, replica = free_port(), stage.scratch / "replica.img"
    with replica.open("wb") as new:
        new.truncate(stage.size)
    url = f"nbd://127.0.0.1:{port}"
    ends = [url, str(replica)] if pull else [str(stage.source), url]
    with serving([*server, str(port), *file], port):
        program, _ = run(["nbdcopy", "--destination-is-zero", *ends])
    stage.check(replica)
    return _seconds(program)


# What changed since


def rsync(stage: Stage) -> Sample:
    replica = stage.scratch / "replica.img"
    copy_sparse(stage.source, replica)
    argv = ["rsync", "--inplace", "--no-whole-file", "--ignore-times"]
    argv += ["--rsh", stage.ssh_host.shell, str(stage.source), f"{stage.ssh_host.name}:{replica}"]
    with stage.changed_source():
        program, _ = run(argv)
        stage.check(replica)
    return _seconds(program)


def bdsync(stage: Stage) -> Sample:
    replica = stage.scratch / "replica.img"
    copy_sparse(stage.source, replica)
    tool, ssh = find("bdsync"), stage.ssh_host.ssh
    diff = f"{tool} --zeroblocks '{ssh} {tool} --server' {stage.source} {replica}"
    with stage.changed_source():
        program = pipeline(f"{diff} | {ssh} '{tool} --patch={replica}'")
        stage.check(replica)
    return _seconds(program)


def blocksync_fast(stage: Stage) -> Sample:
    replica = stage.scratch / "replica.img"
    copy_sparse(stage.source, replica)
    make_delta = _blocksync_fast_delta(stage)
    tool = find("blocksync-fast")
    apply = f"{stage.ssh_host.ssh} '{tool} --apply-delta --silent -d {replica}'"
    with stage.changed_source():
        program = pipeline(f"{make_delta} | {apply}")
        stage.check(replica)
    return _seconds(program)


def blocksync_fast_unchanged(stage: Stage) -> Sample:
    return _seconds(pipeline(f"{_blocksync_fast_delta(stage)} > {stage.scratch}/delta"))


def _blocksync_fast_delta(stage: Stage) -> str:
    """The command; the digest file that it compares with is there, as after an earlier copy."""
    options = f"--silent --algo=XXH3 -s {stage.source} -f {stage.scratch}/digest"
    pipeline(f"blocksync-fast --make-digest {options}")
    return f"blocksync-fast --make-delta {options}"


# Reading alone


def read_source(stage: Stage) -> Sample:
    return _seconds(pipeline(f"dd if={stage.source} of=/dev/null bs=1M status=none"))


def read_target(stage: Stage) -> Sample:
    replica = stage.scratch / "replica.img"
    copy_sparse(stage.source, replica)
    return _seconds(pipeline(f"dd if={replica} of=/dev/null bs=1M status=none"))
