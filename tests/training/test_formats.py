"""Texts in other formats than plain UTF-8: CSV, other keys of JSON lines, UTF-16, and no text."""

import io
import json
import os
import tracemalloc

import pytest

from training import corpus, formats


def texts(path, keep, **options):
    """Return the texts that training and evaluating would read."""
    (found,) = corpus.find_texts([path], "", keep, **options)
    (parts, _) = corpus.split_files([found], 0.0)
    pieces = [[]]
    for piece in corpus.read_texts(parts):
        if piece is None:
            pieces.append([])
        else:
            pieces[-1].append(piece)
    return ["".join(piece) for piece in pieces]


CSV = '\ufefftext,label\r\n"To be, or\n not",1\r\n"say ""no""",2\r\n\r\n'


def test_a_column_of_a_csv_file_has_the_texts(tmp_path):
    (tmp_path / "a.csv").write_bytes(CSV.encode())
    expected = ["To be, or\n not", 'say "no"']
    assert texts(tmp_path / "a.csv", tmp_path / "keep", text_column="text") == expected
    assert texts(tmp_path / "a.csv", tmp_path / "keep", text_column="label") == ["1", "2"]
    (tmp_path / "b.CSV").write_text("words\nlow\nlower\n")
    assert texts(tmp_path / "b.CSV", tmp_path / "keep") == ["low", "lower"]
    (tmp_path / "c.tsv").write_text("id\twords\n1\tlow, lower\n")
    assert texts(tmp_path / "c.tsv", tmp_path / "keep", text_column="words") == ["low, lower"]


@pytest.mark.parametrize(
    "content, column, match",
    [
        (CSV, None, "its columns are text, label: choose one with --text_column"),
        (CSV, "words", "it has no column 'words'; its columns are text, label"),
        ("id;text\n1;low\n", None, "its only column is 'id;text': separate columns with ','"),
        ("id,text\n1,low\n2\n", "text", "line 3 has only 1 columns"),
        ("", None, "it holds no text"),
        ("text\n", None, "it holds no text"),
        ('text\n"open', None, "a.csv: line 2: unexpected end of data"),
        ('text\nlow\n"a"b\n', None, "a.csv: line 3: .* expected after"),
        ("text\n" + "x" * 100, None, "line 2 has more than 64 characters"),
        ("text\n\udcff", None, "a.csv is not text in utf-8"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_refused_in_one_line(
    content, column, match, tmp_path, monkeypatch
):
    monkeypatch.setattr(formats, "MAX_FIELD", 64)
    (tmp_path / "a.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=match) as error:
        texts(tmp_path / "a.csv", tmp_path / "keep", text_column=column)
    assert str(tmp_path / "a.csv") in str(error.value) and "\n" not in str(error.value)


def test_another_key_of_json_lines_has_the_texts(tmp_path):
    rows = [{"body": "low", "text": 1}, {"body": "low\r\nlower"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert texts(tmp_path / "a.jsonl", tmp_path / "keep", text_key="body") == ["low", "low\nlower"]
    with pytest.raises(ValueError, match='a.jsonl: .*not an object with a string "text"'):
        texts(tmp_path / "a.jsonl", tmp_path / "keep")
    with pytest.raises(ValueError, match='a.jsonl: line 1 is not an object with a string "words"'):
        texts(tmp_path / "a.jsonl", tmp_path / "keep", text_key="words")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_utf_16_is_known_by_its_byte_order_mark(encoding, suffix, tmp_path):
    content = {".txt": "naïve ☃ 😀\r\nlow", ".jsonl": '{"text": "naïve ☃ 😀\\nlow"}'}
    content[".csv"] = 'text\r\n"naïve ☃ 😀\r\nlow"\r\n'
    mark = "" if encoding == "utf-16" else "\ufeff"
    (tmp_path / f"a{suffix}").write_bytes((mark + content[suffix]).encode(encoding))
    assert texts(tmp_path / f"a{suffix}", tmp_path / "keep") == ["naïve ☃ 😀\nlow"]


def test_utf_16_that_is_cut_off_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("low".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match="a.txt is not text in utf-16: .*truncated"):
        texts(tmp_path / "a.txt", tmp_path / "keep")


@pytest.mark.parametrize(
    "start, kind",
    [
        (b"PK\3\4\x14\0", r"a zip archive \(such as .docx or .epub\)"),
        (b"PAR1\x15", "a parquet file"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        ("low".encode("utf-32"), "text in UTF-32"),
    ],
)
def test_what_is_not_a_text_is_named_by_its_kind(start, kind, tmp_path):
    (tmp_path / "a.txt").write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match=f"a.txt is {kind}, not a text"):
        texts(tmp_path / "a.txt", tmp_path / "keep")


@pytest.mark.parametrize("data", [b"\xfd7zXZ\0", "low".encode("utf-16-le"), b"SQLite format 3\0"])
def test_a_file_with_zero_bytes_is_not_a_text(data, tmp_path):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match="a.txt has zero bytes, so it is not a text"):
        texts(tmp_path / "a.txt", tmp_path / "keep")


def test_a_pipe_may_be_utf_16_and_errors_call_it_by_its_name(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.write(write, "naïve\r\nlow".encode("utf-16"))
    os.close(write)
    assert texts(f"/dev/fd/{read}", tmp_path / "keep") == ["naïve\nlow"]
    os.close(read)
    monkeypatch.setattr(corpus.cli, "open_bytes", lambda name: io.BytesIO(b"PAR1"))
    with pytest.raises(ValueError, match="^standard input is a parquet file"):
        texts("-", tmp_path / "other")


def test_a_column_without_a_table_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("low")
    with pytest.raises(ValueError, match="--text_column has no effect: no text is a .csv"):
        texts(tmp_path / "a.txt", tmp_path / "keep", text_column="text")


def test_plain_text_is_not_copied_and_its_line_breaks_become_those_of_unix(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"low\r\nlower\r\n\r\n<|endoftext|>\r\nlow\rest\r\n")
    assert texts(tmp_path / "a.txt", tmp_path / "keep") == ["low\nlower\n\n", "low\rest\n"]
    assert not (tmp_path / "keep").exists()


def test_an_empty_file_among_others_is_ignored(tmp_path):
    for name, text in (("a", ""), ("b", "low"), ("c", "")):
        (tmp_path / name).write_text(text)
    names = [tmp_path / name for name in "abc"]
    train, val = corpus.split_files(names, 0.5)
    assert {part[0] for part in train + val} == {tmp_path / "b"}
    with pytest.raises(ValueError, match="a: the file is empty"):
        corpus.split_files([tmp_path / "a", tmp_path / "c"], 0.5)


def test_memory_does_not_depend_on_the_length_of_a_csv_file(tmp_path):
    with open(tmp_path / "a.csv", "w") as file:
        file.write("text,n\n")
        for i in range(200_000):
            file.write(f'"low, lower and lowest number",{i}\n')
    tracemalloc.start()
    formats.plain_text(tmp_path / "a.csv", tmp_path / "copy", column="text")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "copy-utf8.jsonl").stat().st_size > 8e6 and peak < 1e6
