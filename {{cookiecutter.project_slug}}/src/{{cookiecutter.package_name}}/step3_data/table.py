"""Any table a user has, CSV, JSON Lines or Parquet, as columns c0, c1, … that DuckDB reads."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ..params import Framing
from ..step1_requirements.checks import StepFailed
from .source import connect, text

#: What stands for a missing value in a text column whose other values are numbers, dates or booleans.
MARKERS = ("", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "?", "-", "--", ".", "inf", "+inf", "-inf", "infinity", "-infinity")
#: How text holds a number (with a currency or a percent sign, too) or a date, the `format` of an input; "" is 1234.5 and ISO 8601.
#: A unit may follow the first two: "1,234.5 kg". A time of day, 17:05 or 5:05 PM, is the hours since midnight.
NUMBERS = {"1,234.5": (",", "."), "1.234,5": (".", ","), "$1,234.5": (",", "."), "1.234,5 €": (".", ","), "hh:mm": ("", ".")}
DATES = {
    "month/day/year": ("%m/%d/%y", "%m/%d/%Y"),
    "day/month/year": ("%d/%m/%y", "%d/%m/%Y"),
    "year/month/day": ("%Y/%m/%d",),
    "yearmonthday": ("%Y%m%d",),
    "day month year": ("%d/%b/%y", "%d/%b/%Y", "%d %b %Y", "%d %B %Y"),
    "month day, year": ("%b %d, %Y", "%B %d, %Y", "%b %d %Y"),
}
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
SEPARATORS = (",", ";", "\t", "|", ":", "~", "^", "\x01", " ")
UNPACK: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
HEAD = 1 << 20  # characters that say how a text is laid out
LONGEST = 1 << 25  # bytes of a row
LONG_FILE = 50_000_000  # bytes from which progress is shown

ISO_DAY = r"^\d{4}-\d{1,2}-\d{1,2}"


@dataclass(frozen=True)
class Table:
    """A table as SQL: `relation` has columns c0, c1, … of DuckDB's `types`; `names` is what the file calls them."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    relation: str
    described: str


