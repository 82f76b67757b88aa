// OpenAI's SDK for TypeScript, at chat and responses.

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { begin, HELLO, ofChats, same, URL } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: HELLO }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const Order = z.object({ customer: z.string(), urgent: z.boolean() });
const ORDER = { customer: "text", urgent: true };

const runTools = (model, stream) =>
  client.chat.completions.runTools({
    model,
    messages,
    stream,
    tools: [
      {
        type: "function",
        function: {
          name: "weather",
          description: "The weather",
          parameters,
          parse: JSON.parse,
          function: ({ city }) => `sunny in ${city}`,
        },
      },
    ],
  });

const CHAT = {
  answer: async (model) => same((await client.chat.completions.create({ model, messages })).choices[0].message.content, HELLO),
  stream: async (model) => {
    const parts = [];
    for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
      parts.push(chunk.choices[0]?.delta.content ?? "");
    }
    same(parts.join(""), HELLO);
  },
  tools: async (model) => same(await runTools(model, false).finalContent(), "sunny in text"),
  "tools, streamed": async (model) => same(await runTools(model, true).finalContent(), "sunny in text"),
  form: async (model) => {
    const asked = { model, messages, response_format: zodResponseFormat(Order, "order") };
    same((await client.chat.completions.parse(asked)).choices[0].message.parsed, ORDER);
  },
};

const TOOLS = [{ type: "function", name: "weather", description: "The weather", parameters, strict: true }];

async function loop(model, ask) {
  const first = await ask({ model, input: messages, tools: TOOLS });
  const call = first.output.find((item) => item.type === "function_call");
  same([call.name, JSON.parse(call.arguments)], ["weather", { city: "text" }]);
  const result = { type: "function_call_output", call_id: call.call_id, output: "sunny" };
  same((await ask({ model, input: [...messages, ...first.output, result], tools: TOOLS })).output_text, "sunny");
}

const RESPONSES = {
  answer: async (model) => same((await client.responses.create({ model, input: HELLO })).output_text, HELLO),
  stream: async (model) => {
    const parts = [];
    for await (const event of await client.responses.create({ model, input: HELLO, stream: true })) {
      if (event.type === "response.output_text.delta") parts.push(event.delta);
    }
    same(parts.join(""), HELLO);
  },
  tools: (model) => loop(model, (asked) => client.responses.create(asked)),
  "tools, streamed": (model) => loop(model, (asked) => client.responses.stream(asked).finalResponse()),
  form: async (model) => {
    const asked = { model, input: HELLO, text: { format: zodTextFormat(Order, "order") } };
    same((await client.responses.parse(asked)).output_parsed, ORDER);
  },
};

for (const checks of [CHAT, RESPONSES]) {
  checks["thinks, then calls"] = checks.tools;
  checks["thinks, then calls, streamed"] = checks["tools, streamed"];
}

begin("OpenAI SDK for TypeScript", "openai");
await ofChats("chat", (name) => name, CHAT);
await ofChats("responses", (name) => name, RESPONSES);
