"""Any table a user has: CSV, JSON Lines or Parquet, as columns c0, c1, … that DuckDB reads."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import open as open_with_progress

from ..step1_requirements.checks import StepFailed
from .source import text

#: What stands for a missing value where a column's other values are numbers, dates or booleans.
MARKERS = ("na", "n/a", "#n/a", "nan", "null", "none", "nil", "?", "-", "--", ".", "inf", "+inf", "-inf", "infinity", "-infinity")
SEPARATORS = (",", ";", "\t", "|", ":", "~", "^", "\x01", " ")
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
#: How text holds a number or a date: the `format` of an input, "" is 1234.5 and ISO 8601.
NUMBERS = {"1,234.5": (",", "."), "1.234,5": (".", ",")}
DATES = {
    "month/day/year": ("%m/%d/%y", "%m/%d/%Y"),
    "day/month/year": ("%d/%m/%y", "%d/%m/%Y"),
    "year/month/day": ("%Y/%m/%d",),
    "yearmonthday": ("%Y%m%d",),
    "day month year": ("%d/%b/%y", "%d/%b/%Y", "%d %b %Y", "%d %B %Y"),
    "month day, year": ("%b %d, %Y", "%B %d, %Y", "%b %d %Y"),
}
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
HEAD = 1 << 20  # characters that say what kind of text it is
LONG_FILE = 50_000_000  # bytes from which progress is shown


@dataclass(frozen=True)
class Table:
    """A table as SQL: `relation` has the columns c0, c1, …, called `names` in the file, of DuckDB's `types`."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    relation: str
    described: str


def open_table(connection: duckdb.DuckDBPyConnection, path: Path, folder: Path, encoding: str = "") -> Table:
    """Open a table of any format; `folder` takes what has to be rewritten on the way.

    Raises:
        StepFailed: when the file is missing, empty or cannot be read; with line and byte where text cannot be decoded.
    """
    if not path.is_file():
        raise StepFailed(f"{path} is not {'a file' if path.exists() else 'here'}; give the path of a CSV, JSON Lines or Parquet file")
    connection.execute("SET preserve_insertion_order = true")
    try:
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1"
        names, relation, described = _parquet(path) if parquet else _text(connection, path, folder, encoding)
        types = tuple(row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall())
    except (duckdb.Error, pa.ArrowException, csv.Error, OSError, EOFError, zlib.error, lzma.LZMAError, LookupError) as error:
        raise StepFailed(f"{path} cannot be read: {_first_lines(error)}") from None
    return Table(tuple(names), types, relation, described)


def value(column: str, kind: str, format: str = "", type: str = "VARCHAR") -> str:  # noqa: A002
    """SQL for a column's values as the contract's kind, NULL for what is missing or does not fit."""
    known = f"nullif(trim({column}), '')"
    if type != "VARCHAR":
        known = f"CAST({column} AS VARCHAR)"
        numeric = re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL.*", type)
        if kind == "number" and numeric:
            return column if type in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT") else f"CASE WHEN isfinite({column}::DOUBLE) THEN {column}::DOUBLE END"
        if (kind == "boolean" and type == "BOOLEAN") or (kind == "date" and re.match("DATE|TIMESTAMP", type)):
            return column if kind == "boolean" else f"CASE WHEN isfinite({column}) THEN {column}::TIMESTAMP END"
    if kind == "number":
        return _number(known, format)
    if kind == "boolean":
        return f"CASE lower({known}) WHEN 'true' THEN true WHEN 'false' THEN false END"
    if kind == "date":
        return _date(known, format)
    return f"CASE WHEN trim({column}) <> '' THEN {column} END" if type == "VARCHAR" else known


def is_known(column: str, type: str) -> str:  # noqa: A002
    """SQL that is true where a column holds a value and no marker of a missing one."""
    if type != "VARCHAR":
        return f"{column} IS NOT NULL"
    return f"coalesce(lower(trim({column})) NOT IN ('', {', '.join(map(text, MARKERS))}), false)"


