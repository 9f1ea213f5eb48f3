"""Calls, events and errors of a contract by its committed ABI."""

from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode, encode
from eth_utils.crypto import keccak

from contracts import artifact


@dataclass(frozen=True, slots=True)
class Event:
    """A decoded log."""

    name: str
    values: dict[str, Any]


def type_of(parameter: dict[str, Any]) -> str:
    """The canonical type of a parameter."""
    written: str = parameter["type"]
    if not written.startswith("tuple"):
        return written
    return f"({','.join(type_of(part) for part in parameter['components'])}){written[5:]}"


def signature_of(entry: dict[str, Any]) -> str:
    """The canonical signature of a function, an event or an error."""
    return f"{entry['name']}({','.join(type_of(part) for part in entry['inputs'])})"


class Codec:
    """What goes to and comes from contracts with one ABI."""

    def __init__(self, name: str) -> None:
        self.artifact = artifact(name)
        entries = [entry for entry in self.artifact.abi if "name" in entry]
        self.functions = {signature_of(entry): entry for entry in entries if entry["type"] == "function"}
        self.events = {keccak(text=signature_of(entry)): entry for entry in entries if entry["type"] == "event"}
        self.errors = {keccak(text=signature_of(entry))[:4]: entry for entry in entries if entry["type"] == "error"}

    def function(self, name: str) -> dict[str, Any]:
        """A function by its signature, or by its name where there is but one."""
        if "(" in name:
            return self.functions[name]
        (found,) = [entry for signature, entry in self.functions.items() if signature.startswith(f"{name}(")]
        return found

    def call_data(self, name: str, arguments: tuple[Any, ...]) -> str:
        """The data of a call."""
        entry = self.function(name)
        types = [type_of(part) for part in entry["inputs"]]
        return "0x" + (keccak(text=signature_of(entry))[:4] + encode(types, arguments)).hex()

    def result(self, name: str, data: str) -> Any:
        """What a call returned: one value, or a tuple."""
        types = [type_of(part) for part in self.function(name)["outputs"]]
        values = decode(types, bytes.fromhex(data[2:]))
        return values[0] if len(values) == 1 else values

    def event(self, log: dict[str, Any]) -> Event | None:
        """A log as an event of this contract."""
        entry = self.events.get(bytes.fromhex(log["topics"][0][2:]))
        if entry is None:
            return None
        indexed = [part for part in entry["inputs"] if part["indexed"]]
        plain = [part for part in entry["inputs"] if not part["indexed"]]
        values = {
            part["name"]: decode([type_of(part)], bytes.fromhex(topic[2:]))[0]
            for part, topic in zip(indexed, log["topics"][1:], strict=True)
        }
        data = decode([type_of(part) for part in plain], bytes.fromhex(log["data"][2:]))
        values |= {part["name"]: value for part, value in zip(plain, data, strict=True)}
        return Event(entry["name"], values)

    def error(self, data: str) -> str:
        """The name of a custom error, or the data itself."""
        entry = self.errors.get(bytes.fromhex(data[2:10]))
        return entry["name"] if entry is not None else data
