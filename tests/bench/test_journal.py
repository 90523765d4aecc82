"""The journal keeps what is finished, whatever happens to the process."""

import json

import pytest

from attnctl.bench.journal import FILE_NAME, Journal, key_of
from attnctl.errors import SettingError

RUN = {"settings": {"steps": 2}}


def entry(image: str, condition: str = "plain", **more):
    return {"id": image, "condition": condition, **more}


def opened(folder, run=RUN, *, resume=True):
    journal = Journal(folder, run)
    journal.open(resume=resume)
    return journal


def test_what_was_added_is_there_after_opening_again(tmp_path):
    opened(tmp_path).add([entry("1"), entry("2", seconds=0.5)])
    again = opened(tmp_path)
    assert again.get("plain", "2") == entry("2", seconds=0.5)
    assert again.get("plain", "3") is None
    assert again.get("steered", "2") is None


def test_a_line_that_was_cut_off_is_dropped_and_the_next_one_is_whole(tmp_path):
    opened(tmp_path).add([entry("1"), entry("2")])
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-7])
    again = opened(tmp_path)
    assert again.get("plain", "1")
    assert again.get("plain", "2") is None
    again.add([entry("3")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("id") for line in lines] == [None, "1", "3"]


def test_a_run_is_not_continued_unless_asked(tmp_path):
    opened(tmp_path, resume=False)
    with pytest.raises(SettingError, match="--resume"):
        opened(tmp_path, resume=False)


def test_another_run_is_not_continued(tmp_path):
    opened(tmp_path)
    with pytest.raises(SettingError, match="other settings"):
        opened(tmp_path, {"settings": {"steps": 3}})


def test_an_empty_journal_is_another_run(tmp_path):
    (tmp_path / FILE_NAME).write_text("")
    with pytest.raises(SettingError, match="other settings"):
        opened(tmp_path)


def test_what_is_forgotten_stays_forgotten(tmp_path):
    journal = opened(tmp_path)
    journal.add([entry("1"), entry("2")])
    journal.forget("plain", ["1", "7"])
    assert opened(tmp_path).get("plain", "1") is None
    assert opened(tmp_path).get("plain", "2")


def test_a_run_is_named_by_its_values_not_by_their_order():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