def open_table(connection: duckdb.DuckDBPyConnection, path: Path, folder: Path, encoding: str = "") -> Table:
    """Open a table of any format; text is rewritten into `folder` on the way.

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
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StepFailed(f"{path} cannot be read: {'; '.join(lines[:3]).rstrip('.') or type(error).__name__}") from None
    if all(re.fullmatch(r"[+-]?[\d.,]+", n) for n in names):
        raise StepFailed(f"{path} has no column names: its first line is {', '.join(names[:8])}; put a line of names above it")
    return Table(_named_apart(names), types, relation, described)


def read_as_contract(framing: Framing, path: Path, folder: Path, rows: int) -> Iterator[tuple[pa.Table, int]]:
    """A table in batches of `rows`, its columns of the contract's kinds, each with the rows in all; what the contract does not name stays as it is.

    Raises:
        StepFailed: as `open_table`, and when a value is not of its kind.
    """
    connection = connect(0.25, folder / "spill")
    table = open_table(connection, path, folder)
    fields = {i.name: i for i in framing.inputs}
    readings: list[list[str]] = []  # by column: as training had it, and the plain notation
    misfits = ["count(*)"]
    for place, (name, sql_type) in enumerate(zip(table.names, table.types, strict=True)):
        field = fields.get(name)
        coded = field and any(isinstance(v, int | float) and not isinstance(v, bool) for v in field.values or ())
        kind, style = ("number" if coded else field.kind, field.format) if field else ("text", "")
        readings.append([value(f"c{place}", kind, s, sql_type) for s in dict.fromkeys((style, ""))])
        fits = kind in ("text", "category", natural_kind(sql_type))  # only a text that is read as something else may be none
        known = is_known(f"c{place}::VARCHAR")
        misfits += ["NULL" if fits else f"min(c{place}::VARCHAR) FILTER ({known} AND {sql} IS NULL)" for sql in readings[-1]]
    total, *found = connection.execute(f"SELECT {', '.join(misfits)} FROM {table.relation}").fetchall()[0]
    columns = []
    for name, sqls in zip(table.names, readings, strict=True):
        tried = [found.pop(0) for _ in sqls]
        if None not in tried:
            raise StepFailed(f"{path}: {name} is {tried[0]!r} in some row, which is no {fields[name].kind}; mend it, or leave it empty")
        columns.append(sqls[tried.index(None)])
    for batch in connection.sql(f"SELECT {', '.join(columns)} FROM {table.relation}").to_arrow_reader(rows):
        yield pa.Table.from_batches([batch]).rename_columns(list(table.names)), total


def _named_apart(names: list[str]) -> tuple[str, ...]:
    """The names as they are; an empty one becomes "column 3", a repeated one gets a number."""
    given: dict[str, None] = {}
    for place, name in enumerate(names, start=1):
        wanted = name or f"column {place}"
        tries = chain([wanted], (f"{wanted} {n}" for n in count(2)))
        given[next(t for t in tries if t not in given and (t == name or t not in names))] = None
    return tuple(given)


def value(column: str, kind: str, style: str = "", sql_type: str = "VARCHAR") -> str:
    """SQL for a column's values as the contract's kind; NULL for what is missing or does not fit."""
    if sql_type == "VARCHAR":
        known = f"trim({column})"
        if kind == "number":
            return _number(known, style)
        if kind == "date":
            return _date(known, style)
        if kind == "boolean":
            return f"CASE lower({known}) WHEN 'true' THEN true WHEN 'false' THEN false END"
        return f"CASE WHEN {known} <> '' THEN {column} END"
    natural = natural_kind(sql_type)
    if natural != "text" and kind in (natural, "category", "text"):
        as_kind = f"{column}::{'DOUBLE' if kind == 'number' else 'TIMESTAMP'}"
        whole = sql_type in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "BOOLEAN")
        return column if whole or kind != natural else f"CASE WHEN isfinite({as_kind}) THEN {as_kind} END"
    return value(f"CAST({column} AS VARCHAR)", kind, style)


def natural_kind(sql_type: str) -> str:
    """The kind of a typed column: number, boolean, date, or text for all else."""
    if re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL.*", sql_type):
        return "number"
    return "boolean" if sql_type == "BOOLEAN" else "date" if re.match("DATE|TIMESTAMP", sql_type) else "text"


def unit_of(style: str) -> str:
    """The unit that stands behind numbers of this style, or is meant by it."""
    return "hours since midnight" if style == "hh:mm" else style[7:].strip() if style not in NUMBERS and style[:7] in NUMBERS else ""


def is_known(column: str) -> str:
    """SQL that is true where a text is no marker of a missing value."""
    return f"lower(trim({column})) NOT IN ({', '.join(map(text, MARKERS))})"


def _number(known: str, style: str) -> str:
    if style == "hh:mm":
        clocks = ", ".join(text(clock.strip()) for clock in CLOCKS[1:])
        return rf"CASE WHEN regexp_matches({known}, '^\d\d?:\d\d') THEN epoch(try_strptime({known}, [{clocks}])::TIME) / 3600 END"
    thousands, decimal = NUMBERS.get(style, NUMBERS.get(style[:7], ("", ".")))
    if unit := unit_of(style):
        known = f"rtrim(regexp_replace({known}, {text(re.escape(unit) + '$')}, ''))"
    elif style[:1] == "$" or style[-1:] == "€":
        known = rf"regexp_replace({known}, '^\((.+)\)$', '-\1')"  # as accountants write it
        known = rf"regexp_replace({known}, '^([+-]?)[$€£¥]\s?|\s?[$€£¥%]$', '\1', 'g')"
    plain = f"replace(replace({known}, {text(thousands)}, ''), {text(decimal)}, '.')" if style else known
    digits = r"0|[1-9]\d*" + (r"|\d{1,3}(?:[" + thousands + r"]\d{3})+" if style else "")  # a leading zero makes a code
    shape = rf"[+-]?(?:(?:{digits})(?:[{decimal}]\d*)?|[{decimal}]\d+)(?:[eE][+-]?\d+)?"
    number = f"TRY_CAST({plain} AS DOUBLE)"
    return f"CASE WHEN regexp_full_match({known}, {text(shape)}) AND isfinite({number}) THEN {number} END"


def _date(known: str, style: str) -> str:
    if not style:
        return f"CASE WHEN regexp_matches({known}, '{ISO_DAY}') THEN TRY_CAST({known} AS TIMESTAMPTZ)::TIMESTAMP END"
    patterns = ", ".join(text(day + clock) for day in DATES[style] for clock in CLOCKS)
    shape = r"^\d{8}" if style == "yearmonthday" else r"^\w+[-./ ]\w+[-./, ]+\d"  # trying patterns is slow
    plain = rf"regexp_replace({known}, '^(\w+)[-./](\w+)[-./]', '\1/\2/')"
    return f"CASE WHEN regexp_matches({known}, {text(shape)}) THEN try_strptime({plain}, [{patterns}]) END"


def _parquet(path: Path) -> tuple[list[str], str, str]:
    names = list(pq.read_schema(path).names)
    columns = ", ".join(f"c{i}" for i in range(len(names)))
    return names, f"(SELECT * FROM read_parquet({text(path)}) AS t({columns}))", "Parquet"


def _text(connection: duckdb.DuckDBPyConnection, path: Path, folder: Path, encoding: str) -> tuple[list[str], str, str]:
    """CSV or JSON Lines: recoded to UTF-8 with plain line ends, then staged as Parquet with every value a text."""
    plain, staged = folder / "table.txt", folder / "table.parquet"
    encoding = _recode(path, plain, encoding)
    with plain.open(encoding="utf-8", newline="\n") as file:
        head = file.read(HEAD)
    if not head.strip():
        raise StepFailed(f"{path} is empty; it needs a line of column names and rows below it")
    if sum(c < " " and c not in SEPARATORS and c != "\n" for c in head) > len(head) / 100:
        raise StepFailed(f"{path} holds no text, and is not Parquet either; save the table as CSV")
    names, select, described = _json(connection, plain) if _is_json(head) else _csv(head, plain)
    connection.execute(f"COPY ({select}) TO {text(staged)} (FORMAT parquet)")
    plain.unlink()
    return names, f"(SELECT * FROM read_parquet({text(staged)}))", f"{described}, {encoding}"


def _csv(head: str, plain: Path) -> tuple[list[str], str, str]:
    names, separator, skip = _sniff(head)
    escape = "\\" if re.search(r'[^\\"]\\"[^,;\t|\n]', head) else '"'
    columns = {f"c{i}": "VARCHAR" for i in range(len(names))}
    options = f"auto_detect = false, header = true, new_line = '\\n', max_line_size = {LONGEST}, buffer_size = {LONGEST}, columns = {columns}"
    select = f"SELECT * FROM read_csv({text(plain)}, delim = {text(separator)}, quote = '\"', escape = {text(escape)}, skip = {skip}, {options})"
    return names, select, f"CSV, separator {separator!r}"


def _sniff(head: str) -> tuple[list[str], str, int]:
    """Column names, separator and lines above the names: the first reading whose rows are nearly all as wide as the header."""
    found: list[tuple[float, list[str], str, int]] = []
    for skip in range(6):
        for separator in SEPARATORS:
            reader = csv.reader(io.StringIO(head), delimiter=separator)
            above = sum(1 for _ in islice(reader, skip)) and reader.line_num
            names = next(reader, [])
            widths = [len(row) for row in islice(reader, 1000) if row]
            widths = widths[:-1] or widths  # the last row may be cut
            fits = sum(w == len(names) for w in widths) / max(1, len(widths)) if len(names) > 1 else -skip - 1
            found.append((fits, names, separator, above))
        if max(found, key=lambda f: f[0])[0] > 0.98:
            break
    return max(found, key=lambda f: f[0])[1:]


def _is_json(head: str) -> bool:
    first = head.strip().partition("\n")[0]
    try:
        return first == "[" or first.startswith("[{") or isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _json(connection: duckdb.DuckDBPyConnection, plain: Path) -> tuple[list[str], str, str]:
    rows = f"read_json_objects({text(plain)}, maximum_object_size = {LONGEST})"
    first = connection.execute(f"SELECT json_keys(json) FROM {rows} LIMIT 1").fetchall()[0][0]
    every = sorted(row[0] for row in connection.execute(f"SELECT DISTINCT unnest(json_keys(json)) FROM {rows}").fetchall())
    names = list(dict.fromkeys([*first, *every]))
    pointers = [text("/" + name.replace("~", "~0").replace("/", "~1")) for name in names]
    return names, f"SELECT {', '.join(f'json->>{p} AS c{i}' for i, p in enumerate(pointers))} FROM {rows}", "JSON Lines"


def _recode(path: Path, target: Path, encoding: str) -> str:
    """Write the text as UTF-8; returns the encoding that could read all of it."""
    chosen = encoding or _marked(path)
    if not _rewrite(path, target, chosen):
        chosen = chosen if encoding or chosen != "utf-8" else _guess(path)
        if not _rewrite(path, target, chosen):
            raise StepFailed(_undecodable(path, chosen))
    return chosen


def _rewrite(path: Path, target: Path, encoding: str) -> bool:
    """Whether all of the text could be decoded and written; NUL characters are left out."""
    try:
        with _bytes(path, show=True) as file, target.open("w", encoding="utf-8", newline="\n") as out:
            decoded = io.TextIOWrapper(file, encoding)
            while chunk := decoded.read(HEAD):
                out.write(chunk.replace("\0", ""))
    except UnicodeError:
        return False
    return True


@contextmanager
def _bytes(path: Path, show: bool = False) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked, with a progress bar where it is long."""
    from rich.progress import open as open_with_progress

    quiet = not show or path.stat().st_size < LONG_FILE
    with open_with_progress(path, "rb", description=f"reading {path.name}", transient=True, disable=quiet) as raw:
        start = raw.read(6)
        raw.seek(0)
        unpack = next((unpack for magic, unpack in UNPACK.items() if start.startswith(magic)), None)
        yield unpack(raw) if unpack else raw


