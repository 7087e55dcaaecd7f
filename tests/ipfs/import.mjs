// The names that ipfs-unixfs-importer gives to files of the sizes given, by the profile `unixfs-v1-2025`.
// Each leaf of a file is eight marks and then zeros, so that no two are alike: see `pattern` beside the caller.

import { importFile } from 'ipfs-unixfs-importer'

const LEAF_BYTES = 1024 * 1024

// The blocks are hashed for their names and not kept.
const nowhere = {
  put: async (cid) => cid,
  has: async () => false
}

async function * pattern (size) {
  for (let at = 0, index = 0; at < size; at += LEAF_BYTES, index++) {
    const leaf = new Uint8Array(Math.min(LEAF_BYTES, size - at))
    for (let place = 0; place < Math.min(8, leaf.length); place++) {
      leaf[place] = index * (place + 1) + 1
    }
    yield leaf
  }
}

for (const size of process.argv.slice(2).map(Number)) {
  const { cid } = await importFile({ content: pattern(size) }, nowhere, { profile: 'unixfs-v1-2025' })
  console.log(`${size} ${cid}`)
}
