"""What was found and what was chosen, for programs: JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from p2v_sync import __version__
from p2v_sync.device.machine import Machine
from p2v_sync.fixup.guest import Guest
from p2v_sync.fixup.plan import Finding
from p2v_sync.vm.definition import Definitions

# Raised when a field changes its meaning or goes; new ones may come at any time.
SCHEMA = 1


@dataclass(frozen=True)
class Facts:
    """``guest``: None when nobody looked; ``findings``: of the plan."""

    machine: Machine
    guest: Guest | None = None
    findings: Sequence[Finding] = ()


def to_json(definitions: Definitions, facts: Facts) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "p2v_sync": __version__,
        "machine": facts.machine.to_json(),
        "guest": None if facts.guest is None else facts.guest.to_json(),
        "findings": [finding._asdict() for finding in facts.findings],
        "definitions": {
            "recommended": definitions.recommended.to_json(),
            "compat": definitions.compat.to_json(),
        },
    }


def write(definitions: Definitions, facts: Facts) -> bytes:
    """ASCII, so that nothing a machine calls itself does anything to a terminal."""
    return (json.dumps(to_json(definitions, facts), indent=2) + "\n").encode("ascii")
