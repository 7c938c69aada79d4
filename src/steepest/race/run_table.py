"""Reads a CSV file that has one row for each run: see the section on imported runs in the protocol.

Every mistake in the file is one line that says where it is, what was expected and what to do.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from steepest.errors import BadCall
from steepest.race.protocol import FRESH
from steepest.tasks.user_file import MOST_WORST

MOST = 10_000
"""The largest number of runs."""
SEPARATORS = ",;\t"
NEEDED, TEST = ("entry", "seed"), "test"
OPTIONAL = ("unit", "diverged", "phase")
MEASURES = ("validation", "steps")
"""Columns that are shown beside the verdict."""
OWN = {"phase", "final_validation"}
"""Columns by which the runs.csv of a race is recognised."""
NO, YES = ("", "0", "0.0", "false", "no", "none"), ("1", "1.0", "true", "yes")
LISTED = 10
"""A message lists at most this many names."""
LONGEST = 40
"""A message shortens a name to this many characters."""


@dataclass(frozen=True)
class Source:
    """A file of runs, and what its numbers mean."""

    file: Path
    metric: str
    """The column that is judged."""
    maximize: bool
    proportion: bool = False
    """Whether the metric is a share. A metric that the file has in % is always a share."""

    def wrong(self, text: str, *lines: int) -> BadCall:
        """The error about these lines of the file."""
        many = "s" if len(lines) > 1 else ""
        where = f", line{many} {' and '.join(map(str, lines))}" if lines else ""
        return BadCall(f"'{self.file}'{where}: {text}")


@dataclass(frozen=True)
class Row:
    """One run as the file has it."""

    line: int
    entry: str
    unit: str
    seed: str
    text: str
    """The metric as it is written."""
    value: float = math.nan
    """The metric; a share is 0 to 1. nan if the file has no finite number."""
    percent: bool = False
    """Whether the metric is written in %."""
    diverged: str | None = None
    """Why the run diverged; None if it did not."""
    measures: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Runs:
    """The runs of a file, in its order."""

    rows: list[Row]
    unread: list[str]
    """Names of the columns that were not read."""
    units: bool
    """Whether there is a column `unit`."""
    own: bool
    """Whether the file is the runs.csv of a race."""
    proportion: bool
    """Whether the metric is a share."""
    sha256: str


def read(source: Source) -> Runs:
    """The runs in the file; only fresh runs if it is a race's runs.csv. BadCall for a mistake."""
    text, sha256 = _text(source)
    separator, head = _head(source, text)
    columns = _columns(source, head)
    names = {name.casefold() for name in head}
    if not names >= OWN:
        columns.pop("phase", None)
    rows: list[Row] = []
    others = False
    for line, cells in _lines(source, text, separator, len(head)):
        named = {name: cells[at].strip() for name, at in columns.items()}
        if named.get("phase", FRESH) != FRESH:
            others = True
            continue
        if len(rows) == MOST:
            raise source.wrong(
                f"more than {MOST:,} runs: expected one row for each run, with its last "
                f"{source.metric}, and no row for each step"
            )
        rows.append(_row(source, line, named, separator == ";"))
    if not rows and others:
        raise source.wrong(
            f"no row has {FRESH!r} in the column 'phase', and only such rows are judged: expected "
            f"the runs.csv of a race that has finished a fresh run"
        )
    if not rows:
        raise source.wrong("a header without rows: expected one row for each run")
    unread = [name for i, name in enumerate(head) if name and i not in columns.values()]
    share = source.proportion or any(row.percent for row in rows)
    _check_numbers(source, rows, share)
    return Runs(rows, unread, "unit" in columns, names >= OWN, share, sha256)


