"""Charts, sparklines and tables of characters: braille dots if the output can show them, else ASCII."""

import math
import sys

BRAILLE = 0x2800
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # the bits of a braille cell: two columns of four dots
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
MARK, PLAIN_MARK = "●", "o"
SAMPLE = chr(BRAILLE + 0xFF) + BARS + MARK


def plain(stream=None):
    """Whether `stream`, by default standard output, can show only ASCII."""
    try:
        SAMPLE.encode(getattr(stream or sys.stdout, "encoding", None) or "ascii")
        return False
    except (UnicodeEncodeError, LookupError):
        return True


def chart(curve, marks, width, height, ascii=False):
    """The lines of a chart with a logarithmic y axis, [] if there is nothing to draw.

    curve          [(x, y), ...], drawn as a line of dots: of each column the mean
    marks          [(x, y), ...], drawn as points on top
    width, height  of the area between the axes, in characters
    Points that are not finite, or y <= 0, are left out.
    """
    points = [(x, y) for x, y in [*curve, *marks] if y > 0 and math.isfinite(y)]
    if len(points) < 2:
        return []
    left, right = (f(x for x, _ in points) for f in (min, max))
    low, high = (math.log(f(y for _, y in points)) for f in (min, max))
    across, down = (1, 1) if ascii else (2, 4)
    columns, rows = width * across, height * down

    def dot(x, y):
        """(column, row) of a point, in dots; row 0 is at the top."""
        return (
            round((x - left) / ((right - left) or 1) * (columns - 1)),
            round((high - math.log(y)) / ((high - low) or 1) * (rows - 1)),
        )

    cells = [[0] * width for _ in range(height)]
    sums = {}
    for x, y in curve:
        if y > 0 and math.isfinite(y):
            column = dot(x, y)[0]
            total, n = sums.get(column, (0.0, 0))
            sums[column] = total + math.log(y), n + 1
    path = [(column, dot(left, math.exp(total / n))[1]) for column, (total, n) in sorted(sums.items())]
    for (column, row), (next_column, next_row) in zip(path, path[1:] + path[-1:]):
        steps = max(next_column - column, abs(next_row - row), 1)
        for i in range(steps):
            c, r = column + round(i * (next_column - column) / steps), row + round(i * (next_row - row) / steps)
            cells[r // down][c // across] |= 1 if ascii else DOTS[c % 2][r % 4]
    drawn = [[(" ."[cell > 0] if ascii else chr(BRAILLE + cell) if cell else " ") for cell in line] for line in cells]
    for x, y in marks:
        if y > 0 and math.isfinite(y):
            column, row = dot(x, y)
            drawn[row // down][column // across] = PLAIN_MARK if ascii else MARK
    labels = {
        row: f"{math.exp(high - (high - low) * row / max(1, height - 1)):.3g}" for row in {0, height // 2, height - 1}
    }
    bar, corner, floor = ("|", "+", "-") if ascii else ("│", "└", "─")
    lines = [f"{labels.get(row, ''):>7} {bar}{''.join(line).rstrip()}" for row, line in enumerate(drawn)]
    return lines + [" " * 8 + corner + floor * width, " " * 9 + f"{left:<{width // 2}g}{right:>{width - width // 2}g}"]


def sparkline(values, width, ascii=False, low=None, high=None):
    """A curve one character high: the means of `width` equal parts, on a logarithmic scale.

    low, high: the ends of the scale, by default the extremes of the values.
    """
    values = [value for value in values if value is not None and value > 0 and math.isfinite(value)]
    if not values:
        return ""
    low, high = math.log(low or min(values)), math.log(high or max(values))
    n, bars = min(width, len(values)), PLAIN_BARS if ascii else BARS
    parts = [values[i * len(values) // n : (i + 1) * len(values) // n] for i in range(n)]
    heights = [(sum(map(math.log, part)) / len(part) - low) / ((high - low) or 1) for part in parts]
    return "".join(bars[max(0, min(len(bars) - 1, round(share * (len(bars) - 1))))] for share in heights)


def table(rows, left=1):
    """The lines of a table of strings. The first row is the heading.

    The first `left` columns and the last are aligned to the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if i < left or i == last else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
