"use strict";

// Initial values of settings; other inputs are initially empty.
const START = {
  max_new_tokens: 64, temperature: 0.8, top_k: 0, top_p: 1, seed: 0, min_p: 0, typical_p: 1,
  repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0, no_repeat_ngram_size: 0,
  min_new_tokens: 0,
};
const INTEGERS = ["DT_INT32", "DT_INT64", "DT_UINT8", "DT_INT16", "DT_INT8"];
const byId = (id) => document.getElementById(id);
let signatures = {};

async function ask(path, body) {
  const options = body && { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const text = await response.text();
  // NaN and Infinity are not valid JSON, but the server writes them, like TensorFlow Serving.
  const answer = JSON.parse(text.replace(/([[,:]\s*)(-?Infinity|NaN)\b/g, "$1null"));
  if (!response.ok) throw new Error(answer.error || `status ${response.status}`);
  return answer;
}

function show(message, isError) {
  byId("state").textContent = message;
  byId("state").className = isError ? "error" : "";
}

// Round to the seven significant digits of float32.
function rounded(key, value) {
  return typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(7)) : value;
}

// JSON in one paragraph, which can wrap after each comma.
function asText(value) {
  return JSON.stringify(value, rounded, 1)
    .replace(/([[{])\n */g, "$1").replace(/\n *([\]}])/g, "$1").replace(/\n */g, " ");
}

function fill(select, values) {
  select.replaceChildren(...values.map((value) => new Option(value, value)));
}

function modelPath() {
  const version = byId("version").value;
  const path = `/v1/models/${encodeURIComponent(byId("model").value)}`;
  return version ? `${path}/versions/${version}` : path;
}

const isAvailable = (row) => row.state === "AVAILABLE";

async function listModels() {
  const { models } = await ask("/v1/models");
  byId("models").tBodies[0].replaceChildren(...models.map((model) => {
    const row = document.createElement("tr");
    const versions = model.model_version_status.map((v) =>
      isAvailable(v) ? v.version : `${v.version} (${v.state.toLowerCase()})`);
    const labels = Object.entries(model.labels).map(([label, version]) => `${label} = ${version}`);
    for (const text of [model.name, versions.join(", "), labels.join(", ")]) {
      row.insertCell().textContent = text;
    }
    return row;
  }));
  fill(byId("model"), models.map((model) => model.name));
  byId("model").onchange = () => chooseModel(models.find((m) => m.name === byId("model").value));
  if (models.length) await chooseModel(models[0]);
}

async function chooseModel(model) {
  fill(byId("version"), model.model_version_status.filter(isAvailable).map((v) => v.version));
  await chooseVersion();
}

async function chooseVersion() {
  const { metadata } = await ask(`${modelPath()}/metadata`);
  signatures = metadata.signature_def.signature_def;
  // Only signatures whose inputs can be typed in: text, and one number for each row.
  const names = Object.keys(signatures).sort().filter((name) => {
    const inputs = Object.values(signatures[name].inputs);
    return inputs.length && inputs.some((input) => input.dtype === "DT_STRING") &&
      inputs.every((input) => (input.tensor_shape.dim || []).length === 1);
  });
  fill(byId("signature"), names);
  if (names.includes("serving_default")) byId("signature").value = "serving_default";
  chooseSignature();
}

function chooseSignature() {
  const signature = signatures[byId("signature").value];
  byId("answer").hidden = true;
  byId("send").disabled = !signature;
  show(signature ? "" : "This model has no signature that takes text.", !signature);
  const texts = [];
  const numbers = document.createElement("div");
  numbers.className = "numbers";
  for (const [name, input] of Object.entries(signature ? signature.inputs : {}).sort()) {
    const isText = input.dtype === "DT_STRING";
    const label = document.createElement("label");
    const field = document.createElement(isText ? "textarea" : "input");
    field.name = name;
    field.required = true;
    if (!isText) {
      field.type = "number";
      field.step = INTEGERS.includes(input.dtype) ? "1" : "any";
      if (name in START) field.value = START[name];
    }
    label.append(name, field);
    if (isText) texts.push(label);
    else numbers.append(label);
  }
  byId("inputs").replaceChildren(...texts, numbers);
}

async function send(event) {
  event.preventDefault();
  const name = byId("signature").value;
  const inputs = {};
  for (const field of byId("inputs").querySelectorAll("textarea, input")) {
    inputs[field.name] = [field.type === "number" ? Number(field.value) : field.value];
  }
  byId("send").disabled = true;
  byId("answer").hidden = true;
  show("running ...");
  const begin = performance.now();
  try {
    let { outputs } = await ask(`${modelPath()}:predict`, { signature_name: name, inputs });
    const names = Object.keys(signatures[name].outputs);
    if (names.length === 1) outputs = { [names[0]]: outputs };
    const rows = [];
    for (const [key, value] of Object.entries(outputs).sort(([a], [b]) => (a < b ? -1 : 1))) {
      const term = document.createElement("dt");
      const description = document.createElement("dd");
      const first = value[0];
      term.textContent = key;
      description.textContent = typeof first === "string" ? first : asText(first);
      // Show the text first, then the numbers.
      if (key === "text") rows.unshift(term, description);
      else rows.push(term, description);
    }
    byId("outputs").replaceChildren(...rows);
    byId("answer").hidden = false;
    show(`${((performance.now() - begin) / 1000).toFixed(2)} s`);
  } catch (error) {
    show(error.message, true);
  } finally {
    byId("send").disabled = false;
  }
}

byId("version").onchange = () => chooseVersion().catch((error) => show(error.message, true));
byId("signature").onchange = chooseSignature;
byId("form").onsubmit = send;
listModels().catch((error) => show(error.message, true));
