// The page of the app: what is uploaded, what is asked for, and what came of it. It asks this server alone.

import { ask as askServer } from "./ask.js";
import { Files } from "./files.js";
import { ResultView } from "./result.js";

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const STAGES = {
  reading: "Reading the files",
  image_encoder: "Looking at the images",
  geometry_encoder: "Looking at what is known",
  aggregator: "Comparing the views",
  dense_head: "Making depth and points",
  showing: "Preparing the scene to be looked at",
};
const CHECK_AFTER = 300; // ms without a change, before the server is asked what the call would be

let visit = null; // the path of this page's visit
let busy = false;
let checking = 0;
let ended = false;

/** Ask the server about this visit. */
const ask = (path, options) => askServer(`${visit}/${path}`, options);
const post = (path, value = {}) => ask(path, { method: "POST", body: JSON.stringify(value) });

/** What is shown of an error; the name of a file in front of it stays as it is. */
function sentence({ message }) {
  const text = /^[a-z]+ /.test(message) ? message.charAt(0).toUpperCase() + message.slice(1) : message;
  return text.replace(/\.?$/, ".");
}

const files = new Files(about, ask, {
  changed: () => changed(),
  problem: (text) => ($("upload-problem").textContent = text),
  sentence,
});
const result = new ResultView(about, ask, () => visit);

start().catch((error) => end(sentence(error)));

async function start() {
  $("where").textContent = about.where;
  $("remark").textContent = about.remark;
  $("remark").hidden = !about.remark;
  const { min, max } = about.views;
  Object.assign($("most"), { min, max, value: about.usual });
  for (const size of about.sizes) $("sizes").append(Object.assign(document.createElement("option"), { value: size }));
  $("size-note").textContent = about.sides
    ? `WIDTHxHEIGHT, sides from ${about.sides[0]} to ${about.sides[1]} in steps of ${about.sides[2]}; empty: the nearest that is usual.`
    : `One of ${about.sizes.join(", ")}; empty: the nearest.`;
  visit = `visits/${(await askServer("visits", { method: "POST", body: "{}" })).token}`;
  listen();
  window.addEventListener("pagehide", () => navigator.sendBeacon(`${visit}/leave`, "{}"));
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());
  document.documentElement.dataset.state = "ready";
  changed();
}

function listen() {
  const events = new EventSource(`${visit}/events`);
  events.addEventListener("message", (event) => show(JSON.parse(event.data)));
  events.addEventListener("ended", () => {
    events.close();
    end("This visit has ended, and its files were deleted. Load the page again.");
  });
  events.addEventListener("error", () => {
    if (ended) return;
    $("problem").textContent = "The connection to the server is interrupted; it is tried again.";
    if (events.readyState === EventSource.CLOSED) end("The server has ended, or this visit has. Load the page again.");
  });
  events.addEventListener("open", () => ($("problem").textContent = ""));
}

function end(text) {
  ended = true;
  $("problem").textContent = text;
  $("status").textContent = "";
  for (const control of $("request").elements) control.disabled = true;
  document.documentElement.dataset.state = "ended";
}

/** What the page asks for. */
function options(numbers) {
  return {
    files: numbers,
    every: $("every").valueAsNumber,
    max_views: $("most").valueAsNumber,
    size: $("size").value.trim(),
    confidence_percentile: $("percentile").valueAsNumber,
    mask_edges: $("edges").checked,
  };
}

function changed() {
  $("go").disabled = ended || busy || !files.used.length || files.uploading;
  $("all-files").hidden = !files.entries.length;
  clearTimeout(checking);
  checking = setTimeout(check, CHECK_AFTER);
}

/** Say what the call would be before it is asked for. */
async function check() {
  const note = $("views-note");
  const numbers = files.numbers;
  if (ended || !numbers.length || numbers.length < files.used.length || !$("request").checkValidity()) {
    note.textContent = "";
    note.className = "faint";
    return;
  }
  try {
    const found = await post("check", options(numbers));
    const of = files.used.reduce((sum, entry) => sum + (entry.facts?.frames ?? 1), 0);
    note.className = "faint";
    note.textContent = `Uses ${found.count} of ${of}: ${found.count > 4 ? `${found.first.join(", ")}, ... ${found.last}` : [...new Set([...found.first, found.last])].join(", ")}.`;
  } catch (error) {
    if (busy || files.numbers.length < files.used.length) return; // they were used meanwhile
    note.className = "problem";
    note.textContent = sentence(error);
  }
}

$("request").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("problem").textContent = "";
  setBusy(true, "Sending the files");
  try {
    // Those of the last call were deleted after it.
    const numbers = await files.upload();
    await post("call", options(numbers));
  } catch (error) {
    setBusy(false);
    $("problem").textContent = sentence(error);
  }
});
$("request").addEventListener("input", (event) => event.target.id !== "choose" && changed());
$("stop").addEventListener("click", async () => {
  $("status").textContent = "Stopping";
  await post("stop").catch((error) => ($("problem").textContent = sentence(error)));
});
$("tick").addEventListener("click", () => files.useAll(true));
$("untick").addEventListener("click", () => files.useAll(false));
$("clear").addEventListener("click", () => files.clear());

function setBusy(value, text = "") {
  busy = value;
  $("stop").hidden = !busy;
  $("progress").hidden = !busy;
  if (busy) $("progress").removeAttribute("value");
  $("status").textContent = text;
  changed();
}

let endedCall = 0; // number of the last call whose end was shown
let finished = 0; // number of the result that is shown

function show({ call, result: facts }) {
  const active = call !== null && (call.state === "waiting" || call.state === "running");
  if (active) {
    if (!busy) setBusy(true);
    showProgress(call);
    return;
  }
  if (call && call.number !== endedCall) {
    endedCall = call.number;
    files.forgetUsed();
    setBusy(false, call.state === "cancelled" ? "Stopped." : "");
    $("problem").textContent = call.state === "failed" ? sentence(new Error(call.problem)) : "";
    document.documentElement.dataset.state = call.state;
  }
  if (facts && facts.number !== finished) {
    finished = facts.number;
    $("nothing").hidden = true;
    $("shown").hidden = false;
    $("status").textContent = `Done in ${facts.total.toFixed(2)} s: ${facts.points.toLocaleString("en")} points from ${facts.views.length} view${facts.views.length > 1 ? "s" : ""}.`;
    result.show(facts);
  }
}

function showProgress(call) {
  const bar = $("progress");
  if (call.state === "waiting") {
    $("status").textContent = call.ahead ? `Waiting: ${call.ahead} before you` : "Waiting";
    bar.removeAttribute("value");
    return;
  }
  const text = STAGES[call.stage] ?? call.stage;
  $("status").textContent = call.total > 1 ? `${text}: ${call.done} of ${call.total}` : text;
  if (call.total) bar.value = call.done / call.total;
  else bar.removeAttribute("value");
}
