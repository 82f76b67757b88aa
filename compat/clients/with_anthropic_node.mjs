// Anthropic's SDK for TypeScript, at messages.

import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { begin, HELLO, ofChats, same, URL } from "./checks.mjs";

const client = new Anthropic({ baseURL: URL, apiKey: "any", maxRetries: 0 });
const asked = { max_tokens: 100, messages: [{ role: "user", content: HELLO }] };
const weather = betaZodTool({
  name: "weather",
  description: "The weather",
  inputSchema: z.object({ city: z.string() }),
  run: ({ city }) => `sunny in ${city}`,
});
const Order = z.object({ customer: z.string(), urgent: z.boolean() });
const text = (message) => message.content.map((block) => block.text ?? "").join("");

const tools = async (model) =>
  same(text(await client.beta.messages.toolRunner({ model, ...asked, tools: [weather] })), "sunny in text");
const toolsStreamed = async (model) =>
  same(text(await client.beta.messages.toolRunner({ model, ...asked, tools: [weather], stream: true })), "sunny in text");

begin("Anthropic SDK for TypeScript", "@anthropic-ai/sdk");
await ofChats("messages", (name) => name, {
  answer: async (model) => same(text(await client.messages.create({ model, ...asked })), HELLO),
  stream: async (model) => {
    const parts = [];
    const stream = client.messages.stream({ model, ...asked }).on("text", (part) => parts.push(part));
    same([text(await stream.finalMessage()), parts.join("")], [HELLO, HELLO]);
  },
  tools,
  "tools, streamed": toolsStreamed,
  form: async (model) => {
    const found = await client.messages.parse({ model, ...asked, output_config: { format: zodOutputFormat(Order) } });
    same(found.parsed_output, { customer: "text", urgent: true });
  },
  "thinks, then calls": tools,
  "thinks, then calls, streamed": toolsStreamed,
});
