"""What the support desk does without a model: its books, and how replies are read and passed on."""

from __future__ import annotations

import json
import re
from pathlib import Path

DATA = Path(__file__).parent / "data"
TEAMS = ("delivery", "payments", "repairs", "advice")
ARTICLES: dict[str, str] = json.loads((DATA / "articles.json").read_text(encoding="utf-8"))
ORDERS: dict[str, dict[str, str]] = json.loads((DATA / "orders.json").read_text(encoding="utf-8"))


def team_in(reply: str) -> str:
    """Return the team that triage's reply names; the reply where it names none."""
    said = reply.lower()
    return next((team for team in TEAMS if team in said), said)


def reference_in(reply: str) -> str:
    """Return the order number or the article that a reply names; the reply where it names none."""
    number = re.search(r"\b(\d{4})\b", reply)
    if number:
        return f"F-{number[1]}"
    return next((name for name in ARTICLES if name in reply.lower()), reply)


def entry(reference: str) -> str:
    """Return what the books say about an order number or an article."""
    order = ORDERS.get(reference)
    if order is not None:
        return f"{order['item']}: {order['summary']}"
    return ARTICLES.get(reference, "Nothing was found.")


def request(message: str, team: str, found: str, answer: str = "", verdict: str = "") -> str:
    """Return what the writer is asked; the second time with its answer and what was wrong."""
    asked = f"Customer: {message}\nTeam: {team}\nFound: {found}"
    if verdict:
        asked += f"\nYour last answer: {answer}\nThe checker: {verdict}"
    return asked


def sent_back(verdict: str) -> bool:
    """Return whether the checker wants another answer."""
    return verdict.upper().startswith("REVISE")