def _text(source: Source) -> tuple[str, str]:
    """The text of the file, and the sha256 of its bytes."""
    try:
        content = source.file.read_bytes()
    except OSError as error:
        raise BadCall(
            f"cannot read '{source.file}' ({error.strerror}): expected a CSV file with one row for "
            f"each run"
        ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise source.wrong(
            "no text in UTF-8: expected a CSV file; from a spreadsheet, save it as CSV UTF-8"
        )
    if not text.strip():
        raise source.wrong("an empty file: expected a header, then one row for each run")
    return text, hashlib.sha256(content).hexdigest()


def _head(source: Source, text: str) -> tuple[str, list[str]]:
    """(the character between cells, the names of the columns), from the first line with text."""
    heads: dict[str, list[str]] = {}
    for separator in SEPARATORS:
        try:
            heads[separator] = [plain(cell) for cell in next(_lines(source, text, separator))[1]]
        except BadCall:  # a quoted cell that ends before another character
            heads[separator] = []

    def fits(separator: str) -> tuple[bool, int]:
        names = heads[separator]
        return {name.casefold() for name in names}.issuperset(NEEDED), len(names)

    separator = max(SEPARATORS, key=fits)
    return separator, heads[separator]


def _lines(
    source: Source, text: str, separator: str, expected: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each row with text.

    expected: the number of columns; if it is given, the header is left out.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line, head = 1, True
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if expected is None:
                    yield line, cells
                elif any(cell.strip() for cell in cells[expected:]):
                    raise source.wrong(
                        f"{len(cells)} cells, but the header has {expected}: put quotation marks "
                        f"around a cell that contains {separator!r}",
                        line,
                    )
                elif not head:
                    yield line, cells + [""] * (expected - len(cells))
                head = False
            line = reader.line_num + 1
    except csv.Error as error:
        raise source.wrong(
            f"no CSV ({error}): double each quotation mark inside a quoted cell, and put one at "
            f"the end of the cell",
            line,
        ) from None


def _columns(source: Source, head: Sequence[str]) -> dict[str, int]:
    """Name -> index of each column that is read; "metric" is the judged column."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(head):
        places.setdefault(name.casefold(), []).append(i)
    metric = plain(source.metric)
    if metric.casefold() in (*NEEDED, *OPTIONAL):
        raise BadCall(f"--metric {source.metric}: expected the column with the metric of each run")
    names = {n: n for n in (*NEEDED, *OPTIONAL, *MEASURES) if n != metric.casefold()}
    columns: dict[str, int] = {}
    for name, column in {**names, "metric": metric}.items():
        found = places.get(column.casefold(), [])
        if len(found) > 1:
            raise source.wrong(f"{len(found)} columns {column!r}: expected one")
        if found:
            columns[name] = found[0]
        elif name in (*NEEDED, "metric"):
            raise source.wrong(_missing(column, head))
    if places.keys() >= OWN and "unit" not in columns:
        raise source.wrong(
            "the runs.csv of a race, written before it had the column 'unit': write it again with "
            "steepest report"
        )
    return columns


def _missing(column: str, head: Sequence[str]) -> str:
    """The message on a missing column."""
    near = get_close_matches(column.casefold(), [name.casefold() for name in head], n=1)
    meant = next((name for name in head if [name.casefold()] == near), None)
    holds = {"entry": "the optimizer's name", "seed": "the seed, by which runs are paired"}
    what = holds.get(column, "the metric of each run, or --metric with another column")
    hint = f"; did you mean {meant!r}?" if meant else ""
    return f"no column {column!r} in the header ({listed(head)}): expected one with {what}{hint}"


def _row(source: Source, line: int, cells: dict[str, str], decimal_comma: bool) -> Row:
    """The run in a line. `cells`: name of a column -> its cell."""
    for name in ("entry", "seed", "unit"):
        if not plain(cells.get(name, "-")):
            raise source.wrong(f"no value in the column {name!r}", line)
    entry, unit, seed = (plain(cells.get(name, "")) for name in ("entry", "unit", "seed"))
    diverged = plain(cells.get("diverged", ""))
    if diverged.casefold() == "nan":
        raise source.wrong(
            "nan in the column 'diverged': expected true, false, or why the run diverged", line
        )
    reason = None if diverged.casefold() in NO else diverged
    reason = "diverged" if diverged.casefold() in YES else reason

    def number(name: str, column: str) -> tuple[float, bool]:
        try:
            return parse(cells[name], decimal_comma)
        except ValueError as error:
            raise source.wrong(f"{error} in the column {column!r}", line) from None

    row = Row(line, entry, _label(unit), _label(seed), cells["metric"], diverged=reason)
    if reason is None or row.text:
        value, percent = number("metric", source.metric)
        if abs(value) <= MOST_WORST:
            row = replace(row, value=value, percent=percent)
        elif reason is None and (value > 0) is source.maximize and not math.isnan(value):
            raise source.wrong(
                f"{row.text} is better than any number with "
                f"--{'maximize' if source.maximize else 'minimize'}: expected a number between "
                f"-1e100 and 1e100, or nan if the run diverged",
                line,
            )
        elif reason is None:
            row = replace(row, diverged=f"{source.metric} is {value:g}")
    if row.diverged is None:
        found = ((name, number(name, name)[0]) for name in MEASURES if cells.get(name))
        row = replace(row, measures=tuple((k, v) for k, v in found if math.isfinite(v)))
    return row


def _check_numbers(source: Source, rows: Sequence[Row], share: bool) -> None:
    """BadCall if the metrics are not all written in one way, or are no shares."""
    known = [row for row in rows if not math.isnan(row.value)]
    for what, first, second in (
        ("% in one number and not in the other", "%", ""),
        ("a decimal comma in one number and a decimal point in the other", ",", "."),
    ):
        a = next((row for row in known if first in row.text), None)
        b = next((row for row in known if second in row.text and first not in row.text), None)
        if a and b:
            lines = sorted((a.line, b.line))
            raise source.wrong(f"{what}: write all numbers of the column in one way", *lines)
    for row in known:
        if share and not 0 <= row.value <= 1:
            raise source.wrong(
                f"{row.text} is no share: expected 0 to 1, or 0% to 100%; if the metric is not a "
                f"share, leave out --proportion and %",
                row.line,
            )


def parse(text: str, decimal_comma: bool = False) -> tuple[float, bool]:
    """(the number in a text, whether it is written in %); 5% is 0.05.

    ValueError for any other text; its message says what was expected. decimal_comma: whether 0,5
    is accepted as a number.
    """
    number = text.replace("\N{MINUS SIGN}", "-").removesuffix("%").strip()
    if decimal_comma and "." not in number and number.count(",") == 1:
        number = number.replace(",", ".")
    try:
        if "_" in number:
            raise ValueError
        value = float(number)
    except ValueError:
        if not text:
            what = "no value, and 'diverged' is not true: expected a number, or nan if"
            raise ValueError(f"{what} the run diverged,") from None
        what = "such as 1234.5" if "," in text else "or nan if the run diverged,"
        raise ValueError(f"{text[:LONGEST]!r}: expected a number {what}") from None
    return (value / 100, True) if text.endswith("%") else (value, False)


def plain(text: str) -> str:
    """The text on one line, without the characters that cannot be printed."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def _label(text: str) -> str:
    """The label of a seed or unit, by which runs are paired: "3" for 3, 03 and 3.0."""
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else text


def listed(names: Sequence[str], most: int = LISTED) -> str:
    """The first names, and how many more there are."""
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(shown)}{more}"
