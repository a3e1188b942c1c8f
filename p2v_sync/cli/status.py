"""``p2v-sync status``: where every job stands, from the ledger alone, also while a run is going."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from p2v_sync.state.ledger import Ledger, job_not_found
from p2v_sync.state.overview import DiskOverview, JobOverview, PassState
from p2v_sync.state.paths import default_state_dir
from p2v_sync.units import format_duration, format_size

_DELTAS = {
    "sent": "sent, not applied",
    "in-place": "applied in place",
    "qcow2": "applied as a qcow2",
    "virt-v2v": "converted by virt-v2v, as a qcow2",
}


@click.command()
@click.argument("job", required=False)
@click.option(
    "--state",
    "state_dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory of the ledger.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each disk.")
def status(job: str | None, state_dir: Path | None, as_json: bool) -> None:
    """Show where all jobs, or JOB alone, stand.

    Works at any time, also while a sync is running.
    """
    state_dir = state_dir or default_state_dir()
    jobs = _overview(state_dir, job)
    if not jobs:
        # On stderr for --json: a program that reads the lines gets none.
        click.echo(
            f"No jobs in {state_dir} yet. Begin one with: p2v-sync sync SOURCE TARGET", err=as_json
        )
    lines = _json_lines if as_json else _text_lines
    for one in jobs:
        for line in lines(one):
            click.echo(line)


def _overview(state_dir: Path, job: str | None) -> list[JobOverview]:
    ledger = Ledger.look(state_dir)
    if ledger is not None:
        with ledger:
            return ledger.overview(job)
    if job is not None:
        raise job_not_found(job, [])
    return []


def _json_lines(job: JobOverview) -> Iterator[str]:
    for disk in job.disks:
        yield json.dumps(_as_json(job, disk))


def _as_json(job: JobOverview, disk: DiskOverview) -> dict[str, Any]:
    """Sizes in bytes, times ISO-8601 UTC; null where there is nothing yet.  Stable."""
    newest = disk.newest
    return {
        "job": job.name,
        "target": job.target,
        "running": job.is_running,
        "disk": disk.name,
        "path": disk.path,
        "size": disk.size,
        "pass": newest and newest.number,
        "kind": newest and newest.kind,
        "state": disk.state.value,
        "done": disk.done,
        "percent": round(disk.percent, 1),
        "sent": newest.counters.sent if newest else 0,
        "wire": newest.counters.wire if newest else 0,
        "unreadable": disk.unreadable,
        "last_checkpoint": disk.last_checkpoint,
        "last_error": disk.last_error,
        "used_only": disk.used_only,
        "delta": disk.delta,
        "cutover_allowed": disk.cutover_refusal is None,
        "cutover_refusal": disk.cutover_refusal,
        "next_pass_s": None if disk.next_pass_s is None else round(disk.next_pass_s, 1),
    }


def _text_lines(job: JobOverview) -> Iterator[str]:
    yield f"{job.name} -> {job.target}  ({'running' if job.is_running else 'not running'})"
    for disk in job.disks:
        yield f"  {disk.name}  {format_size(disk.size)}  {_pass_text(disk)}"
        for label, text in _details(disk):
            yield f"      {label:<16} {text}"


def _pass_text(disk: DiskOverview) -> str:
    if disk.newest is None:
        return "no pass yet"
    return f"pass {disk.newest.number} ({disk.newest.kind}): {_state_text(disk)}"


def _state_text(disk: DiskOverview) -> str:
    if disk.state is not PassState.COMPLETE or not disk.unreadable:
        return disk.state.value
    parts = "1 part" if disk.unreadable_parts == 1 else f"{disk.unreadable_parts} parts"
    return f"complete, but {parts} ({format_size(disk.unreadable)}) could not be read"


def _details(disk: DiskOverview) -> Iterator[tuple[str, str]]:
    if disk.newest is not None:
        yield "done", f"{format_size(disk.done)}, {disk.percent:.1f} %"
        yield "sent", format_size(disk.newest.counters.sent)
    if disk.used_only:
        yield "scope", "only what the file systems use (--used-only)"
    if disk.last_checkpoint is not None:
        yield "last checkpoint", disk.last_checkpoint
    if disk.last_error is not None:
        yield "last error", disk.last_error
    if disk.next_pass_s is not None:
        yield "next pass", f"about {format_duration(disk.next_pass_s)}"
    if disk.delta is not None:
        yield "delta", _DELTAS.get(disk.delta, disk.delta)
    yield "cutover", "possible" if disk.cutover_refusal is None else f"no: {disk.cutover_refusal}"