def _number(known: str, style: str) -> str:
    thousands, decimal = NUMBERS.get(style, ("", "."))
    digits = rf"(?:\d{{1,3}}(?:\{thousands}\d{{3}})+|0|[1-9]\d*)" if thousands else r"(?:0|[1-9]\d*)"  # a leading zero makes a code
    plain = f"replace(replace({known}, {text(thousands)}, ''), {text(decimal)}, '.')" if thousands else known
    shape = rf"[+-]?(?:{digits}(?:\{decimal}\d*)?|\{decimal}\d+)(?:[eE][+-]?\d+)?"
    number = f"TRY_CAST({plain} AS DOUBLE)"
    return f"CASE WHEN regexp_full_match({known}, {text(shape)}) AND isfinite({number}) THEN {number} END"


def _date(known: str, style: str) -> str:
    if not style:
        return rf"CASE WHEN regexp_matches({known}, '^\d{{4}}-\d{{1,2}}-\d{{1,2}}') THEN TRY_CAST({known} AS TIMESTAMPTZ)::TIMESTAMP END"
    patterns = ", ".join(text(day + clock) for day in DATES[style] for clock in CLOCKS)
    slashed = rf"regexp_replace({known}, '^(\w+)[-./](\w+)[-./]', '\1/\2/')"
    return f"try_strptime({slashed}, [{patterns}])"


def _parquet(path: Path) -> tuple[list[str], str, str]:
    names = pq.read_schema(path).names
    return names, f"(SELECT * FROM read_parquet({text(path)}) AS t({_columns(len(names))}))", "Parquet"


def _text(connection: duckdb.DuckDBPyConnection, path: Path, folder: Path, encoding: str) -> tuple[Sequence[str], str, str]:
    """CSV or JSON Lines, recoded to UTF-8 with plain line ends, then staged as Parquet with every value a text."""
    plain, staged = folder / "table.txt", folder / "table.parquet"
    encoding = _recode(path, plain, encoding)
    with plain.open(encoding="utf-8", newline="\n") as file:
        head = file.read(HEAD)
    if not head.strip():
        raise StepFailed(f"{path} is empty; it needs a line of column names and rows below it")
    if _is_json(head):
        names = [row[0] for row in connection.execute(f"SELECT k FROM (SELECT unnest(json_keys(json)) AS k FROM {_objects(plain)}) GROUP BY k "
                                                      "ORDER BY min(rowid), k".replace("min(rowid), ", "")).fetchall()]  # fmt: skip
        pointers = (text("/" + n.replace("~", "~0").replace("/", "~1")) for n in names)
        select, kind = f"SELECT {', '.join(f'json->>{p} AS c{i}' for i, p in enumerate(pointers))} FROM {_objects(plain)}", "JSON Lines"
    else:
        names, separator, skip = _sniff(head)
        escape = "\\" if re.search(r'[^"]\\"[^,;\t|\n]', head) else '"'
        columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(len(names)))
        select = (f"SELECT * FROM read_csv({text(plain)}, auto_detect = false, header = false, skip = {skip}, delim = {text(separator)}, quote = '\"', "
                  f"escape = {text(escape)}, new_line = '\\n', max_line_size = 100000000, columns = {{{columns}}})")  # fmt: skip
        kind = f"CSV, separator {separator!r}"
    connection.execute(f"COPY ({select}) TO {text(staged)} (FORMAT parquet)")
    plain.unlink()
    return names, f"(SELECT * FROM read_parquet({text(staged)}))", f"{kind}, {encoding}"


def _columns(count: int) -> str:
    return ", ".join(f"c{i}" for i in range(count))


def _objects(path: Path) -> str:
    return f"read_json_objects({text(path)}, maximum_object_size = 100000000)"


