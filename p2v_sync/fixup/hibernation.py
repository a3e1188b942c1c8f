"""F65: a hibernated guest is not touched: what it resumes to would not know what we wrote."""

from collections.abc import Iterator

from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity


class Hibernation:
    """F65, before all others."""

    key = "F65-hibernated"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del draft
        swap = [each for each in context.storage if each.kind == "swsuspend"]
        if not swap and not context.guest.is_hibernated:
            return
        where = f" in {swap[0].kernel_name or swap[0].device}" if swap else ""
        yield Finding(
            self.key,
            Severity.FATAL,
            f"the guest is hibernated{where}: whatever is written to its files, resuming destroys",
            "start it, shut it down completely, and begin again",
        )


FIXUPS: tuple[Fixup, ...] = (Hibernation(),)
