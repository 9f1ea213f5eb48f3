"""The committed artifacts: small, without a trace of a machine, and read from the package."""

import json

import pytest

from contracts import artifact, check
from contracts import compile as compiling

NAMES = sorted(path.stem for path in compiling.ARTIFACTS.glob("*.json"))


def test_every_contract_has_its_artifact() -> None:
    assert {"ChannelReserveStandIn", "StreamChannel", "TestToken"} <= set(NAMES)
    for name in NAMES:
        found = artifact(name)
        assert found.name == name
        assert found.abi
        # What the chain keeps is what the creation code returns, but for the immutables in it.
        assert len(found.bytecode) > len(found.deployed_bytecode) > 0


@pytest.mark.parametrize("name", NAMES)
def test_artifact_names_what_it_was_made_of_and_no_machine(name: str) -> None:
    text = (compiling.ARTIFACTS / f"{name}.json").read_text()
    body = json.loads(text)
    package = json.loads((compiling.ROOT / "package.json").read_text())
    assert (compiling.ROOT / body["sourceName"]).is_file()
    assert body["compiler"] == {"version": package["devDependencies"]["solc"], "settings": compiling.SETTINGS}
    assert len(text) < 64 * 1024


def test_stand_in_runs_without_a_constructor() -> None:
    found = artifact("ChannelReserveStandIn")
    # Immutables would be left zero by what puts the code in place.
    assert found.deployed_bytecode in found.bytecode
    assert not [entry for entry in found.abi if entry["type"] == "constructor"]


def test_check_names_what_differs() -> None:
    committed = {path.stem: path.read_text() for path in compiling.ARTIFACTS.glob("*.json")}
    assert check.differences(committed) == []
    changed = {**committed, "StreamChannel": committed["StreamChannel"] + " ", "New": ""}
    del changed["TestToken"]
    assert check.differences(changed) == ["New", "StreamChannel", "TestToken"]


def test_pins_are_exact_and_lock_files_record_no_addresses() -> None:
    for folder in (compiling.ROOT, compiling.ROOT.parent / "app/devnet/anvil"):
        package = json.loads((folder / "package.json").read_text())
        lock = (folder / "package-lock.json").read_text()
        assert "://" not in lock.replace("https://github.com/sponsors/", "")
        assert '"resolved"' not in lock
        for pins in (package.get("dependencies", {}), package.get("devDependencies", {})):
            for name, version in pins.items():
                assert version[0].isdigit(), name
                entry = json.loads(lock)["packages"][f"node_modules/{name}"]
                assert (entry["version"], entry["integrity"][:7]) == (version, "sha512-")