def _marked(path: Path) -> str:
    """The encoding that the first bytes tell, or UTF-8."""
    with _bytes(path) as file:
        start = file.read(4096)
    if start[:2] == b"PK":
        raise StepFailed(f"{path} is a ZIP or Excel file; save the table as CSV first")
    if start.count(b"\0") > len(start) / 4 and start[:2] not in MARKS:
        return "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")


def _guess(path: Path) -> str:
    """The encoding of a text that is not UTF-8: Windows-1252 where accents stand alone between plain letters, else what statistics say."""
    from charset_normalizer import from_bytes

    with _bytes(path) as file:
        lines = list(islice((line for line in file if not line.isascii()), 300))
    if sum(line.decode("utf-8", "ignore").encode() == line for line in lines) > len(lines) / 4:
        return "utf-8"
    sample = b"".join(lines)
    paired = sum(a > 127 and b > 127 for a, b in pairwise(sample)) / max(1, sum(byte > 127 for byte in sample))
    best = from_bytes(sample).best() if paired > 0.3 else None
    return best.encoding if best else "cp1252"


def _undecodable(path: Path, encoding: str) -> str:
    """A sentence that says where the text stops being what it should be."""
    before = 0
    with _bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                place = f"line {number}, byte {before + error.start} is {line[error.start]:#04x}"
                return f"{path} {place}, which is not {encoding}; save the file as UTF-8, or name its encoding with --encoding"
            before += len(line)
    return f"{path} is not {encoding}; save the file as UTF-8, or name its encoding with --encoding"
