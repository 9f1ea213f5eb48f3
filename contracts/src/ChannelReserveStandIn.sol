// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @title Development stand-in for Tempo's TIP-20 channel reserve
/// @notice The reserve is a precompile that local nodes do not have. This contract is put at its address
/// (`anvil_setCode`) and behaves like it to clients and servers. Never deploy it: anybody who can write storage, as a
/// local chain's owner can, decides what it believes.
/// @dev Two things a precompile knows and a contract cannot are written into storage by the JSON-RPC shim in front of
/// the node: the hash of the transaction that opens a channel (slot 0, below) and, in the token, the allowance that
/// lets `transferFrom` do what the precompile does without one. There is no constructor and no immutable, as
/// `anvil_setCode` runs neither; and no storage but these two mappings, so that the slots stay known.
contract ChannelReserveStandIn {
    struct ChannelDescriptor {
        address payer;
        address payee;
        address operator;
        address token;
        bytes32 salt;
        address authorizedSigner;
        bytes32 expiringNonceHash;
    }

    struct ChannelState {
        uint96 settled;
        uint96 deposit;
        uint32 closeRequestedAt;
    }

    struct Channel {
        ChannelDescriptor descriptor;
        ChannelState state;
    }

    uint64 public constant CLOSE_GRACE_PERIOD = 15 minutes;
    bytes32 public constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint96 cumulativeAmount)");

    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant NAME_HASH = keccak256("TIP20 Channel Reserve");
    bytes32 private constant VERSION_HASH = keccak256("1");
    bytes12 private constant TIP20_PREFIX = 0x20c000000000000000000000;

    /// @notice Slot 0, written from outside: `keccak256(encodeForSigning ++ sender)` of the transaction that is about
    /// to open the channel of this payer and salt. An open consumes it.
    mapping(address payer => mapping(bytes32 salt => bytes32)) public openingHash;

    /// @dev Slot 1. Unlike in the contract escrow, the end of a channel deletes it: the hash in the id of a channel
    /// makes every open a new one.
    mapping(bytes32 channelId => ChannelState) private states;

    event ChannelOpened(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address operator,
        address token,
        address authorizedSigner,
        bytes32 salt,
        bytes32 expiringNonceHash,
        uint96 deposit
    );
    event Settled(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint96 cumulativeAmount,
        uint96 deltaPaid,
        uint96 newSettled
    );
    event TopUp(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint96 additionalDeposit,
        uint96 newDeposit
    );
    event CloseRequested(
        bytes32 indexed channelId, address indexed payer, address indexed payee, uint256 closeGraceEnd
    );
    event CloseRequestCancelled(bytes32 indexed channelId, address indexed payer, address indexed payee);
    event ChannelClosed(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint96 settledToPayee,
        uint96 refundedToPayer
    );

    error ChannelAlreadyExists();
    /// @notice There is no such channel, or it is over.
    error ChannelNotFound();
    error NotPayer();
    error NotPayeeOrOperator();
    /// @notice The payee is the zero address, or a token.
    error InvalidPayee();
    /// @notice Not a TIP-20 token.
    error InvalidToken();
    error ZeroDeposit();
    error DepositOverflow();
    /// @notice The shim did not see the transaction that opens this channel.
    error ExpiringNonceHashNotSet();
    error InvalidSignature();
    error AmountExceedsDeposit();
    error AmountNotIncreasing();
    error CaptureAmountInvalid();
    error CloseNotReady();
    error TransferFailed();

    function open(
        address payee,
        address operator,
        address token,
        uint96 deposit,
        bytes32 salt,
        address authorizedSigner
    ) external returns (bytes32 channelId) {
        if (payee == address(0) || _isTip20(payee)) revert InvalidPayee();
        if (!_isTip20(token)) revert InvalidToken();
        if (deposit == 0) revert ZeroDeposit();
        bytes32 nonceHash = openingHash[msg.sender][salt];
        if (nonceHash == 0) revert ExpiringNonceHashNotSet();
        delete openingHash[msg.sender][salt];
        channelId = computeChannelId(msg.sender, payee, operator, token, salt, authorizedSigner, nonceHash);
        if (states[channelId].deposit != 0) revert ChannelAlreadyExists();
        states[channelId].deposit = deposit;
        emit ChannelOpened(
            channelId, msg.sender, payee, operator, token, authorizedSigner, salt, nonceHash, deposit
        );
        _pull(token, deposit);
    }

    function topUp(ChannelDescriptor calldata descriptor, uint96 additionalDeposit) external {
        (bytes32 channelId, ChannelState storage state) = _live(descriptor);
        if (msg.sender != descriptor.payer) revert NotPayer();
        if (additionalDeposit > type(uint96).max - state.deposit) revert DepositOverflow();
        state.deposit += additionalDeposit;
        if (state.closeRequestedAt != 0) {
            state.closeRequestedAt = 0;
            emit CloseRequestCancelled(channelId, descriptor.payer, descriptor.payee);
        }
        emit TopUp(channelId, descriptor.payer, descriptor.payee, additionalDeposit, state.deposit);
        // Nothing may be added: that only cancels a request to close.
        if (additionalDeposit > 0) _pull(descriptor.token, additionalDeposit);
    }

    function settle(ChannelDescriptor calldata descriptor, uint96 cumulativeAmount, bytes calldata signature)
        external
    {
        (bytes32 channelId, ChannelState storage state) = _live(descriptor);
        _requirePayeeSide(descriptor);
        uint96 settled = state.settled;
        if (cumulativeAmount > state.deposit) revert AmountExceedsDeposit();
        if (cumulativeAmount <= settled) revert AmountNotIncreasing();
        _requireVoucher(descriptor, channelId, cumulativeAmount, signature);
        uint96 delta = cumulativeAmount - settled;
        state.settled = cumulativeAmount;
        emit Settled(channelId, descriptor.payer, descriptor.payee, cumulativeAmount, delta, cumulativeAmount);
        _push(descriptor.token, descriptor.payee, delta);
    }

    function close(
        ChannelDescriptor calldata descriptor,
        uint96 cumulativeAmount,
        uint96 captureAmount,
        bytes calldata signature
    ) external {
        (bytes32 channelId, ChannelState storage state) = _live(descriptor);
        _requirePayeeSide(descriptor);
        if (captureAmount < state.settled || captureAmount > cumulativeAmount) revert CaptureAmountInvalid();
        if (captureAmount > state.deposit) revert AmountExceedsDeposit();
        if (captureAmount > state.settled) _requireVoucher(descriptor, channelId, cumulativeAmount, signature);
        _end(descriptor, channelId, captureAmount);
    }

    function requestClose(ChannelDescriptor calldata descriptor) external {
        (bytes32 channelId, ChannelState storage state) = _live(descriptor);
        if (msg.sender != descriptor.payer) revert NotPayer();
        if (state.closeRequestedAt != 0) return;
        state.closeRequestedAt = uint32(block.timestamp);
        emit CloseRequested(channelId, descriptor.payer, descriptor.payee, block.timestamp + CLOSE_GRACE_PERIOD);
    }

    function withdraw(ChannelDescriptor calldata descriptor) external {
        (bytes32 channelId, ChannelState storage state) = _live(descriptor);
        if (msg.sender != descriptor.payer) revert NotPayer();
        uint256 requestedAt = state.closeRequestedAt;
        if (requestedAt == 0 || block.timestamp < requestedAt + CLOSE_GRACE_PERIOD) revert CloseNotReady();
        _end(descriptor, channelId, state.settled);
    }

    function getChannel(ChannelDescriptor calldata descriptor) external view returns (Channel memory) {
        return Channel({descriptor: descriptor, state: states[_id(descriptor)]});
    }

    function getChannelState(bytes32 channelId) external view returns (ChannelState memory) {
        return states[channelId];
    }

    function getChannelStatesBatch(bytes32[] calldata channelIds) external view returns (ChannelState[] memory found) {
        found = new ChannelState[](channelIds.length);
        for (uint256 i = 0; i < channelIds.length; ++i) {
            found[i] = states[channelIds[i]];
        }
    }

    function computeChannelId(
        address payer,
        address payee,
        address operator,
        address token,
        bytes32 salt,
        address authorizedSigner,
        bytes32 expiringNonceHash
    ) public view returns (bytes32) {
        return keccak256(
            abi.encode(
                payer,
                payee,
                operator,
                token,
                salt,
                authorizedSigner,
                expiringNonceHash,
                address(this),
                block.chainid
            )
        );
    }

    function getVoucherDigest(bytes32 channelId, uint96 cumulativeAmount) public view returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(
            domainSeparator(), keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, cumulativeAmount))
        );
    }

    function domainSeparator() public view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, NAME_HASH, VERSION_HASH, block.chainid, address(this)));
    }

    function _isTip20(address account) private pure returns (bool) {
        return bytes12(bytes20(account)) == TIP20_PREFIX;
    }

    function _id(ChannelDescriptor calldata descriptor) private view returns (bytes32) {
        return computeChannelId(
            descriptor.payer,
            descriptor.payee,
            descriptor.operator,
            descriptor.token,
            descriptor.salt,
            descriptor.authorizedSigner,
            descriptor.expiringNonceHash
        );
    }

    function _live(ChannelDescriptor calldata descriptor)
        private
        view
        returns (bytes32 channelId, ChannelState storage state)
    {
        channelId = _id(descriptor);
        state = states[channelId];
        if (state.deposit == 0) revert ChannelNotFound();
    }

    function _requirePayeeSide(ChannelDescriptor calldata descriptor) private view {
        bool operates = descriptor.operator != address(0) && msg.sender == descriptor.operator;
        if (msg.sender != descriptor.payee && !operates) revert NotPayeeOrOperator();
    }

    /// The reserve asks Tempo's signature verifier, which takes 65 bytes of secp256k1 and no EIP-2098. Its other kinds
    /// of keys (P-256, WebAuthn) have no counterpart here.
    function _requireVoucher(
        ChannelDescriptor calldata descriptor,
        bytes32 channelId,
        uint96 cumulativeAmount,
        bytes calldata signature
    ) private view {
        address signer = descriptor.authorizedSigner == address(0) ? descriptor.payer : descriptor.authorizedSigner;
        (address recovered, ECDSA.RecoverError problem,) =
            ECDSA.tryRecoverCalldata(getVoucherDigest(channelId, cumulativeAmount), signature);
        if (problem != ECDSA.RecoverError.NoError || recovered != signer) revert InvalidSignature();
    }

    function _end(ChannelDescriptor calldata descriptor, bytes32 channelId, uint96 captured) private {
        uint96 delta = captured - states[channelId].settled;
        uint96 refund = states[channelId].deposit - captured;
        delete states[channelId];
        emit ChannelClosed(channelId, descriptor.payer, descriptor.payee, captured, refund);
        if (delta > 0) _push(descriptor.token, descriptor.payee, delta);
        if (refund > 0) _push(descriptor.token, descriptor.payer, refund);
    }

    function _pull(address token, uint96 amount) private {
        if (!IERC20(token).transferFrom(msg.sender, address(this), amount)) revert TransferFailed();
    }

    function _push(address token, address to, uint96 amount) private {
        if (!IERC20(token).transfer(to, amount)) revert TransferFailed();
    }
}
