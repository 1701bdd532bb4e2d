"""Fields of vector and probe files that were written before version 0.1."""

_TRANSFERRED_BY = {"transferred": "stitch", "concept map": "concept map"}


def split_method(method: str) -> tuple[str, str | None]:
    """Return (method, transferred_by) of a method as it was written before version 0.1.

    Earlier files hold one text, such as ``"mean_difference, transferred"``. ``transferred_by`` is
    ``"stitch"``, ``"concept map"``, or None if the text names no transfer.
    """
    name, _, origin = method.partition(", ")
    return name, _TRANSFERRED_BY.get(origin)
