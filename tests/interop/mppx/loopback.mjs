// Loaded before a program that would reach for public networks of its own accord: it gets this machine alone.

const LOOPBACK = new Set(['127.0.0.1', 'localhost', '[::1]'])
const original = globalThis.fetch

globalThis.fetch = async (input, init) => {
  const { hostname } = new URL(input instanceof Request ? input.url : input)
  if (!LOOPBACK.has(hostname)) throw new TypeError(`only this machine is reached from here, not ${hostname}`)
  return original(input, init)
}
