// The page: searches, and shows what is found. The address says what is searched for, so that it can be shared.

import { silence } from "./player.js";
import { barsFor, show } from "./views.js";

const find = (selector) => document.querySelector(selector);
const [form, text, file, kind, count] = ["#search", "#text", "#file", "#kind", "#count"].map(find);
const KINDS = { symbolic: "score or MIDI", audio: "recording", text: "text", feature: "features" };
let searches = 0; // that were begun: the answer to an earlier one is not shown any more
let uploaded = null; // the file that was searched with last, for other filters

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error ? said.error.message : `The server failed (${answer.status}).`);
  return said;
}

function tell(status, problem = "") {
  find("#status").textContent = status;
  find("#problem").textContent = problem;
}

// ---------- addresses ----------

function asked() {
  const address = new URLSearchParams(location.search);
  return { q: address.get("q"), like: address.get("like"), kind: address.get("kind") || "", count: address.get("count") || "10" };
}

function addressOf(wanted) {
  const address = new URLSearchParams();
  for (const name of ["q", "like", "kind"]) if (wanted[name]) address.set(name, wanted[name]);
  if (wanted.count !== "10") address.set("count", wanted.count);
  const said = address.toString();
  return said ? `/?${said}` : "/";
}

function go(wanted) {
  const address = addressOf(wanted);
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  return fromAddress();
}

function fromAddress() {
  const wanted = asked();
  uploaded = null;
  file.value = "";
  text.value = wanted.q || "";
  kind.value = wanted.kind;
  count.value = wanted.count;
  if (!wanted.q && !wanted.like) {
    searches++;
    clear();
    return tell("");
  }
  const address = new URLSearchParams({ top_k: wanted.count });
  if (wanted.kind) address.set("modality", wanted.kind);
  address.set(...(wanted.like ? ["like", wanted.like] : ["q", wanted.q]));
  return search(() => ask(`/search?${address}`), wanted.like ? null : `“${wanted.q}”`);
}

// ---------- searches ----------

function clear() {
  silence();
  find("#results").replaceChildren();
}

async function search(request, name) {
  const number = ++searches;
  clear();
  tell("Searching…");
  try {
    const records = await request();
    if (number !== searches) return;
    records.forEach(add);
    const [first] = records;
    const of = name || (first ? first.query : "this");
    const remarks = first && first.remarks && first.remarks.length ? ` Read with remarks: ${first.remarks.join("; ")}.` : "";
    tell((first ? `${records.length} closest to ${of}.` : `Nothing of this kind is in the collection.`) + remarks);
    document.title = `${of} – CLaMP 3 search`;
  } catch (error) {
    if (number === searches) tell("", error.message);
  }
}

function searchFile(chosen) {
  if (location.search) history.pushState(null, "", "/"); // a file has no address that others could open
  uploaded = chosen;
  text.value = "";
  const body = new FormData();
  body.set("file", chosen);
  body.set("top_k", count.value);
  if (kind.value) body.set("modality", kind.value);
  return search(() => ask("/search", { method: "POST", body }), chosen.name);
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    load(entry.target);
  }
}, { rootMargin: "300px" });

function add(record) {
  const item = find("#result").content.cloneNode(true).firstElementChild;
  const facts = [`similarity ${record.cosine.toFixed(3)}`, `closer than ${record.percentile} % of the collection`, KINDS[record.modality]];
  for (const [name, value] of Object.entries(record.metadata)) facts.push(`${name}: ${value}`);
  item.querySelector("h2").textContent = `${record.rank}. ${record.file}`;
  item.querySelector(".facts").textContent = facts.filter(Boolean).join(" · ");
  item.querySelector(".save").href = `/files/${record.id}/raw`;
  item.querySelector(".like").addEventListener("click", () => {
    go({ like: record.id, kind: kind.value, count: count.value });
    text.focus();
  });
  item.querySelector(".view").dataset.id = record.id;
  find("#results").append(item);
  seen.observe(item.querySelector(".view"));
}

async function load(place) {
  let remarks;
  try {
    const found = await ask(`/files/${place.dataset.id}?bars=${barsFor(place)}`);
    if (!place.isConnected) return;
    remarks = show(place, found);
  } catch (error) {
    remarks = [`Not shown: ${error.message}`];
  }
  place.parentElement.querySelector(".remarks").textContent = remarks.join(" · ");
}

// ---------- what the user does ----------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (text.value.trim()) go({ q: text.value.trim(), kind: kind.value, count: count.value });
  else if (uploaded) searchFile(uploaded);
  else tell("", "Type what you are looking for, or choose a file.");
});
file.addEventListener("change", () => { if (file.files.length) searchFile(file.files[0]); });
for (const filter of [kind, count]) {
  filter.addEventListener("change", () => {
    if (uploaded) searchFile(uploaded);
    else go({ ...(text.value.trim() ? { q: text.value.trim() } : asked()), kind: kind.value, count: count.value });
  });
}
addEventListener("popstate", fromAddress);
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) searchFile(event.dataTransfer.files[0]);
});

// ---------- start ----------

async function waitForCollection() {
  const [progress, bar] = ["#progress", "#bar"].map(find);
  for (;;) {
    const now = await ask("/healthz");
    find("#collection").textContent = now.collection;
    file.accept = now.extensions.join(",");
    if (now.state === "failed") {
      progress.hidden = true;
      throw new Error(now.reason);
    }
    progress.hidden = now.state === "ready";
    if (now.state === "ready") {
      const failures = find("#failures");
      failures.hidden = !now.failures.length;
      failures.querySelector("summary").textContent = `${now.failures.length} files could not be read`;
      failures.querySelector("ul").replaceChildren(...now.failures.map((failure) => (
        Object.assign(document.createElement("li"), { textContent: `${failure.file}: ${failure.reason}` })
      )));
      return;
    }
    if (now.total) Object.assign(bar, { max: now.total, value: now.done });
    find("#far").textContent = now.total ? `${now.done} of ${now.total} files` : "";
    await new Promise((resolve) => { setTimeout(resolve, 500); });
  }
}

waitForCollection().then(fromAddress).catch((error) => tell("", error.message));
