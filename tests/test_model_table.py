"""tools/model_table.py: the check sums and accuracies of the paper."""

import pytest
from helpers import REPOSITORY, call

from models import BLOCKS


@pytest.fixture(scope="module")
def table() -> str:
    process = call("tools/model_table.py")
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize(
    ("model", "parameters", "multiply_adds"),
    [
        (["GST", "2", "2"], 23.86, 32.7),
        (["GST", "4", "2"], 21.04, 29.0),
        (["GST", "8", "2"], 19.62, 27.2),
        (["GST", "2", "1"], 35.18, 47.5),
        (["GST", "4", "1"], 29.52, 40.1),
        (["GST", "8", "1"], 26.69, 36.4),
        (["C2D", "", ""], 23.86, 32.7),
        (["C3D", "", ""], 46.50, 62.3),
        (["S3D", "", ""], 27.64, 37.6),
        (["TSM", "", ""], 23.86, 32.7),
    ],
)
def test_costs_of_the_paper(table, model, parameters, multiply_adds):
    ((*_, found, of_8, of_16, _, _),) = [row for row in rows_of(table) if row[:3] == model]
    assert found == f"{parameters:.2f} M"
    assert of_8 == f"{multiply_adds:.1f} G"
    assert float(of_16.removesuffix(" G")) == pytest.approx(2 * multiply_adds, abs=0.1001)


def test_accuracies_of_the_paper(table):
    found = {tuple(row[:3]): row[-2:] for row in rows_of(table) if any(row[-2:])}
    assert found == {
        ("GST", "4", "2"): ["47.0 / 61.6", "48.6 / 62.6"],
        ("GST", "4", "1"): ["47.7 / 62.0", ""],
    }
    assert {row[0] for row in rows_of(table)} == set(BLOCKS)


def test_page_has_the_same_table(table):
    assert table in (REPOSITORY / "docs" / "REFERENCE.md").read_text(encoding="utf-8")
