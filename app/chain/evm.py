"""`evm` channels: the contract escrow on any EVM chain, in an ERC-20 token.

Source: `draft-evm-session-00`. A client has broadcast its funding and names the transaction (`hash`), or it
signs an EIP-3009 authorization that we carry to the escrow (`authorization`). What a hash names is looked
at, but what counts is the escrow's own record: the channel's id is made of payer, payee, token, salt and
signer, so a deposit under it is this channel's, whichever transaction made it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from app.chain import abi, evm_transaction, rpc
from app.chain import payload as fields
from app.chain.backend import ChainUnavailable, Funding, Mined, Signed, TransactionRefused
from app.chain.contract import ContractEscrow
from app.chain.escrow import POLL_FIRST_S, POLL_LAST_S
from app.chain.rpc import quantity
from app.chain.sponsorship import FEE_MAX, GWEI
from app.money import BaseUnits
from app.mpp.descriptor import ZERO_ADDRESS, Descriptor
from app.settings import SettingsError

# An authorization must outlive its way into a block.
REMAINING_S_MIN = 10
_OPENED = {topic for topic, kind in abi.V1_TOPICS.items() if kind == "opened"}
_TOPPED_UP = {topic for topic, kind in abi.V1_TOPICS.items() if kind == "topped_up"}


class Evm(ContractEscrow):
    """Our stream channel contract, opened by clients themselves or with their authorization."""

    fee_per_gas_max = 2_000 * GWEI

    async def check(self) -> None:
        """As of every contract escrow, and that it and the token take authorizations where they are offered."""
        await super().check()
        if not self._settings.eip3009:
            return
        nobody, nothing = (ZERO_ADDRESS,) * 2, (0, 0, bytes(32), b"")
        opens = abi.OPEN_WITH_AUTHORIZATION.call(*nobody, 0, bytes(32), *nobody, *nothing)
        receives = abi.RECEIVE_WITH_AUTHORIZATION.call(*nobody, 0, *nothing)
        for setting, call, address in (
            ("escrow", opens, self._offer.escrow),
            ("currency", receives, self._offer.currency),
        ):
            if not await self._answers(call, to=address):
                raise SettingsError(f"mpp.channels (evm): eip3009 is on, and {setting} has no such function")

    def decode_open(self, payload: Mapping[str, Any], *, source: str | None = None) -> Funding:
        """An ``open`` payload. For ``hash``, ``source`` names the payer and ``amount`` is 0 until `prepare`."""
        kind = self._credential_type(payload)
        channel_id, salt = fields.hash_field(payload, "channelId"), fields.hash_field(payload, "salt")
        signer = fields.optional_address(payload, "authorizedSigner")
        authorization = self._authorization(payload) if kind == "authorization" else None
        payer = authorization["from"] if authorization else self._payer(source)
        if authorization and source is not None and self._payer(source) != payer:
            raise TransactionRefused("source is not who authorizes the deposit")
        descriptor = self._descriptor(payer=payer, salt=salt, signer=signer or ZERO_ADDRESS)
        if self._channel_id(descriptor) != channel_id and signer is None:
            # Left out, the signer is the payer; on chain that may be written either way.
            descriptor = self._descriptor(payer=payer, salt=salt, signer=payer)
        if self._channel_id(descriptor) != channel_id:
            raise TransactionRefused("channelId is not that of this payer, payee, token, salt and signer")
        if authorization is None:
            return self._by_hash(payload, "open", channel_id=channel_id, descriptor=descriptor)
        self._check_nonce(
            authorization,
            ("address", "address", "address", "bytes32", "address"),
            (payer, descriptor.payee, descriptor.token, bytes.fromhex(salt[2:]), descriptor.authorized_signer),
        )
        return Funding(
            kind="open",
            channel_id=channel_id,
            descriptor=descriptor,
            amount=self._check_deposit(authorization["value"]),
            tx_hash=None,
            sponsored=True,
            authorization=authorization,
        )

    def decode_top_up(
        self, payload: Mapping[str, Any], *, channel_id: str, descriptor: Descriptor, source: str | None = None
    ) -> Funding:
        """A ``topUp`` payload, checked likewise against the channel. Raises `TransactionRefused`."""
        kind = self._credential_type(payload)
        self._check_descriptor(descriptor, channel_id=channel_id)
        if fields.hash_field(payload, "channelId") != channel_id:
            raise TransactionRefused("channelId is another channel's")
        amount = self._check_deposit(fields.integer_field(payload, "additionalDeposit"))
        if kind == "hash":
            if self._payer(source) != descriptor.payer:
                raise TransactionRefused("source is not the channel's payer")
            return self._by_hash(payload, "topUp", channel_id=channel_id, descriptor=descriptor, amount=amount)
        salt, authorization = fields.hash_field(payload, "salt"), self._authorization(payload)
        if authorization["value"] != amount:
            raise TransactionRefused("additionalDeposit is not what is authorized")
        # A stranger's top-up would be refunded to the payer: nobody means that.
        if authorization["from"] != descriptor.payer:
            raise TransactionRefused("only the channel's payer can add to it")
        self._check_nonce(
            authorization,
            ("bytes32", "uint128", "address", "bytes32"),
            (bytes.fromhex(channel_id[2:]), amount, descriptor.payer, bytes.fromhex(salt[2:])),
        )
        return Funding(
            kind="topUp",
            channel_id=channel_id,
            descriptor=descriptor,
            amount=amount,
            tx_hash=None,
            sponsored=True,
            authorization={**authorization, "salt": salt},
        )

    async def prepare(self, funding: Funding, *, nonce: int | None = None) -> Funding:
        """For ``hash``, the transaction is looked up, which may take until it is mined; for ``authorization`` our
        call is signed with ``nonce``, which only the holder of the settlement account's lease may give out.

        Raises `TransactionRefused` where the transaction does something else, our call would revert, or the
        budget for sponsored fees is used up.
        """
        if funding.authorization is None:
            return await self._looked_up(funding)
        if funding.raw is not None:
            return funding
        if nonce is None:
            raise ValueError("an authorization is carried by a transaction of ours, which needs a nonce")
        self._check_window(funding.authorization)
        signed = await self._sign(self._authorized_call(funding), nonce=nonce)
        # Gas is paid in a coin that has no price here: each counts as the most that one may cost on Tempo.
        if not await self._budget.reserve(FEE_MAX, tx_hash=signed.tx_hash):
            raise TransactionRefused("the budget for sponsored fees is used up for now; broadcast it yourself")
        return funding.with_transaction(signed.raw, signed.tx_hash)

    async def sign_settle(
        self, *, channel_id: str, descriptor: Descriptor, amount: BaseUnits, signature: str, nonce: int
    ) -> Signed:
        """A settlement of a voucher in full."""
        self._check_descriptor(descriptor, channel_id=channel_id)
        return await self._sign(self._settle_call(channel_id, amount, signature), nonce=nonce)

    async def sign_close(
        self,
        *,
        channel_id: str,
        descriptor: Descriptor,
        amount: BaseUnits,
        capture: BaseUnits,
        signature: str,
        nonce: int,
    ) -> Signed:
        """A close that captures ``capture`` in all and shows a voucher of ``amount``."""
        self._check_descriptor(descriptor, channel_id=channel_id)
        call = self._close_call(channel_id, amount=amount, capture=capture, signature=signature)
        return await self._sign(call, nonce=nonce)

    def _credential_type(self, payload: Mapping[str, Any]) -> str:
        return fields.require_type(payload, "hash", *(("authorization",) if self._settings.eip3009 else ()))

    def _payer(self, source: str | None) -> str:
        if source is None:
            raise TransactionRefused("source: needed with a transaction's hash", malformed=True)
        return fields.source_address(source, chain_id=self._offer.chain_id)

    def _descriptor(self, *, payer: str, salt: str, signer: str) -> Descriptor:
        return Descriptor(
            payer=payer,
            payee=self._offer.recipient,
            token=self._offer.currency,
            salt=salt,
            authorized_signer=signer,
        )

    def _channel_id(self, descriptor: Descriptor) -> str:
        return descriptor.channel_id(protocol="v1", escrow=self._offer.escrow, chain_id=self._offer.chain_id)

    def _check_descriptor(self, descriptor: Descriptor, *, channel_id: str) -> None:
        if (descriptor.payee, descriptor.token) != (self._offer.recipient, self._offer.currency):
            raise TransactionRefused("the channel is not with this payee in this token")
        if self._channel_id(descriptor) != channel_id:
            raise TransactionRefused("the descriptor is another channel's")

    def _by_hash(
        self,
        payload: Mapping[str, Any],
        kind: Literal["open", "topUp"],
        *,
        channel_id: str,
        descriptor: Descriptor,
        amount: BaseUnits | None = None,
    ) -> Funding:
        return Funding(
            kind=kind,
            channel_id=channel_id,
            descriptor=descriptor,
            amount=amount or BaseUnits(0),
            tx_hash=fields.hash_field(payload, "hash"),
        )

    def _authorization(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        given = fields.object_field(payload, "authorization")
        authorization: dict[str, Any] = {
            "from": fields.address_field(given, "from"),
            "value": fields.integer_field(given, "value"),
            "validAfter": fields.integer_field(given, "validAfter"),
            "validBefore": fields.integer_field(given, "validBefore"),
            "nonce": fields.hash_field(given, "nonce"),
            "signature": fields.signature_field(payload, "signature"),
        }
        if fields.address_field(given, "to") != self._offer.escrow:
            raise TransactionRefused("the authorization is not for the escrow")
        self._check_window(authorization)
        return authorization

    def _check_window(self, authorization: Mapping[str, Any]) -> None:
        now_s = self._now_s()
        if authorization["validBefore"] >= 2**256 or authorization["value"] >= 2**128:
            raise TransactionRefused("the authorization's numbers do not fit", malformed=True)
        if authorization["validAfter"] >= now_s or authorization["validBefore"] < now_s + REMAINING_S_MIN:
            raise TransactionRefused("the authorization is not valid now, or expires too soon")

    def _check_nonce(self, authorization: Mapping[str, Any], types: tuple[str, ...], values: tuple[Any, ...]) -> None:
        """EIP-3009 has no place for the channel in what is signed: the nonce commits to it."""
        if authorization["nonce"] != "0x" + keccak(encode(types, values)).hex():
            raise TransactionRefused("the authorization's nonce does not commit to this channel")

    def _authorized_call(self, funding: Funding) -> bytes:
        given, descriptor = funding.authorization or {}, funding.descriptor
        window = (
            given["validAfter"],
            given["validBefore"],
            bytes.fromhex(given["nonce"][2:]),
            bytes.fromhex(given["signature"][2:]),
        )
        if funding.kind == "topUp":
            return abi.TOP_UP_WITH_AUTHORIZATION.call(
                bytes.fromhex(funding.channel_id[2:]),
                funding.amount,
                given["from"],
                bytes.fromhex(given["salt"][2:]),
                *window,
            )
        return abi.OPEN_WITH_AUTHORIZATION.call(
            descriptor.payee,
            descriptor.token,
            funding.amount,
            bytes.fromhex(descriptor.salt[2:]),
            descriptor.authorized_signer,
            given["from"],
            *window,
        )

    async def _sign(self, data: bytes, *, nonce: int) -> Signed:
        max_fee, tip = await self._fees()
        return evm_transaction.sign(
            self._signer,
            chain_id=self._offer.chain_id,
            nonce=nonce,
            to=self._offer.escrow,
            data=data,
            gas=await self._gas(to=self._offer.escrow, data=data),
            max_fee_per_gas=max_fee,
            max_priority_fee_per_gas=tip,
        )

    async def _looked_up(self, funding: Funding) -> Funding:
        """The client's own transaction: from its call while it is in the pool, or else from its event."""
        tx_hash, pause_s, seen = funding.tx_hash or "", POLL_FIRST_S, False
        try:
            async with asyncio.timeout(self._confirm_timeout_s):
                while True:
                    found = await self._rpc.call("eth_getTransactionByHash", tx_hash)
                    amount = None
                    if found is not None:
                        seen = True
                        amount = await self._moved(funding, rpc.record(found))
                    if amount is not None:
                        return self._with_amount(funding, amount)
                    await asyncio.sleep(pause_s)
                    pause_s = min(POLL_LAST_S, pause_s * 2)
        except TimeoutError as error:
            if seen:
                raise ChainUnavailable("the transaction is not mined yet") from error
            raise TransactionRefused("the chain knows no such transaction") from error

    async def _moved(self, funding: Funding, transaction: Mapping[str, Any]) -> int | None:
        """The deposit that a transaction makes, or None while nothing but a receipt could tell."""
        receipt = await self._receipt(funding.tx_hash or "")
        if receipt is not None:
            return self._deposited(funding, receipt)
        if str(transaction.get("to")).lower() != self._offer.escrow:
            # A wallet's contract or a bundler calls the escrow: the event will say.
            return None
        if str(transaction.get("from")).lower() != funding.descriptor.payer:
            raise TransactionRefused("the transaction is another account's")
        return self._called(funding, rpc.data(transaction.get("input")))

    def _called(self, funding: Funding, call: bytes) -> int:
        """The deposit in the call data of an open or a top-up that is not mined yet."""
        descriptor = funding.descriptor
        try:
            if funding.kind == "open":
                payee, token, deposit, salt, signer = abi.V1_OPEN.arguments(call)
                expected = (descriptor.payee, descriptor.token, descriptor.salt, descriptor.authorized_signer)
                matches = (payee, token, "0x" + salt.hex(), signer) == expected
            else:
                deployed = call.startswith(abi.V1_TOP_UP_256.selector)
                named, deposit = (abi.V1_TOP_UP_256 if deployed else abi.V1_TOP_UP).arguments(call)
                matches = "0x" + named.hex() == funding.channel_id
        except ValueError as error:
            raise TransactionRefused(str(error)) from error
        if not matches:
            raise TransactionRefused("the transaction is about another channel")
        return int(deposit)

    def _deposited(self, funding: Funding, receipt: Mapping[str, Any]) -> int:
        """The deposit in the escrow's event about this channel."""
        if quantity(receipt.get("status")) != 1:
            raise TransactionRefused("the transaction reverted")
        wanted = _OPENED if funding.kind == "open" else _TOPPED_UP
        logs = receipt.get("logs")
        for entry in logs if isinstance(logs, list) else ():
            log = rpc.record(entry)
            topics = log.get("topics")
            if str(log.get("address")).lower() != self._offer.escrow or not isinstance(topics, list):
                continue
            if len(topics) == 4 and str(topics[0]).lower() in wanted and str(topics[1]).lower() == funding.channel_id:
                amounts = rpc.data(log.get("data"))
                # An open's last member is the deposit, a top-up's first what it added.
                word = amounts[-32:] if funding.kind == "open" else amounts[:32]
                return int.from_bytes(word, "big")
        raise TransactionRefused("the transaction did not fund the channel")

    def _with_amount(self, funding: Funding, amount: int) -> Funding:
        if funding.kind == "topUp" and amount != funding.amount:
            raise TransactionRefused("additionalDeposit is not what the transaction adds")
        return funding.with_amount(self._check_deposit(amount))

    async def _mined_of(self, receipt: Mapping[str, Any], *, tx_hash: str, block: int) -> Mined:
        spent = quantity(receipt.get("gasUsed")) * quantity(receipt.get("effectiveGasPrice"), bits=128)
        return Mined(
            tx_hash=tx_hash,
            succeeded=quantity(receipt.get("status")) == 1,
            block=block,
            fee=None,
            fee_native=spent,
        )