def _is_json(head: str) -> bool:
    first = head.strip().partition("\n")[0]
    try:
        return first.startswith("[{") or isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _sniff(head: str) -> tuple[list[str], str, int]:
    """Column names, separator and lines to skip: the first reading in which nearly all rows are as wide as the header."""
    best: tuple[float, list[str], str, int] = (-1.0, [], ",", 0)
    for skip in range(6):
        for separator in SEPARATORS:
            reader = csv.reader(io.StringIO(head), delimiter=separator)
            try:
                lines = islice(reader, skip, None)
                names = next(line for line in lines if line)
                below, widths = reader.line_num, [len(row) for row in islice(lines, 1000) if row]
            except (csv.Error, StopIteration):
                continue
            widths = widths[:-1] if len(head) == HEAD else widths  # the last one may be cut
            fits = sum(w == len(names) for w in widths) / max(1, len(widths)) if len(names) > 1 and not names[0].startswith("#") else -0.5
            best = max(best, (fits, names, separator, below), key=lambda b: b[0])
        if best[0] > 0.98:
            break
    return best[1], best[2], best[3]


def _recode(path: Path, target: Path, encoding: str) -> str:
    """Write the text as UTF-8; returns the encoding that read all of it."""
    with _bytes(path) as file:
        start = file.read(4096)
    if start[:2] == b"PK":
        raise StepFailed(f"{path} is a ZIP or Excel file; save it as CSV first")
    marked = next((name for bom, name in BOMS.items() if start.startswith(bom)), "")
    wide = "" if start.count(b"\0") < len(start) / 4 else "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
    for candidate in (c for c in chain([encoding or marked or wide or "utf-8"], [] if encoding or marked or wide else [""])):
        chosen = candidate or _guess(path)
        try:
            with _bytes(path, show=True) as file, target.open("w", encoding="utf-8", newline="\n") as out:
                for chunk in iter(lambda read=io.TextIOWrapper(file, chosen).read: read(HEAD), ""):  # type: ignore[misc]
                    out.write(chunk.replace("\0", ""))
            return chosen
        except UnicodeError:
            if candidate != "utf-8":
                raise StepFailed(_undecodable(path, chosen)) from None
    raise AssertionError("unreachable")


@contextmanager
def _bytes(path: Path, show: bool = False) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked, with a progress bar where it is long."""
    quiet = not show or path.stat().st_size < LONG_FILE
    with open_with_progress(path, "rb", description=f"reading {path.name}", transient=True, disable=quiet) as raw:
        start = raw.read(6)
        raw.seek(0)
        unpack: Any = next((opener for magic, opener in PACKED.items() if start.startswith(magic)), None)
        yield unpack(raw) if unpack else raw


def _guess(path: Path) -> str:
    """The encoding of a text that is not UTF-8: Windows-1252 where accents stand alone between plain letters, else what statistics say."""
    from charset_normalizer import from_bytes

    with _bytes(path) as file:
        lines = list(islice((line for line in file if not line.isascii()), 300))
    valid = sum(_decodes(line, "utf-8") for line in lines)
    sample = b"".join(lines)
    if valid > len(lines) / 2:
        return "utf-8"
    high = [byte > 127 for byte in sample]
    paired = sum(a and b for a, b in zip(high, high[1:], strict=False)) / max(1, sum(high))
    best = from_bytes(sample).best() if paired > 0.3 else None
    return best.encoding if best else "cp1252"


def _undecodable(path: Path, encoding: str) -> str:
    """Says where the text stops being what it should be."""
    byte = 0
    with _bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeError as error:
                at = error.start if isinstance(error, UnicodeDecodeError) else 0
                return f"{path} line {number}, byte {byte + at} is {line[at]:#04x}, which is not {encoding}; save the file as UTF-8, or give --encoding"
            byte += len(line)
    return f"{path} is not {encoding}; save the file as UTF-8, or give --encoding"


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeError:
        return False
    return True


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:3]).rstrip(".") or type(error).__name__
