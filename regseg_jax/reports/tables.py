"""Text tables for the terminal."""

from collections.abc import Sequence


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligns a table for the terminal: the first column to the left, the others to the right.

    Args:
      headers: a title for each column.
      rows: a cell for each column; written as `str` gives them.

    Returns:
      The lines, without a newline at the end.

    Raises:
      ValueError: if a row has more or fewer cells than there are headers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"row {tuple(row)} has {len(row)} cells for {len(headers)} headers")
    table = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )
