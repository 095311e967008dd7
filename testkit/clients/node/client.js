// Clones with isomorphic-git, git in JavaScript. It keeps branches as a remote's, and cannot fetch a commit by its id.
//
//   client.js clone URL DIRECTORY
import fs from 'node:fs'
import git from 'isomorphic-git'
import http from 'isomorphic-git/http/node'

const [verb, url, dir] = process.argv.slice(2)
if (verb !== 'clone' || !dir) {
  console.error('usage: client.js clone URL DIRECTORY')
  process.exit(2)
}
await git.clone({ fs, http, dir, url, noCheckout: true, singleBranch: false })
