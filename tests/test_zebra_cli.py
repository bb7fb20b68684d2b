"""python -m dlm.data.zebra: a collection made, checked and shown; mistakes in one line, by the line of a file."""

import pytest

from dlm.data.zebra import __main__ as command


def test_make_check_and_show(tmp_path, called):
    file = tmp_path / "puzzles.txt"
    said = called(command.main, "make", "houses=3", "attributes=3", "puzzles=20", f"out={file}")
    assert "20 published 3x3 puzzles" in said and len(file.read_text().splitlines()) == 20
    assert "20 puzzles, each with exactly one solution" in called(command.main, "check", f"file={file}")
    line = file.read_text().splitlines()[0].split("  #")[0]
    said = called(command.main, "show", f"puzzle={line}")
    assert line in said and said.count("house") >= 9 and "elimination" in said
    assert called(command.main, "show", "houses=3", "attributes=3", "seed=4").startswith("3x3 ")


def test_what_is_wrong_with_a_collection_is_named_by_its_line(tmp_path, refused):
    good = "3x3 a1=h2; a2<a3; b1=a2; b2=a1; c1=b1; c2=b2"
    for bad, said in (
        ("3x3 a1=h2; a1=h3", ":3: no solution"),
        ("3x3 a1=h2", ":3: more than one solution"),
        ("3x3 a1=x2", ":3: 'a1=x2'"),
        ("3x3: a1=b2", ":3: begins with its size"),
    ):
        file = tmp_path / "puzzles.txt"
        file.write_text(f"# mine\n{good}  # easy\n{bad}\n")
        line = refused(command.main, "check", f"file={file}")
        assert f"{file}{said}" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["make", "check", "show"]),
        (["make", "houses=9"], ["houses=9"]),
        (["make", "puzzles=0"], ["puzzles"]),
        (["make", "style=hard"], ["style=hard"]),
        (["check"], ["file="]),
        (["check", "file=/nowhere/x.txt"], ["/nowhere/x.txt"]),
        (["show", "puzzle=123"], ["HOUSESxATTRIBUTES"]),
        (["show", "puzzle=3x3 a1=b1"], ["more than one solution"]),
        (["show", "colour=red"], ["colour"]),
    ],
    ids=str,
)
def test_mistakes_are_one_line(arguments, said, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(command.main, *arguments)
    assert all(word in line for word in said), line
    assert not list(tmp_path.iterdir())
