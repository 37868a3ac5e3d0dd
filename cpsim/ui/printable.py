"""Text that others chose, as a terminal may have it."""


def printable(text: str) -> str:
    r"""A text with `\x1b`, `\u202e` and the like in the place of what is not seen, or moves what is; lines are kept."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def escaped(text: str) -> str:
    """The same for rich, which would take what stands in brackets for its markup."""
    from rich.markup import escape  # noqa: PLC0415 - most that is printable is not for rich

    return escape(printable(text))
