import csv
import io

from app.reconcile.usage_report import to_csv


def test_csv_has_a_header_even_without_rows() -> None:
    assert to_csv([], columns=["id", "cost"]) == "id,cost\r\n"


def test_csv_can_be_read_back() -> None:
    text = to_csv([{"a": 'x,"y"\n', "b": None, "c": True, "d": 3, "ignored": 1}], columns=["a", "b", "c", "d"])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["a", "b", "c", "d"], ['x,"y"\n', "", "true", "3"]]


def test_no_cell_is_a_formula_to_a_spreadsheet() -> None:
    text = to_csv([{"label": value} for value in ("=1+1", "+1", "-1", "@x", "\tx")], columns=["label"])
    cells = [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert cells == ["'=1+1", "'+1", "'-1", "'@x", "'\tx"]
