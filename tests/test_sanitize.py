"""Text from outside in messages and reports."""

import pytest

from mesa_lib.store.sanitize import MAX_LENGTH, sanitize, sanitize_list


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words, é", "plain words, é"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("two\nlines\r\ttab", r"two\nlines\r\ttab"),
        ("\u202egpj.exe", r"\u202egpj.exe"),  # shown from right to left: exe.jpg
        ("\ud800", r"\ud800"),  # half of a character
        ("", ""),
    ],
)
def test_what_cannot_be_printed_is_escaped(text, shown):
    assert sanitize(text) == shown and sanitize(text).isprintable()


@pytest.mark.parametrize("length", [MAX_LENGTH - 1, MAX_LENGTH, MAX_LENGTH + 1, 1000])
def test_long_text_is_shortened_to_a_line(length):
    shown = sanitize("x" * length)
    assert len(shown) == min(length, MAX_LENGTH) and shown.endswith("...") is (length > MAX_LENGTH)
    assert len(sanitize("x" * length, 20)) == 20


def test_lists_show_their_first_entries():
    assert sanitize_list(["a", "b"]) == "a, b" and sanitize_list([]) == ""
    assert sanitize_list(["a", "b", "c", "d\n"]) == "a, b, c ..."
    assert sanitize_list(["a\n", "b"], most=1) == r"a\n ..."
