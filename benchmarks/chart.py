"""The chart of the README: a bar for each target, as the share of what it allows.  Pure."""

from collections.abc import Iterator, Sequence
from html import escape

from benchmarks.targets import Row

_LINE, _TOP, _FOOT = 24, 46, 34  # heights
_NAMES, _BARS, _FIGURES = 250, 270, 460  # widths
_MOST = 3.0  # a longer bar is cut off
_SIZE = _NAMES + _BARS + _FIGURES

# Without a background of its own it lies on the reader's, which is light or dark.
_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 } .small { font-size: 11px; fill: #57606a }
.met { fill: #2da44e } .missed { fill: #cf222e } .line { stroke: #57606a; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .line { stroke: #9198a1 }
  .met { fill: #3fb950 } .missed { fill: #f85149 }
}"""


def draw(rows: Sequence[Row], title: str, foot: str) -> str:
    """An SVG document; the dashed line is the target, and shorter is better."""
    height = _TOP + _LINE * len(rows) + _FOOT
    most = min(_MOST, max([1.5, *(row.share for row in rows if row.share is not None)]))
    at_target = _NAMES + _BARS / most
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE} {height}" '
        f'width="{_SIZE}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        _text(8, 20, title, "title"),
        _text(at_target, _TOP - 8, "target", "small", "middle"),
    ]
    for number, row in enumerate(rows):
        lines += _bar(row, _TOP + _LINE * number, most)
    lines += [
        f'<line class="line" x1="{at_target:.1f}" y1="{_TOP - 4}" x2="{at_target:.1f}" '
        f'y2="{height - _FOOT}"/>',
        _text(8, height - 12, foot, "small"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _bar(row: Row, top: int, most: float) -> Iterator[str]:
    base = top + 16
    yield _text(_NAMES - 10, base, row.work, anchor="end")
    if row.share is not None:
        width = max(2.0, _BARS * min(row.share, most) / most)
        kind = "met" if row.verdict == "met" else "missed"
        place = f'x="{_NAMES}" y="{top + 4}" width="{width:.1f}" height="16"'
        yield f'<rect class="{kind}" {place} rx="2"/>'
    beyond = " »" if row.share is not None and row.share > most else ""
    yield _text(_NAMES + _BARS + 10, base, f"{beyond} {row.value}  ({row.goal})".strip())


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
