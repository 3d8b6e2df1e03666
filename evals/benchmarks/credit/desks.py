"""Two desks of six nodes each, whose models are scripts, and in which one node can be at fault.

Every node asks a chat model, and every model is code: it does its node's work right, unless its
node is the one at fault. Then its prompt lacks the decisive line, and its replies are what a model
without that line would say. Evaluators are code too, and look at the last text only.

- `parcels`: reader -> zone -> price, carrier -> label -> letter. Templates were tried out on it.
- `hotel`: guests, nights, extras in parallel -> room -> rate -> confirm. Nothing was tried on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, StateGraph

import lg_textgrad as tg

ROWS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "rows.json").read_text(encoding="utf-8")
)

Reply = Callable[[str, bool], str]
"""What a node's model says to a text; told whether it is at fault."""


class ByHand(BaseChatModel):
    """A chat model that is code."""

    node: str
    faulty: bool
    reply: Reply

    @property
    def _llm_type(self) -> str:
        return "by-hand"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002 - LangChain's signature
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> ChatResult:
        said = AIMessage(self.reply(str(messages[-1].content), self.faulty))
        return ChatResult(generations=[ChatGeneration(message=said)])


@dataclass(frozen=True)
class Node:
    """One node of a desk."""

    role: str
    prompt: str
    decisive: str
    """The line that its prompt lacks when it is at fault."""
    reads: Mapping[str, str]
    """State key -> what it is called in the text that the model gets."""
    reply: Reply

    def instruction(self, *, faulty: bool) -> str:
        return "\n".join(
            line for line in self.prompt.split("\n") if not (faulty and line == self.decisive)
        )


class State(TypedDict, total=False):
    message: str
    reader: str
    zone: str
    price: str
    carrier: str
    label: str
    letter: str
    guests: str
    nights: str
    extras: str
    room: str
    rate: str
    confirm: str


@dataclass(frozen=True)
class Desk:
    """Six nodes, the order in which they feed each other, and what is right."""

    nodes: Mapping[str, Node]
    edges: tuple[tuple[str | tuple[str, ...], str], ...]
    last: str
    rows: tuple[dict[str, Any], ...]
    evaluator: Callable[..., Any]

    def graph(self, faulty: str | None) -> tg.TrainableGraph:
        """Return the graph with one node at fault; with none, everything is right."""
        builder = StateGraph(State)
        parameters = []
        for name, node in self.nodes.items():
            wrong = name == faulty
            parameter = tg.Parameter(name, node.instruction(faulty=wrong), role=node.role)
            parameters.append(parameter)
            builder.add_node(name, _ask(name, node, parameter, faulty=wrong))
        for before, after in self.edges:
            builder.add_edge(list(before) if isinstance(before, tuple) else before, after)
        return tg.TrainableGraph(builder.compile(), parameters)


def _ask(name: str, node: Node, parameter: tg.Parameter, *, faulty: bool) -> Any:
    model = ByHand(node=name, faulty=faulty, reply=node.reply)

    async def run(state: State) -> dict[str, str]:
        values: Mapping[str, Any] = state
        text = "\n".join(f"{called}: {values[key]}" for key, called in node.reads.items())
        reply = await model.ainvoke([parameter.message(), HumanMessage(text)])
        return {name: str(reply.content)}

    return run


def _field(text: str, name: str) -> str:
    found = re.search(rf"\b{name}: *([^;\n]+)", text, re.IGNORECASE)
    return found[1].strip() if found else ""


def _known(text: str, options: Iterable[str]) -> str:
    """Return the option that a text names, as a model would find it; empty where it names none."""
    return next((o for o in options if re.search(rf"\b{o}\b", text, re.IGNORECASE)), "")


def _sentence(wrong: Sequence[str]) -> str:
    text = "; ".join(wrong)
    return f"{text[0].upper()}{text[1:]}." if wrong else ""


def _number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


# Parcels.

ZONES = {
    "Oslo": "north", "Bergen": "north", "Malmo": "north", "Ghent": "middle", "Lyon": "middle",
    "Basel": "middle", "Turin": "south", "Porto": "south", "Vigo": "south",
}  # fmt: skip
RATES = {"north": 9, "middle": 5, "south": 7}
CARRIERS = {"north": "Nordline", "middle": "Vandam", "south": "Sudrail"}


def _reader(text: str, wrong: bool) -> str:
    found = re.search(
        r"from (\w+).*? (?:a|an|my|the) (\w+) of (\d+) kilos? .*?to (?:my \w+ in )?(\w+)", text
    )
    assert found, text
    return f"item: {found[2]}; city: {found[1] if wrong else found[4]}; kilos: {found[3]}"


def _zone(text: str, wrong: bool) -> str:
    return "overseas" if wrong else ZONES.get(_known(_field(text, "city"), ZONES), "overseas")


