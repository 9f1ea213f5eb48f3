"""The selectors, topics and structures that other people's clients are built against."""

from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak

from tests.contracts.bench import NAME, Bench
from tests.contracts.codec import Codec, signature_of, type_of
from tests.contracts.node import Contract

_CHANNEL = "(bool,uint64,address,address,address,address,uint128,uint128)"
_DESCRIPTOR = "(address,address,address,address,bytes32,address,bytes32)"
_STATE = "(uint96,uint96,uint32)"

V1_FUNCTIONS = {
    "CLOSE_GRACE_PERIOD()": "uint64",
    "VOUCHER_TYPEHASH()": "bytes32",
    "channels(bytes32)": _CHANNEL[1:-1],
    "close(bytes32,uint128,bytes)": "",
    "computeChannelId(address,address,address,bytes32,address)": "bytes32",
    "domainSeparator()": "bytes32",
    "eip712Domain()": "bytes1,string,string,uint256,address,bytes32,uint256[]",
    "getChannel(bytes32)": _CHANNEL,
    "getChannelsBatch(bytes32[])": _CHANNEL + "[]",
    "getVoucherDigest(bytes32,uint128)": "bytes32",
    "open(address,address,uint128,bytes32,address)": "bytes32",
    "requestClose(bytes32)": "",
    "settle(bytes32,uint128,bytes)": "",
    "topUp(bytes32,uint256)": "",
    "withdraw(bytes32)": "",
    # The evm method's own.
    "topUp(bytes32,uint128)": "",
    "openWithAuthorization(address,address,uint128,bytes32,address,address,uint256,uint256,bytes32,bytes)": "bytes32",
    "topUpWithAuthorization(bytes32,uint128,address,bytes32,uint256,uint256,bytes32,bytes)": "",
    # Ours.
    "closeWithCapture(bytes32,uint128,uint128,bytes)": "",
}
V1_EVENTS = {
    "ChannelClosed(bytes32,address,address,uint256,uint256)",
    "ChannelExpired(bytes32,address,address)",
    "ChannelOpened(bytes32,address,address,address,address,bytes32,uint256)",
    "CloseRequestCancelled(bytes32,address,address)",
    "CloseRequested(bytes32,address,address,uint256)",
    "Settled(bytes32,address,address,uint256,uint256,uint256)",
    "TopUp(bytes32,address,address,uint256,uint256)",
}
V1_ERRORS = {
    *("AmountExceedsDeposit", "AmountNotIncreasing", "ChannelAlreadyExists", "ChannelFinalized", "ChannelNotFound"),
    *("CloseNotReady", "DepositOverflow", "InvalidPayee", "InvalidSignature", "NotPayee", "NotPayer"),
    *("TransferFailed", "NonceMismatch", "ZeroDeposit"),
}
V2_FUNCTIONS = {
    "CLOSE_GRACE_PERIOD()": "uint64",
    "VOUCHER_TYPEHASH()": "bytes32",
    f"close({_DESCRIPTOR},uint96,uint96,bytes)": "",
    "computeChannelId(address,address,address,address,bytes32,address,bytes32)": "bytes32",
    "domainSeparator()": "bytes32",
    f"getChannel({_DESCRIPTOR})": f"({_DESCRIPTOR},{_STATE})",
    "getChannelState(bytes32)": _STATE,
    "getChannelStatesBatch(bytes32[])": _STATE + "[]",
    "getVoucherDigest(bytes32,uint96)": "bytes32",
    "open(address,address,address,uint96,bytes32,address)": "bytes32",
    f"requestClose({_DESCRIPTOR})": "",
    f"settle({_DESCRIPTOR},uint96,bytes)": "",
    f"topUp({_DESCRIPTOR},uint96)": "",
    f"withdraw({_DESCRIPTOR})": "",
}
V2_EVENTS = {
    "ChannelClosed(bytes32,address,address,uint96,uint96)",
    "ChannelOpened(bytes32,address,address,address,address,address,bytes32,bytes32,uint96)",
    "CloseRequestCancelled(bytes32,address,address)",
    "CloseRequested(bytes32,address,address,uint256)",
    "Settled(bytes32,address,address,uint96,uint96,uint96)",
    "TopUp(bytes32,address,address,uint96,uint96)",
}


