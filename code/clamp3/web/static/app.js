// The page: searches, and shows what is found. The address says what is searched for, so that it can be shared.

import { ask } from "./asking.js";
import { silence } from "./player.js";
import { resultOf } from "./results.js";

const find = (selector) => document.querySelector(selector);
const [form, text, file, kind, count, passages] = ["#search", "#text", "#file", "#kind", "#count", "#passages"].map(find);
const [column, operator, value] = ["#column", "#operator", "#value"].map(find);
const MODALITIES = ["symbolic"]; // of the kinds to choose from, those that the server calls so
const SIGNS = { "!=": "≠", "<=": "≤", ">=": "≥" };
const names = new Map(); // of files, by their ids
let folder = ""; // in which all files are
let searches = 0; // that were begun: the answer to an earlier one is not shown any more
let wanted = asked(); // what is searched for, as in the address
let uploaded = null; // the file that is searched with, if it is one

// A file's name without the folder that all have in common.
const shortened = (name) => (folder && name.startsWith(folder) ? name.slice(folder.length) : name);

function tell(status, problem = "") {
  find("#status").textContent = status;
  find("#problem").textContent = problem;
}

// ---------- addresses ----------

function asked() {
  const address = new URLSearchParams(location.search);
  return {
    q: address.get("q"),
    like: address.get("like"),
    also: address.getAll("also"),
    without: address.getAll("without"),
    where: address.getAll("where"),
    kind: address.get("kind") || "",
    passages: address.has("passages"),
    count: address.get("count") || "10",
  };
}

function addressOf(some) {
  const address = new URLSearchParams();
  for (const name of ["q", "like", "kind"]) if (some[name]) address.set(name, some[name]);
  for (const name of ["also", "without", "where"]) for (const one of some[name]) address.append(name, one);
  if (some.passages) address.set("passages", "1");
  if (some.count !== "10") address.set("count", some.count);
  const said = address.toString();
  return said ? `/?${said}` : "/";
}

// Searches for what was wanted with some `changes`. A file that was uploaded stays, unless they name something else.
function go(changes) {
  const next = { ...wanted, ...changes };
  if (uploaded && !next.q && !next.like) {
    wanted = next;
    return searchFile(uploaded);
  }
  const address = addressOf(next);
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  return fromAddress();
}

function fromAddress() {
  wanted = asked();
  uploaded = null;
  file.value = "";
  text.value = wanted.q || "";
  showTerms();
  if (!wanted.q && !wanted.like) {
    searches++;
    clear();
    return tell("");
  }
  const address = new URLSearchParams(terms());
  address.set(...(wanted.like ? ["like", wanted.like] : ["q", wanted.q]));
  return search(() => ask(`/search?${address}`), wanted.like ? null : `“${wanted.q}”`);
}

// What is asked beside the query: pairs of names and values.
function terms() {
  const some = [["top_k", wanted.count]];
  if (wanted.kind) some.push([MODALITIES.includes(wanted.kind) ? "modality" : "kind", wanted.kind]);
  for (const name of ["also", "without", "where"]) some.push(...wanted[name].map((one) => [name, one]));
  if (wanted.passages) some.push(["passages", "true"]);
  return some;
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
    for (const record of records) {
      names.set(record.id, shortened(record.file));
      find("#results").append(resultOf({ ...record, name: shortened(record.file) }, { why, more, also, without }));
    }
    const [first] = records;
    const of = name || (first ? shortened(first.query) : "this");
    const remarks = first && first.remarks && first.remarks.length ? ` Read with remarks: ${first.remarks.join("; ")}.` : "";
    tell((first ? `${records.length} closest to ${of}.` : `Nothing of this kind is in the collection.`) + remarks);
    document.title = `${of} – CLaMP 3 search`;
  } catch (error) {
    if (number === searches) tell("", error.message);
  }
}

function bodyWith(chosen, fields) {
  const body = new FormData();
  body.set("file", chosen);
  for (const [name, one] of fields) body.append(name, one);
  return body;
}

function searchFile(chosen) {
  if (location.search) history.pushState(null, "", "/"); // a file has no address that others could open
  uploaded = chosen;
  wanted = { ...wanted, q: null, like: null };
  text.value = "";
  showTerms();
  return search(() => ask("/search", { method: "POST", body: bodyWith(chosen, terms()) }), chosen.name);
}

// ---------- what a result offers ----------

function why(record) {
  const fields = [["id", record.id], ["top_k", 2000]];
  for (const name of ["also", "without"]) fields.push(...wanted[name].map((one) => [name, one]));
  if (uploaded) return ask("/explain", { method: "POST", body: bodyWith(uploaded, fields) });
  fields.push(wanted.like ? ["like", wanted.like] : ["q", wanted.q]);
  return ask(`/explain?${new URLSearchParams(fields)}`);
}

function more(record) {
  uploaded = null;
  go({ q: null, like: record.id, also: [], without: [] });
  text.focus();
}

function also(record) {
  go({ also: [...new Set([...wanted.also, record.id])], without: wanted.without.filter((id) => id !== record.id) });
  find("#terms button:last-of-type")?.focus();
}

function without(record) {
  go({ without: [...new Set([...wanted.without, record.id])], also: wanted.also.filter((id) => id !== record.id) });
  find("#terms button:last-of-type")?.focus();
}

