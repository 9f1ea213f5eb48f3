// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @title A contract wallet of one owner, for tests of ERC-1271 signers
contract Wallet {
    address public immutable owner;
    bool public refuses;

    constructor(address newOwner) {
        owner = newOwner;
    }

    function refuse() external {
        refuses = true;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        if (refuses) return 0xffffffff;
        return ECDSA.recoverCalldata(hash, signature) == owner ? this.isValidSignature.selector : bytes4(0);
    }
}