def check_events(codec: Codec, expected: set[str]) -> None:
    """The events are there, and channel, payer and payee are what one can filter by."""
    found = {signature_of(entry): entry for entry in codec.events.values()}
    assert expected <= set(found)
    for signature in expected:
        indexed = [part["name"] for part in found[signature]["inputs"] if part["indexed"]]
        assert indexed == ["channelId", "payer", "payee"]


def check_functions(codec: Codec, expected: dict[str, str]) -> None:
    """The functions are there and return what they must."""
    for signature, outputs in expected.items():
        entry = codec.functions[signature]
        assert ",".join(type_of(part) for part in entry["outputs"]) == outputs, signature


def test_escrow_has_the_interface_of_both_methods() -> None:
    codec = Codec("StreamChannel")
    check_functions(codec, V1_FUNCTIONS)
    check_events(codec, V1_EVENTS)
    assert {entry["name"] for entry in codec.errors.values()} >= V1_ERRORS


def test_stand_in_has_the_interface_of_the_reserve() -> None:
    codec = Codec("ChannelReserveStandIn")
    check_functions(codec, V2_FUNCTIONS)
    check_events(codec, V2_EVENTS)


def test_nobody_can_send_money_to_the_escrow_by_mistake() -> None:
    codec = Codec("StreamChannel")
    assert not [entry for entry in codec.artifact.abi if entry["type"] in {"receive", "fallback"}]
    assert not [entry for entry in codec.artifact.abi if entry.get("stateMutability") == "payable"]


def test_constants(bench: Bench) -> None:
    assert bench.escrow.call("CLOSE_GRACE_PERIOD") == 900
    kind = keccak(text="Voucher(bytes32 channelId,uint128 cumulativeAmount)")
    assert bench.escrow.call("VOUCHER_TYPEHASH") == kind


def test_channel_id_and_digest_are_those_of_the_specification(bench: Bench) -> None:
    salt, signer = bench.salt(), bench.stranger.address
    arguments = (bench.payer.address, bench.payee, bench.token.address, salt, signer)
    found = bench.escrow.call("computeChannelId", *arguments)
    assert found == bench.channel_id(salt, signer=signer)
    assert bench.escrow.call("getVoucherDigest", found, 2**128 - 1) == bench.domain.voucher(found, 2**128 - 1)
    assert bench.escrow.call("domainSeparator") == bench.domain.separator()


def test_digest_is_what_wallets_compute(bench: Bench) -> None:
    channel_id = b"\7" * 32
    typed = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Voucher": [{"name": "channelId", "type": "bytes32"}, {"name": "cumulativeAmount", "type": "uint128"}],
        },
        "primaryType": "Voucher",
        "domain": {
            "name": NAME,
            "version": "1",
            "chainId": bench.chain_id,
            "verifyingContract": bench.escrow.address,
        },
        "message": {"channelId": channel_id, "cumulativeAmount": 12_345},
    }
    signable = encode_typed_data(full_message=typed)
    digest = keccak(b"\x19" + signable.version + signable.header + signable.body)
    assert bench.escrow.call("getVoucherDigest", channel_id, 12_345) == digest


def test_domain_name_is_given_at_construction(bench: Bench) -> None:
    tempo = Contract.deploy(bench.node, "StreamChannel", bench.payee, "Tempo Stream Channel")
    for escrow, name in ((tempo, "Tempo Stream Channel"), (bench.escrow, NAME)):
        fields, found, version, chain_id, verifier, _, _ = escrow.call("eip712Domain")
        assert (fields, found, version, chain_id) == (b"\x0f", name, "1", bench.chain_id)
        assert verifier.lower() == escrow.address.lower()
    assert tempo.call("domainSeparator") != bench.escrow.call("domainSeparator")


def test_several_records_are_read_at_once(bench: Bench) -> None:
    first, second = bench.open(5), bench.open(7)
    found = bench.escrow.call("getChannelsBatch", [second, b"\0" * 32, first])
    assert [record[6] for record in found] == [7, 0, 5]
    assert found[0] == bench.escrow.call("getChannel", second) == bench.escrow.call("channels", second)
