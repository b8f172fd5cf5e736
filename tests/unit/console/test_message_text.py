"""Messages on the page: every character visible, fields as mappings, whatever the table is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.console.message_text import FIELDS_MAX, SHOWN_MAX, cut, shown, visible


@given(st.text())
def test_no_character_hides_or_moves_others(text: str) -> None:
    """What is shown is printable, or a line end or tab: no control, no mark that turns the writing, no lone surrogate."""
    assert all(character.isprintable() or character in "\n\t" for character in visible(text))


@given(st.binary(max_size=300), st.none() | st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text()))
def test_any_bytes_can_be_shown(data: bytes, stored: dict[str, object] | None) -> None:
    """No message breaks its page."""
    shown(data, stored, "")


def test_any_depth_can_be_shown() -> None:
    """Also where a value can be read, and not be written again or compared."""
    for depth in range(900, 1000):
        deep = "[" * depth + "]" * depth
        found = shown(b'{"user_id":"5","x":%s}' % deep.encode(), {"x": deep}, "users has this user_id with another x")
        assert found.text.startswith('{"user_id":"5","x":[[')


def test_a_long_text_is_cut_and_says_so() -> None:
    """A megabyte does not make a megabyte of page."""
    found = shown(json.dumps({"note": "x" * 1_000_000}).encode(), None, "")
    assert found.cut
    assert len(found.text) < SHOWN_MAX + 100
    assert found.editable is None
    assert "more characters" in (found.fields[0].message or "")
    assert cut("short") == "short"


def test_many_fields_are_counted() -> None:
    """So many fields that nobody reads them are counted."""
    found = shown(json.dumps({f"f{number}": number for number in range(FIELDS_MAX + 7)}).encode(), None, "")
    assert (len(found.fields), found.more_fields) == (FIELDS_MAX, 7)


def test_the_differing_fields_are_marked_for_any_table() -> None:
    """By what both sides say and what the detail names; a column may hold JSON; what is not stated is no difference."""
    stored = {"order_id": 7, "total_cents": 900, "items": '["a", "b"]', "placed_at": 1, "note": "n"}
    data = json.dumps({"order_id": 7, "total_cents": 901, "items": ["a", "b"], "extra": True}).encode()
    found = shown(data, stored, "this order is stored with another total_cents and note")
    assert [field.name for field in found.fields if field.differs] == ["total_cents", "note"]
    by_name = {field.name: field for field in found.fields}
    assert by_name["placed_at"].message is None
    assert by_name["extra"].stored is None


@pytest.mark.parametrize("data", [b"\xff{}", b'{"a": "\x00"}', b"x" * 100_001])
def test_what_a_form_would_change_is_not_edited_on_the_page(data: bytes) -> None:
    """What is no text, what a form drops, and what is too long, is corrected in a file."""
    assert shown(data, None, "").editable is None
