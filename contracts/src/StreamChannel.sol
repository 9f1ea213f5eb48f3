// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

/// The part of EIP-3009 that escrows need, in the form that takes a packed signature.
interface IReceiveWithAuthorization {
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}

/// @title Escrow of one-way payment channels
/// @notice A payer deposits tokens and signs vouchers for cumulative amounts; the payee settles the latest voucher,
/// or closes and the payer gets the rest. A payee who vanishes loses nothing but time: the payer requests a close and
/// withdraws after a grace period, in which the payee can still settle.
/// @dev Implements the v1 contract interface of the `tempo` session method and the core of the `evm` one, with its
/// EIP-3009 opens and top-ups. Which of the two is the name of the EIP-712 domain, given at construction.
///
/// Nobody owns it and nothing can be upgraded or paused. Tokens must move exactly the amount they are told to: what
/// arrives is compared with what was asked, so a token that takes a fee cannot get in. Rebasing tokens must not be used.
contract StreamChannel is EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @dev The order of members is part of the interface: `getChannel` returns it as it stands.
    struct Channel {
        bool finalized;
        uint64 closeRequestedAt;
        address payer;
        address payee;
        address token;
        address authorizedSigner;
        uint128 deposit;
        uint128 settled;
    }

    /// @notice The time between a payer's request to close and the withdrawal.
    uint64 public constant CLOSE_GRACE_PERIOD = 15 minutes;

    bytes32 public constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint128 cumulativeAmount)");

    /// @notice Every channel there ever was. A record is never deleted: a finalized id that could be opened again
    /// would make the vouchers of its first life valid for the money of its second.
    mapping(bytes32 channelId => Channel) public channels;

    event ChannelOpened(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address token,
        address authorizedSigner,
        bytes32 salt,
        uint256 deposit
    );
    event TopUp(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 additionalDeposit,
        uint256 newDeposit
    );
    event Settled(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 cumulativeAmount,
        uint256 deltaPaid,
        uint256 newSettled
    );
    event CloseRequested(
        bytes32 indexed channelId, address indexed payer, address indexed payee, uint256 closeGraceEnd
    );
    event CloseRequestCancelled(bytes32 indexed channelId, address indexed payer, address indexed payee);
    /// @notice The payer withdrew after the grace period; `ChannelClosed` follows.
    event ChannelExpired(bytes32 indexed channelId, address indexed payer, address indexed payee);
    /// @notice The channel is over. `settledToPayee` is all that the payee ever got from it, so that the two amounts
    /// add up to the deposit.
    event ChannelClosed(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 settledToPayee,
        uint256 refundedToPayer
    );

    /// @notice This id was opened before; finalized or not, it cannot be opened again.
    error ChannelAlreadyExists();
    /// @notice No channel was ever opened under this id.
    error ChannelNotFound();
    /// @notice The channel was closed or withdrawn.
    error ChannelFinalized();
    /// @notice The caller is not the channel's payee.
    error NotPayee();
    /// @notice The caller is not the channel's payer.
    error NotPayer();
    /// @notice The payee is the zero address.
    error InvalidPayee();
    /// @notice A deposit of nothing.
    error ZeroDeposit();
    /// @notice The deposit would not fit into 128 bits.
    error DepositOverflow();
    /// @notice The voucher, or what is captured of it, is more than the deposit.
    error AmountExceedsDeposit();
    /// @notice The voucher is for no more than was settled before.
    error AmountNotIncreasing();
    /// @notice The captured amount is below what was settled, or above the voucher.
    error CaptureAmountInvalid();
    /// @notice Not a signature by the channel's signer, or one that is not in the canonical low-s form.
    error InvalidSignature();
    /// @notice The EIP-3009 nonce does not commit to this channel.
    error NonceMismatch();
    /// @notice No close was requested, or its grace period is not over.
    error CloseNotReady();
    /// @notice The token said that it moved the deposit, but another amount arrived.
    error TransferFailed();

    /// @param domainName `Tempo Stream Channel` or `EVM Payment Channel`: what clients of the method sign for.
    constructor(string memory domainName) EIP712(domainName, "1") {}

    // Payers.

    /// @notice Open a channel from the caller to `payee`, with a deposit that the caller has approved.
    /// @param authorizedSigner Who signs vouchers; zero for the payer itself.
    /// @return channelId The id that vouchers name.
    function open(address payee, address token, uint128 deposit, bytes32 salt, address authorizedSigner)
        external
        nonReentrant
        returns (bytes32 channelId)
    {
        channelId = _open(msg.sender, payee, token, deposit, salt, authorizedSigner);
        uint256 before = IERC20(token).balanceOf(address(this));
        IERC20(token).safeTransferFrom(msg.sender, address(this), deposit);
        _requireReceived(token, before, deposit);
    }

    /// @notice Open a channel from `from` with an EIP-3009 authorization; anybody may submit it.
    /// @param nonce Must be `keccak256(abi.encode(from, payee, token, salt, authorizedSigner))`. EIP-3009 has no place
    /// for the channel in what is signed, so the nonce commits to it: a stranger who sees the signature cannot open
    /// another channel with it.
    function openWithAuthorization(
        address payee,
        address token,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner,
        address from,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external nonReentrant returns (bytes32 channelId) {
        if (nonce != keccak256(abi.encode(from, payee, token, salt, authorizedSigner))) revert NonceMismatch();
        channelId = _open(from, payee, token, deposit, salt, authorizedSigner);
        _receive(token, from, deposit, validAfter, validBefore, nonce, signature);
    }

    /// @notice Add an approved amount to the caller's channel. A pending request to close is cancelled.
    function topUp(bytes32 channelId, uint256 additionalDeposit) external {
        _topUpApproved(channelId, additionalDeposit);
    }

    /// @notice The same under the selector that the `evm` method's text gives.
    function topUp(bytes32 channelId, uint128 additionalDeposit) external {
        _topUpApproved(channelId, additionalDeposit);
    }

    /// @notice Add to a channel with an EIP-3009 authorization; anybody may submit it, and anybody may pay.
    /// @dev Refunds go to the channel's payer whoever paid. A pending request to close is cancelled only where the
    /// payer itself pays: a payee could else hold the payer's money for ever with top-ups of one unit.
    /// @param nonce Must be `keccak256(abi.encode(channelId, additionalDeposit, from, topUpSalt))`.
    function topUpWithAuthorization(
        bytes32 channelId,
        uint128 additionalDeposit,
        address from,
        bytes32 topUpSalt,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external nonReentrant {
        if (nonce != keccak256(abi.encode(channelId, additionalDeposit, from, topUpSalt))) revert NonceMismatch();
        Channel storage channel = _live(channelId);
        _topUp(channelId, channel, additionalDeposit, from == channel.payer);
        _receive(channel.token, from, additionalDeposit, validAfter, validBefore, nonce, signature);
    }

    /// @notice Start the grace period after which the caller can withdraw. Asking again changes nothing.
    function requestClose(bytes32 channelId) external {
        Channel storage channel = _live(channelId);
        if (msg.sender != channel.payer) revert NotPayer();
        if (channel.closeRequestedAt != 0) return;
        channel.closeRequestedAt = uint64(block.timestamp);
        emit CloseRequested(channelId, msg.sender, channel.payee, block.timestamp + CLOSE_GRACE_PERIOD);
    }

    /// @notice End the caller's channel after its grace period and take what was not settled.
    function withdraw(bytes32 channelId) external nonReentrant {
        Channel storage channel = _live(channelId);
        if (msg.sender != channel.payer) revert NotPayer();
        uint256 requestedAt = channel.closeRequestedAt;
        // A request that was never made is at time zero, from which any grace period is long over.
        if (requestedAt == 0 || block.timestamp < requestedAt + CLOSE_GRACE_PERIOD) revert CloseNotReady();
        emit ChannelExpired(channelId, msg.sender, channel.payee);
        _finalize(channelId, channel, channel.settled);
    }

    // Payees.

    /// @notice Take what a voucher is worth beyond what was settled, and leave the channel open.
    function settle(bytes32 channelId, uint128 cumulativeAmount, bytes calldata signature) external nonReentrant {
        Channel storage channel = _live(channelId);
        if (msg.sender != channel.payee) revert NotPayee();
        uint128 settled = channel.settled;
        if (cumulativeAmount > channel.deposit) revert AmountExceedsDeposit();
        if (cumulativeAmount <= settled) revert AmountNotIncreasing();
        _requireVoucher(channelId, channel, cumulativeAmount, signature);

        uint128 delta = cumulativeAmount - settled;
        channel.settled = cumulativeAmount;
        emit Settled(channelId, channel.payer, msg.sender, cumulativeAmount, delta, cumulativeAmount);
        IERC20(channel.token).safeTransfer(msg.sender, delta);
    }

    /// @notice End the channel with a voucher: it is settled in full, and the payer gets the rest.
    /// @dev Both sides are paid or neither: where a token refuses to pay the payer, the payee can still settle.
    /// @param signature Not looked at where `cumulativeAmount` is no more than was settled: that gives up a claim.
    function close(bytes32 channelId, uint128 cumulativeAmount, bytes calldata signature) external nonReentrant {
        Channel storage channel = _live(channelId);
        uint128 settled = channel.settled;
        uint128 captureAmount = cumulativeAmount > settled ? cumulativeAmount : settled;
        _close(channelId, channel, cumulativeAmount, captureAmount, signature);
    }

    /// @notice End the channel with less than its voucher: the payee takes `captureAmount` in all, since the channel
    /// was opened, and the payer gets the rest.
    /// @dev Payers authorise ahead of use, so the last voucher is usually for more than was used. It may even exceed
    /// the deposit; what is captured may not.
    function closeWithCapture(
        bytes32 channelId,
        uint128 cumulativeAmount,
        uint128 captureAmount,
        bytes calldata signature
    ) external nonReentrant {
        Channel storage channel = _live(channelId);
        if (captureAmount < channel.settled || captureAmount > cumulativeAmount) revert CaptureAmountInvalid();
        _close(channelId, channel, cumulativeAmount, captureAmount, signature);
    }

    // Views.

    /// @notice A channel's record; all zero if there is none.
    function getChannel(bytes32 channelId) external view returns (Channel memory) {
        return channels[channelId];
    }

    /// @notice Several records at once.
    function getChannelsBatch(bytes32[] calldata channelIds) external view returns (Channel[] memory channelStates) {
        channelStates = new Channel[](channelIds.length);
        for (uint256 i = 0; i < channelIds.length; ++i) {
            channelStates[i] = channels[channelIds[i]];
        }
    }

    /// @notice The id of the channel that these parameters open.
    function computeChannelId(address payer, address payee, address token, bytes32 salt, address authorizedSigner)
        public
        view
        returns (bytes32)
    {
        return keccak256(abi.encode(payer, payee, token, salt, authorizedSigner, address(this), block.chainid));
    }

    /// @notice What the channel's signer signs.
    function getVoucherDigest(bytes32 channelId, uint128 cumulativeAmount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, cumulativeAmount)));
    }

    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    // What they share.

    function _live(bytes32 channelId) private view returns (Channel storage channel) {
        channel = channels[channelId];
        if (channel.payer == address(0)) revert ChannelNotFound();
        if (channel.finalized) revert ChannelFinalized();
    }

    function _open(
        address payer,
        address payee,
        address token,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner
    ) private returns (bytes32 channelId) {
        if (payee == address(0)) revert InvalidPayee();
        if (deposit == 0) revert ZeroDeposit();
        channelId = computeChannelId(payer, payee, token, salt, authorizedSigner);
        if (channels[channelId].payer != address(0)) revert ChannelAlreadyExists();
        channels[channelId] = Channel({
            finalized: false,
            closeRequestedAt: 0,
            payer: payer,
            payee: payee,
            token: token,
            authorizedSigner: authorizedSigner,
            deposit: deposit,
            settled: 0
        });
        emit ChannelOpened(channelId, payer, payee, token, authorizedSigner, salt, deposit);
    }

    function _topUpApproved(bytes32 channelId, uint256 additionalDeposit) private nonReentrant {
        Channel storage channel = _live(channelId);
        if (msg.sender != channel.payer) revert NotPayer();
        _topUp(channelId, channel, additionalDeposit, true);
        IERC20 token = IERC20(channel.token);
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), additionalDeposit);
        _requireReceived(address(token), before, additionalDeposit);
    }

    function _topUp(bytes32 channelId, Channel storage channel, uint256 additionalDeposit, bool byPayer) private {
        if (additionalDeposit == 0) revert ZeroDeposit();
        if (additionalDeposit > type(uint128).max - channel.deposit) revert DepositOverflow();
        uint128 deposit = channel.deposit + uint128(additionalDeposit);
        channel.deposit = deposit;
        if (byPayer && channel.closeRequestedAt != 0) {
            channel.closeRequestedAt = 0;
            emit CloseRequestCancelled(channelId, channel.payer, channel.payee);
        }
        emit TopUp(channelId, channel.payer, channel.payee, additionalDeposit, deposit);
    }

    function _receive(
        address token,
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) private {
        uint256 before = IERC20(token).balanceOf(address(this));
        IReceiveWithAuthorization(token).receiveWithAuthorization(
            from, address(this), amount, validAfter, validBefore, nonce, signature
        );
        _requireReceived(token, before, amount);
    }

    function _requireReceived(address token, uint256 before, uint256 amount) private view {
        if (IERC20(token).balanceOf(address(this)) != before + amount) revert TransferFailed();
    }

    function _close(
        bytes32 channelId,
        Channel storage channel,
        uint128 cumulativeAmount,
        uint128 captureAmount,
        bytes calldata signature
    ) private {
        if (msg.sender != channel.payee) revert NotPayee();
        if (captureAmount > channel.deposit) revert AmountExceedsDeposit();
        if (captureAmount > channel.settled) _requireVoucher(channelId, channel, cumulativeAmount, signature);
        _finalize(channelId, channel, captureAmount);
    }

    /// Pay each side what is still due to it. Everything is written before any token is called.
    function _finalize(bytes32 channelId, Channel storage channel, uint128 captured) private {
        uint128 delta = captured - channel.settled;
        uint128 refund = channel.deposit - captured;
        channel.settled = captured;
        channel.finalized = true;
        emit ChannelClosed(channelId, channel.payer, channel.payee, captured, refund);
        if (delta > 0) IERC20(channel.token).safeTransfer(channel.payee, delta);
        if (refund > 0) IERC20(channel.token).safeTransfer(channel.payer, refund);
    }

    /// The voucher must be signed by the channel's signer. ECDSA comes first whatever code the signer has: a payer that
    /// delegates its account to a contract (EIP-7702) after signing could else make its vouchers worthless.
    function _requireVoucher(
        bytes32 channelId,
        Channel storage channel,
        uint128 cumulativeAmount,
        bytes calldata signature
    ) private view {
        address signer = channel.authorizedSigner == address(0) ? channel.payer : channel.authorizedSigner;
        bytes32 digest = getVoucherDigest(channelId, cumulativeAmount);
        // 65 bytes, or the 64 of EIP-2098; anything else recovers nobody. Refuses a high s.
        (uint8 v, bytes32 r, bytes32 s) = ECDSA.parseCalldata(signature);
        (address recovered, ECDSA.RecoverError problem,) = ECDSA.tryRecover(digest, v, r, s);
        if (problem == ECDSA.RecoverError.NoError && recovered == signer) return;
        if (
            signer.code.length == 0
                || !SignatureChecker.isValidERC1271SignatureNowCalldata(signer, digest, signature)
        ) revert InvalidSignature();
    }
}
