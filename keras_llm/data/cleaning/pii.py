"""Redact personally identifiable information (PII) in texts."""

import collections
import ipaddress
import re
from collections.abc import Iterable

_BEFORE, _AFTER = r"(?<![\w.+/-])", r"(?![\w-]|[.,]\d)"
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![\w-])")
_IP = re.compile(
    rf"{_BEFORE}(?:\d{{1,3}}(?:\.\d{{1,3}}){{3}}|(?=[0-9A-Fa-f:]*:)[0-9A-Fa-f:]+){_AFTER}(?!:)"
)
_CARD = re.compile(rf"{_BEFORE}\d(?:[ -]?\d){{12,18}}{_AFTER}")
_PHONE = re.compile(
    rf"{_BEFORE}(?:"
    r"(?=(?:\D{0,3}\d){8,15}(?!\d))\+\d[\d ().-]{6,19}\d"  # +44 20 7946 0958
    r"|(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # (212) 555-0123, 212-555-0123
    r"|0[1-9]\d{0,3}[ /-]\d{3,4}[ -]?\d{3,5}"  # 030 1234567, 010-6552 9988
    r"|1[3-9]\d{9}"  # 13812345678
    rf"){_AFTER}"
)


def scrub(text: str) -> tuple[str, dict[str, int]]:
    """Redact e-mail addresses, IP addresses, card numbers and phone numbers.

    Matches are found by their format: valid IPv4 and IPv6 addresses; 13 to 19 digits, grouped or
    not, with a valid check digit (Luhn); phone numbers with a leading `+`, US numbers, national
    numbers with a leading 0 in two or more groups, and Chinese mobile numbers. A version of four
    numbers looks like an IP address. Names of people and places are not redacted.

    Args:
        text: str.

    Returns:
        The text with `<EMAIL>`, `<IP>`, `<CARD>` and `<PHONE>` instead, and a dict of the number of
        matches under "e-mail addresses", "IP addresses", "card numbers" and "phone numbers", for
        kinds that occur.

    Example:
    >>> scrub("Write to jo@example.org or call +44 20 7946 0958.")
    ('Write to <EMAIL> or call <PHONE>.', {'e-mail addresses': 1, 'phone numbers': 1})
    """
    counts: collections.Counter[str] = collections.Counter()
    for pattern, name, mark, is_valid in _KINDS:

        def replaced(match, name=name, mark=mark, is_valid=is_valid):
            if not is_valid(match[0]):
                return match[0]
            counts[name] += 1
            return mark

        text = pattern.sub(replaced, text)
    return text, dict(counts)


def scrub_texts(texts: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Apply `scrub` to a list of str; return the new list and the sum of the counts."""
    total: collections.Counter[str] = collections.Counter()
    scrubbed = []
    for text in texts:
        text, counts = scrub(text)
        scrubbed.append(text)
        total.update(counts)
    return scrubbed, dict(total)


def _is_address(text: str) -> bool:
    if ":" in text and len([part for part in text.split(":") if part]) < 3:
        return False  # slices in code such as `::2` are valid addresses
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_card(text: str) -> bool:
    """Check the Luhn checksum: from the right, double every second digit and add its digits."""
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _always(text: str) -> bool:
    return True


_KINDS = (
    (_EMAIL, "e-mail addresses", "<EMAIL>", _always),
    (_IP, "IP addresses", "<IP>", _is_address),
    (_CARD, "card numbers", "<CARD>", _is_card),
    (_PHONE, "phone numbers", "<PHONE>", _always),
)
