import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from recplug.adapters.factors.llm.log import AnswerLog, Call, Entry, Usage
from recplug.plugins.errors import RecplugError

ENTRY = Entry('{"grün": ["ja"]}', "ok", "m-1", "host:1", "strict", "2026-01-01")
CALL = Call("stop", "{}", 100, 20, 2, "m-1", "2026-01-01T00:00:00")


def refused(path):
    with pytest.raises(RecplugError) as caught:
        AnswerLog(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_was_put_is_there_after_reopening(tmp_path):
    path = tmp_path / "new" / "a.sqlite"
    with AnswerLog(path) as log:
        log.put({"k": ENTRY, "l": Entry("", "failed", "", "", "", "")})
        log.record(CALL)
        log.record(CALL)
    with AnswerLog(path) as log:
        assert log.get("k") == ENTRY
        assert log.get("nothing") is None
        assert log.find("") == {"k": ENTRY, "l": Entry("", "failed", "", "", "", "")}
        assert log.find("k") == {"k": ENTRY}
        assert log.usage() == Usage(2, 4, 200, 40)
        assert log.usage().tokens == 240


def test_a_new_log_has_cost_nothing(tmp_path):
    with AnswerLog(tmp_path / "a.sqlite") as log:
        assert log.usage() == Usage(0, 0, 0, 0)
        assert log.find("") == {}


def test_a_later_entry_takes_the_place_of_an_earlier_one(tmp_path):
    with AnswerLog(tmp_path / "a.sqlite") as log:
        log.put({"k": Entry("", "failed", "", "", "", "")})
        log.put({"k": ENTRY})
        assert log.get("k") == ENTRY


def test_entries_are_put_all_or_none(tmp_path):
    with AnswerLog(tmp_path / "a.sqlite") as log:
        with pytest.raises(sqlite3.Error):
            log._file.executemany("INSERT INTO nowhere VALUES (?)", [("x",)])
        with pytest.raises((sqlite3.Error, RecplugError)):
            log.put({"k": ENTRY, "l": Entry(object(), "ok", "", "", "", "")})
        assert log.get("k") is None


def test_a_second_process_is_refused_and_gets_in_when_the_first_is_killed(tmp_path):
    path = tmp_path / "a.sqlite"
    code = (
        "import sys, time\n"
        "from recplug.adapters.factors.llm.log import AnswerLog, Entry\n"
        "log = AnswerLog(sys.argv[1])\n"
        "for i in range(50): log.put({f'k{i}': Entry(str(i), 'ok', '', '', '', '')})\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout.readline() == b"ready\n"
            assert "in use by another run" in refused(path)
        finally:
            os.kill(child.pid, signal.SIGKILL)
    with AnswerLog(path) as log:
        assert [log.get(f"k{i}").text for i in range(50)] == [str(i) for i in range(50)]


def test_a_second_log_in_the_same_process_is_refused(tmp_path):
    with AnswerLog(tmp_path / "a.sqlite"):
        assert "in use" in refused(tmp_path / "a.sqlite")


@pytest.mark.parametrize("damage", ["text", "header", "middle"])
def test_a_damaged_file_is_told_in_one_line_and_left_as_it_is(tmp_path, damage):
    path = tmp_path / "a.sqlite"
    with AnswerLog(path) as log:
        log.put({f"key number {i}": ENTRY for i in range(500)})
    data = bytearray(path.read_bytes())
    if damage == "text":
        data = bytearray(b"this is no database, but it is long enough to look like one" * 20)
    elif damage == "header":
        data[:20] = b"\xff" * 20
    else:
        data[8192 : len(data) - 4096] = b"\x55" * (len(data) - 12288)
    path.write_bytes(data)
    assert "damaged" in refused(path)
    assert path.read_bytes() == data


def test_another_program_s_database_is_refused(tmp_path):
    path = tmp_path / "a.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    assert "not a log" in refused(path)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "a.sqlite")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder")
