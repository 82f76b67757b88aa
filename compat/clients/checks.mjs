// What the scripts for Node share: a check runs, and a line of JSON says what came of it. As checks.py has it.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export const URL = process.env.DOORSTEP_URL;
export const HELLO = "hello there, world";

// How the gateway reaches the model: it answers itself, or asks a service that speaks one of these.
const WAYS = { itself: "fake/", chat: "chat/fake/", responses: "gpt/fake/", anthropic: "claude/fake/" };
// What is asked of the fake provider for each check.
const SCRIPTS = {
  answer: "echo",
  stream: "echo",
  tools: "tools",
  "tools, streamed": "tools",
  form: "json",
  "form, by a tool": "tools",
  thinking: "thinking",
  "thinks, then calls": "agent",
  "thinks, then calls, streamed": "agent",
};

const say = (value) => console.log(JSON.stringify(value));
const version = (name) => JSON.parse(readFileSync(new globalThis.URL(`node_modules/${name}/package.json`, import.meta.url))).version;

/** Say which client this is, in which versions. */
export function begin(client, ...packages) {
  say({ client, versions: Object.fromEntries(packages.map((name) => [name, version(name)])) });
}

/** Make each check with a model of every kind of service; `make` gives the client's model of a name. */
export async function ofChats(api, make, checks) {
  for (const [way, prefix] of Object.entries(WAYS)) {
    for (const [what, check] of Object.entries(checks)) {
      try {
        await check(make(prefix + SCRIPTS[what]));
        say({ check: `${api} / ${way} / ${what}`, ok: true, detail: "" });
      } catch (error) {
        say({ check: `${api} / ${way} / ${what}`, ok: false, detail: String(error).slice(0, 300) });
      }
    }
  }
}

export const same = assert.deepEqual;
