"""Instructions that somebody planted in data, whatever they are dressed up as. Pure.

What a prompt may say is decided by its owner. Text from messages, tools and model outputs must not
get into one, also when a critic or a rewriter takes it for advice. So every proposed line and every
demonstration is read here as an attacker would have it read.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator

_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝһӏηικορτυνχβεαΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТХІЈЅ",
    "aeopcyxijsdqwhlnikoptuvxbeaABEZHIKMNOPTYXABEKMHOPCTXIJS",
)
_LEET = str.maketrans("013457@$!|", "oieastasil")
_SPELLED = re.compile(r"(?<!\w)(?:\w[\s.\-_*·|]{1,3}){4,}\w(?!\w)")
_CODED = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_WRAPPED = re.compile(r"-?[ \t]*[\r\n]\s*")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[\s,:]?){12,}")

_ORDERS = r"(?:instruction|prompt|rule|direction|guideline|command|directive)"
_BEFORE = (
    r"(?:above|previous|prior|earlier|preceding|foregoing|former|all|any|your|these|those|every)"
)
_IGNORE = (
    r"\b(?:ignor|disregard|forget|overrid|bypass|neglect|discard)\w*\b.{0,40}?"
    rf"\b(?:{_BEFORE}\b.{{0,25}}?\b{_ORDERS}|{_ORDERS}\w*\b.{{0,15}}?\b{_BEFORE}|the above\b"
    r"|everything (?:above|before)|what (?:came|was said) before|what you were told)"
)
_IGNORE_ELSEWHERE = (
    r"\b(?:ignorier|vergiss|missacht)\w*\b.{0,40}?\b(?:anweisung|vorherig|obig|bisherig)"
    r"|\b(?:ignor|oubli)(?:e|ez|er)\b.{0,40}?\b(?:instruction|consigne|pr[ée]c[ée]dent)"
    r"|\b(?:ignora|olvida)\w*\b.{0,40}?\b(?:instruccion|anterior)"
)
_PERSONA = (
    r"\b(?:you are now|from now on,? (?:you|ignore|reply|answer|act)|do anything now"
    r"|pretend (?:to be|that you)|act as (?:if you|an? (?:unrestricted|evil|different))"
    r"|developer mode|jailbreak|new persona)\b"
)
_ROLES = (
    r"<\|[^|>]{1,30}\|>|\[/?INST\]|<</?SYS>>|</?(?:system|assistant|instructions?)>"
    r"|^[^\S\n]*#{2,}\s*(?:system|instruction|assistant|user)"
    r"|^[^\S\n]*(?:system|assistant|developer)\s*:"
)
_SECRETS = (
    r"\b(?:reveal|print|leak|repeat|output|show|send|exfiltrat)\w*\b.{0,40}?\b"
    r"(?:your (?:prompt|instruction)|api[ _-]?key|password|secret|credential)s?\b"
)
_NEW = r"\b(?:new|updated|revised|real|actual|urgent) (?:instruction|rule|order|directive)s?\s*:"
_MARKS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), why)
    for pattern, why in (
        (_IGNORE, "tells a model to ignore what it was told"),
        (_IGNORE_ELSEWHERE, "tells a model to ignore what it was told"),
        (
            r"\b(?:system|developer|hidden|initial) (?:prompt|message|instruction)s?\b",
            "talks of the system prompt",
        ),
        (_PERSONA, "makes a model somebody else"),
        (_ROLES, "has the marks of a chat's roles"),
        (_NEW, "announces new instructions"),
        (_SECRETS, "asks for secrets"),
    )
)
_OUTWARD = re.compile(
    r"https?://\S+|\bwww\.\S+|\b[\w.+-]+@[\w-]+\.[\w.-]+|!\[[^\]]*\]\(|<(?:script|img|iframe)\b|```",
    re.IGNORECASE,
)


def planted(text: str) -> str | None:
    """Return what gives `text` away as a planted instruction; None where nothing does.

    Read as it is, and without what hides it: line breaks, invisible characters, look-alike letters,
    digits for letters, letters spelled out one by one, ROT13, backwards, Base64 and hexadecimal.
    """
    if _invisible(text):
        return "has invisible characters"
    for reading in readings(text):
        for pattern, why in _MARKS:
            found = pattern.search(reading)
            if found is not None:
                return f"{why} ({found[0].strip()[:40]!r})"
    return None


def outward(text: str, trusted: Iterable[str]) -> str | None:
    """Return an address, or code that could carry one, which no trusted text has; else None."""
    known = list(trusted)
    for found in _OUTWARD.findall(text):
        if not any(found in each for each in known):
            return f"brings in {found[:60]!r}"
    return None


def _invisible(text: str) -> bool:
    return any(
        unicodedata.category(c) in ("Cf", "Cc", "Co", "Cn") and c not in "\n\t\r\u200d\ufe0f"
        for c in text
    )


def readings(text: str) -> Iterator[str]:
    """Yield what `text` may say, plainest first."""
    # Sentences go on over line breaks; so do words and codes that were wrapped.
    for shape in dict.fromkeys((text, " ".join(text.split()), _WRAPPED.sub("", text))):
        yield from _read(shape)


def _read(text: str) -> Iterator[str]:
    plain = unicodedata.normalize("NFKC", text).translate(_LOOKALIKES)
    yield plain
    yield plain.translate(_LEET)
    joined = _SPELLED.sub(lambda m: re.sub(r"[\s.\-_*·|]", "", m[0]), plain)
    if joined != plain:
        yield _apart(joined)
        yield _apart(joined.translate(_LEET))
    yield codecs.decode(plain, "rot13")
    yield plain[::-1]
    yield from _decoded(plain)


def _apart(text: str) -> str:
    """Return spelled-out words that lost the space between them with those of orders set apart."""
    words = (
        "ignore|disregard|forget|all|the|above|previous|prior|instructions?|prompt|system|and|write"
        "|rules?|pwned|you|are|now"
    )
    return re.sub(rf"({words})(?=\w)", r"\1 ", text, flags=re.IGNORECASE)


def _decoded(text: str) -> Iterator[str]:
    for token in _CODED.findall(text):
        for decode in (base64.b64decode, base64.urlsafe_b64decode):
            try:
                yield decode(token + "=" * (-len(token) % 4)).decode("ascii")
            except (binascii.Error, ValueError):
                continue
    for token in _HEX.findall(text):
        try:
            yield bytes.fromhex(re.sub(r"[^0-9a-fA-F]", "", token)).decode("ascii")
        except ValueError:
            continue
