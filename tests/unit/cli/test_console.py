import json

import pytest

from services.cli.console import moment, print_json_or_say, print_json_or_table


def test_a_moment_is_cut_to_the_second_unless_told_otherwise() -> None:
    assert moment(1790000001) == "2026-09-21T14:13:21Z"
    assert moment(1790000001.9996) == "2026-09-21T14:13:21Z"
    assert moment(1790000001.5, "milliseconds") == "2026-09-21T14:13:21.500Z"


def test_a_sentence_leaves_stdout_empty_and_a_document_leaves_stderr_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_json_or_say({"ok": True}, False, "it is done")
    assert capsys.readouterr() == ("", "it is done\n")
    print_json_or_say({"ok": True}, True, "it is done")
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"ok": True}, "")


def test_rows_are_made_for_a_table_only(capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"name": "web"}, {}]
    print_json_or_table(records, True, ("NAME",), ([record["name"]] for record in records))
    assert json.loads(capsys.readouterr().out) == records
    print_json_or_table(records, False, ("NAME",), ([record["name"]] for record in records[:1]))
    assert capsys.readouterr().out.split() == ["NAME", "web"]


def test_an_empty_table_is_a_sentence_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_json_or_table([], False, ("NAME",), [], empty="there is nothing")
    assert capsys.readouterr() == ("", "there is nothing\n")
