"""The tables, and the same as JSON.  Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.contest import Results, Scenario
from benchmarks.targets import Row


def contestants_table(scenarios: Sequence[Scenario], results: Results) -> Iterator[str]:
    """Medians, each round, and the ratio to the reference of the scenario."""
    for scenario in scenarios:
        measured = results.samples.get(scenario.name, {})
        if measured:
            yield f"{scenario.name}: {scenario.title}; × is {scenario.reference}"
        for name, samples in measured.items():
            middle = results.median(scenario.name, name)
            ratio = " " * 8
            if results.has(scenario.name, scenario.reference):
                ratio = f"{middle / results.median(scenario.name, scenario.reference):6.2f} ×"
            each = " ".join(f"{sample['seconds']:.2f}" for sample in samples)
            yield f"  {name:28} {middle:8.2f} s {ratio}   ({each})"


def targets_table(rows: Sequence[Row]) -> Iterator[str]:
    cells = [("work", "target", "measured", "allowed", "")]
    cells += [(row.work, row.goal, row.value, row.limit, row.verdict) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()


def left_out(results: Results) -> Iterator[str]:
    for name, tools in results.missing.items():
        yield f"missing: {name} (no {', '.join(tools)} on PATH)"
    for name, reason in results.failed.items():
        yield f"FAILED: {name}: {reason}"


def as_json(results: Results, rows: Sequence[Row], conditions: Mapping[str, object]) -> str:
    """Lengths are bytes, ``share`` is of what is allowed, "samples" are by scenario, contestant."""
    document = {
        "conditions": conditions,
        "targets": [{**vars(row), "verdict": row.verdict} for row in rows],
        "missing": results.missing,
        "failed": results.failed,
        "medians": {
            scenario: {name: results.median(scenario, name) for name in measured}
            for scenario, measured in results.samples.items()
        },
        "samples": results.samples,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
