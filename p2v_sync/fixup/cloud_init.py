"""cloud-init (F45): without the physical machine's source of metadata it would wait, then forget.

A new instance means new host keys, and the network configured anew.  Kept off only where what it
rendered is on the disk and goes on to count.
"""

from collections.abc import Iterator

from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity
from p2v_sync.fixup.services import runs_systemd

_DISABLED = "/etc/cloud/cloud-init.disabled"
_OWN = "/etc/cloud/cloud.cfg.d/99-p2v.cfg"
_RENDERED = (
    "/etc/netplan/*cloud-init*.yaml",
    "/etc/network/interfaces.d/*cloud-init*",
    "/etc/NetworkManager/system-connections/cloud-init-*",
    "/etc/systemd/network/*cloud-init*",
)
_RENDERED_IFCFG = "/etc/sysconfig/network-scripts/ifcfg-*"
_TEXT = """\
# The source of metadata stayed behind with the physical machine.
datasource_list: [ NoCloud, None ]
manual_cache_clean: true
preserve_hostname: true
network: {config: disabled}
"""


class CloudInit:
    """The guest stays the instance that it is."""

    key = "F45-cloud-init"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        if not draft.exists("/etc/cloud/cloud.cfg") or draft.exists(_DISABLED):
            return
        if runs_systemd(draft, context.guest) and _is_rendered(draft):
            draft.write(_DISABLED, "")
            text = "cloud-init is off: it would make the guest a new instance"
            hint = f"remove {_DISABLED} if the virtual machine has a source of metadata"
        else:
            draft.write(_OWN, _TEXT)
            text = "cloud-init looks for no metadata in the network, and changes no network"
            hint = f"remove {_OWN} if the virtual machine has a source of metadata"
        yield Finding(self.key, Severity.NOTE, text, hint)


def _is_rendered(draft: Draft) -> bool:
    if any(draft.glob(pattern) for pattern in _RENDERED):
        return True
    texts = map(draft.text_or_empty, draft.glob(_RENDERED_IFCFG))
    return any("Created by cloud-init" in text for text in texts)


FIXUPS: tuple[Fixup, ...] = (CloudInit(),)