// ---------- what else is asked for ----------

function showTerms() {
  [kind.value, count.value, passages.checked] = [wanted.kind, wanted.count, wanted.passages];
  const list = find("#terms");
  list.replaceChildren();
  if (wanted.like) addTerm("like", wanted.like, withoutLike);
  if (uploaded) addTerm("like", null, () => { uploaded = null; withoutLike(); }).textContent = uploaded.name;
  for (const name of ["also", "without", "where"]) {
    for (const one of wanted[name]) addTerm(name, one, () => go({ [name]: wanted[name].filter((other) => other !== one) }));
  }
}

// The first file that counts too takes the place of the query; without one, nothing is left to search for.
function withoutLike() {
  const [next, ...others] = wanted.also;
  go(next ? { like: next, also: others } : { like: null, without: [] });
}

// A term that can be taken back, and the place of its name.
function addTerm(role, one, remove) {
  const item = find("#term").content.cloneNode(true).firstElementChild;
  const [label, button] = ["span", "button"].map((name) => item.querySelector(name));
  const said = role === "where" ? one.replace(/(!=|<=|>=)/, (sign) => SIGNS[sign]) : names.get(one);
  item.querySelector("b").textContent = { like: "Like", also: "Also like", without: "Not like", where: "Where" }[role];
  item.classList.add(role);
  label.textContent = said || "…";
  if (!said && one) {
    ask(`/files/${one}/name`).then((known) => {
      names.set(one, shortened(known.file));
      label.textContent = names.get(one);
    }).catch(() => { label.textContent = "a file that is not here"; });
  }
  button.addEventListener("click", () => { remove(); text.focus(); });
  find("#terms").append(item);
  return label;
}

async function offerTerms() {
  const known = await ask("/collection");
  folder = known.folder;
  passages.closest("label").hidden = known.passages !== "ready";
  for (const option of kind.options) {
    const count = { "": 1, symbolic: (known.kinds.score || 0) + (known.kinds.midi || 0) }[option.value] ?? known.kinds[option.value];
    option.disabled = !count && option.value !== wanted.kind;
  }
  const columns = Object.keys(known.columns);
  find("#metadata").hidden = !columns.length;
  if (column.options.length !== columns.length) column.replaceChildren(...columns.map((name) => new Option(name, name)));
  const offer = () => find("#values").replaceChildren(...(known.columns[column.value] || []).map((one) => new Option(one, one)));
  column.addEventListener("change", offer);
  offer();
}

function addCondition() {
  const condition = `${column.value}${operator.value}${value.value.trim()}`;
  value.value = "";
  if (wanted.q || wanted.like || uploaded) return go({ where: [...new Set([...wanted.where, condition])] });
  wanted.where = [...new Set([...wanted.where, condition])];
  return showTerms();
}

// ---------- what the user does ----------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = text.value.trim();
  if (typed) go({ q: typed, like: null });
  else if (uploaded) searchFile(uploaded);
  else if (wanted.like) go({});
  else tell("", "Type what you are looking for, or choose a file.");
});
file.addEventListener("change", () => { if (file.files.length) searchFile(file.files[0]); });
for (const filter of [kind, count, passages]) {
  filter.addEventListener("change", () => {
    const typed = text.value.trim();
    const chosen = { kind: kind.value, count: count.value, passages: passages.checked };
    go({ ...(typed ? { q: typed, like: null } : {}), ...chosen });
  });
}
find("#add").addEventListener("click", addCondition);
value.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  addCondition();
});
addEventListener("popstate", fromAddress);
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) searchFile(event.dataTransfer.files[0]);
});

// ---------- start ----------

const pause = () => new Promise((resolve) => { setTimeout(resolve, 500); });

function showProgress(label, done, total) {
  const bar = find("#bar");
  find("#progress").hidden = !label;
  find("#progress label").textContent = label;
  if (total) Object.assign(bar, { max: total, value: done });
  else bar.removeAttribute("value");
  find("#far").textContent = total ? `${done} of ${total} files` : "";
}

async function waitForCollection() {
  for (;;) {
    const now = await ask("/healthz");
    find("#collection").textContent = now.collection;
    file.accept = now.extensions.join(",");
    if (now.state === "failed") {
      showProgress("");
      throw new Error(now.reason);
    }
    if (now.state === "ready") {
      showProgress("");
      showFailures(now.failures);
      return;
    }
    showProgress("Reading the collection", now.done, now.total);
    await pause();
  }
}

function showFailures(issues) {
  const failures = find("#failures");
  failures.hidden = !issues.length;
  failures.querySelector("summary").textContent = `${issues.length} files could not be read`;
  failures.querySelector("ul").replaceChildren(...issues.map((failure) => (
    Object.assign(document.createElement("li"), { textContent: `${failure.file}: ${failure.reason}` })
  )));
}

async function waitForPassages() {
  const note = find("#finding");
  for (;;) {
    const { state, done, total } = (await ask("/healthz")).passages;
    note.hidden = state !== "making";
    if (state !== "making") return state === "ready" ? offerTerms() : undefined;
    note.textContent = `Looking into the pieces, to find bars and seconds: ${total ? `${done} of ${total} files` : "…"}`;
    await pause();
  }
}

waitForCollection().then(offerTerms).then(() => {
  fromAddress();
  return waitForPassages();
}).catch((error) => tell("", error.message));
