"""Instructions that somebody planted in data, whatever they are dressed up as. Pure.

What a prompt may say is decided by its owner. Text from messages, tools and model outputs must not
get into one, also when a critic or a rewriter takes it for advice. So every proposed line and every
demonstration is read here as an attacker would have it read.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from lg_textgrad.guards import visible

_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝһӏηικορτυνχβεαΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТХІЈЅ"
    "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢıɑɡօոս",
    "aeopcyxijsdqwhlnikoptuvxbeaABEZHIKMNOPTYXABEKMHOPCTXIJS"
    "abcdefghijklmnoprstuvwyziagonu",
)
_LEET = str.maketrans("013457@$!|", "oieastasil")
_SPELLED = re.compile(r"(?<!\w)(?:\w[\s.\-_*·|]{1,3}){4,}\w(?!\w)")
_CODED = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_BASE32 = re.compile(r"\b[A-Z2-7]{24,}={0,6}")
_ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))")
_MARKUP = re.compile(r"<!--.{0,200}?-->|</?\w[^<>]{0,200}>|[*~`\\]|(?<=\w)_(?=\w)")
_RUN_TOGETHER = re.compile(r"_+|(?<=[a-z])(?=[A-Z])")
# Scripts whose letters join, and look otherwise where they don't: Arabic, Syriac, N'Ko, Mandaic,
# those of India, Khmer, Mongolian, Balinese, Javanese, Phags-pa, Adlam and Rohingya.
_JOINING = (
    "\u0600-\u077f\u07c0-\u07ff\u0840-\u0dff\u1780-\u18af\u1b00-\u1b7f\ua840-\ua87f\ua8e0-\ua8ff"
    "\ua980-\ua9df\ufb50-\ufdff\ufe70-\ufefc\U00010d00-\U00010d3f\U00011000-\U00011fff"
    "\U0001e900-\U0001e95f"
)
_PICTURES = "\u2190-\u2bff\U0001f000-\U0001faff"
# Beside a letter of another script, or on its own, a joiner only hides something.
_JOINER = re.compile(
    f"(?<=[{_JOINING}])[\u200c\u200d]|[\u200c\u200d](?=[{_JOINING}])"
    f"|(?<=[{_PICTURES}\ufe0f])\u200d(?=[{_PICTURES}])"
)
# So does the mark of an emoji after a letter.
_AFTER_LETTERS = re.compile("[^\\W\\d_\u2139]\ufe0f")
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0e\U000e0100-\U000e01ef]"
)
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
_NOT_NOT = r"(?<!\bno )(?<!\bnon )(?<!\bnunca )(?<!\bn[ãa]o )(?<!\bnie )(?<!\bне )"
"""Who is told not to forget the instructions is told to follow them."""
_IGNORE_ELSEWHERE = (
    r"\b(?:ignorier|vergiss(?! nicht\b)|missacht)\w*\b.{0,40}?"
    r"\b(?:anweisung|vorherig|obig|bisherig|oben)"
    r"|\b(?:vorherig|obig|bisherig)\w* anweisung\w*\b.{0,20}?\bnicht (?:mehr|länger)"
    r"|\b(?:ignor|oubli)(?:e|ez|er)\b(?! pas\b).{0,40}?"
    r"\b(?:instruction|consigne|pr[ée]c[ée]dent)"
    r"|\bne (?:tiens|tenez) (?:pas|plus) compte\b.{0,40}?\b(?:instruction|consigne|pr[ée]c[ée]dent)"
    r"|\b(?:ignor(?:a|e|ar|en|em|ad|i|are|ate)|desconsider"
    rf"|{_NOT_NOT}(?:olvid|esqueç|dimentic))\w*\b.{{0,40}}?"
    r"\b(?:instruccion|instruç|istruzion|anteriore?[si]\b|precedenti\b)"
    r"|\b(?:ignora|olvida)\w*\b.{0,40}?\banterior"
    r"|\b(?:negeer|vergeet(?! niet\b))\b.{0,40}?"
    r"\b(?:instructie|opdracht|vorige|eerdere|bovenstaande)"
    rf"|\b(?:z?ignoruj|{_NOT_NOT}zapomnij)\w*\b.{{0,40}}?\b(?:instrukcj|polece|poprzedni)"
    rf"|\b(?:игнорир|{_NOT_NOT}(?:забудь|забыть))\w*\b.{{0,40}}?"
    r"\b(?:инструкц|указан|предыдущ|прежн)"
    r"|\btalimat\w*\b.{0,40}?\b(?:yok say|unut|görmezden)"
    r"|تجاهل.{0,40}?(?:تعليمات|السابقة)|دستور.{0,40}?(?:نادیده|فراموش)|निर्देश.{0,40}?(?:अनदेखा|भूल)"
    r"|(?:忽略|无视|無視|忘记|忘記).{0,10}?(?:之前|以前|以上|上述|上面|先前|所有).{0,10}?"
    r"(?:指令|指示|提示|说明|說明|规则|規則|内容|內容)"
    r"|(?:以前|上記|これまで|すべて|全て|前).{0,10}?(?:指示|命令|プロンプト|ルール).{0,12}?(?:無視|忘れ)"
    r"|(?:이전|위의|앞의|모든).{0,10}?(?:지시|명령|지침|프롬프트).{0,12}?(?:무시|잊)"
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
    r"\b[a-z][a-z\d+.-]{1,12}://\S+|\bwww\.\S+|\b[\w.+-]+@[\w-]+\.[\w.-]+|!\[[^\]]*\]\("
    r"|\]\(\s*//|<(?:script|img|iframe)\b|```",
    re.IGNORECASE,
)


def planted(text: str) -> str | None:
    """Return what gives `text` away as a planted instruction; None where nothing does.

    Read as it is, and without what hides it: line breaks, joiners, look-alike letters, accents,
    digits for letters, letters spelled out one by one, markup and escapes within words, ROT13,
    backwards, Base64, Base32 and hexadecimal.
    """
    if _invisible(text):
        return "has invisible characters"
    read = (each for reading in readings(text) for each in (reading, visible(reading)))
    for reading in dict.fromkeys(read):
        for pattern, why in _MARKS:
            found = pattern.search(reading)
            if found is not None:
                return f"{why} ({found[0].strip()[:40]!r})"
    return None


def outward(text: str, trusted: Iterable[str]) -> str | None:
    """Return an address, or code that could carry one, which no trusted text has; else None."""
    found = [address for reading in _in_letters(text) for address in _OUTWARD.findall(reading)]
    if not found:
        return None
    known = [reading for each in trusted for reading in _in_letters(each)]
    for address in found:
        if not any(address in each for each in known):
            return f"brings in {address[:60]!r}"
    return None


def _invisible(text: str) -> bool:
    return bool(_UNSEEN.search(text) or _AFTER_LETTERS.search(text)) or any(
        unicodedata.category(c) in ("Cf", "Cc", "Co", "Cn", "Cs") and c not in "\n\t\r"
        for c in _JOINER.sub("", text)
    )


def _in_letters(text: str) -> tuple[str, ...]:
    """Return a text as it is, and in the letters that it looks like."""
    whole = unicodedata.normalize("NFKC", text)
    return tuple(dict.fromkeys((text, whole, whole.translate(_LOOKALIKES))))


def readings(text: str) -> Iterator[str]:
    """Yield what `text` may say, plainest first."""
    # Sentences go on over line breaks; so do words and codes that were wrapped.
    for shape in dict.fromkeys((text, " ".join(text.split()), _WRAPPED.sub("", text))):
        yield from _read(shape)


def _read(text: str) -> Iterator[str]:
    *others, plain = _in_letters(text)
    yield plain
    yield from others  # other alphabets are languages of their own
    yield plain.translate(_LEET)
    yield _bare(plain)
    joined = _SPELLED.sub(lambda m: re.sub(r"[\s.\-_*·|]", "", m[0]), plain)
    if joined != plain:
        yield _apart(joined)
        yield _apart(joined.translate(_LEET))
    unmarked = _MARKUP.sub("", _unescaped(plain))
    if unmarked != plain:
        yield unmarked
    yield _RUN_TOGETHER.sub(" ", plain)
    yield codecs.decode(plain, "rot13")
    yield plain[::-1]
    for code in _decoded(plain):
        yield code
        yield from _decoded(code)


def _bare(text: str) -> str:
    """Return the letters without accents."""
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFKD", text)
    return "".join(c for c in apart if not unicodedata.combining(c)).translate(_LOOKALIKES)


def _unescaped(text: str) -> str:
    """Return a text as JSON, HTML or an address would show it."""
    shown = _ESCAPED.sub(lambda m: chr(int(m[1] or m[2], 16)), text)
    return html.unescape(unquote(shown, errors="ignore"))


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
                yield _said(decode(token + "=" * (-len(token) % 4)))
            except (binascii.Error, ValueError):
                continue
    for token in _BASE32.findall(text):
        try:
            yield _said(base64.b32decode(token.rstrip("=") + "=" * (-len(token.rstrip("=")) % 8)))
        except (binascii.Error, ValueError):
            continue
    for token in _HEX.findall(text):
        try:
            yield _said(bytes.fromhex(re.sub(r"[^0-9a-fA-F]", "", token)))
        except ValueError:
            continue


def _said(code: bytes) -> str:
    """Return bytes as text, whichever of the usual encodings it is in."""
    return code.replace(b"\0", b"").decode("utf-8", "ignore")
