"""The rows of tables: CSV with a header, and Parquet."""

import csv
import io

from slm_np.data.chat_template import KEYS
from slm_np.errors import UserError, imported

DELIMITERS = (",", "\t", ";", "|")
LONGEST_FIELD = 2**31 - 1  # characters; more than a C long may hold on Windows is refused by csv
SHOWN = 5  # rows that an error lists
ROWS_AT_ONCE = 1024


def csv_texts(blocks, column, path):
    """Yield the text in `column` of each row of a CSV file, whose first line names the columns.

    Fields in quotes may contain delimiters, line ends and doubled quotes. The delimiter is the one of `DELIMITERS` with
    which the header has this column. Empty lines do not count. UserError, which names `path`, without the column, for
    rows that have more or fewer fields than the header, and for text that is not UTF-8.
    """
    lines = io.TextIOWrapper(io.BufferedReader(_Stream(blocks)), encoding="utf-8-sig", newline="")
    n, wrong, longest = 0, [], csv.field_size_limit()
    try:
        csv.field_size_limit(LONGEST_FIELD)
        names, delimiter = _header(next((line for line in lines if line.strip()), ""), column, path)
        at = names.index(column)
        for row in csv.reader(lines, delimiter=delimiter, strict=True):
            n += bool(row)
            if len(row) == len(names):
                yield row[at]
            elif row:
                wrong.append(n)
    except csv.Error as error:
        raise UserError(
            f"{path}, row {n + 1}, is not CSV ({error}); put a field with a quote in quotes, and double the quote"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}, after row {n}, is not UTF-8; save the file in that encoding") from None
    finally:
        csv.field_size_limit(longest)
    if wrong:
        one = len(wrong) == 1
        raise UserError(
            f"{path} has {len(wrong):,} row{'' if one else 's'} without the {len(names)} fields of its header "
            f"({'row' if one else 'rows'} {', '.join(map(str, wrong[:SHOWN]))}{' and more' * (len(wrong) > SHOWN)}); "
            f"put fields that contain {delimiter!r} in quotes"
        )


def _header(line, column, path):
    """(names of the columns, delimiter) of the first line of a CSV file. UserError if `column` is not among them."""
    found = {}
    for delimiter in DELIMITERS:
        try:
            names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error:
            continue
        if names.count(column) == 1:
            return names, delimiter
        found[delimiter] = names
    raise _no_column(path, column, max(found.values(), key=len, default=[]))


def columns(head):
    """The names of the columns if a text starts with what looks like the header of a CSV file with several, else []."""
    first = head.decode("utf-8-sig", "replace").splitlines()[:1]
    try:
        found = [[name.strip() for name in row] for mark in DELIMITERS for row in csv.reader(first, delimiter=mark)]
    except csv.Error:
        return []
    names = max(found, key=len, default=[])
    return names if len(names) > 1 and all(name.replace("_", "").isalnum() for name in names) else []


def _no_column(path, column, names):
    shown = ", ".join(map(repr, names[:20])) + " and more" * (len(names) > 20)
    wrong = f"has the column {column!r} {names.count(column)} times" if column in names else f"has no column {column!r}"
    return UserError(f"{path} {wrong}; its columns are {shown or 'missing'}: name one with --documents csv:COLUMN")


def parquet_rows(file, column, path):
    """Yield the rows of the Parquet file at `file`: a text each if `column` is given, else an object of known columns.

    UserError, which names `path`, if the file is damaged, has no such column, or if pyarrow is missing.
    """
    errors = imported("pyarrow", f"{path}, a Parquet file,", "slm_np[parquet]").ArrowException
    parquet = imported("pyarrow.parquet", path, "slm_np[parquet]")
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            wanted = [column] if column else [name for name in names if name in KEYS]
            if not wanted:
                shown = ", ".join(map(repr, names[:20])) + " and more" * (len(names) > 20)
                raise UserError(
                    f"{path} has the columns {shown}, and none that slm_np reads by its name; "
                    "name the one with the text: --documents csv:COLUMN"
                )
            if names.count(column) != 1 and column:
                raise _no_column(path, column, names)
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    yield row[column] if column else row
    except (errors, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"{path} is damaged ({reason}); get it again") from None


class _Stream(io.RawIOBase):
    """Blocks of bytes as a file."""

    def __init__(self, blocks):
        self.blocks, self.rest = iter(blocks), b""

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self.rest:
            self.rest = next(self.blocks, None)
            if self.rest is None:
                self.rest = b""
                return 0
        n = min(len(buffer), len(self.rest))
        buffer[:n], self.rest = self.rest[:n], self.rest[n:]
        return n
