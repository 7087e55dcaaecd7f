// node archive.mjs URL: the archive (CAR) behind the URL as @ipld/car reads it. Prints the root, then the CID of each
// block, one a line, having hashed it.

import { CarBlockIterator } from '@ipld/car'
import { createHash } from 'node:crypto'

const response = await fetch(process.argv[2])
if (!response.ok) {
  console.error(`${response.status} ${await response.text()}`)
  process.exit(1)
}
const archive = await CarBlockIterator.fromIterable(response.body)
const [root] = await archive.getRoots()
console.log(`${root}`)
for await (const { cid, bytes } of archive) {
  const digest = createHash('sha256').update(bytes).digest()
  if (!digest.equals(cid.multihash.digest)) {
    console.error(`${cid} is not what it says`)
    process.exit(1)
  }
  console.log(`${cid}`)
}
