"""Foreign text made safe for a terminal."""


def printable(text: str) -> str:
    r"""A text with control and invisible characters escaped, as `\x1b` or `\u202e`; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def printable_line(text: str) -> str:
    r"""A text as `printable` makes it, with line breaks escaped, too, as `\n`."""
    return printable(text).replace("\n", "\\n")


def escaped(text: str) -> str:
    """A printable text with rich's markup escaped."""
    from rich.markup import escape  # noqa: PLC0415 - most callers do not need rich

    return escape(printable(text))