def _price(text: str, wrong: bool) -> str:
    rate = RATES.get(_known(_field(text, "zone"), RATES), 0)
    return f"{rate if wrong else rate * _number(_field(text, 'kilos'))} euros"


def _carrier(text: str, wrong: bool) -> str:
    zone = _known(_field(text, "zone"), CARRIERS)
    return "the post office" if wrong else CARRIERS.get(zone, "none")


def _label(text: str, wrong: bool) -> str:
    item, city = _field(text, "item"), _field(text, "city")
    zone, carrier = _field(text, "zone"), _field(text, "carrier")
    return f"{city} - {carrier}" if wrong else f"{item.upper()} / {city} / {zone} / {carrier}"


def _letter(text: str, wrong: bool) -> str:
    price = "" if wrong else f" It costs {_field(text, 'price')}."
    city, carrier = _field(text, "city"), _field(text, "carrier")
    return (
        f"Dear customer, your {_field(text, 'item')} goes to {city} with {carrier}.{price} "
        f"The label says: {_field(text, 'label')}. Kind regards, the parcel desk."
    )


def _parcel_is_right(
    outputs: dict[str, Any], reference_outputs: dict[str, Any]
) -> dict[str, Any]:
    """The share of what the letter must say."""
    letter, wanted = str(outputs.get("letter", "")), reference_outputs
    city, carrier = wanted["city"], wanted["carrier"]
    demands = [
        (f"the letter must say that the parcel goes to {city}", f"goes to {city} "),
        (f"the letter must name the carrier '{carrier}'", f"with {carrier}."),
        (f"the letter must say that it costs {wanted['price']}", f"costs {wanted['price']}."),
        (f"the label must be '{wanted['label']}'", f"says: {wanted['label']}."),
    ]
    wrong = [demand for demand, text in demands if text not in letter]
    comment = _sentence(wrong)
    return {"key": "letter", "score": 1 - len(wrong) / len(demands), "comment": comment}


PARCELS = Desk(
    nodes={
        "reader": Node(
            "reads what is sent where from a customer's message",
            "You read a customer's message at a parcel desk.\n"
            "The city is the one that the parcel goes to, not the one that it comes from.\n"
            "Write one line: item: ...; city: ...; kilos: ...",
            "The city is the one that the parcel goes to, not the one that it comes from.",
            {"message": "message"},
            _reader,
        ),
        "zone": Node(
            "names the zone of the city that a parcel goes to",
            "You name the zone that a city is in.\n"
            "Oslo, Bergen and Malmo are north; Ghent, Lyon and Basel middle; Turin, Porto and Vigo"
            " south.\nReply with the zone only.",
            "Oslo, Bergen and Malmo are north; Ghent, Lyon and Basel middle; Turin, Porto and Vigo"
            " south.",
            {"reader": "parcel"},
            _zone,
        ),
        "price": Node(
            "works out what a parcel costs",
            "You work out the price of a parcel.\n"
            "Zone north is 9 euros, middle 5 euros, south 7 euros.\n"
            "Multiply by the number of kilos.\nReply with the sum in euros only.",
            "Multiply by the number of kilos.",
            {"zone": "zone", "reader": "parcel"},
            _price,
        ),
        "carrier": Node(
            "names the carrier of a parcel",
            "You name the carrier of a parcel.\n"
            "North goes with Nordline, middle with Vandam, south with Sudrail.\n"
            "Reply with the carrier's name only.",
            "North goes with Nordline, middle with Vandam, south with Sudrail.",
            {"zone": "zone"},
            _carrier,
        ),
        "label": Node(
            "writes the label of a parcel",
            "You write the label of a parcel.\n"
            "A label has this form: ITEM IN CAPITALS / city / zone / carrier\n"
            "Reply with the label only.",
            "A label has this form: ITEM IN CAPITALS / city / zone / carrier",
            {"reader": "parcel", "zone": "zone", "carrier": "carrier"},
            _label,
        ),
        "letter": Node(
            "writes the letter to the customer",
            "You write to the customer of a parcel desk.\n"
            "Say where the parcel goes and with whom, and what the label says.\n"
            "Say what it costs.\nBegin with Dear customer and end with Kind regards.",
            "Say what it costs.",
            {"reader": "parcel", "carrier": "carrier", "price": "price", "label": "label"},
            _letter,
        ),
    },
    edges=(
        (START, "reader"), ("reader", "zone"), ("zone", "price"), ("zone", "carrier"),
        (("price", "carrier"), "label"), ("label", "letter"),
    ),
    last="letter",
    rows=tuple(ROWS["parcels"]),
    evaluator=_parcel_is_right,
)


# Hotel.

ROOMS = {1: "Lark", 2: "Lark", 3: "Heron", 4: "Heron", 5: "Eagle", 6: "Eagle"}
NIGHTLY = {"Lark": 60, "Heron": 90, "Eagle": 140}


