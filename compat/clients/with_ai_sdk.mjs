// Vercel AI SDK: text, streams, tools in a loop and objects, over all three APIs and its package for compatible ones.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { begin, HELLO, ofChats, same, URL } from "./checks.mjs";

const weather = tool({
  description: "Tell the weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const Order = z.object({ customer: z.string(), urgent: z.boolean() });
// Without `store`, what the model thought would be named as an item that OpenAI keeps.
const providerOptions = { openai: { store: false, include: ["reasoning.encrypted_content"] } };
const withTools = { tools: { weather }, stopWhen: stepCountIs(3), providerOptions };

const CHECKS = {
  answer: async (model) => {
    const found = await generateText({ model, system: "be brief", prompt: HELLO });
    same([found.text, found.usage.inputTokens, found.usage.outputTokens], [HELLO, 5, 3]);
  },
  stream: async (model) => {
    const parts = [];
    for await (const part of streamText({ model, prompt: HELLO }).textStream) parts.push(part);
    same([parts.join(""), parts.length > 2], [HELLO, true]);
  },
  tools: async (model) => same((await generateText({ model, prompt: HELLO, ...withTools })).text, "sunny in text"),
  "tools, streamed": async (model) =>
    same(await streamText({ model, prompt: HELLO, ...withTools }).text, "sunny in text"),
  form: async (model) => {
    const found = await generateText({ model, prompt: HELLO, output: Output.object({ schema: Order }) });
    same(found.output, { customer: "text", urgent: true });
  },
};

globalThis.AI_SDK_LOG_WARNINGS = false;
CHECKS["thinks, then calls"] = CHECKS.tools;
CHECKS["thinks, then calls, streamed"] = CHECKS["tools, streamed"];

const openai = createOpenAI({ baseURL: `${URL}/v1`, apiKey: "any" });
const anthropic = createAnthropic({ baseURL: `${URL}/v1`, apiKey: "any" });
const compatible = createOpenAICompatible({
  name: "doorstep",
  baseURL: `${URL}/v1`,
  apiKey: "any",
  supportsStructuredOutputs: true,
  includeUsage: true,
});

begin("Vercel AI SDK", "ai", "@ai-sdk/openai", "@ai-sdk/anthropic", "@ai-sdk/openai-compatible");
await ofChats("responses", (name) => openai(name), CHECKS);
await ofChats("chat", (name) => openai.chat(name), CHECKS);
await ofChats("chat, as compatible", (name) => compatible(name), CHECKS);
const { form, ...others } = CHECKS;  // of a model that it does not know, it asks for an object by a tool
await ofChats("messages", (name) => anthropic(name), { ...others, "form, by a tool": form });
