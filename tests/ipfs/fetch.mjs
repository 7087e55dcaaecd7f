// node fetch.mjs GATEWAY CID...: what @helia/verified-fetch makes of these CIDs, asking this gateway and nobody else.
// Prints the size and the sha256 of each file, one a line.

import { createHash } from 'node:crypto'

// Node 20 does without it, and libp2p does not.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const [gateway, ...cids] = process.argv.slice(2)

// The library knows public gateways and routers. None is configured below; should one be asked all the same, this
// is where it ends.
const ask = globalThis.fetch
globalThis.fetch = async (resource, init) => {
  const url = new URL(resource instanceof Request ? resource.url : resource)
  if (url.origin !== new URL(gateway).origin) {
    console.error(`asked ${url.origin}`)
    process.exit(3)
  }
  return ask(resource, init)
}

// A session that has dropped its last gateway waits for another one that never comes.
process.on('exit', () => process.exitCode === 13 && console.error('nobody is left to ask'))

const { createHeliaLight } = await import('helia')
const { withHTTP } = await import('@helia/http')
const { createVerifiedFetchWithHelia } = await import('@helia/verified-fetch')

const helia = withHTTP(createHeliaLight(), {
  delegatedRouters: [],
  recursiveGateways: [gateway],
  allowInsecure: true,
  allowLocal: true
})
// Recursive gateways are asked once the other routers have found nobody, for which there has to be another router.
helia.addRouter({ name: 'nobody', async * findProviders () {} })
await helia.start()
const verifiedFetch = await createVerifiedFetchWithHelia(helia)

for (const cid of cids) {
  const response = await verifiedFetch(`ipfs://${cid}`, { signal: AbortSignal.timeout(60_000) })
  if (!response.ok) {
    console.error(`${cid}: ${response.status} ${await response.text()}`)
    process.exit(1)
  }
  const hash = createHash('sha256')
  let size = 0
  for await (const piece of response.body) {
    hash.update(piece)
    size += piece.length
  }
  console.log(`${size} ${hash.digest('hex')}`)
}

await verifiedFetch.stop()
await helia.stop()
process.exit(0)