def _guests(text: str, wrong: bool) -> str:
    adults = re.search(r"(\d) adults?", text)
    children = re.search(r"(\d) child", text)
    count = int(adults[1]) if adults else 1
    return str(count if wrong or not children else count + int(children[1]))


def _nights(text: str, wrong: bool) -> str:
    found = re.search(r"from the (\d+)\w* to the (\d+)", text, re.IGNORECASE)
    assert found, text
    return str(int(found[2]) - int(found[1]) + (1 if wrong else 0))


def _extras(text: str, wrong: bool) -> str:
    if "dog" in text or "cat" in text:
        return "none" if wrong else "pet fee 12 euros"
    return "cot" if wrong else "none"


def _room(text: str, wrong: bool) -> str:
    return "Standard" if wrong else ROOMS.get(_number(_field(text, "guests")), "Standard")


def _rate(text: str, wrong: bool) -> str:
    nightly = NIGHTLY.get(_known(_field(text, "room"), NIGHTLY), 0)
    return f"{nightly if wrong else nightly * _number(_field(text, 'nights'))} euros"


def _confirm(text: str, wrong: bool) -> str:
    extras = _field(text, "extras")
    return (
        f"Your booking is confirmed: room {_field(text, 'room')} for {_field(text, 'guests')} "
        f"guests and {_field(text, 'nights')} nights, {_field(text, 'price')}. "
        + ("We look forward to you." if wrong else f"Extras: {extras}. We look forward to you.")
    )


def _booking_is_right(
    outputs: dict[str, Any], reference_outputs: dict[str, Any]
) -> dict[str, Any]:
    """The share of what the confirmation must say."""
    said, wanted = str(outputs.get("confirm", "")), reference_outputs
    demands = [
        (f"there are {wanted['guests']} guests", f"for {wanted['guests']} guests"),
        (f"they stay {wanted['nights']} nights", f"and {wanted['nights']} nights"),
        (f"the room must be '{wanted['room']}'", f"room {wanted['room']} "),
        (f"the price must be {wanted['price']}", f"nights, {wanted['price']}."),
        (f"it must say 'Extras: {wanted['extras']}'", f"Extras: {wanted['extras']}."),
    ]
    wrong = [demand for demand, text in demands if text not in said]
    comment = _sentence(wrong)
    return {"key": "booking", "score": 1 - len(wrong) / len(demands), "comment": comment}


HOTEL = Desk(
    nodes={
        "guests": Node(
            "counts the guests of a booking",
            "You count the guests of a booking.\nChildren count too.\nReply with the number only.",
            "Children count too.",
            {"message": "message"},
            _guests,
        ),
        "nights": Node(
            "counts the nights of a booking",
            "You count the nights of a booking.\n"
            "The day on which the guests leave is no night.\nReply with the number only.",
            "The day on which the guests leave is no night.",
            {"message": "message"},
            _nights,
        ),
        "extras": Node(
            "names the extras of a booking",
            "You name the extras of a booking.\n"
            "For an animal write: pet fee 12 euros. Otherwise write: none.\n"
            "Reply with that only.",
            "For an animal write: pet fee 12 euros. Otherwise write: none.",
            {"message": "message"},
            _extras,
        ),
        "room": Node(
            "chooses the room for a number of guests",
            "You choose the room.\n"
            "Up to 2 guests sleep in the Lark, 3 or 4 in the Heron, more in the Eagle.\n"
            "Reply with the room's name only.",
            "Up to 2 guests sleep in the Lark, 3 or 4 in the Heron, more in the Eagle.",
            {"guests": "guests"},
            _room,
        ),
        "rate": Node(
            "works out the price of a stay",
            "You work out the price of a stay.\n"
            "The Lark costs 60 euros a night, the Heron 90, the Eagle 140.\n"
            "Multiply by the number of nights.\nReply with the sum in euros only.",
            "Multiply by the number of nights.",
            {"room": "room", "nights": "nights"},
            _rate,
        ),
        "confirm": Node(
            "writes the confirmation of a booking",
            "You confirm a booking.\nName the room, the guests, the nights and the price.\n"
            "Then write Extras: and what they are.\nEnd with: We look forward to you.",
            "Then write Extras: and what they are.",
            {
                "room": "room", "guests": "guests", "nights": "nights", "rate": "price",
                "extras": "extras",
            },
            _confirm,
        ),
    },
    edges=(
        (START, "guests"), (START, "nights"), (START, "extras"), ("guests", "room"),
        (("room", "nights"), "rate"), (("rate", "extras"), "confirm"),
    ),
    last="confirm",
    rows=tuple(ROWS["hotel"]),
    evaluator=_booking_is_right,
)

DESKS: Mapping[str, Desk] = {"parcels": PARCELS, "hotel": HOTEL}
