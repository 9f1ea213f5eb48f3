// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @title A token that misbehaves as it is told to, for tests of what holds it
contract HostileToken is ERC20 {
    enum Mode {
        Honest,
        TakesFee,
        ReturnsFalse,
        Reenters
    }

    Mode public mode;
    address private target;
    bytes private payload;
    /// @notice Whether the call back into the target succeeded, and what it returned.
    bool public reentered;
    bytes public answer;

    constructor() ERC20("Hostile", "HOST") {}

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function behave(Mode newMode, address newTarget, bytes calldata newPayload) external {
        mode = newMode;
        target = newTarget;
        payload = newPayload;
        reentered = false;
        answer = "";
    }

    /// @notice Be somebody: what a token does as the payer or payee of a channel.
    function act(address to, bytes calldata data) external returns (bytes memory result) {
        bool done;
        (done, result) = to.call(data);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(result, 0x20), mload(result))
            }
        }
    }

    /// @notice The EIP-3009 form; nothing is checked but what the escrow itself must.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        bytes calldata
    ) external {
        _move(from, to, value);
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        return _move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) public override returns (bool) {
        _spendAllowance(from, msg.sender, amount);
        return _move(from, to, amount);
    }

    function _move(address from, address to, uint256 amount) private returns (bool) {
        if (mode == Mode.ReturnsFalse) return false;
        if (mode == Mode.Reenters) {
            // Once: what is called back calls a transfer again.
            mode = Mode.Honest;
            (reentered, answer) = target.call(payload);
        }
        _transfer(from, to, amount);
        if (mode == Mode.TakesFee) _burn(to, amount / 100);
        return true;
    }
}
