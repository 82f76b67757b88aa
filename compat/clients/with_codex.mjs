// Codex, OpenAI's coding agent: its own long request, a command that it runs, and thinking, over responses.

import { execFile } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { begin, HELLO, ofChats, same, URL } from "./checks.mjs";

// Tools that OpenAI runs itself, and tools in groups, are in no other API, so it has to do without them.
const WITHOUT = ['web_search="disabled"', "features.multi_agent=false"];
const AT = [
  'model_provider="doorstep"',
  `model_providers.doorstep={name="doorstep", base_url="${URL}/v1", env_key="DOORSTEP_KEY", wire_api="responses"}`,
];
const home = mkdtempSync(join(tmpdir(), "codex-"));
const program = join(import.meta.dirname, "node_modules", ".bin", "codex");

async function ask(model) {
  const settings = [...WITHOUT, ...AT].flatMap((setting) => ["-c", setting]);
  const run = promisify(execFile)(
    program,
    ["exec", "--json", "--skip-git-repo-check", "-s", "read-only", ...settings, "-m", model, HELLO],
    { cwd: home, env: { PATH: process.env.PATH, HOME: home, CODEX_HOME: home, DOORSTEP_KEY: "any" }, timeout: 60_000 },
  );
  run.child.stdin.end();
  const events = (await run).stdout.split("\n").filter(Boolean).map((line) => JSON.parse(line));
  return events.filter((event) => event.type === "item.completed").map((event) => event.item);
}

const tools = async (model) =>
  same((await ask(model)).slice(-2).map((item) => item.type), ["command_execution", "agent_message"]);

begin("Codex", "@openai/codex");
await ofChats("responses", (name) => name, {
  answer: async (model) => same((await ask(model)).at(-1).text.endsWith(HELLO), true),
  tools,
  "thinks, then calls": async (model) => same((await ask(model)).some((item) => item.type === "command_execution"), true),
  thinking: async (model) => same((await ask(model)).find((item) => item.type === "reasoning")?.text, "Let me think."),
});
