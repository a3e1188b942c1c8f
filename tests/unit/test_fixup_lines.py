"""Line-preserving edits: what is not meant stays to the byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.fixup.lines import (
    comment_out,
    map_lines,
    replace_field,
    split_lines,
    with_block,
)
from p2v_sync.fixup.shell_file import assignments, value_of, with_value

TEXTS = st.text(st.characters(max_codepoint=255))


@given(TEXTS)
def test_lines_are_the_text(text: str) -> None:
    assert "".join(split_lines(text)) == text
    assert map_lines(text, lambda line: line) == text


def test_only_newlines_end_lines() -> None:
    assert split_lines("a\x0bb\x85c\r\nd\re\n\nf") == ["a\x0bb\x85c\r\n", "d\re\n", "\n", "f"]


def test_one_line_changes_and_keeps_its_ending() -> None:
    text = "a\r\nb\r\nc"
    assert map_lines(text, lambda line: "B" if line == "b" else line) == "a\r\nB\r\nc"
    assert map_lines(text, lambda line: None if line == "c" else line) == "a\r\nb\r\n#p2v# c"
    assert comment_out("x\r\n") == "#p2v# x\r\n"


@given(TEXTS, st.lists(st.sampled_from(["x", "y z"])))
def test_a_block_is_there_once(text: str, lines: list[str]) -> None:
    once = with_block(text, "F01-x", lines)
    assert with_block(once, "F01-x", lines) == once
    assert once.startswith(text)
    without = with_block(once, "F01-x", [])
    assert without in (text, text + "\n", text + "\r\n")


def test_a_block_is_replaced_where_it_is() -> None:
    text = "a\n# BEGIN p2v k\nold\n# END p2v k\nb\n"
    assert with_block(text, "k", ["new"]) == "a\n# BEGIN p2v k\nnew\n# END p2v k\nb\n"
    begun = "a\n# BEGIN p2v k\nkept\n"
    assert with_block(begun, "k", ["new"]).startswith(begun), "no end, so not ours"


@pytest.mark.parametrize(
    ("line", "value", "wanted"),
    [
        ("/dev/sda1\t/\text4", "UUID=1", "UUID=1\t/\text4"),
        ("/dev/sda1      /  ext4", "UUID=123456", "UUID=123456    /  ext4"),
        ("/dev/sda1      /  ext4", "U", "U              /  ext4"),
        ("/dev/sda1  /  ext4", "UUID=0123456789", "UUID=0123456789 /  ext4"),
        ("  /dev/sda1 /\r\n", "X", "  X /\r\n"),
        ("/dev/sda1\n", "UUID=12", "UUID=12\n"),
    ],
)
def test_a_field_is_replaced_and_columns_stay(line: str, value: str, wanted: str) -> None:
    assert replace_field(line, 0, value) == wanted


def test_shell_assignments() -> None:
    text = 'a=1\n#b=2\n export c=\'x y\'\nd="p \\" q"\ne+=5\nf = 6\nd="last"\n'
    found = [(each.name, each.value) for each in assignments(text)]
    assert found == [("a", "1"), ("c", "x y"), ("d", 'p \\" q'), ("e", "5"), ("d", "last")]
    assert value_of(text, "d") == "last"
    assert value_of(text, "b") is None


@given(TEXTS, st.sampled_from(["", "x", "a b", 'q"$`\\', "it's"]))
def test_a_value_is_set_once_and_for_all(text: str, value: str) -> None:
    once = with_value(text, "NAME", value)
    assert with_value(once, "NAME", value) == once


def test_a_value_keeps_the_rest_of_its_line() -> None:
    assert with_value("A='x' # why\nB=1", "A", "y z") == 'A="y z" # why\nB=1'
    assert with_value("A=x # why\n", "A", "y") == "A=y # why\n"
    assert with_value("B=1", "A", "y") == "B=1\nA=y\n"
