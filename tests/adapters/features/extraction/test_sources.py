import os

import pytest

from recplug.adapters.features.extraction import image_items, text_items
from recplug.adapters.plain_text import plain


@pytest.fixture
def write(tmp_path):
    """``write(name, *lines)`` into the folder of data set ``d``."""

    def written(name, *lines):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return tmp_path

    return written


def reasons(items):
    return {item.token: item.reason for item in items.missing}


def test_columns_are_joined_in_the_order_given(write):
    folder = write(
        "d.item",
        "item_id:token\ttitle:token_seq\tbrand:token",
        "a\tRed &amp; blue\tAcme",
        "b\t\tAcme",
        "c\tnan\tN/A",
        "d\t<b>Bold</b><br/>&lt;i&gt;twice&lt;/i&gt; 3 < 4\t",
        "a\tanother row\tof a",
        "\tno token\t",
        "e\tGrün  \u200b 椅子\t&nbsp;",
    )
    items = text_items(folder, "d", ["brand", "title"])
    assert dict(zip(items.tokens, items.contents, strict=True)) == {
        "a": "Acme. Red & blue",
        "b": "Acme",
        "d": "Bold twice 3 < 4",
        "e": "Grün 椅子",
    }
    assert reasons(items) == {"c": "no text"}
    assert items.source == "columns brand, title"
    assert text_items(folder, "d").contents == ("Red & blue", "Bold twice 3 < 4", "Grün 椅子")
    assert text_items(folder, "d", ["title", "brand"], separator=" | ").contents[0] == "Red & blue | Acme"
    assert text_items(folder, "d", ["brand", "brand"]).contents[0] == "Acme"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a<script>if (a<b) {x}</script>b<!-- c -->d", "a b d"),
        ("&amp;lt;b&amp;gt;x", "x"),
        ("I <3 U, 5<6 and 7>6", "I <3 U, 5<6 and 7>6"),
        ("a\x00b\u200bc\u2028d", "abc d"),
    ],
    ids=["hidden parts", "escaped twice", "no tags", "control characters"],
)
def test_plain(raw, expected):
    assert plain(raw) == expected == plain(expected)


def test_marks_tell_changed_texts(write):
    folder = write("d.item", "item_id:token\tt:token_seq", "a\tone", "b\ttwo", "c\tone")
    first = text_items(folder, "d").marks
    write("d.item", "item_id:token\tt:token_seq", "a\tone", "b\ttwO", "c\t one ")
    second = text_items(folder, "d").marks
    assert (first == second).all(axis=1).tolist() == [True, False, True]
    assert first[0].tolist() == first[2].tolist()


def test_wrong_text_columns_are_one_line(write, told, tmp_path):
    told(lambda: text_items(tmp_path, "d", ["title"]), "no ", "d.item", "item_id:token")
    folder = write("d.item", "item_id:token\ttitle:token_seq\tprice:float", "a\t\t3")
    told(lambda: text_items(folder, "d", ["titel"]), "no column 'titel'", "did you mean 'title'")
    told(lambda: text_items(folder, "d", ["zzz"]), "no column 'zzz'", "item_id, title, price")
    told(lambda: text_items(folder, "d"), "not one item has text in column title", "--columns")
    write("d.item", "item_id:token\tprice:float", "a\t3")
    told(lambda: text_items(folder, "d"), "no text column", "--columns")
    write("d.item", "id:token\ttitle:token_seq", "a\tx")
    told(lambda: text_items(folder, "d"), "no column 'item_id'")
    write("d.yaml", "ITEM_ID_FIELD: id")
    assert text_items(folder, "d").tokens == ("a",)


def test_pictures_by_token(tmp_path, write, told):
    folder = write("d.item", "item_id:token", "a", "b.c", "A", "x/y", "z")
    pictures = tmp_path / "p"
    told(lambda: image_items(folder, "d", pictures), "not a folder", "TOKEN.jpg")
    pictures.mkdir()
    told(lambda: image_items(folder, "d", pictures), "not one of the 5 items", "TOKEN.jpg")
    for name in ("a.JPG", "b.c.webp", "A.png", "other.png", "a.txt", "x.jpg"):
        (pictures / name).write_bytes(name.encode())
    (pictures / "z.png").mkdir()
    items = image_items(folder, "d", pictures)
    assert items.tokens == ("a", "b.c", "A")
    assert [os.path.basename(file) for file in items.contents] == ["a.JPG", "b.c.webp", "A.png"]
    assert items.marks[:, 0].tolist() == [5, 8, 5]
    assert items.marks[0, 1] == (pictures / "a.JPG").stat().st_mtime_ns
    assert reasons(items) == {"x/y": "no file can have a '/' in its name", "z": "no file"}
    (pictures / "a.png").write_bytes(b"")
    told(lambda: image_items(folder, "d", pictures), "a.JPG and a.png", "one picture an item")


def test_without_a_catalogue_the_interactions_name_the_items(tmp_path, write):
    (tmp_path / "p").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "p" / f"{name}.jpg").write_bytes(b"x")
    write("d.inter", "user_id:token\titem_id:token", "u\tb", "u\ta", "v\tb", "v\tq")
    assert image_items(tmp_path, "d", tmp_path / "p").tokens == ("b", "a")
    (tmp_path / "d.inter").unlink()
    for part, token in (("train", "c"), ("valid", "a"), ("test", "c")):
        write(f"d.{part}.inter", "user_id:token\titem_id:token", f"u\t{token}")
    assert image_items(tmp_path, "d", tmp_path / "p").tokens == ("c", "a")


def test_pictures_by_column(tmp_path, write, told):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "one.jpg").write_bytes(b"12345")
    os.mkfifo(tmp_path / "p" / "pipe")
    rows = ["a\tp/one.jpg", "b\tp/two.jpg", "c\t", "d\tp/pipe", "e\thttps://example.com/x.jpg", "f\tbad\0name"]
    folder = write("d.item", "item_id:token\tfile:token", *rows)
    items = image_items(folder, "d", "file")
    assert items.tokens == ("a", "e")
    assert items.contents == (str(tmp_path / "p" / "one.jpg"), "https://example.com/x.jpg")
    assert items.marks[0, 0] == 5
    assert reasons(items) == {"b": "no such file", "c": "none named", "d": "not a file", "f": "no such file"}
    assert items.source == "column file"
    told(lambda: image_items(folder, "d", "flie"), "not a folder", "did you mean 'file'")
    write("d.item", "item_id:token\tfile:token", "a\tone.jpg", "b\t")
    told(lambda: image_items(folder, "d", "file"), "not one of the 2 items", "'one.jpg'", str(tmp_path))


def test_a_column_goes_before_a_folder_of_its_name(tmp_path, write, monkeypatch):
    folder = write("d.item", "item_id:token\tpictures:token", "a\tpictures/x.jpg")
    (tmp_path / "pictures").mkdir()
    for name in ("a", "x"):
        (tmp_path / "pictures" / f"{name}.jpg").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    assert image_items(folder, "d", "pictures").contents == (str(tmp_path / "pictures" / "x.jpg"),)
    assert image_items(folder, "d", "./pictures").contents == ("pictures/a.jpg",)
