"""Addresses and numbers that tell who somebody is, taken out of texts."""

import collections
import ipaddress
import re

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


def scrub(text):
    """Replace e-mail addresses, IP addresses, card and phone numbers.

    What is found is found by its shape: valid addresses of version 4 and 6; 13 to 19 digits, in
    groups or not, with a right check digit (Luhn); phone numbers that begin with `+`, American
    ones, national ones with a leading 0 in two or more groups, and Chinese mobile numbers. A
    version of four numbers looks like an address, and names of people and places stay.

    Args:
        text: str.

    Returns:
        The text with `<EMAIL>`, `<IP>`, `<CARD>` and `<PHONE>` in their place, and a dict from
        "e-mail addresses", "IP addresses", "card numbers" and "phone numbers" to how many there
        were of those that were found.

    Example:
    >>> scrub("Write to jo@example.org or call +44 20 7946 0958.")
    ('Write to <EMAIL> or call <PHONE>.', {'e-mail addresses': 1, 'phone numbers': 1})
    """
    counts = collections.Counter()
    for pattern, name, mark, is_right in _KINDS:

        def replaced(match, name=name, mark=mark, is_right=is_right):
            if not is_right(match[0]):
                return match[0]
            counts[name] += 1
            return mark

        text = pattern.sub(replaced, text)
    return text, dict(counts)


def scrub_texts(texts):
    """`scrub` each of a list of str: the list, and the sum of the counts."""
    total, found = collections.Counter(), []
    for text in texts:
        text, counts = scrub(text)
        found.append(text)
        total.update(counts)
    return found, dict(total)


def _is_address(text):
    if ":" in text and len([part for part in text.split(":") if part]) < 3:
        return False  # the `::2` of a slice in a program is an address too
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_card(text):
    """Luhn: from the right, every second digit is doubled and its digits are added."""
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _always(text):
    return True


_KINDS = (
    (_EMAIL, "e-mail addresses", "<EMAIL>", _always),
    (_IP, "IP addresses", "<IP>", _is_address),
    (_CARD, "card numbers", "<CARD>", _is_card),
    (_PHONE, "phone numbers", "<PHONE>", _always),
)
