"""What is worth knowing about clock, labels and identity; nothing is changed."""

import re
from collections.abc import Iterator

from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity

_CLOCK_SETTINGS = (
    ("/etc/default/rcS", r"^UTC=[\"']?no"),
    ("/etc/sysconfig/clock", r"^UTC=[\"']?(false|no|0)|^HWCLOCK=[\"'].*--localtime"),
    ("/etc/conf.d/hwclock", r"^clock=[\"']?local"),
)
_TIME_SERVERS = (
    "/etc/ntp.conf",
    "/etc/chrony.conf",
    "/etc/chrony/chrony.conf",
    "/etc/ntpsec/ntp.conf",
)
_LOCAL_CLOCKS = r"^[ \t]*refclock\b|^[ \t]*server[ \t]+127\.127\.(?!1\.)\d+\."


class Clock:
    """The definition of the virtual machine sets its clock; here is what the guest takes it for."""

    key = "F52-clock"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        believed = believed_clock(draft)
        measured = context.machine.rtc
        if believed and measured and believed != measured:
            yield Finding(
                self.key,
                Severity.WARNING,
                f"the guest takes its hardware clock for {believed}, the machine's was {measured}",
                "look at the time after the first start",
            )
        elif believed == "localtime":
            text = "the guest's hardware clock is in local time: the virtual machine's must be, too"
            yield Finding(self.key, Severity.NOTE, text)
        for path in _TIME_SERVERS:
            if re.search(_LOCAL_CLOCKS, draft.text_or_empty(path), re.MULTILINE):
                yield Finding(
                    self.key,
                    Severity.WARNING,
                    f"{path} has a clock of the physical machine (GPS, PTP), which stays behind",
                    "name a time server of the network",
                )


def believed_clock(draft: Draft) -> str:
    """utc, localtime, or '' when the guest doesn't say; hwclock(8)."""
    third = draft.text_or_empty("/etc/adjtime").split("\n")[2:3]
    if third and third[0].strip() in ("UTC", "LOCAL"):
        return "utc" if third[0].strip() == "UTC" else "localtime"
    for path, pattern in _CLOCK_SETTINGS:
        text = draft.text_or_empty(path)
        if re.search(pattern, text, re.MULTILINE | re.IGNORECASE):
            return "localtime"
        if re.search(r"^(UTC|HWCLOCK|clock)=", text, re.MULTILINE):
            return "utc"
    return ""


class Labels:
    """Files that are rewritten keep their SELinux labels, new ones get their neighbours'."""

    key = "F53-labels"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        if context.guest.selinux == "enforcing" and draft.edits():
            yield Finding(
                self.key,
                Severity.NOTE,
                "SELinux is enforcing: labels stay, and new files get those of their neighbours",
                "touch /.autorelabel in the guest if something is denied",
            )


class Identity:
    """Things that are bound to the machine, or must not be there twice."""

    key = "F60-identity"

    _BOUND = (
        ("/etc/hostid", "the host id, which licences may be bound to"),
        ("/etc/iscsi/initiatorname.iscsi", "the iSCSI name"),
        ("/etc/krb5.keytab", "the keys of its Kerberos or domain account"),
        ("/var/lib/samba/private/secrets.tdb", "the keys of its domain account"),
    )
    _LICENCES = (
        "/opt/*/license.dat",
        "/usr/local/flexlm",
        "/opt/flexlm",
        "/etc/hasplm",
        "/opt/ibm/lm*",
    )

    def plan(self, draft: Draft, _context: Context) -> Iterator[Finding]:
        yield Finding(
            self.key,
            Severity.NOTE,
            "the virtual machine has the physical one's addresses and identity",
            "never run both in one network",
        )
        bound = [text for path, text in self._BOUND if draft.exists(path)]
        if bound:
            yield Finding(self.key, Severity.NOTE, f"not to be used twice: {', '.join(bound)}")
        licences = [path for pattern in self._LICENCES for path in draft.glob(pattern)]
        if licences:
            yield Finding(
                self.key,
                Severity.WARNING,
                f"licences may be bound to hardware: {', '.join(licences)}",
                "MACs and serial numbers stay, dongles and processors don't",
            )


FIXUPS: tuple[Fixup, ...] = (Clock(), Identity(), Labels())
