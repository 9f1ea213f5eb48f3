// What `mppx validate` pays with: a wallet on the local chain, instead of one that it would have a public
// network's faucet fund. Named to it by MPPX_CONFIG.

import { tempo } from 'mppx/client'
import { createClient, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { tempoLocalnet } from 'viem/chains'

const { chainId, rpcUrl, escrowV1, key } = JSON.parse(process.env.FAREBOX_VALIDATE)
const account = privateKeyToAccount(key)
const client = createClient({ account, chain: { ...tempoLocalnet, id: chainId }, transport: http(rpcUrl) })
const shared = { account, getClient: () => client, maxDeposit: '1' }

export default {
  methods: [
    tempo.session(shared),
    tempo.sessionLegacy.method({ ...shared, escrowContract: escrowV1 }),
    tempo.charge({ account, getClient: () => client }),
  ],
}
