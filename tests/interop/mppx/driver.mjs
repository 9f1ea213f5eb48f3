// A payer in a process of its own: the published mppx client, told what to do by lines on standard input.
//
// One JSON object a line: {id, do, ...}; one answered by {id, ok} or {id, error}. Nothing of the client is
// replaced: wallets are its session managers and its drop-in fetch, with a fetch under them that only looks
// at what passes, and loses an answer when it is told to.

import { createInterface } from 'node:readline'

import { Credential } from 'mppx'
import { Mppx, tempo } from 'mppx/client'
import { createClient, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { tempoLocalnet } from 'viem/chains'

const { chainId, rpcUrl, escrowV1, url } = JSON.parse(process.argv[2])
const chain = { ...tempoLocalnet, id: chainId }
const POLLING_MS = 20

const wallets = new Map()
const streams = new Map()

function watched(calls, faults) {
  return async (input, init) => {
    const text = new Headers(init?.headers).get('authorization')
    const payload = text?.startsWith('Payment ') ? Credential.deserialize(text).payload : undefined
    const call = {
      action: payload?.action ?? null,
      channelId: payload?.channelId ?? null,
      cumulative: payload?.cumulativeAmount ?? null,
      content: init?.body != null,
      status: null,
    }
    calls.push(call)
    const response = await fetch(input, init)
    call.status = response.status
    if (faults.lose && call.content && (faults.lose === call.action || (faults.lose === 'answer' && response.ok))) {
      faults.lose = null
      if (response.headers.get('content-type')?.startsWith('text/event-stream')) await response.body.cancel()
      else await response.arrayBuffer()
      throw new TypeError('the answer was lost')
    }
    return response
  }
}

function wallet({ name, kind, key, maxDeposit, deposit }) {
  const account = privateKeyToAccount(key)
  const client = createClient({ account, chain, pollingInterval: POLLING_MS, transport: http(rpcUrl) })
  const calls = []
  const faults = { lose: null }
  const seen = watched(calls, faults)
  const context = deposit === undefined ? undefined : { depositRaw: deposit }
  const shared = { account, maxDeposit, fetch: seen }
  const made = { calls, faults }
  if (kind === 'v2') {
    made.session = tempo.session.manager({ ...shared, client, credentialContext: context })
  } else if (kind === 'v1') {
    made.session = tempo.sessionLegacy({ ...shared, client, escrowContract: escrowV1 })
  } else {
    const onChannelUpdate = (entry) => (made.entry = entry)
    const method = tempo.session({ account, maxDeposit, getClient: () => client, onChannelUpdate })
    made.session = Mppx.create({ methods: [method], polyfill: false, fetch: seen })
    made.session.close = () => closeByHand(made)
  }
  wallets.set(name, made)
  return { address: account.address }
}

// The drop-in fetch has no close: programs send the action themselves.
async function closeByHand({ session, entry }) {
  const { channelId, descriptor, cumulativeAmount } = entry
  const context = { action: 'close', channelId, descriptor, cumulativeAmountRaw: String(cumulativeAmount) }
  const response = await session.fetch(url, { method: 'POST', context })
  const receipt = receiptOf(response)
  if (!response.ok || !receipt) throw new Error(`close was answered with ${response.status}: ${await response.text()}`)
  return receipt
}

function receiptOf(response) {
  const receipt = response.headers.get('payment-receipt')
  return receipt === null ? null : JSON.parse(Buffer.from(receipt, 'base64url'))
}

function request(body, accept) {
  const headers = { 'content-type': 'application/json', ...(accept ? { accept } : {}) }
  return { method: 'POST', headers, body }
}

async function ask({ name, body }) {
  const { session } = wallets.get(name)
  const response = await session.fetch(url, request(body))
  return {
    status: response.status,
    receipt: receiptOf(response),
    text: await response.text(),
  }
}

async function askOften({ name, body, times }) {
  const answers = []
  for (let number = 0; number < times; number++) answers.push(await ask({ name, body }))
  return answers
}

async function stream({ name, body }) {
  const made = wallets.get(name)
  const begun = { data: [], receipts: [], done: false }
  const options = { ...request(body), onReceipt: (receipt) => begun.receipts.push(receipt) }
  begun.events = (await made.session.sse(url, options))[Symbol.asyncIterator]()
  streams.set(name, begun)
  return null
}

// Up to so many events; all that are left where no number is given.
async function read({ name, events }) {
  const begun = streams.get(name)
  const before = begun.data.length
  let error = null
  try {
    while (!begun.done && (events === undefined || begun.data.length - before < events)) {
      const { done, value } = await begun.events.next()
      if (done) begun.done = true
      else begun.data.push(value)
    }
  } catch (thrown) {
    begun.done = true
    error = String(thrown?.message ?? thrown)
  }
  return { data: begun.data.slice(before), receipts: begun.receipts, done: begun.done, error }
}

async function streamOften({ name, body, times }) {
  const answers = []
  for (let number = 0; number < times; number++) {
    await stream({ name, body })
    answers.push(await read({ name }))
  }
  return answers
}

// Several at once, as a program with the drop-in fetch does: the answers' texts as they came.
async function together({ name, bodies }) {
  const { session } = wallets.get(name)
  return Promise.all(
    bodies.map(async (body) => {
      const response = await session.fetch(url, request(body, 'text/event-stream'))
      return { status: response.status, text: await response.text() }
    }),
  )
}

const commands = {
  wallet,
  ask,
  askOften,
  stream,
  read,
  streamOften,
  together,
  async close({ name }) {
    return (await wallets.get(name).session.close()) ?? null
  },
  lose({ name, what }) {
    wallets.get(name).faults.lose = what
    return null
  },
  state({ name }) {
    const { session } = wallets.get(name)
    return { channelId: session.channelId ?? null, cumulative: String(session.cumulative), opened: session.opened }
  },
  calls({ name }) {
    return wallets.get(name).calls
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: command, ...told } = JSON.parse(line)
  let answer
  try {
    answer = { id, ok: await commands[command](told) }
  } catch (error) {
    answer = { id, error: error?.stack ?? String(error) }
  }
  process.stdout.write(JSON.stringify(answer, (_, value) => (typeof value === 'bigint' ? String(value) : value)) + '\n')
}
